"""A toy decoder: its weights, an independent implementation in plain torch, and its artifact written by hand. Every second layer has a
sliding window.

Dimensions: T tokens, D model, K key heads with G query heads each, E elements a head, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from tskernels.registry import REFERENCE, Call, Kernel, KernelMissing, Operand, lookup

BOS, EOS = 256, 257
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}> {% endif %}"
)
_ELEMENT = 4


@dataclass
class Toy:
    """Sizes and weights. 256 bytes, bos, eos and two unused ids are the vocabulary, so that two ranks can share it. embeds: it ends before
    its head, and its artifact gives embeddings."""

    D: int = 32
    K: int = 2
    G: int = 2
    E: int = 8
    F: int = 48
    V: int = 260
    layers: int = 2
    window: int = 12
    context: int = 96
    eps: float = 1e-5
    theta: float = 10000.0
    embeds: bool = False
    weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])

        self.weights["embed"] = random(self.V, self.D) * 6
        self.weights["norm"] = 1 + 0.1 * random(self.D)
        self.weights["head"] = random(self.V, self.D) * 4
        H, KE = self.K * self.G * self.E, self.K * self.E
        for layer in range(self.layers):
            for name, shape in {
                "q": (H, self.D),
                "k": (KE, self.D),
                "v": (KE, self.D),
                "o": (self.D, H),
                "gate": (self.F, self.D),
                "up": (self.F, self.D),
                "down": (self.D, self.F),
            }.items():
                self.weights[f"{layer}.{name}"] = random(*shape)
            self.weights[f"{layer}.n1"] = 1 + 0.1 * random(self.D)
            self.weights[f"{layer}.n2"] = 1 + 0.1 * random(self.D)

    def window_of(self, layer: int) -> int:
        return self.window if layer % 2 else 0

    @property
    def windows(self) -> list[int]:
        """Of its layers, each once."""
        return sorted({self.window_of(layer) for layer in range(self.layers)})

    def logits(self, ids: list[int]) -> Tensor:
        """[T, V] of a whole sequence at once: no cache, no pages, no steps."""
        return self.hidden(ids) @ self.weights["head"].T

    def hidden(self, ids: list[int]) -> Tensor:
        """[T, D]: what the head reads."""
        w, T = self.weights, len(ids)
        x = w["embed"][torch.tensor(ids)]
        for layer in range(self.layers):
            h = self._norm(x, w[f"{layer}.n1"])
            q = self._rope((h @ w[f"{layer}.q"].T).view(T, self.K * self.G, self.E))
            k = self._rope((h @ w[f"{layer}.k"].T).view(T, self.K, self.E)).repeat_interleave(self.G, 1)
            v = (h @ w[f"{layer}.v"].T).view(T, self.K, self.E).repeat_interleave(self.G, 1)
            scores = torch.einsum("ihe,jhe->hij", q, k) / math.sqrt(self.E)
            distance = torch.arange(T)[:, None] - torch.arange(T)
            scores = scores.masked_fill((distance < 0) | (distance >= (self.window_of(layer) or T)), -torch.inf)
            x = x + torch.einsum("hij,jhe->ihe", scores.softmax(-1), v).reshape(T, -1) @ w[f"{layer}.o"].T
            h = self._norm(x, w[f"{layer}.n2"])
            x = x + (torch.nn.functional.silu(h @ w[f"{layer}.gate"].T) * (h @ w[f"{layer}.up"].T)) @ w[f"{layer}.down"].T
        return self._norm(x, w["norm"])

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[len(prompt) :]

    def _norm(self, x: Tensor, w: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * w

    def _rope(self, x: Tensor) -> Tensor:
        half = self.E // 2
        angles = torch.arange(x.shape[0])[:, None] * self.theta ** (-torch.arange(half) / half)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class GraphWriter:
    """Writes the nodes of a graph, each at a place of its own behind the last one."""

    def __init__(self, inputs: list[dict[str, Any]]) -> None:
        self.inputs, self.nodes = inputs, list[dict[str, Any]]()
        self.used = {"T": 0, "S": 0}

    def place(self, shape: list[Any]) -> dict[str, Any]:
        region = shape[0]
        offset = self.used[region]
        self.used[region] += -(-math.prod(shape[1:]) * _ELEMENT // 64) * 64
        return {"region": region, "offset": offset}

    def op(self, name: str, op: str, args: list[str], shape: list[Any], **attrs: Any) -> str:
        stored = op not in ("narrow", "split", "merge")
        kernel = _kernel(f"ts::{op}")
        node: dict[str, Any] = {"name": name, "op": kernel.op, "kernel": kernel.name, "args": args, "attrs": attrs, "dtype": "f32"}
        if kernel.constants is not None:
            sizes = tuple(size if isinstance(size, int) else None for size in shape)
            node["constants"] = list(kernel.constants(Call(kernel.op, (Operand("f32", sizes),), attrs)))
        node |= {"shape": shape, "type": "f32[...]", "span": "toy.ts:1:1"}
        self.nodes.append(node | (self.place(shape) if stored else {"region": None, "offset": None}))
        return name

    def append(self, cache: str, k: str, v: str, slots: str, shape: list[Any]) -> str:
        node = {"name": "filled", "op": "ts::cache_append", "kernel": _kernel("ts::cache_append").name, "args": [cache, k, v, slots]}
        self.nodes.append(node | {"attrs": {}, "dtype": "f32", "shape": shape, "region": None, "offset": None})
        return "filled"

    def record(self, output: str) -> dict[str, Any]:
        return {"inputs": self.inputs, "nodes": self.nodes, "output": output}


def program_of(toy: Toy, ranks: int) -> dict[str, Any]:
    """program.json of the toy. With ranks, heads, feed-forward and vocabulary lie on the axis `tp`."""
    K, F, V = toy.K // ranks, toy.F // ranks, toy.V // ranks
    layers = {window: _layer(toy, K, F, ranks, window) for window in toy.windows}
    step = _steps("ids", "last", *_LAYER_STEPS[:3])
    for window in toy.windows:
        step += _steps("slots", "tables", window=window)
    weights = [_weight("embed", V, toy.D), _weight("norm", toy.D), *([] if toy.embeds else [_weight("head", V, toy.D)])]
    shard = [{"name": "shard", "kind": "coordinate", "axis": "tp"}] if ranks > 1 else []
    entry = GraphWriter(step + shard + [w | {"tensor": w["name"]} for w in weights])
    if ranks > 1:
        entry.op("part", "embedding", ["ids", "embed", "shard"], ["T", toy.D])
        x = entry.op("x", "all_reduce", ["part"], ["T", toy.D], axis="tp", reduction="sum")
    else:
        x = entry.op("x", "embedding", ["ids", "embed"], ["T", toy.D], shard=0)
    places = [entry.place(["T", toy.D]) for _ in range(toy.layers)]
    frame = {"T": entry.used["T"], "S": 0}
    names = [given["name"] for given in layers[0].inputs if given["kind"] == "weight"]
    for index, place in enumerate(places):
        bound = {name: f"{index}.{name}" for name in names}
        window = toy.window_of(index)
        steps = [*_LAYER_STEPS[:3], _named("slots", window), _named("tables", window)]
        call = {"name": f"x_{index}", "call": _named("Layer", window), "args": [x, *steps], "weights": bound, "caches": {"kv": index}}
        entry.nodes.append(call | place | {"frame": frame})
        x = f"x_{index}"
    entry.used["T"] += layers[0].used["T"]
    entry.op("normed", "rms_norm", [x, "norm"], ["T", toy.D], eps=toy.eps, offset=0.0)
    entry.op("ends", "take_rows", ["normed", "last"], ["S", toy.D])
    output = "ends" if toy.embeds else entry.op("logits", "linear", ["ends", "head"], ["S", V])
    if ranks > 1 and not toy.embeds:
        output = entry.op("all_logits", "all_gather", ["logits"], ["S", toy.V], axis="tp", dim=1)
    caches = [{"dtype": "f32", "page": [2, K, toy.E], "window": toy.window_of(layer)} for layer in range(toy.layers)]
    graphs = {"decode": entry.record(output)} | {_named("Layer", window): layer.record("y") for window, layer in layers.items()}
    plans = [{"tokens": 1, "entry": "decode", "frame": dict(entry.used)}]
    return {"format": 7, "plans": plans, "caches": caches, "graphs": graphs}


def _layer(toy: Toy, K: int, F: int, ranks: int, window: int) -> GraphWriter:
    D, G, E = toy.D, toy.G, toy.E
    given: list[dict[str, Any]] = [{"name": "x", "kind": "value", "dtype": "f32", "shape": ["T", D], "type": "f32[T, D]"}]
    given += _steps(*_LAYER_STEPS[:3]) + _steps(*_LAYER_STEPS[3:], window=window)
    given += [_weight("n1", D), _weight("n2", D), _weight("qkv", (G + 2) * K * E, D), _weight("o", D, K * G * E)]
    given += [_weight("gate", F, D), _weight("up", F, D), _weight("down", D, F)]
    w = GraphWriter([*given, {"name": "kv", "kind": "cache", "dtype": "f32", "shape": ["pages", 2, K, E], "window": window}])
    w.op("h", "rms_norm", ["x", "n1"], ["T", D], eps=toy.eps, offset=0.0)
    w.op("qkv_", "linear", ["h", "qkv"], ["T", (G + 2) * K * E])
    w.op("q_", "narrow", ["qkv_"], ["T", G * K * E], start=0, length=G * K * E)
    w.op("k_", "narrow", ["qkv_"], ["T", K * E], start=G * K * E, length=K * E)
    w.op("v_", "narrow", ["qkv_"], ["T", K * E], start=(G + 1) * K * E, length=K * E)
    w.op("qs", "split", ["q_"], ["T", K, G, E], sizes=[K, G, E])
    w.op("ks", "split", ["k_"], ["T", K, E], sizes=[K, E])
    w.op("v", "split", ["v_"], ["T", K, E], sizes=[K, E])
    rope = {"theta": toy.theta, "kind": "default", "parameters": [], "interleaved": False}
    w.op("q", "rope", ["qs", "positions"], ["T", K, G, E], **rope)
    w.op("k", "rope", ["ks", "positions"], ["T", K, E], **rope)
    cache = w.append("kv", "k", "v", _named("slots", window), [2, K, E])
    sight = {"shard": 0, "scale": 1 / math.sqrt(E), "window": window, "softcap": 0.0}
    w.op("a", "attention", ["q", cache, "spans", "lengths", _named("tables", window)], ["T", K, G, E], **sight)
    w.op("am", "merge", ["a"], ["T", K * G * E], count=3)
    o = w.op("o_", "linear", ["am", "o"], ["T", D])
    if ranks > 1:
        o = w.op("o_all", "all_reduce", [o], ["T", D], axis="tp", reduction="sum")
    w.op("x1", "add", ["x", o], ["T", D])
    w.op("h2", "rms_norm", ["x1", "n2"], ["T", D], eps=toy.eps, offset=0.0)
    w.op("g_", "linear", ["h2", "gate"], ["T", F])
    w.op("g", "silu", ["g_"], ["T", F])
    w.op("u", "linear", ["h2", "up"], ["T", F])
    w.op("gu", "mul", ["g", "u"], ["T", F])
    d = w.op("d", "linear", ["gu", "down"], ["T", D])
    if ranks > 1:
        d = w.op("d_all", "all_reduce", [d], ["T", D], axis="tp", reduction="sum")
    w.op("y", "add", ["x1", d], ["T", D])
    return w


_LAYER_STEPS = ["positions", "spans", "lengths", "slots", "tables"]
_STEP_SHAPES: dict[str, list[str | int]] = {
    "ids": ["T"],
    "positions": ["T"],
    "slots": ["T"],
    "last": ["S"],
    "spans": ["S", 2],
    "lengths": ["S"],
    "tables": ["S", "S.pages"],
}


def _named(name: str, window: int) -> str:
    return f"{name}_w{window}" if window else name


def _steps(*names: str, window: int = 0) -> list[dict[str, Any]]:
    return [
        {"name": _named(n, window), "kind": "step", "step": n, "window": window, "dtype": "i32", "shape": _STEP_SHAPES[n]} for n in names
    ]


def _weight(name: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "kind": "weight", "dtype": "f32", "shape": list(shape), "type": f"f32{list(shape)}"}


def _kernel(op: str) -> Kernel:
    """As a compilation has it: one that promises the same bits in any step first, so that a row's do not depend on others' drafts."""
    for name in ("simd", "torch"):
        with contextlib.suppress(KernelMissing):
            return lookup(op, name)
    return lookup(op, REFERENCE)


def weights_of(toy: Toy, rank: int, ranks: int) -> dict[str, Tensor]:
    """The tensors of one rank: key heads, feed-forward and vocabulary in blocks; q, k and v joined."""
    w = toy.weights

    def block(x: Tensor, dim: int) -> Tensor:
        return x.chunk(ranks, dim)[rank].contiguous()

    own = {"embed": block(w["embed"], 0), "norm": w["norm"]} | ({} if toy.embeds else {"head": block(w["head"], 0)})
    for layer in range(toy.layers):
        qkv = [block(w[f"{layer}.{name}"], 0) for name in "qkv"]
        own[f"{layer}.qkv"] = torch.cat(qkv)
        own |= {f"{layer}.{name}": block(w[f"{layer}.{name}"], 0) for name in ("gate", "up")}
        own |= {f"{layer}.{name}": block(w[f"{layer}.{name}"], 1) for name in ("o", "down")}
        own |= {f"{layer}.{name}": w[f"{layer}.{name}"] for name in ("n1", "n2")}
    return own


def byte_tokenizer() -> Tokenizer:
    """One token a byte: every character beyond ASCII spans tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    return tokenizer


