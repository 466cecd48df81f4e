"""Ranks on the GPUs of one host, a process each: whether they give the CPU's tokens, and what a step takes on one GPU and on several.

`python benchmarks/gpu_ranks.py [--ranks 2] [--limit SECONDS] [--json FILE]`; needs so many GPUs of one kind, and what compiles for them.

Tokens: pico, and a Llama and a Qwen3 of random weights, all in f32, greedy, three prompts and one that goes in chunks, as one batch. The
artifact for several ranks runs on its GPUs and, as it is, on this CPU (`--target cpu`); one without the kernels that exchange what they
add up runs on as many GPUs over NCCL, and that for one rank on one GPU. Steps: four layers of Llama 3 8B's shape in bf16, 1 and 32
sequences that decode: milliseconds of the device for a step that was recorded, and between the tokens of a batch, medians over the steps
of a run and over rounds in which these take turns. Each case is a process with a limit of its own; steps are measured after the others.
Ends with 1 where a token differs, a step was not recorded as a CUDA graph, or a case did not end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tsc.driver import compile_artifact
from tsc.request import Request
from tskernels import registry
from tsrun.engine import Engine
from tsrun.generation import GenerationRequest
from tsrun.gpu.programs import GpuPrograms
from tsrun.limits import LimitOptions

BEGAN = time.perf_counter()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOT = Path(__file__).parents[1]
_SMALL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}
_LAYERS_OF_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 16384,
}
TOKENS = 24
BATCHES = (1, 32)
STEPS = 80
ROUNDS = 2


@dataclass(frozen=True)
class Model:
    """A checkpoint that is there, or a config whose weights are drawn."""

    name: str
    checkpoint: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        config = self.config if self.checkpoint is None else json.loads((self.checkpoint / "config.json").read_text())
        return int(config["vocab_size"])


MODELS = (
    Model("pico", ROOT / "examples" / "pico" / "checkpoint"),
    Model("llama", config={"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_SMALL}),
    Model("qwen3", config={"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **_SMALL}),
)
LAYERS = Model("layers of Llama 3 8B", config={"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_SMALL, **_LAYERS_OF_8B})


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a checkpoint's, of both architectures."""
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    yield "lm_head.weight", (config["vocab_size"], width)
    yield "model.norm.weight", (width,)
    for layer in range(config["num_hidden_layers"]):
        below = f"model.layers.{layer}."
        for name, shape in (("q", (queries, width)), ("k", (keys, width)), ("v", (keys, width)), ("o", (width, queries))):
            yield f"{below}self_attn.{name}_proj.weight", shape
        for name, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            yield f"{below}mlp.{name}_proj.weight", shape
        for name in ("input", "post_attention"):
            yield f"{below}{name}_layernorm.weight", (width,)
        if config["model_type"] == "qwen3":
            for name in ("q", "k"):
                yield f"{below}self_attn.{name}_norm.weight", (head,)


def drawn(model: Model, folder: Path, dtype: torch.dtype) -> Path:
    """The model's checkpoint. Norms are about 1, and sums of products as large as what they are of."""
    if model.checkpoint is not None:
        return model.checkpoint
    path = folder / model.name.replace(" ", "-")
    path.mkdir()
    random = torch.Generator(DEVICE).manual_seed(3)
    found = {}
    for name, shape in tensors(model.config):
        values = torch.randn(shape, generator=random, device=DEVICE)
        values = 1 + values / 8 if len(shape) == 1 else values * shape[1] ** -0.5
        found[name] = values.to(dtype).cpu()
    save_file(found, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(model.config))
    return path


def compiled(checkpoint: Path, path: Path, ranks: int, dtype: str) -> Path:
    """An artifact for this machine's GPUs."""
    major, minor = torch.cuda.get_device_capability()
    request = Request(None, checkpoint, None, {"tp": ranks}, dtype, f"sm_{major}{minor}a")
    compile_artifact(request, path, lambda stage, done, total: None)
    return path


