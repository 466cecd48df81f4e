from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tsc.checkpoint import open_checkpoint
from tsc.checkpoint.tokenizer_bytelevel import CUTS
from tsc.diagnostics import CompileError

Make = Callable[..., Path]
Pair = tuple[Tokenizer, sentencepiece.SentencePieceProcessor, bool]

CORPUS = [
    "",
    " ",
    "Hello world, it's a test.",
    " leading",
    "   three leading",
    "trailing ",
    "trailing   ",
    "I'm sure they'LL say we've DON'T",
    "def f(x):\n    return x + 1\n\n\tif True:\n\t\tpass\r\n",
    "12345 1,234.56 0x1F 3.14159 007",
    "naïve café Straße 你好，世界 привет мир שלום مرحبا हिन्दी",
    "😀 👩‍👩‍👧 🇩🇪 ½ ² Ⅷ",
    "e\u0301 \u00a0 \u200b zero",
    "x" * 60,
    "a  b   c    d     e",
    "\n\n\n a\n",
    "<0x0A> [PAD1] <s> ▁▁",
]


def _gguf(tmp_path: Path, model: str, tokens: list[str], kinds: list[int], **values: Any) -> Path:
    """A GGUF with a vocabulary and the numbers that a configuration cannot do without."""
    path = tmp_path / "tokenizer.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for key, value in values.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _load(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    files = open_checkpoint(path).tokenizer_files()
    assert files == open_checkpoint(path).tokenizer_files()
    return Tokenizer.from_str(files["tokenizer.json"].decode()), json.loads(files["tokenizer_config.json"])


# SentencePiece


_USER_DEFINED = ("<think>", "\n", "\n\n", "▁▁", "▁▁▁")


def _train(prefix: bool) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in CORPUS if line.strip()] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        character_coverage=0.98,
        user_defined_symbols=[] if prefix else list(_USER_DEFINED),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _sentencepiece_gguf(tmp_path: Path, reference: sentencepiece.SentencePieceProcessor, prefix: bool) -> Path:
    size = reference.get_piece_size()
    pieces = [reference.id_to_piece(i) for i in range(size)]
    kinds = [
        2
        if reference.is_unknown(i)
        else 3
        if reference.is_control(i)
        else 6
        if reference.is_byte(i)
        else 4
        if p in _USER_DEFINED and not prefix
        else 1
        for i, p in enumerate(pieces)
    ]
    return _gguf(
        tmp_path,
        "llama",
        pieces,
        kinds,
        token_scores=[reference.get_score(i) for i in range(size)],
        unk_token_id=reference.unk_id(),
        bos_token_id=reference.bos_id(),
        eos_token_id=reference.eos_id(),
        add_bos_token=False,
        add_space_prefix=prefix,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no-prefix"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    prefix = bool(request.param)
    reference = _train(prefix)
    return _load(_sentencepiece_gguf(tmp_path_factory.mktemp("sentencepiece"), reference, prefix))[0], reference, prefix


def test_a_sentencepiece_gguf_cuts_text_as_sentencepiece_does(pair: Pair) -> None:
    tokenizer, reference, _ = pair
    for text in [*CORPUS, "a<think>b"]:
        text = text.replace("<s>", "")  # SentencePiece itself does not look for control tokens in a text
        assert tokenizer.encode(text).ids == reference.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text).ids) == reference.decode(reference.encode(text)), text


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="abcdehilnorstw ,.'1é世😀\n", max_size=40))
def test_any_text_is_cut_as_sentencepiece_does(pair: Pair, text: str) -> None:
    tokenizer, reference, _ = pair
    assert tokenizer.encode(text).ids == reference.encode(text)


def test_a_text_with_a_prefix_comes_back_without_it(tmp_path: Path) -> None:
    reference = _train(True)
    tokenizer, _ = _load(_sentencepiece_gguf(tmp_path, reference, True))
    for text in ("Hello", " Hello", "a b"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_literal_byte_token_in_a_text_is_no_byte(pair: Pair) -> None:
    tokenizer, reference, _ = pair
    assert reference.piece_to_id("<0x0A>") not in tokenizer.encode("<0x0A>").ids


# byte-level BPE

_GPT2_ALPHABET = pre_tokenizers.ByteLevel.alphabet()
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KIMI = (
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_PATTERNS = {"llama-bpe": (_LLAMA3,), "dbrx": (_LLAMA3,), "gpt-4o": (_O200K,), "kimi-k2": (_KIMI,), "deepseek-v3": _DEEPSEEK}


def _steps(name: str) -> Any:
    """The pre-tokenizers of the models' own tokenizer.json."""
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    patterns = _PATTERNS.get(name, (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),))
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _train_byte_level(name: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "gpt-4o", "kimi-k2")))
    tokenizer.pre_tokenizer = _steps(name)
    tokenizer.decoder = decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=_GPT2_ALPHABET, special_tokens=["<|end|>", "<|user|>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


def _byte_level_gguf(tmp_path: Path, reference: Tokenizer, pre: str | None, **values: Any) -> Path:
    model = json.loads(reference.to_str())["model"]
    vocabulary = sorted(reference.get_vocab().items(), key=lambda item: item[1])
    kinds = [{"<|end|>": 3, "<|user|>": 3, "<think>": 4}.get(token, 1) for token, _ in vocabulary]
    merges = [" ".join(merge) for merge in model["merges"]]
    stated = {} if pre is None else {"tokenizer_pre": pre}
    return _gguf(
        tmp_path, "gpt2", [t for t, _ in vocabulary], kinds, token_merges=merges, eos_token_id=0, bos_token_id=0, **stated, **values
    )


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "dbrx", "gpt-4o", "kimi-k2", "deepseek-v3"])
def test_a_byte_level_gguf_cuts_text_as_the_tokenizer_it_was_made_of(name: str, tmp_path: Path) -> None:
    reference = _train_byte_level(name)
    tokenizer, _ = _load(_byte_level_gguf(tmp_path, reference, name, add_bos_token=False))
    for text in [*CORPUS, "<|user|>hi<|end|>", "a<think> b", " <|end|> "]:
        expected = reference.encode(text)
        assert tokenizer.encode(text).ids == expected.ids, text
        assert tokenizer.decode(expected.ids, skip_special_tokens=False) == reference.decode(expected.ids, skip_special_tokens=False)


