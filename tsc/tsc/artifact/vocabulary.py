"""A tokenizer as an artifact stores it: words and merges in arrays that are mapped, since to read them as text takes seconds.

Of a byte pair encoding, tokenizer.json then keeps all that comes before the merges: added tokens, normalizer, pre-tokenizer, and the
symbols that words are cut into. So `tokenizers` does exactly what it would do, up to the ids of a word's symbols. Does not: split what
is no byte pair encoding, or one that would read a text otherwise when split; its tokenizer.json stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_TOKENIZER = "tokenizer.json"
_VOCABULARY = "vocabulary.safetensors"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def split_tokenizer(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a tokenizer by name, with `vocabulary.safetensors` where the words were taken out of tokenizer.json."""
    split = _split(files[_TOKENIZER]) if _TOKENIZER in files else None
    return {**files, **(split or {})}


def _split(data: bytes) -> dict[str, bytes] | None:
    from tokenizers import Tokenizer

    try:
        stated = json.loads(Tokenizer.from_buffer(data).to_str())  # merges in one form, whichever the file has
    except Exception:  # the library raises bare Exception; whoever opens the artifact for text is told
        return None
    model, added = stated["model"], {token["content"]: token["id"] for token in stated["added_tokens"]}
    if model["type"] != "BPE" or not _can_split(model, added):
        return None
    words: dict[str, int] = model["vocab"]
    kept = {word: index for word, index in words.items() if _is_symbol(word, model)} | added
    arrays = _arrays(words, added, model["merges"], ignore_merges=model["ignore_merges"])
    stated["model"] = {**model, "vocab": dict(sorted(kept.items(), key=lambda item: item[1])), "merges": [], "ignore_merges": False}
    return {_TOKENIZER: json.dumps(stated, ensure_ascii=False, separators=(",", ":")).encode(), _VOCABULARY: arrays}


def _can_split(model: Mapping[str, Any], added: Mapping[str, int]) -> bool:
    words: Mapping[str, int] = model["vocab"]
    if model["dropout"] or model["continuing_subword_prefix"] or model["end_of_word_suffix"] or "" in words or "" in added:
        return False
    if any(words.get(token, index) != index or (token not in words and _is_symbol(token, model)) for token, index in added.items()):
        return False
    indices = {index: word for word, index in [*words.items(), *added.items()]}
    if len(indices) != len({*words, *added}):
        return False
    if not model["ignore_merges"]:
        return True
    # Whether a word is one of the vocabulary is then seen from its symbols: each must be a character, and each character a symbol.
    return len(model["unk_token"] or "  ") > 1 and all(character in words for word in words for character in word if word not in added)


def _is_symbol(word: str, model: Mapping[str, Any]) -> bool:
    """Whether a word may begin as this, before any merge."""
    return len(word) == 1 or word == model["unk_token"] or (model["byte_fallback"] and _BYTE.fullmatch(word) is not None)


def _arrays(words: Mapping[str, int], added: Mapping[str, int], merges: list[list[str]], *, ignore_merges: bool) -> bytes:
    """V ids, W of them words of the model, and M merges, ordered by their left halves and then by their right ones."""
    import numpy as np
    from safetensors.numpy import save

    by_id = {index: word.encode() for word, index in [*words.items(), *added.items()]}
    texts = [by_id.get(index, b"") for index in range(max(by_id) + 1)]
    ordered = sorted((word.encode(), index) for word, index in words.items())
    made = sorted((words[left], words[right], rank, words[left + right]) for rank, (left, right) in enumerate(merges))
    left_M, right_M, rank_M, result_M = np.array(made, dtype=np.int32).reshape(-1, 4).T
    arrays = {
        "text": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "begin": np.cumsum([0, *map(len, texts)], dtype=np.int32),  # [V + 1]: of each id's word in `text`; no id has the empty one
        "order": np.array([index for _, index in ordered], dtype=np.int32),  # [W]: ids by the bytes of their words
        "first": np.searchsorted(left_M, np.arange(len(texts) + 1)).astype(np.int32),  # [V + 1]: of each id's merges as the left half
        "right": right_M.copy(),
        "rank": rank_M.copy(),
        "result": result_M.copy(),
        "whole": np.array([ignore_merges], dtype=np.int32),  # whether a word that is one of the vocabulary is taken without its merges
    }
    return bytes(save(arrays))
