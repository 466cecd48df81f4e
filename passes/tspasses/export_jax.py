"""A step as one JAX program: the graphs of program.json as a `shard_map` over the mesh, exported as StableHLO for fixed shapes.

Assumes: every op is bound to a kernel of the family `jax`.
Guarantees: the program's collectives are the plan's, each where its op stands; a distinct layer is traced once for each of its shapes.
Does not: decide anything, or need the devices that the program is for.

A program is a function of `(inputs, weights, caches, states)`, which gives `(output, caches, states)`: of inputs and output every rank has
the whole, of the others each rank has its own, so that they have the ranks as first dimension. Caches and states are given away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.export import export
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from tskernels.cache_pages import PAGE_SIZE, state_pages, table_columns, window_pages
from tskernels.jax.types import DTYPES
from tskernels.registry import lookup, op_named
from tspasses.step_buckets import StepBucket, StepLimits, step_buckets

FORMAT = 1
Record = Mapping[str, Any]
"""A JSON object."""
Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Exported:
    """record: jax.json of docs/architecture.md; files: its programs, by name."""

    record: dict[str, Any]
    files: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a program's arguments are, but for the inputs' T and S: shapes of a rank's part, or of the whole of inputs."""

    inputs: Mapping[str, Record]
    weights: Mapping[str, Record]
    caches: Sequence[Record]
    states: Sequence[Record]
    columns: int


def export_steps(
    program: Record,
    axes: Sequence[tuple[str, int]],
    platforms: Sequence[str],
    limits: StepLimits,
    context: int | None,
    progress: Callable[[int, int], None],
) -> Exported:
    """Every bucket of a program as program.json has it. axes: of the mesh, major to minor; context: of the longest sequence."""
    mesh = AbstractMesh(tuple(size for _, size in axes), tuple(name for name, _ in axes))
    layout = _layout(program, limits, context)
    buckets = step_buckets(program["plans"], limits)
    steps: list[Record] = []
    files: dict[str, bytes] = {}
    for done, bucket in enumerate(buckets):
        progress(done, len(buckets))
        entry = program["plans"][bucket.plan]["entry"]
        name = f"{entry}-{bucket.tokens}-{bucket.rows}.bin"
        made = _exported(program, entry, layout, mesh, bucket, platforms)
        files |= {f"jax/{platform}-{name}": data for platform, data in made.items()}
        steps.append({"plan": bucket.plan, "tokens": bucket.tokens, "rows": bucket.rows, "file": name})
    windows = sorted({c["window"] for c in program["caches"]} - {0})
    sizes = {"page_size": PAGE_SIZE, "max_step_tokens": buckets[-1].tokens, "max_sequences": limits.sequences}
    record = {
        "format": FORMAT,
        "platforms": list(platforms),
        **sizes,
        "pages": [[window, _pages(window, limits)] for window in (0, *windows)],
        "states": state_pages(max_sequences=limits.sequences) if program.get("states") else 0,
        "columns": layout.columns,
        "inputs": [{"name": name, **given} for name, given in layout.inputs.items()],
        "weights": [{"name": name, **given} for name, given in layout.weights.items()],
        "caches": list(layout.caches),
        "kept": list(layout.states),
        "steps": steps,
    }
    return Exported(record, files)


def _pages(window: int, limits: StepLimits) -> int:
    if not window:
        return limits.pages
    return window_pages(window, limits.pages, page_size=PAGE_SIZE, max_sequences=limits.sequences, max_step_tokens=limits.tokens)


