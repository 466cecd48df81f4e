"""What `tsc inspect` shows of an artifact: what the manifest says, and the machine code that it carries. Nothing of it runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsc.diagnostics import CompileError, Diagnostic

Json = Mapping[str, Any]


def inspection(path: Path) -> str:
    """Raises CompileError where it is no artifact."""
    manifest = _read(path, "manifest.json")
    lines = [*_manifest(manifest), *_kernels_of_ops(_read(path, "program.json"))]
    if "kernels.json" in manifest["files"]:
        lines += _machine_code(_read(path, "kernels.json"), manifest)
    return "\n".join(lines)


def _read(path: Path, name: str) -> Any:
    try:
        return json.loads((path / name).read_bytes())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise CompileError(Diagnostic("TS0521", f"{path / name}: can not be read: {why}", fixes=("give a NAME.tsa directory",))) from None


def _manifest(manifest: Json) -> Iterator[str]:
    model = manifest["model"]
    mesh = ", ".join(f"{axis}={size}" for axis, size in manifest["axes"]) or "one rank"
    what = f"{model['name']} ({model['architecture']}), {manifest['dtype']}, for {manifest['target']}, {mesh}"
    yield f"{what}; {manifest['format']}, tsc {manifest['tsc']}"
    sizes: Counter[str] = Counter()
    for name, entry in manifest["files"].items():
        sizes[name.partition("/")[0]] += entry["bytes"]
    yield "  ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sorted(sizes.items()))


def _kernels_of_ops(program: Json) -> Iterator[str]:
    nodes = [node for graph in program["graphs"].values() for node in graph["nodes"] if "op" in node]
    used = Counter((node["op"], node["kernel"]) for node in nodes if node.get("region"))
    width = max((len(op) for op, _ in used), default=0)
    for op in sorted({op for op, _ in used}):
        kernels = ((name, count) for (of, name), count in sorted(used.items()) if of == op)
        yield f"  {op:{width}}  {', '.join(f'{name} ({count})' if count > 1 else name for name, count in kernels)}"


def _machine_code(kernels: Json, manifest: Json) -> Iterator[str]:
    functions: Sequence[Json] = kernels["functions"]
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
