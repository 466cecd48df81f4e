"""SentencePiece BPE (GGUF's `llama`): merges recovered from the vocabulary's scores, bytes for what the vocabulary lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsc.checkpoint.gguf_header import GgufHeader

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tsc.checkpoint.tokenizer_gguf import Vocabulary

_SPACE = "▁"


def sentencepiece(header: GgufHeader, vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer, as SentencePiece itself cuts text: user-defined pieces first, longest first, then merges by score."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    from tsc.checkpoint.tokenizer_gguf import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

    prefix = bool(header.get("tokenizer.ggml.add_space_prefix", True))
    kinds = vocabulary.kinds
    # With a prefix every piece would be matched with one: `tokenizers` normalizes the piece as it does text. So match those in raw text.
    spelled = [t.replace(" ", _SPACE) if k == USER_DEFINED and not prefix else t for t, k in zip(vocabulary.tokens, kinds, strict=True)]
    vocabulary = Vocabulary(spelled, kinds)
    unknown = spelled[header.get("tokenizer.ggml.unknown_token_id", 0)]
    merges = _stated_merges(header) or _merges(vocabulary, header.get("tokenizer.ggml.scores") or [0.0] * len(kinds))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary.ids(), merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in kinds))
    replace = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if prefix else replace
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    pairs = list(zip(spelled, kinds, strict=True))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in pairs if k in (CONTROL, UNKNOWN)])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=not prefix) for t, k in pairs if k == USER_DEFINED])
    return tokenizer


def _stated_merges(header: GgufHeader) -> list[tuple[str, str]]:
    return [(left, right) for left, _, right in (m.partition(" ") for m in header.get("tokenizer.ggml.merges", []))]


def _merges(vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, best score first; of one piece's ways the longest left half first."""
    from tsc.checkpoint.tokenizer_gguf import NORMAL

    # Only ordinary pieces are made by merging: the others are matched whole, or stand for a byte.
    pieces = {t: s for t, k, s in zip(vocabulary.tokens, vocabulary.kinds, scores, strict=True) if k == NORMAL}
    ways = []
    for piece, score in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                ways.append((score, cut, len(piece) - cut, left, right))
    ways.sort(key=lambda way: way[:3], reverse=True)
    return [(left, right) for *_, left, right in ways]
