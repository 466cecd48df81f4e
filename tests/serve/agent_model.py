"""A small random model that reads as agents' prompts need it: a vocabulary of pieces of words, and a context of 100,000 tokens."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 131_072
_SPECIAL = ["<|im_start|>", "<|im_end|>"]
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""It has no word for tools, so that they are offered as text."""
_ROOT = Path(__file__).parents[2]


def write_agent_checkpoint(folder: Path) -> Path:
    tokenizer = _tokenizer()
    size = tokenizer.get_vocab_size()
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=size,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=size - 1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(7)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"eos_token": _SPECIAL[1], "add_bos_token": False, "chat_template": _CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


def _tokenizer() -> Tokenizer:
    """Byte pairs of the project's own pages: English with code in it, as an agent's prompt is."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((_ROOT / "docs").glob("*.md"))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4096 - len(_SPECIAL), initial_alphabet=letters, show_progress=False)
    )
    tokenizer.add_special_tokens(_SPECIAL)
    return tokenizer
