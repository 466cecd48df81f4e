"""The one table of ops and kernels: register, select, explain, look up. Imports torch only by loading kernels."""

from __future__ import annotations

import difflib
import importlib
import inspect
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import exp, log
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from tskernels.cost import NOMINAL_SIZE, Cost, bandwidth_bound, free, message_bound
from tskernels.dtypes import FLOATS
from tskernels.target import ANY, CPU, Target
from tskernels.toolchain import Compiler, missing

if TYPE_CHECKING:
    from tskernels.gpu.launch import Planner, Verification

Kind = Literal["compute", "view", "inplace", "collective"]
Function = TypeVar("Function", bound=Callable[..., Any])
REFERENCE: Final = "reference"
ROWS: Final = "rows"
"""The layout of everything that is not stored in another: dimensions in order, the last one contiguous."""
_FAMILIES: Final = (
    *("activation", "attention", "cache", "collectives", "contraction", "elementwise", "embedding", "fp8_cache", "gated"),
    *("int8_cache", "latent_attention", "linear", "mixture", "normalization", "recurrent", "rope", "rows", "screened", "views"),
    *("simd_kernels",),
    *(
        "gpu.all_reduce",
        "gpu.attention",
        "gpu.attention_cuda",
        "gpu.elementwise",
        "gpu.expanded_attention",
        "gpu.linear",
        "gpu.mixture",
        "gpu.mla_cuda",
        "gpu.recurrent",
        "gpu.rows",
        "gpu.sampling",
    ),
)
_FAMILIES_OF: Final = {
    "jax": (
        *("attention", "attention_pallas", "cache", "collectives", "contraction", "elementwise", "mixture", "normalization", "recurrent"),
        *("rope", "rows", "views"),
    )
}
"""Of targets whose kernels are loaded only when one is asked for: JAX takes its time to import, and need not be there."""


@dataclass(frozen=True, slots=True)
class Operand:
    """Type of a tensor argument; None is a dimension known only when a step runs. layout: how a weight or a cache is stored
    (`layouts.py`, `cache_layouts.py`)."""

    dtype: str
    shape: tuple[int | None, ...]
    layout: str = ROWS

    def __str__(self) -> str:
        layout = "" if self.layout == ROWS else f" in {self.layout}"
        return f"{self.dtype}[{', '.join('?' if size is None else str(size) for size in self.shape)}]{layout}"