@contextmanager
def without_exchanges() -> Iterator[None]:
    """As if there were no kernels that send what they add up: what is compiled has collectives of torch tensors, over NCCL."""
    with registry.isolated():
        for op in registry.ops():
            found = registry._kernels.get((op, "triton"))
            if found is not None and found.kind == "collective":
                del registry._kernels[op, "triton"]
        yield


def prompt(length: int, seed: int, vocabulary: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocabulary, (length,), generator=random).tolist()


@dataclass
class Run:
    """tokens: of each prompt; unrecorded: shapes of steps that ran but are no CUDA graph, on GPUs."""

    tokens: list[list[int]]
    unrecorded: list[tuple[int, ...]]


def generate(path: Path, prompts: Sequence[Sequence[int]], *, on_cpu: bool = False) -> Run:
    """Greedy, without drafts; prompts longer than 64 tokens go in chunks."""
    options = LimitOptions(num_pages=256, max_step_tokens=64, speculate="off", target="cpu" if on_cpu else None)
    made: list[list[int]] = [[] for _ in prompts]
    with Engine(path, options) as engine:
        for given in prompts:
            engine.submit(GenerationRequest(list(given), TOKENS, ignore_eos=True))
        for event in engine.events():
            made[event.request].extend(event.token_ids)
        programs = engine._ranks._executor.programs
        bound = programs._bound if isinstance(programs, GpuPrograms) else {}
        return Run(made, [key for key, found in bound.items() if found.recorded is None])


def agreeing(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> str:
    """How many tokens agree, from the first on, of how many."""
    same = [next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(y)) for x, y in zip(found, wanted, strict=True)]
    return f"{sum(same)} of {sum(map(len, wanted))}"


def compare(model: Model, folder: Path, ranks: int) -> dict[str, Any]:
    """How many tokens agree with the CPU's, and whether all is as it should be."""
    checkpoint = drawn(model, folder, torch.float32)
    paths = variants(checkpoint, folder, ranks, "f32")
    prompts = [prompt(n, n, model.vocabulary) for n in (5, 17, 40, 150)]
    wanted = generate(paths[own(ranks)], prompts, on_cpu=True).tokens
    record: dict[str, Any] = {"model": model.name, "right": True}
    for name, path in paths.items():
        run = generate(path, prompts)
        record[name] = agreeing(run.tokens, wanted) + (f", not recorded: {run.unrecorded}" if run.unrecorded else "")
        record["right"] &= run.tokens == wanted and not run.unrecorded
    return record


def own(ranks: int) -> str:
    return f"{ranks} GPUs"


def variants(checkpoint: Path, folder: Path, ranks: int, dtype: str) -> dict[str, Path]:
    """Artifacts by where they run."""
    found = {name: compiled(checkpoint, folder / f"{n}.tsa", n, dtype) for name, n in (("1 GPU", 1), (own(ranks), ranks))}
    with without_exchanges():
        return found | {f"{own(ranks)}, NCCL": compiled(checkpoint, folder / "nccl.tsa", ranks, dtype)}


@dataclass(frozen=True)
class Step:
    """Seconds of a step, medians: of the device, and between tokens."""

    device: float
    between: float


def step_seconds(path: Path) -> dict[int, Step]:
    """By how many sequences decode."""
    options = LimitOptions(num_pages=64 * 32, max_sequences=64, speculate="off", prefix_cache=False)
    found = {}
    with Engine(path, options) as engine:
        played = watch(engine)
        for sequences in BATCHES:
            played.clear()
            requests = [
                engine.submit(GenerationRequest(prompt(16, seed, LAYERS.vocabulary), STEPS, ignore_eos=True)) for seed in range(sequences)
            ]
            arrived = [time.perf_counter() for event in engine.events() if event.request == requests[-1] and event.token_ids]
            half = STEPS // 2  # in the first, prompts are computed and shapes recorded
            device = [begin.elapsed_time(end) / 1e3 for begin, end in played[-half:]]
            found[sequences] = Step(statistics.median(device), statistics.median(b - a for a, b in pairwise(arrived[-half:])))
    return found


