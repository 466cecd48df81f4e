"""Pico's tokenizer: byte-level BPE of 4,096 tokens, of the text that is learned, with a template for conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
"""Pico goes on from a text; nobody taught it to answer. So a conversation is its texts."""
_WORDS = Regex(r" ?[A-Za-z]+| ?[0-9]{1,3}| ?_+| ?[^\sA-Za-z0-9_]+|\n[ ]*|[ ]+(?=\S)|\s+")
"""Names fall at their underlines, and a line break takes the indentation after it."""


def train(texts: Sequence[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(said, indent=1) + "\n")
