"""The process of an engine that writes what a script says. All of it is real but the model's choices: each answer that the script knows
is constrained to the one text that it may be.

A script is a folder of JSON files (`Task`), read anew for each request: `AGENT.json` is about the requests in whose prompt its mark is.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tsrun.constraint import Constraint
from tsrun.engine import Engine
from tsrun.generation import EmbeddingRequest, GenerationRequest
from tsrun.serve import engine_process

FOLDER = "TSRUN_TEST_SCRIPT"
"""The environment's variable that names the folder."""
_OFFERS_TOOLS = "<tools>"
_RESULT = "<tool_response>\n"
ASIDE = "A short title"
"""What is written where no tools are offered: clients ask for titles and the like."""


@dataclass(frozen=True)
class Task:
    """mark: a text by which its prompts are known; turns: what the model writes after as many results of tools, the last from then on."""

    mark: str
    turns: list[str]

    def write(self, folder: Path, name: str) -> None:
        (folder / f"{name}.json").write_text(json.dumps(asdict(self)))

    def next_text(self, prompt: str) -> str | None:
        """What follows a prompt; None where it is of something else."""
        if self.mark not in prompt:
            return None
        if _OFFERS_TOOLS not in prompt:
            return ASIDE
        num_results = prompt.partition(self.mark)[2].count(_RESULT)
        return self.turns[min(num_results, len(self.turns) - 1)]


def call(name: str, **arguments: object) -> str:
    """A call in the form in which models without a template for tools are asked to write it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def scripted(engine: Engine, request: GenerationRequest) -> GenerationRequest:
    """The request, with what its answer must be; unless it says so itself."""
    assert engine.tokenizer is not None
    prompt = engine.tokenizer.decode(request.prompt)
    tasks = [Task(**json.loads(path.read_text())) for path in sorted(Path(os.environ[FOLDER]).glob("*.json"))]
    texts = [text for task in tasks if (text := task.next_text(prompt)) is not None]
    if request.constraint is not None or not texts:
        return request
    return replace(request, constraint=Constraint("choice", json.dumps(texts[:1])))


def main() -> int:
    submit = Engine.submit

    def submit_scripted(self: Engine, request: GenerationRequest | EmbeddingRequest) -> int:
        assert isinstance(request, GenerationRequest)
        return submit(self, scripted(self, request))

    Engine.submit = submit_scripted  # type: ignore[method-assign]
    return engine_process.main()


if __name__ == "__main__":
    sys.exit(main())
