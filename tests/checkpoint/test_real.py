"""The two real GGUF files, against transformers and, for Gemma, against SentencePiece itself."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tsc.artifact import split_tokenizer
from tsc.checkpoint import load_config, open_checkpoint
from tsc.checkpoint.gguf_header import GgufHeader
from tsrun.encoder import read_encoder

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
_FILES = ["smollm2", "gemma"]
_TEXTS = [
    "",
    "Hello world, it's a test.",
    " leading and trailing  ",
    "   three leading",
    "def f(x):\n    return x + 1\n\n\tif True:\n\t\tpass\r\n",
    "12345 1,234.56 0x1F 3.14159 007",
    "naïve café Straße 你好，世界 привет мир שלום مرحبا हिन्दी",
    "😀 👩‍👩‍👧 🇩🇪 e\u0301 \u00a0\u200b",
    "x" * 60,
    "a  b   c    d" + " " * 17 + "e",
    "\n\n\n a\n",
    "<table><b>x</b></table> <0x0A> [PAD1]",
]
_SPECIAL = ["<|im_start|>user\nhi<|im_end|>\n", "<start_of_turn>user\nhi<end_of_turn>\n", " <eos> a<bos><unused5>", "<|endoftext|>x"]


@cache
def _tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_str(open_checkpoint(path).tokenizer_files()["tokenizer.json"].decode())


@pytest.mark.parametrize("name", _FILES)
def test_weights_equal_what_transformers_reads(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    # from_pretrained(gguf_file=...) does the same, but wants accelerate
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path.parent, gguf_file=path.name))
    expected = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.tensors) == set(expected) == set(model.state_dict()) - {"lm_head.weight"}
    for tensor, info in checkpoint.tensors.items():
        actual = checkpoint.read(tensor)
        assert (info.dtype, info.shape) == ("f32", tuple(actual.shape))
        assert torch.equal(actual, expected[tensor]), tensor


@pytest.mark.parametrize("name", _FILES)
def test_configurations_mean_what_transformers_reads(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    theirs, ours = AutoConfig.from_pretrained(path.parent, gguf_file=path.name), load_config(path)[0]
    keys = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"}
    keys |= {"max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id", "model_type"}
    keys |= {"layer_types", "sliding_window", "query_pre_attn_scalar", "hidden_activation"} if name == "gemma" else {"hidden_act"}
    assert {key: ours[key] for key in keys} == {key: getattr(theirs, key) for key in keys}
    assert ours["rms_norm_eps"] == pytest.approx(theirs.rms_norm_eps, rel=1e-6)
    rope = theirs.rope_parameters
    assert ours["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]
    assert name != "gemma" or ours["rope_local_base_freq"] == rope["sliding_attention"]["rope_theta"]


@pytest.mark.parametrize("name", _FILES)
def test_an_artifact_without_merges_in_tokenizer_json_gives_the_same_ids(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    whole, files = _tokenizer(path), split_tokenizer(open_checkpoint(path).tokenizer_files())
    assert "vocabulary.safetensors" in files
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    split = read_encoder(tmp_path)
    for text in [*_TEXTS, *_SPECIAL, Path(__file__).read_text(encoding="utf-8")]:
        ids = whole.encode(text).ids
        assert split.encode(text, add_special_tokens=True) == ids, text
        assert split.decode(ids) == whole.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("name", _FILES)
def test_token_ids_equal_those_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    reference, tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), _tokenizer(path)
    assert tokenizer.get_vocab_size() == len(reference) == load_config(path)[0]["vocab_size"]
    for text in _TEXTS + _SPECIAL:
        expected = reference(text)["input_ids"]
        assert tokenizer.encode(text).ids == expected, text
        assert tokenizer.decode(expected, skip_special_tokens=True) == reference.decode(expected, skip_special_tokens=True)


def test_every_number_is_a_word_of_its_own_in_smollm2(smollm2: Path) -> None:
    # The model's tokenizer.json and llama.cpp split at ½ and ² as at digits; transformers' reading of the GGUF does not.
    assert _tokenizer(smollm2).encode("a ½").tokens[:2] == ["a", "Ġ"]


def test_the_chat_template_of_smollm2_is_there(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    config = json.loads(checkpoint.tokenizer_files()["tokenizer_config.json"])
    assert config["chat_template"].startswith("{% for message in messages %}")
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == ("<|im_start|>", "<|im_end|>", False)
    assert (checkpoint.bos_token_id, checkpoint.eos_token_ids) == (1, (2,))


def _field(number: int, data: bytes | int | float) -> bytes:
    """One field of a protobuf message."""
    if isinstance(data, float):
        return _varint(number << 3 | 5) + struct.pack("<f", data)
    if isinstance(data, int):
        return _varint(number << 3) + _varint(data)
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _processor(header: GgufHeader) -> sentencepiece.SentencePieceProcessor:
    """The SentencePiece model that the vocabulary came from."""
    rows = zip(*(header.get(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type")), strict=True)
    unknown, pieces = header.get("tokenizer.ggml.unknown_token_id"), []
    for i, (token, score, kind) in enumerate(rows):
        spelled = token.replace(" ", "▁") if kind == 4 else token
        piece = _field(1, spelled.encode()) + _field(2, float(score)) + _field(3, 2 if i == unknown else kind)
        pieces.append(_field(1, piece))
    ids = {40: unknown, 41: header.get("tokenizer.ggml.bos_token_id"), 42: header.get("tokenizer.ggml.eos_token_id")}
    trainer = _field(3, 2) + _field(35, 1) + b"".join(_field(key, value) for key, value in ids.items())
    normalizer = _field(1, b"identity") + _field(3, 0) + _field(4, 0) + _field(5, 1)
    return sentencepiece.SentencePieceProcessor(model_proto=b"".join(pieces) + _field(2, trainer) + _field(3, normalizer))


def test_gemma_cuts_text_as_sentencepiece_does(gemma: Path) -> None:
    reference, tokenizer = _processor(GgufHeader(gemma)), _tokenizer(gemma)
    here = Path(__file__).read_text().replace("<|", "< |")  # control tokens are text to SentencePiece
    for special in ("<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>", "<unused5>"):
        here = here.replace(special, "")
    for text in [*_TEXTS, here, " " * 40 + "x", "\t" * 33, "\n" * 40]:
        expected = reference.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected, text
        assert tokenizer.decode(expected) == reference.decode(expected)
