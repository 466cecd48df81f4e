"""`tsc inspect`: what an artifact is, and what its programs take, read back from its files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsc.diagnostics import CompileError, Diagnostic
from tsc.request import target_named
from tskernels.target import JAX

Record = Mapping[str, Any]


def inspected(path: Path) -> Iterator[str]:
    """Lines on an artifact. Raises CompileError, MissingCapability."""
    manifest = _read(path / "manifest.json")
    model, axes = manifest["model"], manifest["axes"]
    mesh = ", ".join(f"{name}={size}" for name, size in axes) or "none"
    what = f"{model['name']} ({model['architecture']})"
    yield f"{what}, {manifest['dtype']}, for {manifest['target']}; mesh {mesh}, {manifest['ranks']} ranks"
    folders: dict[str, list[int]] = {}
    for name, entry in manifest["files"].items():
        folders.setdefault(name.partition("/")[0], []).append(entry["bytes"])
    for folder, sizes in folders.items():
        yield f"  {folder:<18} {len(sizes):>4} {'file' if len(sizes) == 1 else 'files'}, {sum(sizes):,} bytes"
    if target_named(manifest["target"]).family == JAX.family:
        yield from _exported(path)


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
