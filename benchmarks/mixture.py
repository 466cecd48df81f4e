"""Mixtures of experts in C++ against torch's kernels: one layer by its tokens, and a small random model of DeepSeek-V3's shape.

usage: python benchmarks/mixture.py [--rounds 9] [--threads 2]

The two take turns in every round. A ratio is the median of the rounds' ratios, with the least and the most.
"""

from __future__ import annotations

import argparse
import operator
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import DeepseekV3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tsc.driver import compile_artifact
from tsc.request import Request
from tskernels.layouts import PANELS, layout
from tskernels.mixture import route
from tskernels.registry import lookup
from tsrun.engine import Engine
from tsrun.generation import GenerationRequest
from tsrun.limits import LimitOptions

EXPERTS, CHOSEN, WIDTH, INNER = 64, 8, 512, 256
TOKENS = (1, 8, 64, 512)
TARGETS = {"C++": "cpu", "torch": "cpu+"}
"""This processor, and one without instruction sets, for which there are torch's kernels alone."""
USERS = (1, 8, 32)
PAUSE_SECONDS = 0.02
"""Between turns: until the threads of the one before, which spin for a while, have parked."""
PROMPT, NEW_TOKENS, VOCABULARY = 32, 32, 4096


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, after one warm-up."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(PAUSE_SECONDS)
            found[name].append(seconds(run))
    return found


def show(case: str, times: dict[str, list[float]], unit: str, of_seconds: Callable[[float], float]) -> None:
    ratios = sorted(torch_s / cpp_s for cpp_s, torch_s in zip(times["C++"], times["torch"], strict=True))
    figures = " ".join(f"{name} {of_seconds(statistics.median(found)):9.3f} {unit}" for name, found in times.items())
    print(f"{case:24} {figures}   {statistics.median(ratios):6.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)


def measure_layer(rounds: int) -> None:
    gate, up = (torch.randn(EXPERTS, INNER, WIDTH, dtype=torch.bfloat16) / WIDTH**0.5 for _ in range(2))
    down = torch.randn(EXPERTS, WIDTH, INNER, dtype=torch.bfloat16) / INNER**0.5
    stored = [layout(PANELS).pack(w) for w in (gate, up, down)]
    in_cpp, in_torch = lookup("ts::experts", "simd_panels").function, lookup("ts::experts", "torch").function
    for tokens in TOKENS:
        x = torch.randn(tokens, WIDTH, dtype=torch.bfloat16)
        logits = torch.randn(tokens, EXPERTS, dtype=torch.bfloat16)
        weights = route(logits, top_k=CHOSEN, score="softmax", normalize=True, scale=1.0, groups=1, top_groups=1, group_best=1)
        out = torch.empty_like(x)
        runs: dict[str, Callable[[], object]] = {
            "C++": partial(in_cpp, x, weights, *stored, out=out),
            "torch": partial(in_torch, x, weights, gate, up, down, out=out),
        }
        show(f"layer, {tokens} tokens", in_turns(runs, rounds), "ms", lambda s: 1e3 * s)


def make_checkpoint(folder: Path) -> Path:
    config = DeepseekV3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * INNER,
        moe_intermediate_size=INNER,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        n_routed_experts=EXPERTS,
        n_shared_experts=1,
        num_experts_per_tok=CHOSEN,
        n_group=8,
        topk_group=4,
        first_k_dense_replace=1,
        q_lora_rank=256,
        kv_lora_rank=128,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def generate(engine: Engine, users: int) -> None:
    generator = torch.Generator().manual_seed(users)
    for _ in range(users):
        ids = torch.randint(0, VOCABULARY, (PROMPT,), generator=generator).tolist()
        engine.submit(GenerationRequest(ids, NEW_TOKENS, ignore_eos=True))
    for _ in engine.events():
        pass


def measure_model(rounds: int, threads: int) -> None:
    options = LimitOptions(page_size=16, num_pages=256, max_sequences=max(USERS), max_step_tokens=512, prefix_cache=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = make_checkpoint(folder / "checkpoint")
        engines = {}
        for kind, target in TARGETS.items():
            path = folder / f"{target}.tsa"
            compile_artifact(Request(None, checkpoint, None, {}, "bf16", target, None), path, lambda stage, done, total: None)
            engines[kind] = Engine(path, options, threads=threads)
        for users in USERS:
            runs: dict[str, Callable[[], object]] = {kind: partial(generate, engine, users) for kind, engine in engines.items()}
            show(f"model, {users} users", in_turns(runs, rounds), "tokens/s", partial(operator.truediv, users * NEW_TOKENS))
        for engine in engines.values():
            engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{EXPERTS} experts of {INNER}, {CHOSEN} chosen, width {WIDTH}, bf16; {given.threads} threads, {given.rounds} rounds")
    measure_layer(given.rounds)
    print(f"prompts of {PROMPT}, {NEW_TOKENS} new tokens a user; 6 layers, {VOCABULARY} tokens in the vocabulary")
    measure_model(given.rounds, given.threads)


if __name__ == "__main__":
    main()