def test_every_known_cut_builds_a_tokenizer_that_loses_nothing(tmp_path: Path) -> None:
    reference = _train_byte_level("gpt-2")
    for name in CUTS:
        tokenizer, _ = _load(_byte_level_gguf(tmp_path, reference, name))
        for text in CORPUS:
            if name != "qwen2" or "\u0301" not in text:
                assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_are_skipped_and_user_defined_ones_are_not(tmp_path: Path) -> None:
    tokenizer, _ = _load(_byte_level_gguf(tmp_path, _train_byte_level("gpt-2"), "gpt-2"))
    assert tokenizer.decode(tokenizer.encode("<|user|>a<think>b<|end|>").ids) == "a<think>b"


@pytest.mark.parametrize(("stated", "first"), [({}, True), ({"add_bos_token": False}, False)])
def test_llama3_puts_bos_first_unless_the_file_says_no(stated: dict[str, bool], first: bool, tmp_path: Path) -> None:
    tokenizer, config = _load(_byte_level_gguf(tmp_path, _train_byte_level("llama-bpe"), "llama-bpe", **stated))
    assert config["add_bos_token"] is first
    assert (tokenizer.encode("a").tokens[0] == "<|end|>") is first
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]


@pytest.mark.parametrize(("pre", "said"), [("qwen3000", "`qwen3000`"), (None, "does not say how")])
def test_an_unknown_pre_tokenizer_is_refused_by_name(pre: str | None, said: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_byte_level_gguf(tmp_path, _train_byte_level("gpt-2"), pre))
    with pytest.raises(CompileError, match=said) as error:
        checkpoint.tokenizer_files()
    assert [d.code for d in error.value.diagnostics] == ["TS0707"]


def test_an_unknown_tokenizer_model_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_gguf(tmp_path, "rwkv", ["a"], [1]))
    with pytest.raises(CompileError, match="tokenizer model `rwkv`") as error:
        checkpoint.tokenizer_files()
    assert [d.code for d in error.value.diagnostics] == ["TS0707"]


def test_a_gguf_without_a_vocabulary_has_no_tokenizer(make_directory: Make, make_gguf: Make) -> None:
    file = make_gguf("llama", open_checkpoint(make_directory("llama")).config, {})
    assert open_checkpoint(file).tokenizer_files() == {}


def test_the_chat_template_of_a_gguf_is_kept(tmp_path: Path) -> None:
    _, config = _load(_byte_level_gguf(tmp_path, _train_byte_level("gpt-2"), "gpt-2", chat_template="{{ messages }}"))
    assert config["chat_template"] == "{{ messages }}"
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == ("<|end|>", "<|end|>", False)


# directories


def _tokenizer_directory(directory: Path, bos: bool, config: dict[str, Any] | None) -> Path:
    tokenizer = _train_byte_level("gpt-2")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    tokenizer.save(str(directory / "tokenizer.json"))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("bos", [True, False])
def test_a_directory_says_whether_bos_comes_first_even_when_no_file_does(bos: bool, make_directory: Make) -> None:
    directory = _tokenizer_directory(make_directory("llama", bos_token_id=0, eos_token_id=1), bos, {"bos_token": {"content": "<|end|>"}})
    files = open_checkpoint(directory).tokenizer_files()
    config = json.loads(files["tokenizer_config.json"])
    assert files["tokenizer.json"] == (directory / "tokenizer.json").read_bytes()
    assert config == {
        "add_bos_token": bos,
        "add_eos_token": False,
        "bos_token": "<|end|>",
        "eos_token": "<|user|>",
        "chat_template": None,
    }


def test_chat_template_jinja_wins(make_directory: Make) -> None:
    directory = _tokenizer_directory(make_directory("llama"), False, {"chat_template": "old", "add_bos_token": True})
    (directory / "chat_template.jinja").write_text("new")
    config = json.loads(open_checkpoint(directory).tokenizer_files()["tokenizer_config.json"])
    assert (config["chat_template"], config["add_bos_token"]) == ("new", True)


def test_of_several_chat_templates_the_default_is_taken(make_directory: Make) -> None:
    templates = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    directory = _tokenizer_directory(make_directory("llama"), False, {"chat_template": templates})
    assert json.loads(open_checkpoint(directory).tokenizer_files()["tokenizer_config.json"])["chat_template"] == "d"


def test_a_directory_without_a_tokenizer_has_none(make_directory: Make) -> None:
    assert open_checkpoint(make_directory("llama")).tokenizer_files() == {}


def test_a_directory_with_another_kind_of_tokenizer_is_told_how_to_convert_it(make_directory: Make) -> None:
    directory = make_directory("llama")
    (directory / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CompileError, match=r"has tokenizer\.model but no tokenizer\.json") as error:
        open_checkpoint(directory).tokenizer_files()
    assert error.value.diagnostics[0].fixes


@pytest.mark.parametrize("content", ["{", '{"model": {"type": "Nonsense"}}'])
def test_a_damaged_tokenizer_json_is_refused(content: str, make_directory: Make) -> None:
    directory = make_directory("llama")
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(CompileError, match=r"tokenizer\.json: is not"):
        open_checkpoint(directory).tokenizer_files()
