"""The bytes of tokens: those of a text's tokens join to the text, whatever kind of tokenizer it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.toy import byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tsc.artifact.vocabulary import split_tokenizer
from tsrun.encoder import read_encoder
from tsrun.errors import RequestError
from tsrun.tokenizer import Tokenizer as Ours


def of_bytes() -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["\n\n", "né"])
    return tokenizer


def of_pieces() -> Tokenizer:
    """As sentencepiece has them: a sign for the space, bytes for what is no piece."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "é", "▁a", "ab", "▁ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    model = models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    return tokenizer


KINDS = {"bytes": of_bytes(), "pieces": of_pieces()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_split", [False, True])
def test_those_of_a_texts_tokens_join_to_it(kind: str, is_split: bool, tmp_path: Path) -> None:
    files = {"tokenizer.json": KINDS[kind].to_str().encode()}
    for name, data in (split_tokenizer(files) if is_split else files).items():
        (tmp_path / name).write_bytes(data)
    assert (tmp_path / "vocabulary.safetensors").is_file() == is_split
    encoder = read_encoder(tmp_path)
    found = encoder.token_bytes()
    assert found is not None
    assert {found.of[index] for index in found.special} == ({b"<eos>"} if kind == "pieces" else {b"<bos>", b"<eos>"})

    @given(st.text(alphabet="ab é\n漢🙂x", max_size=20))
    def joins(text: str) -> None:
        ids = encoder.encode(text, add_special_tokens=False)
        assert b"".join(found.of[index] for index in ids) == text.encode()

    joins()


def test_words_without_bytes_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    with pytest.raises(RequestError, match="constraint: the words of this tokenizer have no bytes of their own"):
        Ours(tmp_path).token_bytes()