def _layout(program: Record, limits: StepLimits, context: int | None) -> _Layout:
    longest = min(limits.pages, *(() if context is None else (-(-context // PAGE_SIZE),)))
    caches = [
        # One page more than there are: the tokens that pad a step are written there.
        {"dtype": c["dtype"], "shape": [_pages(c["window"], limits) + 1, PAGE_SIZE, *c["page"]]}
        for c in program["caches"]
    ]
    pages = state_pages(max_sequences=limits.sequences)
    states = [{"dtype": s["dtype"], "shape": [pages, *s["shape"]]} for s in program.get("states", ())]
    inputs: dict[str, Record] = {}
    weights: dict[str, Record] = {}
    for plan in program["plans"]:
        graph = program["graphs"][plan["entry"]]
        for given in graph["inputs"]:
            if given["kind"] == "step":
                shape = ["S", "P"] if given["step"] == "tables" else given["shape"]
                inputs[_input_name(given)] = {"step": given["step"], "window": given["window"], "shape": shape}
        weights |= dict(_weights(program, plan["entry"]))
    return _Layout(inputs, weights, caches, states, table_columns(longest))


def _input_name(given: Record) -> str:
    return f"{given['step']}_w{given['window']}" if given["window"] else str(given["step"])


def _weights(program: Record, name: str) -> Iterator[tuple[str, Record]]:
    """Every tensor that a graph reads, with element type and a rank's shape."""
    graph = program["graphs"][name]
    for given in graph["inputs"]:
        if given["kind"] == "weight" and "tensor" in given:
            yield given["tensor"], {"dtype": given["dtype"], "shape": given["shape"]}
    for node in graph["nodes"]:
        if "call" in node:
            own = {g["name"]: g for g in program["graphs"][node["call"]]["inputs"] if g["kind"] == "weight"}
            for weight, tensor in node["weights"].items():
                yield tensor, {"dtype": own[weight]["dtype"], "shape": own[weight]["shape"]}
            yield from _weights(program, node["call"])


def _exported(
    program: Record, entry: str, layout: _Layout, mesh: AbstractMesh, bucket: StepBucket, platforms: Sequence[str]
) -> dict[str, bytes]:
    """By platform: in a program for several each op that is lowered otherwise on one of them stands there once for each."""
    every = PartitionSpec(mesh.axis_names)
    sizes = {"T": bucket.tokens, "S": bucket.rows, "P": layout.columns}

    def whole(given: Record) -> jax.ShapeDtypeStruct:
        shape = [sizes[d] if isinstance(d, str) else d for d in given["shape"]]
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))

    def split(given: Record) -> jax.ShapeDtypeStruct:
        shape = (prod(mesh.axis_sizes), *given["shape"])
        return jax.ShapeDtypeStruct(shape, DTYPES[given["dtype"]], sharding=NamedSharding(mesh, every))

    def step(inputs: Arrays, weights: Arrays, caches: list[Array], states: list[Array]) -> tuple[Array, list[Array], list[Array]]:
        own_weights, own_caches, own_states = jax.tree.map(lambda x: x[0], (weights, caches, states))
        output, caches, states = Tracer(program, own_weights).entry(entry, inputs, own_caches, own_states)
        return output, [c[None] for c in caches], [s[None] for s in states]

    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(PartitionSpec(), every, every, every), out_specs=(PartitionSpec(), every, every), check_vma=False
    )
    arguments = (
        {name: whole(given) for name, given in layout.inputs.items()},
        {name: split(given) for name, given in layout.weights.items()},
        [split(given) for given in layout.caches],
        [split(given) for given in layout.states],
    )
    # Programs say where an op was traced: by the file's name alone, so that an artifact is the same wherever it was compiled.
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    traced = jax.jit(mapped, donate_argnums=(2, 3))
    with jax.enable_x64(True):  # keys are of 64 bits
        return {platform: bytes(export(traced, platforms=[platform])(*arguments).serialize()) for platform in platforms}


class Tracer:
    """Runs graphs on what JAX traces. weights: of this rank, by the artifact's names."""

    def __init__(self, program: Record, weights: Arrays) -> None:
        self._graphs = program["graphs"]
        self._weights = weights
        self._functions: dict[str, Callable[..., tuple[Array, Arrays]]] = {}

    def entry(self, name: str, inputs: Arrays, caches: Sequence[Array], states: Sequence[Array]) -> tuple[Array, list[Array], list[Array]]:
        """The entry's result, and caches and states as it leaves them."""
        bound: dict[str, Any] = {}
        for given in self._graphs[name]["inputs"]:
            match given["kind"]:
                case "step":
                    bound[given["name"]] = inputs[_input_name(given)]
                case "weight":
                    bound[given["name"]] = self._weights[given["tensor"]]
                case "coordinate":
                    bound[given["name"]] = lax.axis_index(tuple(given["axis"].split("*")))
        kept = {("cache", i): c for i, c in enumerate(caches)} | {("state", i): s for i, s in enumerate(states)}
        result, _ = self._run(name, bound, kept)
        return result, [kept["cache", i] for i in range(len(caches))], [kept["state", i] for i in range(len(states))]

    def _run(self, name: str, bound: Mapping[str, Any], kept: dict[tuple[str, int], Array]) -> tuple[Array, dict[str, Any]]:
        """The result, and every value by name as it is at the end. kept: caches and states of the whole program, which calls change."""
        values = dict(bound)
        written: dict[str, str] = {}  # of what ops have made of a cache: the input that it is
        for node in self._graphs[name]["nodes"]:
            if "call" in node:
                values[node["name"]] = self._call(node, values, kept)
                continue
            op = op_named(node["op"])
            made = lookup(node["op"], node["kernel"]).function(*(values[a] for a in node["args"]), **node["attrs"])
            if op.writes:
                made, values[node["args"][op.parameters.index(op.writes)]] = made
            elif op.kind == "inplace":
                origin = written[node["name"]] = written.get(node["args"][0], node["args"][0])
                values[origin] = made
            values[node["name"]] = made
        return values[self._graphs[name]["output"]], values

    def _call(self, node: Record, values: Mapping[str, Any], kept: dict[tuple[str, int], Array]) -> Array:
        places = {name: ("cache", i) for name, i in node["caches"].items()} | {
            name: ("state", i) for name, i in node.get("states", {}).items()
        }
        passed = [g["name"] for g in self._graphs[node["call"]]["inputs"] if g["kind"] in ("value", "step", "coordinate")]
        bound = dict(zip(passed, (values[a] for a in node["args"]), strict=True))
        weights = {name: self._weights[tensor] for name, tensor in node["weights"].items()}
        own = {name: kept[place] for name, place in places.items()}
        result, changed = self._function(node["call"])(bound, weights, own)
        for name, place in places.items():
            kept[place] = changed[name]
        return result

    def _function(self, name: str) -> Callable[..., tuple[Array, Arrays]]:
        """A graph as a function of its own, which is traced once for all calls alike."""
        if name not in self._functions:

            def layer(bound: Arrays, weights: Arrays, own: Arrays) -> tuple[Array, Arrays]:
                result, values = self._run(name, bound | weights | own, {})
                return result, {name: values[name] for name in own}

            layer.__name__ = name
            self._functions[name] = jax.jit(layer)
        return self._functions[name]
