"""The front half of the compiler, without torch: read, parse, elaborate and place a model file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tsc import ast
from tsc.diagnostics import CompileError, Diagnostic
from tsc.elaborate import drafter_of, elaborate
from tsc.mesh_fixes import with_mesh_fixes
from tsc.parser import parse, read_source
from tsc.spans import Source
from tspasses.place import place
from tspasses.placed import Options, PlacedModel


@dataclass(frozen=True)
class ModelSource:
    """A model file with its syntax tree. `name` is its file name without `.ts`."""

    name: str
    source: Source
    file: ast.ModelFile

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.source.text.encode()).hexdigest()


def read_model(path: Path) -> ModelSource:
    """Parse a model file. Raises CompileError."""
    source = read_source(path)
    return ModelSource(path.stem, source, parse(source))


@cache
def models_directory() -> Path:
    """Where the model files are: in the wheel, or the checkout's folder."""
    installed = Path(__file__).parent / "models"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "models"


def model_for(architectures: Iterable[str]) -> ModelSource:
    """The bundled model file that names one of the architectures. Raises CompileError when none does."""
    wanted = list(architectures)
    for path in sorted(models_directory().glob("*.ts")):
        if any(name in path.read_text(encoding="utf-8") for name in wanted):  # the others need not be parsed
            model = read_model(path)
            if set(wanted) & set(model.file.architectures):
                return model
    text = ", ".join(wanted) or "that the config does not name"
    fixes = ("start one from the nearest: tsc new config.json", "pass the one there is: tsc compile MODEL.ts --weights ...")
    raise CompileError(Diagnostic("TS0501", f"no bundled model file is for architecture {text}", fixes=fixes))


def place_model(
    model: ModelSource,
    config: Mapping[str, Any] | None,
    mesh: Mapping[str, int] | None,
    options: Options,
    *,
    entry: str | None = None,
    every: bool = False,
) -> PlacedModel:
    """Elaborate and place; `entry`: which, else the first; `every`: modules that it does not reach, too. Raises CompileError with every
    finding."""

    def attempt(file: ast.ModelFile, sizes: Mapping[str, int] | None) -> PlacedModel:
        return place(elaborate(file, config, sizes, entry=entry, every=every), options)

    try:
        return attempt(model.file, mesh)
    except CompileError as error:
        raise with_mesh_fixes(error, model.file, mesh, attempt) from None


def place_drafter(
    model: ModelSource, config: Mapping[str, Any] | None, mesh: Mapping[str, int] | None, placed: PlacedModel
) -> PlacedModel | None:
    """The entry that drafts for the placed one, placed alike, if there is one. Raises CompileError."""
    entry = drafter_of(model.file, placed.entry.instance.module)
    return None if entry is None else place_model(model, config, mesh, placed.options, entry=entry.name)


def kept_by(placed: PlacedModel) -> list[str]:
    """What an entry takes of what another keeps."""
    instance = placed.entry.instance
    return [value.name for value in (instance.values[i] for i in instance.parameters) if value.kind == "kept"]


def require_nothing_kept(placed: PlacedModel) -> None:
    """Raise CompileError for an entry that can not run alone."""
    kept, instance = kept_by(placed), placed.entry.instance
    if kept:
        what = f"--entry: `{instance.module}` takes `{kept[0]}`, which another entry keeps, and runs after that one alone"
        span = next(instance.values[i].span for i in instance.parameters if instance.values[i].name == kept[0])
        raise CompileError(Diagnostic("TS0213", what, span, fixes=("leave --entry out: `tsc compile` takes both together",)))


MOST_RANKS = 65536


def parse_mesh(text: str | None) -> dict[str, int] | None:
    """`tp=8,dp=2` as sizes. Raises CompileError."""
    if text is None:
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, size = part.strip().partition("=")
        if not equals or not size.isascii() or not size.isdigit() or len(size) > 6 or not 1 <= int(size) <= MOST_RANKS:
            raise CompileError(
                Diagnostic("TS0211", f"--mesh: `{part.strip()}` is not AXIS=RANKS with 1 to {MOST_RANKS:,} ranks, as in tp=4")
            )
        if name in sizes:
            raise CompileError(Diagnostic("TS0211", f"--mesh: axis `{name}` is given twice"))
        sizes[name] = int(size)
    return sizes
