"""A tokenizer without its merges, and they from arrays: the ids and texts of `tokenizers`, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tsc.artifact import split_tokenizer
from tsc.checkpoint.tokenizer_bytelevel import CUTS
from tsrun.encoder import Encoder, read_encoder
from tsrun.errors import ArtifactError

CORPUS = [
    "Hello world, it's a test. Hello there, the world is large and the test is long.",
    "def f(x):\n    return x + 1\n\n\tif True:\n\t\tpass\r\n",
    "12345 1,234.56 0x1F 3.14159 007",
    "naïve café Straße 你好，世界 привет мир שלום مرحبا हिन्दी",
    "😀 👩‍👩‍👧 🇩🇪 ½ ² Ⅷ e\u0301 \u00a0 \u200b zero ▁▁ <0x0A>",
    "aaaa aaaaaaaa      \n\n\n\n\n  b",
]
ADDED = [
    AddedToken("<think>", special=False, normalized=False),
    AddedToken("Wörd", special=False, normalized=True, single_word=True),
    AddedToken("<mask>", special=True, lstrip=True, rstrip=True),
    AddedToken("hello", special=False, normalized=True),
]
PIECES = [*"aabehlot 1'\n\t\r.é你😀▁\u0301\x00", "  ", "Hello", " world", "<s>", "<think>", "<mask>", "Wörd", "hello", "<0x41>", "ab"]


def _trained(tokenizer: Tokenizer, alphabet: list[str], size: int) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<unk>", "<s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens(ADDED)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def byte_level(name: str, *, ignore_merges: bool = False) -> Tokenizer:
    cut = CUTS[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    split = [pre_tokenizers.Split(Regex(cut.pattern), behavior="isolated")] if cut.pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)])
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, sorted(pre_tokenizers.ByteLevel.alphabet()), 520)


def whole_text(*, byte_fallback: bool, unknown: str | None, fuse: bool, ignore_merges: bool = False) -> Tokenizer:
    """As Gemma's: a text is one word."""
    tokenizer = _trained(Tokenizer(models.BPE(unk_token="<unk>")), [], 300)
    state = json.loads(tokenizer.to_str())
    names = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    known = [word for word in state["model"]["vocab"] if word not in {"½", "Ⅷ", "п"}]
    words = {word: index for index, word in enumerate([*known, *names])}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in words]
    state["model"] |= {
        "vocab": words,
        "byte_fallback": byte_fallback,
        "unk_token": unknown,
        "fuse_unk": fuse,
        "ignore_merges": ignore_merges,
    }
    state["model"]["merges"] = [(a, b) for a, b in state["model"]["merges"] if a in words and b in words and a + b in words]
    made = Tokenizer.from_str(json.dumps(state))
    made.add_tokens(ADDED)
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def without_decoder() -> Tokenizer:
    return _trained(Tokenizer(models.BPE(unk_token="<unk>")), [], 300)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level("gpt-2"),
    "llama-3": lambda: byte_level("llama-bpe", ignore_merges=True),
    "qwen2": lambda: byte_level("qwen2"),
    "tekken": lambda: byte_level("tekken"),
    "bytes": lambda: whole_text(byte_fallback=True, unknown="<unk>", fuse=True),
    "fused": lambda: whole_text(byte_fallback=False, unknown="<unk>", fuse=True),
    "unknown": lambda: whole_text(byte_fallback=False, unknown="<unk>", fuse=False),
    "dropped": lambda: whole_text(byte_fallback=False, unknown=None, fuse=False),
    "words": without_decoder,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Encoder]:
    whole = TOKENIZERS[request.param]()
    folder = tmp_path_factory.mktemp("tokenizer")
    files = split_tokenizer({"tokenizer.json": whole.to_str().encode()})
    assert sorted(files) == ["tokenizer.json", "vocabulary.safetensors"]
    assert json.loads(files["tokenizer.json"])["model"]["merges"] == []
    assert json.loads(whole.to_str())["model"]["merges"], "nothing to take out"
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return whole, read_encoder(folder)


def check(pair: tuple[Tokenizer, Encoder], text: str) -> None:
    whole, split = pair
    for special in (False, True):
        ids = whole.encode(text, add_special_tokens=special).ids
        assert split.encode(text, add_special_tokens=special) == ids, text
    assert split.decode(ids) == whole.decode(ids, skip_special_tokens=True), text


def test_the_ids_are_those_of_the_whole_tokenizer(pair: tuple[Tokenizer, Encoder]) -> None:
    draw = random.Random(1)
    for text in [*CORPUS, "\n".join(CORPUS), "", " ", *PIECES]:
        check(pair, text)
    for _ in range(500):
        check(pair, "".join(draw.choices(PIECES, k=draw.randrange(40))))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_so_are_those_of_any_text(pair: tuple[Tokenizer, Encoder], text: str) -> None:
    check(pair, text)


def test_any_ids_have_the_text_that_the_whole_tokenizer_gives_them(pair: tuple[Tokenizer, Encoder]) -> None:
    whole, split = pair
    draw = random.Random(2)
    for _ in range(300):
        ids = [draw.randrange(2000) for _ in range(draw.randrange(12))]
        assert split.decode(ids) == whole.decode(ids, skip_special_tokens=True), ids


def test_words_are_found(pair: tuple[Tokenizer, Encoder]) -> None:
    whole, split = pair
    words = whole.get_vocab(with_added_tokens=True)
    assert {word: split.id_of(word) for word in words} == words
    assert split.id_of("no such word") is None


def _changed(tokenizer: Tokenizer, **model: object) -> Tokenizer:
    state = json.loads(tokenizer.to_str())
    state["model"] |= model
    return Tokenizer.from_str(json.dumps(state))


def _added(content: str) -> Tokenizer:
    tokenizer = byte_level("gpt-2")
    tokenizer.add_tokens([AddedToken(content, single_word=True)])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")),
        Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)),
        _changed(byte_level("gpt-2"), dropout=0.1),
        _changed(whole_text(byte_fallback=False, unknown="<unk>", fuse=False), ignore_merges=True, vocab={"<unk>": 0, "ab": 1}, merges=[]),
        _added("世"),  # a character that the model does not have: it would become a symbol
    ],
    ids=["word-level", "unigram", "dropout", "words-of-unknown-characters", "added-character"],
)
def test_what_would_be_read_otherwise_stays_whole(tokenizer: Tokenizer) -> None:
    files = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": b"{}"}
    assert split_tokenizer(files) == files


def test_what_can_not_be_read_stays_as_it_is() -> None:
    assert split_tokenizer({"tokenizer.json": b"{"}) == {"tokenizer.json": b"{"}
    assert split_tokenizer({}) == {}


def test_the_same_tokenizer_gives_the_same_bytes() -> None:
    data = byte_level("gpt-2").to_str()
    assert split_tokenizer({"tokenizer.json": data.encode()}) == split_tokenizer({"tokenizer.json": data.encode()})


@pytest.mark.parametrize("name", ["begin", "first", "right", "order", "result"])
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path: Path, name: str) -> None:
    files = split_tokenizer({"tokenizer.json": byte_level("gpt-2").to_str().encode()})
    arrays = load(files["vocabulary.safetensors"])
    arrays[name] = np.array([*arrays[name][:-1], 1 << 20], dtype=np.int32)
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    (tmp_path / "vocabulary.safetensors").write_bytes(save(arrays))
    with pytest.raises(ArtifactError, match=r"vocabulary.safetensors: can not be read \(its arrays do not fit each other\)"):
        read_encoder(tmp_path)
