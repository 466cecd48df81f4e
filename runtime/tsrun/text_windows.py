"""A text that is put to a model, window by window, for what the model makes of each of its tokens.

Each window begins a sequence of its own. A step has a chunk of one window and as many sequences as tokens: the first has them all, the
others none, and each gives the result of one row.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsrun.artifact import PROGRAM, Artifact
from tsrun.binding import Observe
from tsrun.errors import RequestError, UsageError
from tsrun.executor import Executor
from tsrun.limits import Limits
from tsrun.output import Output
from tsrun.program import Program, read_program
from tsrun.step import Ints, Step
from tsrun.threads import share_of_threads
from tsrun.tokenizer import Tokenizer

WINDOW = 1024
CHUNK = 128
_PAGE = 16


@dataclass(frozen=True, slots=True)
class Text:
    """begin: what each window begins with, which is not text."""

    begin: Sequence[int]
    ids: Sequence[int]


def read_text(file: Path) -> str:
    """Raises RequestError."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(str(file), f"can not be read ({error.strerror})", "give the path of a text file") from None
    except UnicodeDecodeError as error:
        raise RequestError(str(file), f"is not UTF-8 at byte {error.start}", "give a text file in UTF-8") from None


def encoded(artifact: Artifact, text: str, most_tokens: int | None) -> Text:
    """The first so many tokens of a text."""
    tokenizer = Tokenizer.of(artifact)
    begin = tokenizer.encode("")
    return Text(begin, tokenizer.encode(text)[len(begin) :][:most_tokens])


def run_text(artifact: Artifact, text: Text, threads: int | None, observe: Observe | None = None) -> Iterator[tuple[Ints, Step, Output]]:
    """Each step's window, the step, and what it gave, which is valid until the next. Says on a terminal how far it is."""
    artifact.require_weights()
    if artifact.manifest.ranks > 1:
        what = f"it is for {artifact.manifest.ranks} ranks, and a text is run by one"
        raise UsageError(str(artifact.path), what, "compile it without --mesh")
    longest = min(WINDOW, artifact.manifest.context or WINDOW)
    width = longest - len(text.begin)
    program = read_program(artifact.file(PROGRAM))
    limits = window_limits(program, longest)
    executor = Executor(artifact, program, 0, limits, share_of_threads(threads, 1), screen=False, observe=observe)
    for first in range(0, len(text.ids), width):
        window = np.array([*text.begin, *text.ids[first : first + width]], dtype=np.int32)
        for step in window_steps(window, limits.num_groups):
            yield window, step, executor.run(step)
        if sys.stderr.isatty():
            done, total = min(first + width, len(text.ids)), len(text.ids)
            sys.stderr.write(f"\r{done} of {total} tokens" + ("\r\033[K" if done == total else ""))
            sys.stderr.flush()


def window_limits(program: Program, longest: int) -> Limits:
    """What an executor needs to run a window of so many tokens."""
    pages = -(-longest // _PAGE)
    windows = tuple((window, pages) for window in program.windows)
    return Limits(_PAGE, pages, CHUNK, CHUNK, pages * _PAGE, windows, num_states=1 if program.states else 0)


def window_steps(window: Ints, num_groups: int) -> Iterator[Step]:
    """A window's chunks, whose outputs together are what comes after each of its tokens. Its pages are those of the caches, in order."""
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
            copies=np.zeros((0, 3), dtype=np.int32),
        )
