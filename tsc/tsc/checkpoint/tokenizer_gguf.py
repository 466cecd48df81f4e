"""tokenizer.json and tokenizer_config.json out of a GGUF's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.errors import UNKNOWN_TOKENIZER, failure
from tsc.checkpoint.gguf_header import GgufHeader
from tsc.checkpoint.tokenizer_config import config_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The texts in order of id, and llama.cpp's kind of each (`NORMAL`, ...)."""

    tokens: list[str]
    kinds: list[int]

    def ids(self) -> dict[str, int]:
        """Text to id; of equal texts the first counts."""
        return {token: i for i, token in reversed(list(enumerate(self.tokens)))}


def gguf_tokenizer(header: GgufHeader) -> dict[str, bytes]:
    """The two files; nothing when the GGUF has no vocabulary. CompileError names a tokenizer model or pre-tokenizer that is not read."""
    from tsc.checkpoint.tokenizer_bytelevel import adds_bos, byte_level
    from tsc.checkpoint.tokenizer_sentencepiece import sentencepiece

    model = header.get("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab") or not header.length("tokenizer.ggml.tokens"):
        return {}
    tokens = header.get("tokenizer.ggml.tokens")
    vocabulary = Vocabulary(tokens, _kinds(header, len(tokens)))
    if model == "gpt2":
        tokenizer, default_bos = byte_level(header, vocabulary), adds_bos(header)
    elif model == "llama":
        tokenizer, default_bos = sentencepiece(header, vocabulary), True
    else:
        what = f"has the tokenizer model `{model}`; read are `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE)"
        raise failure(UNKNOWN_TOKENIZER, header.path, what, "put the model's tokenizer.json in a Hugging Face directory and use that")
    config = _config(header, tokens, default_bos)
    _frame(tokenizer, config)
    text = tokenizer.to_str(pretty=False)
    return {"tokenizer.json": text.encode(), "tokenizer_config.json": config_bytes(config)}


def _kinds(header: GgufHeader, count: int) -> list[int]:
    kinds: list[int] = header.get("tokenizer.ggml.token_type") or [NORMAL] * count
    # Some converters leave these as ordinary text; the model's own tokenizer never does.
    for name in ("bos", "eos", "eot", "eom"):
        token = header.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None and token < count and kinds[token] == NORMAL:
            kinds[token] = CONTROL
    return kinds


def _config(header: GgufHeader, tokens: list[str], default_bos: bool) -> dict[str, Any]:
    config: dict[str, Any] = dict.fromkeys(_IDS)
    for key, name in _IDS.items():
        token = header.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None and token < len(tokens):
            config[key] = tokens[token]
    return config | {
        "add_bos_token": bool(header.get("tokenizer.ggml.add_bos_token", default_bos)),
        "add_eos_token": bool(header.get("tokenizer.ggml.add_eos_token", False)),
        "chat_template": header.get("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.own("context_length"),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _frame(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Have tokenizer.json itself put the tokens around a text that the configuration says are put there."""
    from tokenizers.processors import TemplateProcessing

    before = [config["bos_token"]] if config["add_bos_token"] and config["bos_token"] else []
    after = [config["eos_token"]] if config["add_eos_token"] and config["eos_token"] else []
    if before or after:
        template = [*before, "$A", *after]
        pair = [*before, "$A", *after, *before, "$B:1", *after]
        special = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*before, *after])]
        tokenizer.post_processor = TemplateProcessing(single=template, pair=pair, special_tokens=special)
