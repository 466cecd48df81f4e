"""The engine on a GPU, with models of well-known shapes and random weights: `python benchmarks/gpu_engine.py --folder DIR --json FILE`.

Each model is made there (`random_checkpoint.py`), compiled by `tsc compile`, and run by the engine: greedily, without drafts. Prints for
one sequence the time from token to token, beside the least that reading the weights takes at the rate of a copy, measured in the same run,
and what of it the host was busy; tokens a second of 64 sequences; the time from the start of a process to its first token; and where a
step's time goes on the device. `--peers eager,compiled` runs transformers on the same weights, and says how often its likeliest token is
ours. Every part is a process of its own. `--small` takes small shapes, and `--dry` runs them on a device that does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import configs
import numpy as np
import random_checkpoint
import torch
from gpu_host import SilentDevice
from gpu_machine import machine

MODELS: Mapping[str, Mapping[str, Any]] = {"qwen3-8b": configs.QWEN_3_8B, "deepseek-v2-lite": configs.DEEPSEEK_V2_LITE}
_SMALL = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 16, "intermediate_size": 512, "vocab_size": 2048}
_SMALL_EXPERTS = {"n_routed_experts": 8, "moe_intermediate_size": 128, "num_key_value_heads": 16}
PROMPT, TOKENS = 512, 256
"""Of the one sequence, and of 64: prompts of a quarter and as many tokens."""
BATCH = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_REPOSITORY = Path(__file__).parents[1]
Result = dict[str, Any]


def config_of(name: str, small: bool) -> Mapping[str, Any]:
    whole = MODELS[name]
    return whole if not small else {**whole, **_SMALL, **(_SMALL_EXPERTS if "kv_lora_rank" in whole else {})}


def read_bytes(config: Mapping[str, Any]) -> int:
    """Of weights in a step of one sequence: of the input table a row, of routed experts those that run."""
    active = config.get("num_experts_per_tok", 0) / config.get("n_routed_experts", 1)
    sizes = {name: 2 * prod(shape) for name, shape in random_checkpoint.tensors(config).items()}
    return int(sum(size * (active if ".experts." in name else "embed_tokens" not in name) for name, size in sizes.items()))


def _synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def prompts(vocabulary: int, count: int, length: int) -> list[list[int]]:
    found: list[list[int]] = np.random.default_rng(count).integers(0, vocabulary, (count, length)).tolist()
    return found


class Clock:
    """The time, and how much of it the host has waited for the device."""

    def __init__(self, device: Any) -> None:
        self._waited = 0.0
        self._wait = device.wait
        device.wait = self.wait

    def wait(self, mark: object) -> None:
        began = time.perf_counter()
        self._wait(mark)
        self._waited += time.perf_counter() - began

    def now(self) -> tuple[float, float]:
        return time.perf_counter(), self._waited


def decode(engine: Any, given: list[list[int]], tokens: int, clock: Clock) -> tuple[list[list[int]], list[float], list[float]]:
    """The tokens of each prompt; of steps that brought one to all of them the seconds since the one before, and those that the host was
    busy for. The first few, in which what is run is recorded, are left out."""
    from tsrun.generation import GenerationRequest

    for prompt in given:
        engine.submit(GenerationRequest(prompt, tokens, ignore_eos=True))
    made: dict[int, list[int]] = {}
    times = []
    while engine.num_open:
        events = engine.step()
        for event in events:
            made.setdefault(event.request, []).extend(event.token_ids)
        if sum(bool(event.token_ids) for event in events) == len(given):
            times.append(clock.now())
    steps = [(b - a, (b - a) - (d - c)) for (a, c), (b, d) in pairwise(times)][8:]
    return [made[request] for request in sorted(made)], [step for step, _ in steps], [busy for _, busy in steps]


def ours(name: str, folder: Path, began: float, *, small: bool, dry: bool) -> Result:
    """What the engine does. began: when this process was started, of `time.time`."""
    from tsrun.engine import Engine
    from tsrun.limits import LimitOptions

    config = config_of(name, small)
    imported = time.time() - began
    limits = LimitOptions(max_sequences=BATCH, max_context=2048, max_step_tokens=2048, speculate="off", prefix_cache=False)
    patch = mock.patch("tsrun.ranks.device_for", return_value=SilentDevice()) if dry else mock.patch.dict(os.environ)
    with patch, Engine(folder / f"{name}.tsa", limits) as engine:
        opened = time.time() - began
        clock = Clock(engine._ranks._executor._device)
        decode(engine, prompts(config["vocab_size"], 1, PROMPT), 1, clock)
        ready = time.time() - began
        alone, many = prompts(config["vocab_size"], 1, PROMPT), prompts(config["vocab_size"], BATCH, PROMPT // 4)
        [tokens], gaps, busy = decode(engine, alone, TOKENS, clock)
        start = clock.now()[0]
        lists, steps, batch_busy = decode(engine, many, TOKENS, clock)
        batch_seconds = clock.now()[0] - start
        profiled = {} if dry else profile(engine, config["vocab_size"])
        return {
            "imported_seconds": imported,
            "opened_seconds": opened,
            "ready_seconds": ready,
            "inter_token_ms": 1e3 * statistics.median(gaps),
            "inter_token_p90_ms": 1e3 * statistics.quantiles(gaps, n=10)[-1],
            "host_us": 1e6 * statistics.median(busy),
            "batch_host_us": 1e6 * statistics.median(batch_busy),
            "batch_step_ms": 1e3 * statistics.median(steps),
            "batch_tokens_per_second": BATCH / statistics.median(steps),
            "batch_seconds": batch_seconds,
            "batch_distinct": len({tuple(one) for one in lists}),
            "prompt": alone[0],
            "tokens": tokens,
            "kernels": profiled,
        }


def profile(engine: Any, vocabulary: int, steps: int = 20) -> Result:
    """Where a step's time goes on the device: of each kernel how often a step runs it, and microseconds of all its runs there."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from tsrun.generation import GenerationRequest

    found: Result = {}
    for count in (1, BATCH):
        for prompt in prompts(vocabulary, count, 64):
            engine.submit(GenerationRequest(prompt, 64, ignore_eos=True))
        for _ in range(16):
            engine.step()
        with profiler(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(steps):
                engine.step()
            torch.cuda.synchronize()
        while engine.num_open:
            engine.step()
        runs: Counter[str] = Counter()
        times: Counter[str] = Counter()
        for event in seen.events() or ():
            runs[event.name[:80]] += 1
            times[event.name[:80]] += event.device_time
        found[str(count)] = [[kernel, runs[kernel] / steps, time / steps] for kernel, time in times.most_common(24)]
    return found


def transformers_of(name: str, folder: Path, how: str) -> Result:
    """The same weights in transformers: times as above, and of our tokens how many are its likeliest."""
    from transformers import AutoConfig, AutoModelForCausalLM

    began = time.perf_counter()
    config = AutoConfig.from_pretrained(folder / name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    stored = _stored(folder / name)
    model.load_state_dict({n: stored(n) for n in model.state_dict()}, assign=True)
    with DEVICE:
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.eval()
    found: Result = {"how": how, "loaded_seconds": time.perf_counter() - began}
    with torch.inference_mode():
        found |= _eager(model, folder, name) if how == "eager" else _compiled(model)
    return found


def _stored(checkpoint: Path) -> Callable[[str], torch.Tensor]:
    """Tensors of the checkpoint on the GPU."""
    data = np.memmap(checkpoint / "model.safetensors", np.uint8, "r")
    length = int(data[:8].view(np.uint64)[0])
    header = json.loads(bytes(data[8 : 8 + length]))
    on_device = torch.from_numpy(np.array(data[8 + length :])).to(DEVICE)

    def read(name: str) -> torch.Tensor:
        begin, end = header[name]["data_offsets"]
        return on_device[begin:end].view(torch.bfloat16).view(header[name]["shape"]).clone()

    return read


def _eager(model: Any, folder: Path, name: str) -> Result:
    found: Result = {}
    record = json.loads((folder / f"{name}.ours.json").read_text(encoding="utf-8"))
    whole = torch.tensor([record["prompt"] + record["tokens"]], device=DEVICE)
    logits = model(input_ids=whole).logits[0, len(record["prompt"]) - 1 : -1].float()
    chosen = logits.gather(1, whole[0, len(record["prompt"]) :, None])[:, 0]
    found["agreeing"] = float((chosen >= logits.amax(1)).float().mean())
    found["largest_lag"] = float(((logits.amax(1) - chosen) / logits.std(1)).max())
    for count, length, tokens in ((1, PROMPT, 48), (BATCH, PROMPT // 4, 24)):
        ids = torch.tensor(prompts(model.config.vocab_size, count, length), device=DEVICE)
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        times = []
        for _ in range(tokens):
            ids = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
            _synchronize()
            times.append(time.perf_counter())
        step = statistics.median([b - a for a, b in pairwise(times)][4:])
        found |= {"inter_token_ms": 1e3 * step} if count == 1 else {"batch_tokens_per_second": count / step}
        del out
    return found


def _compiled(model: Any) -> Result:
    """A static cache and torch.compile, as `generate` has it."""
    ids = torch.tensor(prompts(model.config.vocab_size, 1, PROMPT), device=DEVICE)

    def seconds(tokens: int) -> float:
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, cache_implementation="static", max_length=None)
        _synchronize()
        return time.perf_counter() - began

    warm = seconds(160) + seconds(32)
    few, many = seconds(32), seconds(160)
    return {"warm_up_seconds": warm, "inter_token_ms": 1e3 * (many - few) / 128}


def part(options: argparse.Namespace) -> None:
    """One of the processes: writes its result to a file."""
    kind, _, rest = options.part.partition(":")
    name, _, how = rest.partition(":")
    if kind == "machine":
        found = machine()
    elif kind == "ours":
        found = ours(name, options.folder, options.began, small=options.small, dry=options.dry)
    else:
        found = transformers_of(name, options.folder, how)
    (options.folder / "part.json").write_text(json.dumps(found), encoding="utf-8")


def run_part(options: argparse.Namespace, what: str, seconds: float) -> Result:
    """In a process of its own; what went wrong is a result, too."""
    file = options.folder / "part.json"
    file.unlink(missing_ok=True)
    flags = [flag for flag, is_set in (("--small", options.small), ("--dry", options.dry)) if is_set]
    command = [sys.executable, __file__, "--folder", str(options.folder), "--part", what, "--began", str(time.time()), *flags]
    try:
        done = subprocess.run(command, timeout=seconds, capture_output=True, text=True, check=False)
        said = (done.stderr or done.stdout)[-3000:]
    except subprocess.TimeoutExpired:
        said = f"not done in {seconds:.0f} s"
    if not file.exists():
        print(f"{what}: {said}", flush=True)
        return {"failed": said}
    found: Result = json.loads(file.read_text(encoding="utf-8"))
    return found


def compiled(options: argparse.Namespace, name: str) -> Result:
    config = config_of(name, options.small)
    began = time.perf_counter()
    size = random_checkpoint.write(options.folder / name, config)
    made = time.perf_counter() - began
    paths = os.pathsep.join(str(_REPOSITORY / part) for part in ("tsc", "passes", "kernels", "runtime"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (paths, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", "tsc", "compile", str(options.folder / name), "--target", "sm_90a"]
    done = subprocess.run(
        [*command, "-o", str(options.folder / f"{name}.tsa")], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stderr[-3000:])
        return {"failed": done.stderr[-1000:]}
    return {
        "weight_bytes": size,
        "read_bytes": read_bytes(config),
        "made_seconds": made,
        "compiled_seconds": time.perf_counter() - began - made,
    }


def model_run(options: argparse.Namespace, name: str, rate: float | None) -> Result:
    found = compiled(options, name)
    if "failed" in found:
        return found
    mine = found["ours"] = run_part(options, f"ours:{name}", options.limit)
    (options.folder / f"{name}.ours.json").write_text(json.dumps(mine), encoding="utf-8")
    if "failed" not in mine:
        floor = None if rate is None else found["read_bytes"] / rate / 1e6
        found["floor_ms"] = floor
        print(
            f"{name}: {found['weight_bytes'] / 1e9:.2f} GB of weights, {found['read_bytes'] / 1e9:.2f} read by a step of one sequence; "
            f"made in {found['made_seconds']:.1f} s, compiled in {found['compiled_seconds']:.1f} s\n"
            f"  start to first token {mine['ready_seconds']:.1f} s (libraries {mine['imported_seconds']:.1f}, opened at "
            f"{mine['opened_seconds']:.1f})\n"
            f"  one sequence: {mine['inter_token_ms']:.3f} ms a token (p90 {mine['inter_token_p90_ms']:.3f}), "
            + ("" if floor is None else f"{floor:.3f} is what reading takes at the rate of a copy, ")
            + f"host busy {mine['host_us']:.0f} us\n"
            f"  {BATCH} sequences: {mine['batch_step_ms']:.3f} ms a step, {mine['batch_tokens_per_second']:.0f} tokens/s, "
            f"host busy {mine['batch_host_us']:.0f} us",
            flush=True,
        )
        for count, kernels in mine["kernels"].items():
            print(f"  a step of {count} on the device, us: {sum(k[2] for k in kernels):.0f} in the kernels that take most")
            for kernel, runs, micros in kernels:
                print(f"    {micros:9.1f} {runs:7.1f} x  {kernel}")
    for how in options.peers.split(",") if options.peers and "kv_lora_rank" not in MODELS[name] else ():
        found[f"transformers_{how}"] = peer = run_part(options, f"peer:{name}:{how}", options.limit)
        print(f"  transformers {how}: {json.dumps(peer)[:400]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints and artifacts, 36 GB of them at a time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--peers", default="", help="eager, compiled")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds of a part")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.small = options.small or options.dry
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.part:
        part(options)
        return
    command = f"python benchmarks/gpu_engine.py --models {options.models} --peers {options.peers or 'none'}"
    found: Result = {"command": command, "machine": {} if options.dry else run_part(options, "machine:", 60)}
    print(json.dumps(found["machine"]), flush=True)
    rate = found["machine"].get("copy_gb_per_second")
    for name in options.models.split(","):
        found[name] = model_run(options, name, rate)
        for path in (options.folder / f"{name}.tsa" / "weights").glob("*"):
            path.unlink()
        (options.folder / name / "model.safetensors").unlink(missing_ok=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
