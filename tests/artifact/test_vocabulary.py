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
from tsrun._core import Vocabulary
from tsrun.encoder import Encoder, read_encoder
from tsrun.errors import ArtifactError
from tsrun.whole_tokenizer import whole_tokenizer

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
    split = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in cut.patterns]
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


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_and_merges_can_be_put_back(name: str, tmp_path: Path) -> None:
    whole = TOKENIZERS[name]()
    files = split_tokenizer({"tokenizer.json": whole.to_str().encode(), "tokenizer_config.json": b"{}"})
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    found = whole_tokenizer(tmp_path)
    assert sorted(found) == ["tokenizer.json", "tokenizer_config.json"]
    assert json.loads(Tokenizer.from_buffer(found["tokenizer.json"]).to_str()) == json.loads(whole.to_str())


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


Arrays = dict[str, np.ndarray]


def _exchanged(name: str) -> Callable[[Arrays], None]:
    """The first two elements of one array, which are ordered."""

    def damage(arrays: Arrays) -> None:
        arrays[name][[0, 1]] = arrays[name][[1, 0]]

    return damage


def _exchanged_rights(arrays: Arrays) -> None:
    begin = int(arrays["first"][np.argmax(np.diff(arrays["first"]))])  # of the id with most merges
    arrays["right"][[begin, begin + 1]] = arrays["right"][[begin + 1, begin]]


def _set(name: str, place: int, value: int) -> Callable[[Arrays], None]:
    def damage(arrays: Arrays) -> None:
        arrays[name][place] = value

    return damage


def _without_words(arrays: Arrays) -> None:
    for name in arrays:
        arrays[name] = np.zeros(1 if name in ("begin", "first", "whole") else 0, arrays[name].dtype)


def _with_fewer_words(arrays: Arrays) -> None:
    """As many as can be without the ids that merges make."""
    kept = 4
    arrays["begin"] = arrays["begin"][: kept + 1].copy()
    arrays["text"] = arrays["text"][: arrays["begin"][-1]].copy()
    arrays["first"] = np.zeros(kept + 1, np.int32)
    arrays["order"] = arrays["order"][arrays["order"] < kept].copy()
    arrays |= {name: np.zeros(0, np.int32) for name in ("right", "rank", "result")}


NOT_UTF8 = [
    b"\xff",
    b"\x80",
    b"\xc0\x80",
    b"\xc3",
    b"\xe0\x80\x80",
    b"\xed\xa0\x80",
    b"\xf0\x80\x80\x80",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
]


def _with_word(word: bytes) -> Callable[[Arrays], None]:
    """A word more, which no array but that of texts knows."""

    def damage(arrays: Arrays) -> None:
        arrays["text"] = np.concatenate([arrays["text"], np.frombuffer(word, np.uint8)])
        arrays["begin"] = np.append(arrays["begin"], np.int32(len(arrays["text"])))
        arrays["first"] = np.append(arrays["first"], arrays["first"][-1])

    return damage


def _damaged(folder: Path, damage: Callable[[Arrays], None]) -> Path:
    files = split_tokenizer({"tokenizer.json": byte_level("gpt-2").to_str().encode()})
    arrays = {name: array.copy() for name, array in load(files["vocabulary.safetensors"]).items()}
    damage(arrays)
    (folder / "tokenizer.json").write_bytes(files["tokenizer.json"])
    (folder / "vocabulary.safetensors").write_bytes(save(arrays))
    return folder


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        *((_set(name, -1, 1 << 20), r"its arrays do not fit each other") for name in ("begin", "first", "right", "order", "result")),
        (_set("rank", 0, -1), "a merge has a negative rank"),
        (_exchanged("order"), "its words are not in order"),
        (_exchanged_rights, "its merges are not in order"),
        *((_with_word(word), "its words are not UTF-8") for word in NOT_UTF8),
    ],
)
def test_damaged_arrays_are_refused(tmp_path: Path, damage: Callable[[Arrays], None], said: str) -> None:
    with pytest.raises(ArtifactError, match=rf"vocabulary.safetensors: can not be read \({said}\)"):
        read_encoder(_damaged(tmp_path, damage))


@settings(max_examples=300, deadline=None)
@given(word=st.one_of(st.text(min_size=1).map(str.encode), st.binary(min_size=1, max_size=5)))
def test_words_are_utf8_as_python_has_it(word: bytes) -> None:
    def vocabulary() -> Vocabulary:
        none, begin = np.zeros(0, np.int32), np.array([0, len(word)], np.int32)
        return Vocabulary(np.frombuffer(word, np.uint8), begin, none, np.zeros(2, np.int32), none, none, none, False)

    try:
        text = word.decode()
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="UTF-8"):
            vocabulary()
    else:
        assert vocabulary().words([0]) == [text]


@pytest.mark.parametrize(("damage", "words"), [(_without_words, 0), (_with_fewer_words, 4)])
def test_ids_that_the_vocabulary_has_no_words_for_are_refused(tmp_path: Path, damage: Callable[[Arrays], None], words: int) -> None:
    with pytest.raises(ArtifactError, match=rf"vocabulary.safetensors: has {words} words, tokenizer.json the id \d+; compile"):
        read_encoder(_damaged(tmp_path, damage))


@pytest.mark.parametrize("where", ["symbol", "around"])
def test_so_are_those_of_tokenizer_json(tmp_path: Path, where: str) -> None:
    file = _damaged(tmp_path, lambda arrays: None) / "tokenizer.json"
    state = json.loads(file.read_text())
    if where == "symbol":
        state["model"]["vocab"]["a"] = 2**32 - 1
    else:
        state["post_processor"]["special_tokens"]["<s>"]["ids"] = [5000]
    file.write_text(json.dumps(state))
    with pytest.raises(ArtifactError, match=r"vocabulary.safetensors: has \d+ words, tokenizer.json the id \d+; compile"):
        read_encoder(tmp_path)


def test_ids_that_there_are_not_have_no_text(pair: tuple[Tokenizer, Encoder]) -> None:
    whole, split = pair
    assert split.decode([3, 2**31, 2**32 - 1, 4]) == whole.decode([3, 2**31, 2**32 - 1, 4]) == split.decode([3, -1, 2**80, 4])
