"""The files of an artifact's tokenizer as a checkpoint has them, without `vocabulary.safetensors`: words and merges are text again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

TOKENIZER = "tokenizer.json"
VOCABULARY = "vocabulary.safetensors"


def is_whole(folder: Path) -> bool:
    """Whether tokenizer.json says all, as it stands."""
    return not (folder / VOCABULARY).is_file()


def whole_tokenizer(folder: Path) -> dict[str, bytes]:
    """Every file of a tokenizer by its name. Of a large vocabulary: seconds, and some tens of MB."""
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file() and file.name != VOCABULARY}
    if not is_whole(folder):
        files[TOKENIZER] = _joined(files[TOKENIZER], load_file(folder / VOCABULARY))
    return files


def _joined(kept: bytes, arrays: dict[str, NDArray[np.generic]]) -> bytes:
    """tokenizer.json with the model's words and merges. What the arrays are: `tsc/tsc/artifact/vocabulary.py`."""
    text, begin = arrays["text"].tobytes(), arrays["begin"].tolist()
    words = [text[begin[i] : begin[i + 1]].decode() for i in range(len(begin) - 1)]
    left_M = np.repeat(np.arange(len(words)), np.diff(arrays["first"]))
    by_rank = np.argsort(arrays["rank"])
    lefts, rights = left_M[by_rank].tolist(), arrays["right"][by_rank].tolist()
    stated = json.loads(kept)
    stated["model"] |= {
        "vocab": {words[index]: index for index in sorted(arrays["order"].tolist())},
        "merges": [[words[left], words[right]] for left, right in zip(lefts, rights, strict=True)],
        "ignore_merges": bool(arrays["whole"].any()),
    }
    return json.dumps(stated, ensure_ascii=False, separators=(",", ":")).encode()
