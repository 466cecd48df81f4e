"""`tsc tune`: measure the kernels that a compilation has to choose among, on this machine.

What is measured is what a compilation asks the registry for: its passes run with a record of their questions in place of measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tsc.diagnostics import CompileError, Diagnostic, MissingCapability
from tsc.driver import Progress, compile_graphs_of
from tsc.request import Request, target_of
from tskernels.measure import Contender, measure, step_sizes
from tskernels.registry import Call, competes, explain
from tskernels.samples import Samples, in_rows, is_measurable
from tskernels.target import Target
from tskernels.tuning import Tuning, TuningError, name_of, read_tuning, threads_of_rank, try_to_write


@dataclass(frozen=True, slots=True)
class Contest:
    """Kernels of calls that differ in the layouts of weights alone, of which a compilation uses one."""

    call: Call
    contenders: Sequence[Contender]
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a model's kernels took with so many threads; measured: how many of the contests were run just now."""

    contests: Sequence[Contest]
    threads: int
    measured: int


@dataclass(slots=True)
class _Asked:
    """The calls that passes ask measurements of; there are none yet."""

    calls: dict[str, Call] = field(default_factory=dict)

    def seconds(self, call: Call, kernel: str) -> Mapping[int, float]:
        self.calls.setdefault(name_of(call), call)
        return {}


def tune(request: Request, tuning: Tuning, tokens: Sequence[int], progress: Progress, save: Callable[[], None], *, again: bool) -> Tuned:
    """Add to the measurements what is missing of the model's kernels, and save them after each contest. again: measure all of it anew.
    Raises CompileError."""
    asked, target = _Asked(), target_of(request)
    mesh = compile_graphs_of(request, lambda ranks: asked, progress).placed.mesh
    threads = threads_of_rank(mesh.ranks)
    found = contests(asked.calls, target, tokens)
    missing = [c for c in found if again or _missing(c, tuning, threads)]
    for done, contest in enumerate(missing):
        progress("measure", done, len(missing))
        samples = Samples()
        for size in contest.tokens if again else _missing(contest, tuning, threads):
            seconds = measure(contest.contenders, size, samples, threads, target)
            for contender, taken in zip(contest.contenders, seconds, strict=True):
                tuning.add(contender.call, threads, contender.kernel.name, size, taken)
        save()
    return Tuned(found, threads, len(missing))


def contests(calls: Mapping[str, Call], target: Target, tokens: Sequence[int]) -> Sequence[Contest]:
    """In the order in which they were first asked about."""
    groups: dict[str, list[Call]] = {}
    for call in calls.values():
        if is_measurable(call):
            groups.setdefault(name_of(in_rows(call)), []).append(call)
    found = []
    for group in groups.values():
        contenders = [Contender(call, c.kernel) for call in group for c in explain(call, target) if competes(c)]
        plain = in_rows(group[0])
        found.append(Contest(plain, contenders, step_sizes(plain, tokens, target)))
    return found


def _missing(contest: Contest, tuning: Tuning, threads: int) -> Sequence[int]:
    """The sizes of steps that not every contender was measured at."""
    measured = tuning.of(threads)
    return [n for n in contest.tokens if any(n not in measured.seconds(c.call, c.kernel.name) for c in contest.contenders)]


def start(path: Path, *, named: bool, again: bool) -> tuple[Tuning, str]:
    """The measurements of a file, to add to. One that was found and does not fit is begun anew, with a line that says why; one that was
    named is so only with `again`, and else is refused by CompileError. Raises MissingCapability where no file can be written there."""
    try:
        if path.is_dir():
            raise CompileError(Diagnostic("TS0510", f"--output: {path}: is a directory; give another --output"))
        try_to_write(path)
    except OSError as error:
        raise MissingCapability(f"--output: {path}: can not be written ({error.strerror}); give another --output") from None
    if not path.exists():
        return Tuning.here(), ""
    try:
        return read_tuning(path), ""
    except TuningError as error:
        if named and not again:
            fix = "give --again to measure all anew, or another --output"
            raise CompileError(Diagnostic("TS0510", f"--output: {error}", fixes=(fix,))) from None
        return Tuning.here(), str(error)
