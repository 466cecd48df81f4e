"""The text decoder of a checkpoint that has other models beside it, such as one of images: its configuration, and its tensors' names.

Does not: read the other models. What text alone comes to is what the decoder makes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_NESTED = ("text_config", "llm_config", "language_config")
"""Under which a configuration has the decoder's."""
_OTHERS = ("vision_config", "audio_config", "vision_tower", "mm_vision_tower")
"""A configuration with one of these is of more than a decoder."""
_EMBEDDING, _LAYER, _HEAD = "embed_tokens.weight", "layers.0.", "lm_head."
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "gemma3_text": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}
"""By `model_type`, of transformers' classes: a nested configuration leaves out what is so."""


def decoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's own configuration, where it is nested in that of a whole: with what is said beside it, and the decoder's architecture
    before that of the whole."""
    nested = next((config[key] for key in _NESTED if isinstance(config.get(key), dict)), None)
    if nested is None:
        return dict(config)
    model_type = str(nested.get("model_type") or config.get("model_type") or "")
    own = nested.get("architectures") or [_architecture(model_type)]
    architectures = [*own, *(config.get("architectures") or ())]
    outer = {key: value for key, value in config.items() if key not in _NESTED}
    stated = {key: value for key, value in nested.items() if value is not None or key not in outer}
    return outer | dict(DEFAULTS.get(model_type, {})) | stated | {"model_type": model_type, "architectures": architectures}


def _architecture(model_type: str) -> str:
    """The class of transformers: Gemma3ForCausalLM of `gemma3_text`."""
    words = model_type.removesuffix("_text").split("_")
    return "".join(word[:1].upper() + word[1:] for word in words) + "ForCausalLM"


@dataclass(frozen=True, slots=True)
class TextPart:
    """Where the decoder's tensors are. prefix: of its layers, `language_model.model.`; alone: whether nothing but the decoder is there."""

    prefix: str
    alone: bool

    def name(self, tensor: str) -> str | None:
        """What a decoder alone calls the tensor; None for another model's."""
        if tensor.startswith(_HEAD):
            return tensor
        if tensor.startswith(self.prefix):
            return "model." + tensor.removeprefix(self.prefix)
        path = self.prefix.split(".")
        around = ".".join(path[:-2]) + "." if path[-2:] == ["model", ""] and len(path) > 2 else ""
        if around and tensor.startswith(around):  # the head, and whatever else is beside the layers
            return tensor.removeprefix(around)
        return tensor if self.alone else None

    def left_out(self, tensors: Iterable[str]) -> Mapping[str, int]:
        """How many tensors each of the other models has."""
        return Counter(self._model(tensor) for tensor in tensors if self.name(tensor) is None)

    def _model(self, tensor: str) -> str:
        first, _, rest = tensor.partition(".")
        return f"{first}.{rest.partition('.')[0]}" if first == "model" else first


def text_part(config: Mapping[str, Any], tensors: Iterable[str]) -> TextPart:
    """Of a checkpoint's tensors. Whichever way classes are nested, the decoder is where a table of tokens lies beside layers."""
    names = sorted(tensors)
    prefixes = {name.removesuffix(_EMBEDDING) for name in names if name.endswith(_EMBEDDING)}
    found = {p for p in prefixes if any(name.startswith(p + _LAYER) for name in names)}
    prefix = min(found or {"model."}, key=lambda p: (len(p), p))
    return TextPart(prefix, not any(config.get(key) for key in _OTHERS))
