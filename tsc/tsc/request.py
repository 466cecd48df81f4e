"""What a compilation is asked for, and what identifies its result. Needs no torch, so that a cache answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tsc import __version__
from tsc.checkpoint.config import load_config, longest_sequence
from tsc.diagnostics import CompileError, Diagnostic, MissingCapability
from tsc.elaborate import find_entry
from tsc.front import ModelSource, model_for, read_model
from tsc.importance import importance_digest, refusal
from tskernels.target import Target, parse_target
from tskernels.tuning import Tuning, TuningError, default_path, read_tuning, this_machine

Quantize = Literal["auto", "none", "int8", "int4"]
"""auto: what a checkpoint stores quantized as it is; none: everything in the model's element type; others: from the checkpoint's floats."""

Cache = Literal["dtype", "int8", "fp8"]
"""dtype: keys and values in the model's element type; int8: in bytes, with a scale for each vector; fp8: in e4m3, without one."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to compile. model None: found by architecture; weights None: a weightless artifact; topology None: the target's usual links;
    screen: with a copy of the head that spares reading most of it (`passes/tspasses/screen_head.py`); quantize: how weights are stored
    (`tsc/quantization.py`); importance: a file that says which of their inputs matter; cache: how keys and values are stored; tuning: a
    file of measurements, None for this machine's if there is one; tuned: whether they decide; entry: which of the model file's, None for
    the first; context: the longest sequence, for rope scalings that depend on it, None for that of the config; head: a checkpoint of an
    EAGLE-3 head, which drafts; steps: of a target whose programs have fixed shapes, the largest step and cache by name
    (`tspasses/step_buckets.py`)."""

    model: Path | None
    weights: Path | None
    config: Path | None
    mesh: Mapping[str, int] | None
    dtype: str
    target: str
    topology: str | None = None
    screen: bool = True
    quantize: Quantize = "auto"
    cache: Cache = "dtype"
    tuning: Path | None = None
    tuned: bool = True
    importance: Path | None = None
    entry: str | None = None
    context: int | None = None
    head: Path | None = None
    steps: Mapping[str, int] = field(default_factory=dict)


_NEEDS = {"jax": ("jax", "flatbuffers")}
"""What a target's programs are made with, of the extra of its name."""


def compile_key(request: Request) -> dict[str, str]:
    """What identifies the result beside the request itself: compiler, the target's features, measurements, model file and config."""
    source = request.weights or request.config
    config, digest = load_config(source) if source else ({}, "")
    model = find_model(request, config)
    tuning, _ = tuning_of(request)
    found = {
        "tsc": f"{__version__}+{_sources()[:12]}",
        "machine": str(target_of(request)),
        "quantize": request.quantize,
        "importance": importance_digest(importance) if (importance := importance_of(request)) else "none",
        "cache": request.cache,
    }
    found["tuning"] = tuning.digest if tuning else "none"
    found["entry"] = find_entry(model.file, request.entry).name
    found["steps"] = ",".join(f"{name}={size}" for name, size in sorted(request.steps.items())) or "default"
    found["context"] = str(longest_sequence(config, request.context))
    found["head"] = "none" if request.head is None else load_config(request.head)[1]
    return found | {"model": model.name, "source_sha256": model.digest, "config_sha256": digest}


def parse_steps(text: str | None) -> dict[str, int]:
    """`tokens=256,sequences=16` as sizes. Raises CompileError."""
    sizes: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, equals, size = part.strip().partition("=")
        if not equals or not size.isascii() or not size.isdigit() or len(size) > 7 or name in sizes:
            raise CompileError(Diagnostic("TS0513", f"--steps: `{part.strip()}` is not a new NAME=SIZE, as in tokens=256"))
        sizes[name] = int(size)
    return sizes


def target_of(request: Request) -> Target:
    """Raises CompileError."""
    return target_named(request.target)


def target_named(name: str) -> Target:
    """Raises CompileError."""
    try:
        target = parse_target(name)
    except ValueError as error:
        raise CompileError(Diagnostic("TS0504", f"--target: {error}")) from None
    missing = [package for package in _NEEDS.get(target.family, ()) if find_spec(package) is None]
    if missing:
        raise MissingCapability(f"--target {name}: needs {' and '.join(missing)}; install them with `pip install 'tsc-llm[jax]'`")
    return target


def importance_of(request: Request) -> Path | None:
    """The file of a request, where it is one that rounds by it. Raises CompileError."""
    if request.importance is not None and request.quantize != "int4":
        what = f"says how to round to 4 bits, and --quantize is {request.quantize}"
        raise refusal(request.importance, what, ("give --quantize int4, or no --importance",))
    return request.importance


def tuning_of(request: Request) -> tuple[Tuning | None, str]:
    """`find_tuning` of a request."""
    return find_tuning(target_of(request), request.tuning) if request.tuned else (None, "")


def find_tuning(target: Target, named: Path | None) -> tuple[Tuning | None, str]:
    """The measurements that decide for a target, and why this machine's own do not where they are there. Raises CompileError for a file
    that was named and can not be used."""
    is_here = str(target) == this_machine().target
    if named is None:
        path = default_path()
        if not is_here or not path.exists():
            return None, ""
        try:
            return read_tuning(path), ""
        except TuningError as error:
            return None, str(error)
    if not is_here:
        what = f"--tuning: {named} can only be of this machine ({this_machine().target}), and --target is {target}"
        raise CompileError(Diagnostic("TS0510", what, fixes=("give one of them",)))
    try:
        return read_tuning(named), ""
    except TuningError as error:
        raise CompileError(Diagnostic("TS0510", f"--tuning: {error}")) from None


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
    with_head = "" if request.head is None else "Eagle3"  # such a file has the head's entry, too
    return read_model(request.model) if request.model else model_for([f"{a}{with_head}" for a in config.get("architectures") or ()])