def watch(engine: Engine) -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
    """Begin and end, on the device, of what this process will replay."""
    programs, played = engine._ranks._executor.programs, []
    assert isinstance(programs, GpuPrograms)
    device = programs._device
    replay = device.replay

    def timed(recorded: object) -> None:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        replay(recorded)
        end.record()
        played.append((begin, end))

    device.replay = timed  # type: ignore[method-assign]
    return played


def measure(folder: Path, ranks: int) -> Iterator[dict[str, Any]]:
    """After each round, what was measured so far; they begin when a line comes in."""
    paths = variants(drawn(LAYERS, folder, torch.bfloat16), folder, ranks, "bf16")
    yield {"model": LAYERS.name, "compiled": list(paths)}
    sys.stdin.readline()
    rounds: list[dict[str, dict[int, Step]]] = []
    for _ in range(ROUNDS):
        rounds.append({name: step_seconds(path) for name, path in paths.items()})
        for sequences in BATCHES:
            record: dict[str, Any] = {"model": LAYERS.name, "sequences": sequences, "rounds": len(rounds)}
            for what in ("device", "between"):
                seconds = [{name: getattr(steps[sequences], what) for name, steps in r.items()} for r in rounds]
                record |= {f"{what}, ms, {name}": round(1e3 * statistics.median(r[name] for r in seconds), 4) for name in paths}
                for other in (name for name in paths if name != own(ranks)):
                    ratios = [r[other] / r[own(ranks)] for r in seconds]
                    record[f"{what}, times as fast as {other}"] = [round(f(ratios), 3) for f in (min, statistics.median, max)]
            yield record


CASES = (*(model.name for model in MODELS), "steps")


def be_case(name: str, ranks: int) -> None:
    """A line of JSON for each record."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = next((m for m in MODELS if m.name == name), None)
        for record in measure(folder, ranks) if model is None else [compare(model, folder, ranks)]:
            print(json.dumps(record), flush=True)


class Case:
    """A process, whose records are kept, and printed as they come."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.name = name
        self.records: list[dict[str, Any]] = []
        command = [sys.executable, __file__, "--ranks", str(given.ranks), "--case", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        # Of its ranks, too; with PYTHONFAULTHANDLER they say where they are.
        self._timer = threading.Timer(given.limit, os.killpg, (self._process.pid, signal.SIGABRT))
        self._timer.start()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def end(self) -> list[dict[str, Any]]:
        """All records, when it has ended."""
        self._thread.join()
        self._timer.cancel()
        code = self._process.wait()
        return [*self.records, {"case": self.name, "right": not code, "code": code}]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.records.append({"case": self.name, **json.loads(line)})
            print(f"{time.perf_counter() - BEGAN:6.1f} s", line, end="", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300, help="seconds of a case")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)  # how it starts itself
    given = parser.parse_args()
    if given.case:
        be_case(given.case, given.ranks)
        return
    if torch.cuda.device_count() < given.ranks:
        raise SystemExit(f"there are {torch.cuda.device_count()} GPUs here, and {given.ranks} ranks need one each")
    *tokens, steps = (Case(name, given) for name in CASES)  # steps compiles, and waits
    records = [record for case in tokens for record in case.end()]
    steps.go_on()
    records += steps.end()
    report = {"device": torch.cuda.get_device_name(), "ranks": given.ranks, "torch": torch.__version__, "command": " ".join(sys.argv)}
    if given.json is not None:
        given.json.write_text(json.dumps({**report, "records": records}, indent=1) + "\n")
    wrong = [record["case"] for record in records if not record.get("right", True)]
    print(f"WRONG: {', '.join(wrong)}" if wrong else "all tokens agree, and all cases ended")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
