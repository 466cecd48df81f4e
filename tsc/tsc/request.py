"""What a compilation is asked for, and what identifies its result. Needs no torch, so that a cache answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tsc import __version__
from tsc.checkpoint.config import load_config
from tsc.diagnostics import CompileError, Diagnostic
from tsc.front import ModelSource, model_for, read_model
from tskernels.target import Target, parse_target

Quantize = Literal["auto", "none", "int8", "int4"]
"""auto: what a checkpoint stores quantized as it is; none: everything in the model's element type; others: from the checkpoint's floats."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to compile. model None: found by architecture; weights None: a weightless artifact; topology None: the target's usual links;
    screen: with a copy of the head that spares reading most of it (`passes/tspasses/screen_head.py`); quantize: how weights are stored
    (`tsc/quantization.py`)."""

    model: Path | None
    weights: Path | None
    config: Path | None
    mesh: Mapping[str, int] | None
    dtype: str
    target: str
    topology: str | None = None
    screen: bool = True
    quantize: Quantize = "auto"


def compile_key(request: Request) -> dict[str, str]:
    """What identifies the result beside the request itself: compiler, the target's features, model file and config."""
    source = request.weights or request.config
    config, digest = load_config(source) if source else ({}, "")
    model = find_model(request, config)
    found = {"tsc": f"{__version__}+{_sources()[:12]}", "machine": str(target_of(request)), "quantize": request.quantize}
    return found | {"model": model.name, "source_sha256": model.digest, "config_sha256": digest}


def target_of(request: Request) -> Target:
    """Raises CompileError."""
    try:
        return parse_target(request.target)
    except ValueError as error:
        raise CompileError(Diagnostic("TS0504", f"--target: {error}")) from None


def _sources() -> str:
    """A digest of the compiler's own files: a checkout changes under one version, and what an older state compiled may not run."""
    digest = sha256()
    for package in ("tsc", "tspasses", "tskernels"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".lark", ".toml")):
            digest.update(f"{package}/{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def find_model(request: Request, config: Mapping[str, Any]) -> ModelSource:
    """The model file that was asked for, or the one for the checkpoint's architecture."""
    return read_model(request.model) if request.model else model_for(config.get("architectures") or ())
