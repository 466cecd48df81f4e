"""`tsrun sweep`: serves a model by one configuration after the other, runs the same sessions against each, and says which to deploy."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tsrun.bench.agentic import Agentic, AgenticOptions, progress_bar
from tsrun.bench.records import Result, write
from tsrun.bench.report import load_name
from tsrun.bench.servers import served
from tsrun.bench.summary import Load, by_load, number, spread
from tsrun.errors import CompilerError, MachineError, UsageError

COMPILED = ("mesh", "dtype", "quantize", "cache")
"""Options of `tsc compile`; all others are those of `tsrun serve`."""
_FLAGS = {"screen": "--no-screen", "prefix-cache": "--no-prefix-cache"}
"""Options that are a flag to turn something off."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A configuration: option and value. Raises UsageError for an option that is named twice."""

    settings: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.settings) or "as it is"

    def options(self, *, compiled: bool) -> list[str]:
        found = []
        for name, value in self.settings:
            if (name in COMPILED) != compiled:
                continue
            if name in _FLAGS:
                found += [_FLAGS[name]] if value == "off" else []
            else:
                found += [f"--{name}", value]
        return found


@dataclass(frozen=True, slots=True)
class Best:
    """Of one configuration the load with most output tokens a minute at which 9 of 10 answers are at the floor, if there is one."""

    choice: Choice
    load: Load | None
    per_minute: float
    user_tps: float
    slow_tps: float


def choices(tried: Sequence[str], *, one_by_one: bool) -> list[Choice]:
    """Of `NAME=VALUE,VALUE`: all combinations, or the first values with one of them changed at a time."""
    values: dict[str, list[str]] = {}
    for given in tried:
        name, mark, listed = given.partition("=")
        name = name.strip().removeprefix("--")
        # A mesh has commas and equals signs of its own: its values are apart by `|`.
        found = [value for value in listed.split("|" if "|" in listed or name == "mesh" else ",") if value]
        if not mark or not name or not found:
            raise UsageError("--try", f"{given!r} is no option with values", "write it like max-step-tokens=128,512 or mesh=tp=1|tp=2")
        if name in values:
            raise UsageError("--try", f"{name} is named twice", "give all of its values at once")
        if name in _FLAGS and set(found) - {"on", "off"}:
            raise UsageError("--try", f"{name} is on or off, not {listed}", f"write {name}=on,off")
        values[name] = found
    if not one_by_one:
        return [Choice(tuple(zip(values, chosen, strict=True))) for chosen in itertools.product(*values.values())]
    first = {name: found[0] for name, found in values.items()}
    changed = [{**first, name: value} for name, found in values.items() for value in found[1:]]
    return [Choice(tuple(one.items())) for one in (first, *changed)]


def sweep(model: Path, tried: Sequence[str], options: AgenticOptions, *, one_by_one: bool, folder: Path | None) -> None:
    """The command. A configuration that does not start is said, and left out."""
    found = []
    every = choices(tried, one_by_one=one_by_one)
    if any(choice.options(compiled=True) for choice in every) and model.suffix == ".tsa":
        raise UsageError(str(model), "is compiled already, so that nothing of that can be tried", "name the checkpoint")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    compiled: dict[tuple[str, ...], Path] = {}
    with tempfile.TemporaryDirectory(prefix="tsrun-sweep-") as place, progress_bar() as progress:
        for index, choice in enumerate(every):
            try:
                artifact = _artifact(model, choice, Path(place), compiled)
                with served(artifact, choice.options(compiled=False)) as url:
                    bench = Agentic(replace(options, url=url, label=choice.label))
                    for repeat in range(options.repeats):
                        for load in bench.loads:
                            bench.run(load, repeat, progress)
            except (MachineError, CompilerError) as error:
                progress.console.print(f"{choice.label}: {error}", markup=False)
                continue
            result = bench.result()
            if folder is not None:
                write(result, folder / f"{index:02}.json")
            found.append(best(choice, result, options.floor))
    if not found:
        raise MachineError("sweep", "no configuration started", "the reasons are printed above")
    report(model, found, options.floor)


def best(choice: Choice, result: Result, floor: float) -> Best:
    most = Best(choice, None, 0.0, 0.0, 0.0)
    for load, repeats in by_load(result, floor).items():
        speeds = [spread(repeats, name) for name in ("output_per_minute", "user_tps", "slow_tps")]
        if any(one is None for one in speeds):
            continue
        device, users, slow = (one.middle for one in speeds if one is not None)
        if slow >= floor and device > most.per_minute:
            most = Best(choice, load, device, users, slow)
    return most


def report(model: Path, found: Sequence[Best], floor: float) -> None:
    ordered = sorted(found, key=lambda one: -one.per_minute)
    table = Table(box=None, title=f"most output a minute with 9 of 10 answers at {number(floor)} tokens/s", title_justify="left")
    for head in ("configuration", "load", "tokens/min", "tokens/s a user", "slowest 10 %"):
        table.add_column(head, justify="left" if head == "configuration" else "right")
    for one in ordered:
        cells = (
            ["none at the floor", "", "", ""]
            if one.load is None
            else [load_name(one.load), *map(number, (one.per_minute, one.user_tps, one.slow_tps))]
        )
        table.add_row(one.choice.label, *cells)
    Console(width=200 if not sys.stdout.isatty() else None).print(table)
    if ordered[0].load is None:
        print(f"none reaches {number(floor)} tokens/s; try --floor, or fewer users")
        return
    for line in deployment(model, ordered[0].choice):
        print(line)


def deployment(model: Path, choice: Choice) -> Iterator[str]:
    """Commands that serve it so."""
    served_as = model
    if compiling := choice.options(compiled=True):
        served_as = Path(f"{model.name.removesuffix('.gguf')}.tsa")
        yield f"tsc compile {shlex.join([str(model), *compiling, '-o', str(served_as)])}"
    yield f"tsrun serve {shlex.join([str(served_as), *choice.options(compiled=False)])}"


def _artifact(model: Path, choice: Choice, place: Path, compiled: dict[tuple[str, ...], Path]) -> Path:
    """The model as it is, or compiled as the choice says; once for all choices that want the same."""
    options = tuple(choice.options(compiled=True))
    if not options:
        return model
    if options not in compiled:
        target = place / f"{len(compiled)}.tsa"
        code = subprocess.run([sys.executable, "-m", "tsc", "compile", str(model), *options, "-o", str(target)], check=False).returncode
        if code:
            raise CompilerError("tsc compile", f"ended with exit code {code}", "its reason is printed above")
        compiled[options] = target
    return compiled[options]