def write_artifact(toy: Toy, path: Path, *, ranks: int = 1, program: dict[str, Any] | None = None, weightless: bool = False) -> Path:
    """Write NAME.tsa of the toy, with `program` instead of its own where one is given."""
    (path / "weights").mkdir(parents=True)
    (path / "tokenizer").mkdir()
    (path / "program.json").write_text(json.dumps(program or program_of(toy, ranks)))
    (path / "plan.json").write_text("{}")
    for rank in range(0 if weightless else ranks):
        save_file(weights_of(toy, rank, ranks), path / "weights" / f"rank-{rank:05d}.safetensors")
    byte_tokenizer().save(str(path / "tokenizer" / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True, "chat_template": CHAT}
    (path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    write_manifest(toy, path, ranks=ranks, weightless=weightless)
    return path


def write_manifest(toy: Toy, path: Path, *, ranks: int = 1, weightless: bool = False) -> None:
    """Write the manifest for the files that are there: again after a test has changed one on purpose."""
    files = {f.relative_to(path).as_posix(): f for f in sorted(path.rglob("*")) if f.is_file() and f.name != "manifest.json"}
    listed = {n: {"bytes": f.stat().st_size, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for n, f in files.items()}
    model = {"name": "toy", "architecture": "Toy", "source": "toy.ts", "source_sha256": "0" * 64, "config_sha256": "1" * 64}
    manifest = {
        "format": "tsa/2",
        "tsc": "0.1.0",
        "model": model,
        "axes": [["tp", ranks]],
        "ranks": ranks,
        "target": "cpu",
        "dtype": "f32",
        "vocabulary": toy.V,
        "gives": "embeddings" if toy.embeds else "logits",
        "embedding": toy.D if toy.embeds else None,
        "context": toy.context,
        "eos_token_ids": [EOS],
        "bos_token_id": BOS,
        "weightless": weightless,
        "files": listed,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
