"""The text that pico learns: the sources of Python's standard library and its documentation's topics, which every installation has.

Files whose names fall, by their digest, into one part of `HELD_OUT` are kept for scoring. What there is depends on the version of Python.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = 16
"""One file of so many is held out."""
_LEFT_OUT = {"site-packages", "idlelib", "lib2to3", "pydoc_data", "encodings", "__pycache__"}
"""Other people's, tables of numbers, and what is read below as text."""


@dataclass(frozen=True)
class Corpus:
    train: list[str]
    held_out: list[str]


def read_corpus() -> Corpus:
    folder = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(folder).parts))
    train, held_out = [], []
    for name in names:
        try:
            text = (folder / name).read_text()
        except UnicodeDecodeError:  # those that test how other encodings are read
            continue
        if not text.strip():
            continue
        is_test = {"test", "tests"} & set(name.parts)
        digest = int.from_bytes(hashlib.sha256(name.as_posix().encode()).digest()[:4], "little")
        (held_out if digest % HELD_OUT == 0 and not is_test else train).append(text)
    return Corpus(_topics() + train, held_out)


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items())]