@dataclass(frozen=True, slots=True)
class Call:
    """What a kernel is asked to do: the op, its tensor operands in order, its remaining parameters by name."""

    op: str
    operands: tuple[Operand, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        attributes = (f"{name}={value!r}" for name, value in self.attributes.items())
        return f"{self.op}({', '.join((*map(str, self.operands), *attributes))})"


When = Callable[[Call], bool]


def one_float_type(call: Call) -> bool:
    """floating operands of one element type."""
    return len({operand.dtype for operand in call.operands if operand.dtype in FLOATS}) == 1


@dataclass(frozen=True, slots=True)
class Kernel:
    """An implementation of an op. `function` takes the operands, then the attributes by name, and for `compute` and
    `collective` kernels `out`, which it fills; a `view` returns an alias; `inplace` changes and returns its first operand.

    layouts: of operands that it takes in another layout than rows, by position; constants: what it wants computed when a program is
    compiled, of the call; it is given them as `constants`; fixed_bits: it promises that a row's result has the same bits in any company,
    chunk and number of threads. plan: of a kernel for GPUs, how a call is launched; verified: how far it was; compilers: of its
    functions, without which it can not be chosen."""

    op: str
    name: str
    kind: Kind
    function: Callable[..., Any]
    target: Target
    dtypes: tuple[str, ...]
    when: When | None
    cost: Cost
    place: str
    layouts: Mapping[int, str] = field(default_factory=dict)
    constants: Callable[[Call], Sequence[float]] | None = None
    fixed_bits: bool = False
    plan: Planner | None = None
    verified: Verification | None = None
    compilers: tuple[Compiler, ...] = ()

    @property
    def is_captured(self) -> bool:
        """Whether a GPU may record its calls and play them again: it looks at no values on the host."""
        if self.kind in ("view", "collective") or self.plan is not None:
            return True
        return self.target == ANY and self.name != REFERENCE


class Measurements(Protocol):
    """What kernels took on a machine (`tuning.py`)."""

    def seconds(self, call: Call, kernel: str) -> Mapping[int, float]:
        """By the tokens of a step; none where it was not measured."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel in a selection; `reason` says why it cannot run, None when it can; sizes: of the steps, in tokens, that its cost was
    measured in, none where it is the model's. Costs compare where their sizes are the same."""

    kernel: Kernel
    reason: str | None
    cost_seconds: float
    sizes: frozenset[int] = frozenset()

    @property
    def is_measured(self) -> bool:
        return bool(self.sizes)


@dataclass(frozen=True, slots=True)
class Op:
    """An op with its reference and the names of its parameters, tensors first. writes: the one that it changes beside giving a result."""

    name: str
    kind: Kind
    reference: Callable[..., Any]
    parameters: tuple[str, ...]
    place: str
    writes: str = ""


class KernelMissing(LookupError):
    """No kernel can run a call, or there is none of that name; lists those there are and why they lost."""


class DuplicateKernel(ValueError):
    """A second registration of a key; names both files."""


_ops: dict[str, Op] = {}
_kernels: dict[tuple[str, str], Kernel] = {}
_lock = threading.RLock()
_loaded = False
_loaded_later: dict[tuple[str, str], Kernel] = {}
"""By `load`: modules that are imported once, whoever asked first."""


def op(name: str, *, cost: Cost = bandwidth_bound, writes: str = "") -> Callable[[Function], Function]:
    """Register the reference of a compute op: torch tensors in, a new torch tensor out. writes: the operand that it changes as well."""
    return _register_op(name, "compute", cost, writes)


def view_op(name: str) -> Callable[[Function], Function]:
    """Register an op that returns an alias of its operand and costs nothing."""
    return _register_op(name, "view", free)


def inplace_op(name: str, *, cost: Cost = bandwidth_bound) -> Callable[[Function], Function]:
    """Register an op that changes its first operand and returns it."""
    return _register_op(name, "inplace", cost)


def collective_op(name: str, *, cost: Cost = message_bound) -> Callable[[Function], Function]:
    """Register the reference of an op that reads the mesh: its result depends on the rank or on other ranks."""
    return _register_op(name, "collective", cost)


def kernel(
    op: str,
    *,
    name: str,
    target: Target = CPU,
    dtypes: tuple[str, ...] = FLOATS,
    when: When | None = None,
    cost: Cost = bandwidth_bound,
    layouts: Mapping[int, str] = MappingProxyType({}),
) -> Callable[[Function], Function]:
    """Register a kernel of a known op. `dtypes` are those its floating operands may have; `when` must hold for the call,
    and the first line of its docstring is the reason shown where it does not."""

    def register(function: Function) -> Function:
        known = _op_of(op)
        parameters = tuple(inspect.signature(function).parameters)
        expected = (*known.parameters, "out") if known.kind in ("compute", "collective") else known.parameters
        if parameters != expected:
            raise TypeError(
                f"{_place(function)}: kernel `{name}` of {op} takes ({', '.join(parameters)}), but it must take ({', '.join(expected)})"
            )
        _add(Kernel(op, name, known.kind, function, target, dtypes, when, cost, _place(function), layouts))
        return function

    return register


def add_kernel(new: Kernel) -> None:
    """Register a kernel of a known op that takes any operands: where one function serves many ops."""
    _op_of(new.op)
    _add(new)


def select(call: Call, target: Target, measured: Measurements | None = None) -> Kernel:
    """The best kernel that can run the call on the target."""
    best = explain(call, target, measured)[0]
    if best.reason is not None:
        raise KernelMissing(f"no kernel can run {call} on {target}" + _listing(explain(call, target)))
    return best.kernel


def explain(call: Call, target: Target, measured: Measurements | None = None, sizes: Collection[int] | None = None) -> list[Candidate]:
    """Every kernel of the call's op, best first; those that cannot run come last, with the reason. Where all that compete for the call
    were measured in steps of the same sizes, their costs are what they took in these. sizes: no others count."""
    load(target)
    _op_of(call.op)
    candidates = [_judge(candidate, call, target) for (op_name, _), candidate in _kernels.items() if op_name == call.op]
    if measured is not None:
        candidates = _as_measured(candidates, call, measured, sizes)
    return sorted(candidates, key=lambda c: (c.reason is not None, *rank(c.kernel), c.cost_seconds, c.kernel.name))


def rank(kernel: Kernel) -> tuple[bool, bool]:
    """What orders kernels whatever they cost: the reference loses to anything, since it is written to be read, and then what does not
    promise the same bits to what does, since a sequence's tokens must not depend on who else is served."""
    return kernel.name == REFERENCE, not kernel.fixed_bits


def lookup(op: str, name: str) -> Kernel:
    """The kernel of an op by name."""
    _load()
    _op_of(op)
    found = _kernels.get((op, name))
    if found is None:
        names = sorted(kernel_name for op_name, kernel_name in _kernels if op_name == op)
        raise KernelMissing(f"{op} has no kernel `{name}`; it has {', '.join(names)}")
    return found


def kernels(op: str) -> tuple[Kernel, ...]:
    """All kernels of an op, by name."""
    _load()
    _op_of(op)
    return tuple(sorted((k for (name, _), k in _kernels.items() if name == op), key=lambda k: k.name))


def ops() -> tuple[str, ...]:
    """Names of all ops, sorted."""
    _load()
    return tuple(sorted(_ops))


def op_named(name: str) -> Op:
    """The op's record, with its reference."""
    _load()
    return _op_of(name)


def _register_op(name: str, kind: Kind, cost: Cost, writes: str = "") -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        place = _place(function)
        with _lock:
            if name in _ops:
                raise DuplicateKernel(f"op {name} is registered twice: {_ops[name].place} and {place}")
            _ops[name] = Op(name, kind, function, tuple(inspect.signature(function).parameters), place, writes)
            runs = _filling(function) if kind in ("compute", "collective") else function
            _add(Kernel(name, REFERENCE, kind, runs, ANY, FLOATS, None, cost, place))
        return function

    return register


def _filling(reference: Callable[..., Any]) -> Callable[..., None]:
    """The kernel convention around a reference: its result is copied into `out`."""

    def run(*operands: Any, out: Any, **attributes: Any) -> None:
        result = reference(*operands, **attributes)
        # copy_ would broadcast and cast in silence.
        if result.shape != out.shape or result.dtype != out.dtype:
            raise ValueError(f"{reference.__name__} gives {result.dtype}{list(result.shape)}, but `out` is {out.dtype}{list(out.shape)}")
        out.copy_(result)

    return run


def _add(new: Kernel) -> None:
    with _lock:
        old = _kernels.setdefault((new.op, new.name), new)
    if old is not new:
        raise DuplicateKernel(f"kernel `{new.name}` of {new.op} is registered twice: {old.place} and {new.place}")


def _judge(candidate: Kernel, call: Call, target: Target) -> Candidate:
    reason = target.lacks(candidate.target)
    if reason is None:
        reason = next((why for compiler in candidate.compilers if (why := missing(compiler))), None)
    if reason is None:
        given = sorted({operand.dtype for operand in call.operands if operand.dtype in FLOATS} - set(candidate.dtypes))
        if given:
            reason = f"takes {', '.join(candidate.dtypes)}, not {', '.join(given)}"
    if reason is None:
        for index, operand in enumerate(call.operands):
            taken = candidate.layouts.get(index, ROWS)
            if operand.layout != taken:
                reason = f"takes operand {index} in {taken}, not in {operand.layout}"
    if reason is None and candidate.when is not None and not candidate.when(call):
        reason = f"needs {_sentence(candidate.when)}"
    return Candidate(candidate, reason, candidate.cost(call, target))


def _as_measured(candidates: list[Candidate], call: Call, measured: Measurements, sizes: Collection[int] | None) -> list[Candidate]:
    seconds = {c.kernel.name: measured.seconds(call, c.kernel.name) for c in candidates if competes(c)}
    common = in_common(seconds.values())
    if sizes is not None:
        common = common.intersection(sizes)
    if not common:  # a measured and a modelled second are not to be compared, nor are those of small steps and of large ones
        return candidates
    return [
        c if (found := seconds.get(c.kernel.name)) is None else replace(c, cost_seconds=nominal(found, common), sizes=common)
        for c in candidates
    ]


def in_common(sizes: Iterable[Iterable[int]]) -> frozenset[int]:
    """What all of them have; nothing where there are none."""
    found = [frozenset(s) for s in sizes]
    return frozenset[int].intersection(*found) if found else frozenset()


def nominal(seconds: Mapping[int, float], sizes: Collection[int]) -> float:
    """Of a step of nominal size, from the seconds that steps of these sizes took, which count alike."""
    return NOMINAL_SIZE * exp(sum(log(seconds[n] / n) for n in sorted(sizes)) / len(sizes))


def competes(candidate: Candidate) -> bool:
    """Whether it can run, and is no reference."""
    return candidate.reason is None and candidate.kernel.name != REFERENCE


def _sentence(when: When) -> str:
    lines = (inspect.getdoc(when) or "").splitlines()
    return lines[0].rstrip(".") if lines else f"`{getattr(when, '__name__', when)}` to hold"


def _listing(candidates: list[Candidate]) -> str:
    return "".join(f"\n  {c.kernel.name}: {c.reason}" for c in candidates)


def _place(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _op_of(name: str) -> Op:
    if name not in _ops:
        _load_families()
    if name not in _ops:
        near = difflib.get_close_matches(name, _ops, n=1)
        raise KernelMissing(f"unknown op `{name}`" + (f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(sorted(_ops))}"))
    return _ops[name]


def _load_families() -> None:
    for family in _FAMILIES:
        importlib.import_module(f"tskernels.{family}")


def load(target: Target) -> None:
    """Import all kernels that a target may have; once."""
    _load()
    with _lock:
        before = set(_kernels)
        for family in _FAMILIES_OF.get(target.family, ()):
            importlib.import_module(f"tskernels.{target.family}.{family}")
        _loaded_later.update({key: found for key, found in _kernels.items() if key not in before})


def _load() -> None:
    """Import the built-in families, then plug-ins; once."""
    global _loaded
    if _loaded:
        return
    with _lock:
        if _loaded:
            return
        _load_families()
        import importlib.metadata  # late: a program that was compiled looks up kernels and selects none

        for entry in sorted(importlib.metadata.entry_points(group="tskernels"), key=lambda entry: entry.name):
            try:
                entry.load()
            except Exception as error:
                error.add_note(f"while loading the kernel plug-in `{entry.name}` ({entry.value})")
                raise
        _loaded = True


@contextmanager
def isolated() -> Iterator[None]:
    """Undo registrations at the end: for tests and for trying a plug-in."""
    global _loaded
    _load()
    with _lock:
        saved_ops, saved_kernels = dict(_ops), dict(_kernels)
    try:
        yield
    finally:
        with _lock:
            _ops.clear()
            _ops.update(saved_ops)
            _kernels.clear()
            _kernels.update(saved_kernels | _loaded_later)
            _loaded = True
