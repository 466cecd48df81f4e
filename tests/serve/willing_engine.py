"""The process of an engine whose model wants to write what its prompt asks for, as `WRITE(a text in JSON)`: the logit of the text's next
token is the largest. All else is real: what a grammar does not allow is not written, and then the model goes on with what comes next."""

from __future__ import annotations

import json
import sys

import numpy as np

from tsrun.engine import Engine
from tsrun.generation import EmbeddingRequest, GenerationRequest
from tsrun.output import Output
from tsrun.sampler import Chosen, Draws
from tsrun.serve import engine_process

_BEGIN = "WRITE("
_wanted: dict[int, tuple[int, list[int]]] = {}  # by sampler: where the answer begins, and its tokens


def ask(text: str) -> str:
    """The prompt that has a text written."""
    return f"{_BEGIN}{json.dumps(text)}"


def main() -> int:
    submit, choose = Engine.submit, Draws.choose

    def submit_wanting(self: Engine, request: GenerationRequest | EmbeddingRequest) -> int:
        number = submit(self, request)
        assert self.tokenizer is not None
        _, found, rest = self.tokenizer.decode(request.prompt).rpartition(_BEGIN)
        if found:
            text, _ = json.JSONDecoder().raw_decode(rest)
            ids = [*self.tokenizer.encode_part(text), *self.artifact.manifest.eos_token_ids]
            _wanted[id(self._streams[number].sampler)] = len(request.prompt), ids
        return number

    def choose_wanted(self: Draws, logits: Output) -> Chosen:
        numbers = logits.numbers()
        for s, sampler in enumerate(self.samplers):
            begin, ids = _wanted.get(id(sampler), (0, []))
            rows = [row for row, _ in self.drafts.rows_of(s)] if sampler is not None else []
            for row, place in zip(rows, range(int(self.positions[s]) - begin - len(rows) + 1, len(ids)), strict=False):
                if place >= 0:
                    numbers[row, ids[place]] = np.float32(1000)
                    if logits.largest is not None:
                        logits.largest[row] = ids[place]
        return choose(self, logits)

    Engine.submit, Draws.choose = submit_wanting, choose_wanted  # type: ignore[method-assign]
    return engine_process.main()


if __name__ == "__main__":
    sys.exit(main())
