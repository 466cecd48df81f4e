"""What `tsc inspect` shows of an artifact: what the manifest says, the machine code that it carries, and what its programs for JAX take.
Nothing of it runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from tsc.diagnostics import CompileError, Diagnostic
from tsc.request import target_named
from tskernels.dtypes import size_bytes
from tskernels.target import JAX

Record = Mapping[str, Any]


def inspected(path: Path) -> Iterator[str]:
    """Lines on an artifact. Raises CompileError where it is none, MissingCapability."""
    manifest = _read(path / "manifest.json")
    yield from _manifest(manifest)
    program = _read(path / "program.json")
    yield from _caches(program)
    yield from _kernels_of_ops(program)
    if "kernels.json" in manifest["files"]:
        yield from _machine_code(_read(path / "kernels.json"), manifest)
    if target_named(manifest["target"]).family == JAX.family:
        yield from _exported(path)


def _manifest(manifest: Record) -> Iterator[str]:
    model = manifest["model"]
    mesh = ", ".join(f"{axis}={size}" for axis, size in manifest["axes"]) or "one rank"
    what = f"{model['name']} ({model['architecture']}), {manifest['dtype']}, for {manifest['target']}, {mesh}"
    yield f"{what}; {manifest['format']}, tsc {manifest['tsc']}"
    sizes: Counter[str] = Counter()
    for name, entry in manifest["files"].items():
        sizes[name.partition("/")[0]] += entry["bytes"]
    yield "  ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sorted(sizes.items()))


def _caches(program: Record) -> Iterator[str]:
    """What a token takes of a rank."""
    caches: Sequence[Record] = program["caches"]
    if caches:
        kinds = sorted({f"{cache['dtype']} in {cache['layout']}" if "layout" in cache else cache["dtype"] for cache in caches})
        size = sum(size_bytes(cache["dtype"]) * prod(cache["page"]) for cache in caches)
        yield f"{len(caches)} caches of {', '.join(kinds)}: {size:,} bytes a token"


def _kernels_of_ops(program: Record) -> Iterator[str]:
    nodes = [node for graph in program["graphs"].values() for node in graph["nodes"] if "op" in node]
    used = Counter((node["op"], node["kernel"]) for node in nodes if node.get("region"))
    width = max((len(op) for op, _ in used), default=0)
    for op in sorted({op for op, _ in used}):
        kernels = ((name, count) for (of, name), count in sorted(used.items()) if of == op)
        yield f"  {op:{width}}  {', '.join(f'{name} ({count})' if count > 1 else name for name, count in kernels)}"


def _machine_code(kernels: Record, manifest: Record) -> Iterator[str]:
    functions: Sequence[Record] = kernels["functions"]
    yield f"{len(functions)} functions for {kernels['target']}, of {len(kernels['plans'])} calls"
    rows = [("function", "threads", "registers", "shared", "tensor", "stack", "bytes", "sha256", "constants")]
    for function in functions:
        r, constants = function["resources"], function["constants"]
        numbers = (str(r[n]) for n in ("registers", "shared", "tensor_columns", "stack"))
        size = str(manifest["files"][function["file"]]["bytes"])
        digest = r["sha256"][:12]
        said = " ".join(f"{k}={v}" for k, v in constants.items())
        rows.append((function["source"].partition(":")[2], str(function["threads"]), *numbers, size, digest, said))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield (
            "  "
            + "  ".join(
                cell.ljust(w) if i in (0, 7, 8) else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )


def _exported(path: Path) -> Iterator[str]:
    """Of the programs for JAX: what each takes, as its StableHLO has it."""
    from jax.export import Exported, deserialize

    record = _read(path / "jax.json")
    programs: dict[str, Exported] = {}
    for platform in record["platforms"]:
        for step in record["steps"]:
            name = f"jax/{platform}-{step['file']}"
            try:
                programs[name] = made = deserialize(bytearray((path / name).read_bytes()))
            except (OSError, ValueError) as error:
                raise CompileError(Diagnostic("TS0514", f"{path / name}: is no program that this JAX reads ({error})")) from None
            lines = str(made.mlir_module()).count("\n")
            yield f"{name}: {made.nr_devices} devices, {step['tokens']} tokens, {step['rows']} rows; StableHLO of {lines:,} lines"
            inputs, weights, caches, states = _arguments(made)
            yield "  inputs: " + ", ".join(f"{name} {aval.str_short(short_dtypes=True)}" for name, aval in inputs.items())
    yield f"every program takes a rank's part of {len(weights)} weights, {len(caches)} caches and {len(states)} states:"
    for name, aval in weights.items():
        yield f"  {name} {aval.str_short(short_dtypes=True)}"
    for kind, avals in (("cache", caches), ("state", states)):
        yield from (f"  {kind} {i} {aval.str_short(short_dtypes=True)}" for i, aval in enumerate(avals))


def _arguments(program: Any) -> tuple[dict[str, Any], dict[str, Any], Sequence[Any], Sequence[Any]]:
    """Inputs, weights, caches and states, with element types and shapes."""
    import jax

    arguments, _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    inputs, weights, caches, states = arguments
    return inputs, weights, caches, states


def _read(path: Path) -> Record:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        fix = "give the NAME.tsa that `tsc compile` wrote"
        raise CompileError(Diagnostic("TS0514", f"{path}: there is no such file of an artifact", fixes=(fix,)))
    return found
