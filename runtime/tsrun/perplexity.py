"""What `tsrun perplexity` does: how well a model predicts a text, by the logits after each of its tokens.

The text is cut into windows, each of which begins a sequence of its own and is scored but for its first token. A step has a chunk of one
window and as many sequences as tokens: the first has them all, the others none, and each gives the logits of one row. Dimensions: N tokens
of the text, T tokens in the step, V vocabulary.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsrun.artifact import PROGRAM, Artifact, open_artifact
from tsrun.errors import ArtifactError, RequestError, UsageError
from tsrun.executor import Executor
from tsrun.generate import loading_progress
from tsrun.limits import Limits
from tsrun.output import Output
from tsrun.program import Program, read_program
from tsrun.step import Ints, Step
from tsrun.threads import share_of_threads
from tsrun.tokenizer import Tokenizer
from tsrun.verification import files_read_before

WINDOW = 1024
CHUNK = 128
_PAGE = 16
_ROWS = 16
"""Of logits that are looked at together."""


@dataclass(frozen=True, slots=True)
class Score:
    """tokens: that were scored; nats: the sum of what they cost; windows: of the text."""

    tokens: int
    nats: float
    windows: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)


def perplexity(path: Path, file: Path, most_tokens: int | None, threads: int | None, *, as_json: bool) -> None:
    """Print the score of a text file."""
    text = _read(file)
    artifact = open_artifact(path, progress=loading_progress(), memory=files_read_before())
    tokenizer = Tokenizer.of(artifact)
    begin = tokenizer.encode("")
    ids = tokenizer.encode(text)[len(begin) :][:most_tokens]
    found = score(artifact, begin, ids, threads)
    if as_json:
        print(json.dumps({"tokens": found.tokens, "windows": found.windows, "perplexity": found.perplexity, "nats": found.nats}))
    else:
        print(f"perplexity {found.perplexity:.4f} of {found.tokens} tokens in {found.windows} windows of {WINDOW}")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(str(file), f"can not be read ({error.strerror})", "give the path of a text file") from None
    except UnicodeDecodeError as error:
        raise RequestError(str(file), f"is not UTF-8 at byte {error.start}", "give a text file in UTF-8") from None


def score(artifact: Artifact, begin: Sequence[int], ids: Sequence[int], threads: int | None = None) -> Score:
    """begin: what each window begins with, which is not text."""
    artifact.require_weights()
    where, manifest = str(artifact.path), artifact.manifest
    if manifest.ranks > 1:
        raise UsageError(where, f"it is for {manifest.ranks} ranks, and a text is scored by one", "compile it without --mesh")
    if manifest.gives == "tokens":
        raise ArtifactError(where, "the model gives tokens, and there are no logits to score by", "use one whose entry returns logits")
    longest = min(WINDOW, manifest.context or WINDOW)
    width = longest - len(begin)
    if len(begin) + min(len(ids), width) < 2:
        raise RequestError("text", f"it has {len(ids)} tokens, none of which follows another", "give a longer one")
    program = read_program(artifact.file(PROGRAM))
    limits = window_limits(program, longest)
    executor = Executor(artifact, program, 0, limits, share_of_threads(threads, 1), screen=False)
    tokens, nats, windows = 0, 0.0, 0
    for first in range(0, len(ids), width):
        window = np.array([*begin, *ids[first : first + width]], dtype=np.int32)
        for step in window_steps(window, len(limits.pages)):
            targets = window[step.positions[0] + 1 :][: len(step.ids)]
            nats += _nats(executor.run(step), targets)
            tokens += len(targets)
        windows += 1
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{min(first + width, len(ids))} of {len(ids)} tokens" + ("\r\033[K" if first + width >= len(ids) else ""))
            sys.stderr.flush()
    return Score(tokens, nats, windows)


def window_limits(program: Program, longest: int) -> Limits:
    """What an executor needs to run a window of so many tokens."""
    pages = -(-longest // _PAGE)
    return Limits(_PAGE, pages, CHUNK, CHUNK, pages * _PAGE, tuple((window, pages) for window in program.windows))


def window_steps(window: Ints, num_groups: int) -> Iterator[Step]:
    """A window's chunks, whose outputs together are the logits after each of its tokens. Its pages are those of the caches, in order."""
    pages = np.arange(-(-len(window) // _PAGE), dtype=np.int32)
    updates = [np.stack((np.full_like(pages, g), np.zeros_like(pages), pages, pages), axis=1) for g in range(num_groups)]
    for first in range(0, len(window), CHUNK):
        ids = window[first : first + CHUNK]
        T = len(ids)
        positions = np.arange(first, first + T, dtype=np.int32)
        spans, lengths = np.full((T, 2), T, dtype=np.int32), np.zeros(T, dtype=np.int32)
        spans[0], lengths[0] = (0, T), first + T
        yield Step(
            ids=ids,
            positions=positions,
            slots=np.tile(positions, (num_groups, 1)),
            spans=spans,
            lengths=lengths,
            last=np.arange(T, dtype=np.int32),
            keep=np.zeros(T, dtype=np.int32),
            table_rows=np.zeros(T, dtype=np.int32),
            table_updates=np.concatenate(updates if first == 0 else [np.zeros((0, 4), dtype=np.int32)]),
        )


def _nats(output: Output, targets: Ints) -> float:
    """What the targets cost, of which row t has the logits that come before."""
    logits_TV = output.numbers()
    total = 0.0
    for first in range(0, len(targets), _ROWS):
        some = targets[first : first + _ROWS]
        rows = logits_TV[first : first + len(some)]
        rows = rows - rows.max(axis=1, keepdims=True)
        total += float((np.log(np.exp(rows).sum(axis=1, dtype=np.float64)) - rows[np.arange(len(some)), some]).sum())
    return total
