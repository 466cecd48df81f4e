"""Text to ids and back: `tokenizers`, without words and merges where the compiler took them out of tokenizer.json into arrays."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Library

from tsrun._core import Vocabulary
from tsrun.errors import ArtifactError
from tsrun.memory import give_back_memory
from tsrun.token_bytes import TokenBytes, token_bytes
from tsrun.weights import Weights

_AGAIN = "compile the artifact again"


class Encoder(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], shown: Collection[int] = ()) -> str:
        """Text without special tokens, but for those that are to be shown."""

    @property
    def special_ids(self) -> frozenset[int]: ...
    def id_of(self, token: str) -> int | None: ...
    def token_bytes(self) -> TokenBytes | None:
        """None where the words have no bytes of their own."""


def read_encoder(folder: Path) -> Encoder:
    """The encoder in a folder of tokenizer.json and, perhaps, vocabulary.safetensors."""
    file = folder / "tokenizer.json"
    try:
        library = Library.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ArtifactError(str(file), f"can not be read ({error})", _AGAIN) from None
    library.no_truncation()
    library.no_padding()
    words = folder / "vocabulary.safetensors"
    if words.is_file():
        return _SplitEncoder(library, words)
    give_back_memory()  # of the file's text and its parts, which is more than the encoder itself
    return _WholeEncoder(library)


class _WholeEncoder:
    """The library does it all."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.special_ids = _special_ids(library)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._library.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], shown: Collection[int] = ()) -> str:
        seen = [index for index in ids if index not in self.special_ids or index in shown]
        text: str = self._library.decode(seen, skip_special_tokens=False)
        return text

    def id_of(self, token: str) -> int | None:
        found: int | None = self._library.token_to_id(token)
        return found

    def token_bytes(self) -> TokenBytes | None:
        ids: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        words = [""] * (max(ids.values(), default=-1) + 1)
        for word, index in ids.items():
            words[index] = word
        return _token_bytes(self._library, words)


class _SplitEncoder:
    """The library knows no merges: it cuts a text into words and these into symbols; its decoder joins words that are looked up here."""

    def __init__(self, library: Any, file: Path) -> None:
        self._library = library
        self._decoder = library.decoder
        added = library.get_added_tokens_decoder()
        self.special_ids = _special_ids(library)
        weights = Weights(file)
        try:
            begin = _ints(weights, "begin")
            self._vocabulary = Vocabulary(
                text=np.frombuffer(weights.buffer("text", "u8"), np.uint8),
                begin=begin,
                order=_ints(weights, "order"),
                first=_ints(weights, "first"),
                right=_ints(weights, "right"),
                rank=_ints(weights, "rank"),
                result=_ints(weights, "result"),
                whole=bool(_ints(weights, "whole").any()),
            )
        except ValueError as error:
            raise ArtifactError(str(file), f"can not be read ({error})", _AGAIN) from None
        self._ids = range(len(begin) - 1)
        self._text, self._begin = weights.buffer("text", "u8"), begin
        # Of symbols, of added tokens, and of those that go around a text.
        largest = max([*library.get_vocab(with_added_tokens=False).values(), *added, *library.encode("").ids], default=-1)
        if largest >= len(self._ids):
            what = f"has {len(self._ids)} words, tokenizer.json the id {largest}"
            raise ArtifactError(str(file), what, _AGAIN)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        found = self._library.encode(text, add_special_tokens=add_special_tokens)
        return self._vocabulary.merge(found.ids, found.word_ids)

    def decode(self, ids: Sequence[int], shown: Collection[int] = ()) -> str:
        seen = [index for index in ids if index in self._ids and (index not in self.special_ids or index in shown)]
        words = self._vocabulary.words(seen)
        text: str = " ".join(words) if self._decoder is None else self._decoder.decode(words)
        return text

    def id_of(self, token: str) -> int | None:
        found: int | None = self._library.token_to_id(token)
        return self._vocabulary.find(token) if found is None else found

    def token_bytes(self) -> TokenBytes | None:
        text, begin = bytes(self._text), self._begin
        return _token_bytes(self._library, [text[begin[i] : begin[i + 1]].decode() for i in self._ids])


def _token_bytes(library: Any, words: list[str]) -> TokenBytes | None:
    added = library.get_added_tokens_decoder()
    found = token_bytes(words, added.keys(), json.loads(library.to_str())["decoder"])
    return None if found is None else TokenBytes(found, [index for index, token in added.items() if token.special])


def _special_ids(library: Any) -> frozenset[int]:
    return frozenset(index for index, token in library.get_added_tokens_decoder().items() if token.special)


def _ints(weights: Weights, name: str) -> NDArray[np.int32]:
    return np.frombuffer(weights.buffer(name, "i32"), np.int32)
