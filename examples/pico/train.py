"""Trains pico: `python examples/pico/train.py [--out FOLDER] [--minutes 85] [--seed 0]`, on two cores in 90 minutes.

Writes the checkpoint (config.json, model.safetensors in bf16, tokenizer.json, tokenizer_config.json) and training.json with the losses. The
same seed on the same machine and versions gives the same weights: the number of steps is fixed, and `--minutes` only says when to give up.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from corpus import read_corpus
from model import Config, Pico
from optimizer import Muon
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from vocabulary import END
from vocabulary import save as save_tokenizer
from vocabulary import train as train_tokenizer


@dataclass(frozen=True)
class Recipe:
    steps: int = 700
    sequences: int = 16
    length: int = 512
    matrix_rate: float = 0.01
    other_rate: float = 0.006
    warm_up: int = 60
    cool_down: float = 0.4
    """Of the steps, the last share over which rates go to zero."""
    further_weight: float = 0.3
    """Of the loss of the token after the next."""
    balance_rate: float = 0.002
    """By which the bias of an expert moves where it is chosen too often or too seldom."""


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """All texts, one after the other, each with its end."""
    end = tokenizer.token_to_id(END)
    return torch.tensor([token for found in tokenizer.encode_batch(list(texts)) for token in (*found.ids, end)], dtype=torch.int32)


def batches(ids: Tensor, recipe: Recipe, seed: int) -> Iterator[Tensor]:
    """[sequences, length + 2]: windows of the text in random order, from other beginnings each time through."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        begin = int(torch.randint(recipe.length, (1,), generator=generator))
        count = (len(ids) - begin - 2) // recipe.length
        order = torch.randperm(count, generator=generator)
        for places in order.split(recipe.sequences):
            if len(places) == recipe.sequences:
                starts = begin + places * recipe.length
                yield ids[starts[:, None] + torch.arange(recipe.length + 2)].long()


def rate_at(step: int, recipe: Recipe) -> float:
    """Of the full rate: a straight line up, a level, a straight line down."""
    return min(1.0, (step + 1) / recipe.warm_up, (recipe.steps - step) / (recipe.cool_down * recipe.steps))


def losses(model: Pico, window: Tensor) -> tuple[Tensor, Tensor]:
    """Of the next token, and of the one after it, in nats a token."""
    logits, made = model(window[:, :-2])
    further = model.further(made, window[:, 1:-1])
    following, beyond = window[:, 1:-1].flatten(), window[:, 2:].flatten()
    return functional.cross_entropy(logits.flatten(0, 1), following), functional.cross_entropy(further.flatten(0, 1), beyond)


@torch.no_grad()
def score(model: Pico, ids: Tensor, length: int) -> tuple[float, float]:
    """Nats a token, of the next and of the one after it: windows overlap by half, and only second halves count, but for the first."""
    total = further = 0.0
    count = 0
    for start in range(0, len(ids) - 2, length // 2):
        window = ids[start : start + length + 2][None].long()
        first = 0 if start == 0 else length // 2
        if window.shape[1] - 2 <= first:
            break
        logits, made = model(window[:, :-2])
        beyond = model.further(made, window[:, 1:-1])
        total += float(functional.cross_entropy(logits[0, first:], window[0, 1 + first : -1], reduction="sum"))
        further += float(functional.cross_entropy(beyond[0, first:], window[0, 2 + first :], reduction="sum"))
        count += logits.shape[1] - first
    return total / count, further / count


def fit(model: Pico, ids: Tensor, held_out: Tensor, recipe: Recipe, seed: int, seconds: float) -> list[dict[str, float]]:
    """Train in place; the losses now and then. RuntimeError when it takes longer than it may."""
    hidden = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name and "gate.weight" not in name]
    known = {id(p) for p in hidden}
    muon = Muon(hidden)
    adam = torch.optim.AdamW(
        [p for p in model.parameters() if id(p) not in known], lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    coming, began, log = batches(ids, recipe, seed), time.monotonic(), []
    average = math.log(model.c.vocab_size)
    for step in range(recipe.steps):
        part = rate_at(step, recipe)
        window = next(coming).to(ids.device)
        loss, further = losses(model, window)
        (loss + recipe.further_weight * further).backward()
        for group in adam.param_groups:
            group["lr"] = recipe.other_rate * part
        adam.step()
        muon.step(recipe.matrix_rate * part)
        model.zero_grad(set_to_none=True)
        for mixture in model.mixtures:
            counts = mixture.counts.float()
            mixture.gate.e_score_correction_bias += recipe.balance_rate * part * (counts.mean() - counts).sign()
        average += (loss.item() - average) * min(1.0, max(0.02, 1 / (step + 1)))
        spent = time.monotonic() - began
        left = spent / (step + 1) * (recipe.steps - step - 1)
        if step >= 9 and spent + left > seconds:
            raise RuntimeError(f"{spent + left:.0f} seconds are more than the {seconds:.0f} there are: this machine is too slow or busy")
        scored = ""
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            nats = score(model, held_out[:20_000], recipe.length)[0]
            log.append({"step": step + 1, "loss": average, "held_out": nats, "seconds": spent})
            scored = f", held out {nats:.3f}"
        if (step + 1) % 10 == 0 or scored:
            print(f"step {step + 1}: loss {average:.3f}{scored}, {spent:.0f} s, {left:.0f} s left", file=sys.stderr)
    return log


def tensors(model: Pico) -> dict[str, Tensor]:
    """By DeepSeek's names, in bf16 but for the biases of the choice."""
    found = {}
    for name, value in model.state_dict().items():
        found[name] = value.contiguous() if name.endswith("bias") else value.to(torch.bfloat16).contiguous()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=88.0, help="give up when it would take longer")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="fewer, to try it out")
    options = parser.parse_args()
    began = time.monotonic()
    torch.manual_seed(options.seed)
    recipe, config = replace(Recipe(), steps=options.steps), Config()
    corpus = read_corpus()
    tokenizer = train_tokenizer(corpus.train, config.vocab_size)
    ids, held_out = encoded(tokenizer, corpus.train), encoded(tokenizer, corpus.held_out)
    text = "".join(corpus.held_out).encode()
    model = Pico(config)
    sizes = f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(ids):,} tokens, {len(held_out):,} held out"
    print(f"{sizes}; prepared in {time.monotonic() - began:.0f} s", file=sys.stderr)
    log = fit(model, ids, held_out, recipe, options.seed, 60 * options.minutes - (time.monotonic() - began))
    nats, further = score(model, held_out, recipe.length)
    bits = nats * len(held_out) / math.log(2) / len(text)
    packed = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    print(f"held out: {nats:.3f} nats a token, {bits:.3f} bits a byte; xz -9e {packed:.3f}, {bits / packed:.1%} of it", file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors(model), options.out / "model.safetensors", {"format": "pt"})
    (options.out / "config.json").write_text(json.dumps(config.written() | {"eos_token_id": tokenizer.token_to_id(END)}, indent=1) + "\n")
    save_tokenizer(tokenizer, options.out)
    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(), "seed": options.seed}
    found = {"held_out_nats": nats, "held_out_further_nats": further, "held_out_bits_per_byte": bits, "xz_bits_per_byte": packed}
    (options.out / "training.json").write_text(json.dumps({"facts": facts, "found": found, "log": log}, indent=1) + "\n")


if __name__ == "__main__":
    main()
