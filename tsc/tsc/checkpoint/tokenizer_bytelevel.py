"""Byte-level BPE (GGUF's `gpt2`): a GGUF names how the text is cut before merging, the rules themselves are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsc.checkpoint.errors import UNKNOWN_TOKENIZER, failure
from tsc.checkpoint.gguf_header import GgufHeader
from tsc.diagnostics import near

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tsc.checkpoint.tokenizer_gguf import Vocabulary

_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?UPPER*LOWER+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?UPPER+LOWER*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


@dataclass(frozen=True, slots=True)
class Cut:
    """How a text is cut into words, by one pattern after the other. No `patterns` are GPT-2's, which `tokenizers` has built in.

    `ignore_merges`: a word that is a token as a whole stays one, whatever the merges say.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    composed: bool = False  # Unicode NFC first
    ignore_merges: bool = False
    adds_bos: bool = False


_GPT2 = Cut()
_DIGITS = Cut(digits=True)
_CL100K = Cut((_WORD + r"|\p{N}{1,3}" + _REST,))
_LLAMA3 = Cut(_CL100K.patterns, ignore_merges=True, adds_bos=True)
_QWEN2 = Cut((_WORD + r"|\p{N}" + _REST,))
_TEKKEN = Cut(
    (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}" + _REST.replace(r"\r\n]*", r"\r\n/]*"),),
    ignore_merges=True,
    adds_bos=True,
)
_O200K = Cut(
    (_CASED.replace("UPPER", _UPPER).replace("LOWER", _LOWER) + r"|\p{N}{1,3}" + _REST.replace(r"\r\n]*", r"\r\n/]*"),),
    ignore_merges=True,
)
_KIMI = Cut(
    (
        r"[\p{Han}]+|"
        + _CASED.replace("UPPER", rf"{_UPPER[:-1]}&&[^\p{{Han}}]]").replace("LOWER", rf"{_LOWER[:-1]}&&[^\p{{Han}}]]")
        + r"|\p{N}{1,3}"
        + _REST,
    ),
    ignore_merges=True,
)
_DEEPSEEK3 = Cut(
    (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    adds_bos=True,
)

CUTS = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "olmo"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "glm4", "chatglm-bpe"), _CL100K),
    "gpt-4o": _O200K,
    "kimi-k2": _KIMI,
    "deepseek-v3": _DEEPSEEK3,
    "qwen2": Cut(_QWEN2.patterns, composed=True),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2"), _QWEN2),
    "tekken": _TEKKEN,
}


def byte_level(header: GgufHeader, vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer. CompileError when the file's pre-tokenizer is not in the table or not stated."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    from tsc.checkpoint.tokenizer_gguf import CONTROL, UNKNOWN, USER_DEFINED

    cut = _cut(header)
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in header.get("tokenizer.ggml.merges", []))]
    ids = vocabulary.ids()
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, fuse_unk=False, ignore_merges=cut.ignore_merges))
    if cut.composed:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    steps += [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in cut.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut.patterns))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    pairs = list(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in pairs if k in (CONTROL, UNKNOWN)])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t, k in pairs if k == USER_DEFINED])
    return tokenizer


def adds_bos(header: GgufHeader) -> bool:
    """Whether llama.cpp puts the first token before a text when the file does not say."""
    return _cut(header).adds_bos


def _cut(header: GgufHeader) -> Cut:
    name = header.get("tokenizer.ggml.pre")
    fix = "use a directory with the model's tokenizer.json"
    if name is None:
        what = "does not say how its tokenizer cuts text (`tokenizer.ggml.pre`)"
        raise failure(UNKNOWN_TOKENIZER, header.path, what, "convert it again with a current llama.cpp", fix)
    if name not in CUTS:
        raise failure(UNKNOWN_TOKENIZER, header.path, f"has the pre-tokenizer `{name}`, which is not known{near(str(name), CUTS)}", fix)
    return CUTS[name]
