"""program.json: what the compiler wrote, read strictly, and checked as far as it can be without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from tskernels.cache_layouts import CACHE_LAYOUTS
from tskernels.dtypes import SIZES
from tskernels.layouts import LAYOUTS
from tskernels.registry import ROWS
from tsrun.errors import ArtifactError

Region = Literal["T", "S"]
Attribute = None | bool | int | float | str | list[int | float | str]
FORMAT = 7
KEEP = "ts::keep"
"""Of a value of the step, which drafts take by its attribute `name`."""
PAGED_INPUTS = ("slots", "tables")
STEP_INPUTS = ("ids", "positions", "spans", "lengths", "last", "keep", "states", *PAGED_INPUTS)


class Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes per token and per sequence: an arena's size, or where a callee's frame begins in it."""

    T: int
    S: int

    def of(self, region: Region) -> int:
        return self.T if region == "T" else self.S

    def plus(self, other: Frame) -> Frame:
        return Frame(self.T + other.T, self.S + other.S)


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """dtype and page: what is stored for a token, in the layout."""

    dtype: str
    page: tuple[int, ...]
    window: int = 0
    layout: str = ROWS


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a sequence, whatever its length."""

    dtype: str
    shape: tuple[int, ...]


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kept: what the program keeps of the step, by its name; step: which of a step's inputs it is; window: of a cache, and of the caches
    that slots and tables are about; layout: of a weight or a cache, whose shape and dtype are then what is stored."""

    name: str
    kind: Literal["value", "step", "kept", "coordinate", "weight", "cache", "state"]
    dtype: str | None = None
    shape: list[int | str] | None = None
    type: str | None = None
    axis: str | None = None
    tensor: str | None = None
    step: str | None = None
    window: int = 0
    layout: str = ROWS


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """constants: what its kernel wanted computed when the program was compiled; plan: in kernels.json, how it is launched."""

    name: str
    op: str
    kernel: str
    args: list[str]
    dtype: str
    shape: list[int | str]
    attrs: dict[str, Attribute] = {}
    constants: list[float] = []
    plan: int | None = None
    region: Region | None = None
    offset: int | None = None
    type: str | None = None
    span: str | None = None


class CallNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    call: str
    args: list[str]
    frame: Frame
    region: Region | None = None
    offset: int | None = None
    weights: dict[str, str] = {}
    caches: dict[str, int] = {}
    states: dict[str, int] = {}
    dtype: str | None = None
    shape: list[int | str] | None = None
    type: str | None = None
    span: str | None = None


class _Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: list[Input]
    nodes: list[msgspec.Raw]
    output: str


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What runs steps of `tokens` tokens and more, up to the next plan's; they are padded to a multiple of token_multiple."""

    tokens: int
    entry: str
    frame: Frame
    token_multiple: int = 1


class _Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    plans: list[Plan]
    caches: list[Cache]
    graphs: dict[str, _Graph]
    drafts: list[Plan] = []
    states: list[State] = []
    sequence_groups: int = 1


class _FormatMark(msgspec.Struct):
    """Of any format, so that another one is told before what it has."""

    format: int


class _CallMark(msgspec.Struct):
    """Tells a call from an op: both are records, and only a call has this field."""

    call: str | None = None


class Graph(msgspec.Struct, frozen=True):
    inputs: list[Input]
    nodes: list[Node | CallNode]
    output: str


class Program(msgspec.Struct, frozen=True):
    """plans: in rising order of tokens, the first from 1 on; drafts: of what guesses one token further, from what those keep; none in most
    programs; sequence_groups: of ranks that keep sequences of their own."""

    plans: list[Plan]
    caches: list[Cache]
    graphs: dict[str, Graph]
    drafts: list[Plan] = []
    states: list[State] = []
    sequence_groups: int = 1

    @property
    def all_plans(self) -> list[Plan]:
        return [*self.plans, *self.drafts]

    def plan_for(self, tokens: int, *, drafting: bool = False) -> int:
        """The place among all plans of the one for a step that was padded to so many tokens."""
        plans, first = (self.drafts, len(self.plans)) if drafting else (self.plans, 0)
        fitting = (i for i, p in enumerate(plans) if p.tokens <= tokens and tokens % p.token_multiple == 0)
        return first + max(fitting, key=lambda i: plans[i].tokens)

    @property
    def own_caches(self) -> list[int]:
        """The caches, by their places, that steps write; those of drafts alone come after them."""
        nodes = (node for plan in self.plans for node in self.graphs[plan.entry].nodes if isinstance(node, CallNode))
        return sorted({index for node in nodes for index in node.caches.values()})

    @property
    def kept(self) -> dict[str, Input]:
        """What steps keep for drafts, by name."""
        return {i.name: i for plan in self.drafts for i in self.graphs[plan.entry].inputs if i.kind == "kept"}

    @property
    def kept_by_drafts(self) -> dict[str, Input]:
        """What a draft keeps in turn, for the draft after it."""
        nodes = (node for plan in self.drafts for node in self.graphs[plan.entry].nodes if isinstance(node, Node) and node.op == KEEP)
        return {name: self.kept[name] for name in {str(node.attrs.get("name")): None for node in nodes}}

    @property
    def can_go_on(self) -> bool:
        """Whether a draft can follow another: it keeps all that it takes."""
        return self.kept_by_drafts.keys() == self.kept.keys()

    def padded(self, tokens: int, *, drafting: bool) -> int:
        """The rows of a step of so many tokens."""
        fitting = max((p for p in (self.drafts if drafting else self.plans) if p.tokens <= tokens), key=lambda p: p.tokens)
        return -(-tokens // fitting.token_multiple) * fitting.token_multiple

    @property
    def paddings(self) -> list[tuple[int, int]]:
        """From how many tokens on a step is padded to which multiple."""
        return [(p.tokens, p.token_multiple) for p in self.plans]

    @property
    def windows(self) -> tuple[int, ...]:
        """Of its caches, in rising order: the caches of each share pages and block tables, as those without a window do."""
        return tuple(sorted({cache.window for cache in self.caches} - {0}))

    @property
    def collective_axes(self) -> tuple[str, ...]:
        """That its collectives name, in the order in which they first do."""
        nodes = (node for graph in self.graphs.values() for node in graph.nodes if isinstance(node, Node))
        return tuple(dict.fromkeys(str(node.attrs["axis"]) for node in nodes if "axis" in node.attrs))

    def largest_frame(self, region: Region) -> int:
        return max(plan.frame.of(region) for plan in self.all_plans)


def read_program(file: Path) -> Program:
    """Read and check program.json. Raises ArtifactError with one line that names the file."""
    try:
        text = file.read_bytes()
        found = msgspec.json.decode(text, type=_FormatMark).format
        if found != FORMAT:
            raise _refuse(file, f"has format {found}, this tsrun reads {FORMAT}")
        raw = msgspec.json.decode(text, type=_Program)
        graphs = {name: Graph(graph.inputs, [_read_node(node) for node in graph.nodes], graph.output) for name, graph in raw.graphs.items()}
    except msgspec.DecodeError as error:
        raise _refuse(file, f"is not a program that this tsrun knows ({error})") from None
    program = Program(raw.plans, raw.caches, graphs, raw.drafts, raw.states, raw.sequence_groups)
    for plans in (program.plans, *([program.drafts] if program.drafts else [])):
        tokens = [plan.tokens for plan in plans]
        if tokens[:1] != [1] or tokens != sorted(set(tokens)):
            raise _refuse(file, f"has plans for steps of {tokens} tokens, which is not from 1 on in rising order")
    for plan in program.all_plans:
        if plan.token_multiple < 1 or program.sequence_groups < 1 or plan.token_multiple % program.sequence_groups:
            raise _refuse(file, f"pads steps to a multiple of {plan.token_multiple} for {program.sequence_groups} groups of ranks")
        if plan.entry not in graphs:
            raise _refuse(file, f"its entry {plan.entry!r} is not among its graphs")
    for cache in program.caches:
        if cache.layout not in CACHE_LAYOUTS:
            raise _refuse(file, f"has a cache in the layout {cache.layout!r}, which is not one of {', '.join(CACHE_LAYOUTS)}")
    stored: list[Cache | State] = [*program.caches, *program.states]
    for one in stored:
        if one.dtype not in SIZES:
            raise _refuse(file, f"has a cache of {one.dtype!r}, which is not one of {', '.join(SIZES)}")
    _check_kept(file, program)
    entries = {plan.entry for plan in program.all_plans}
    for name, graph in graphs.items():
        problem = _problem(program, graph, is_entry=name in entries)
        if problem:
            raise _refuse(file, f"graph {name!r}: {problem}")
    _check_depth(file, program)
    return program


def _read_node(raw: msgspec.Raw) -> Node | CallNode:
    is_call = msgspec.json.decode(raw, type=_CallMark).call is not None
    return msgspec.json.decode(raw, type=CallNode) if is_call else msgspec.json.decode(raw, type=Node)


def _refuse(file: Path, what: str) -> ArtifactError:
    return ArtifactError(str(file), what, "compile it again with the `tsc` of this installation")


def _problem(program: Program, graph: Graph, *, is_entry: bool) -> str | None:
    """The first thing in a graph that could not run, in words."""
    known: set[str] = set()
    for given in graph.inputs:
        if given.kind == "step" and given.step not in STEP_INPUTS:
            return f"step input {given.name!r} is {given.step!r}, which is not one of {', '.join(STEP_INPUTS)}"
        if given.window and given.window not in program.windows:
            return f"{given.name!r} is of window {given.window}, which no cache has"
        if given.window and given.kind == "step" and given.step not in PAGED_INPUTS:
            return f"step input {given.name!r} is of window {given.window}, and {given.step} are the same for all caches"
        layouts = CACHE_LAYOUTS if given.kind == "cache" else LAYOUTS
        if given.layout not in layouts:
            return f"{given.name!r} is in the layout {given.layout!r}, which is not one of {', '.join(layouts)}"
        if given.layout != ROWS and given.kind not in ("weight", "cache"):
            return f"{given.name!r} is in the layout {given.layout!r}, and no weight or cache"
        if given.kind == "kept" and not is_entry:
            return f"{given.name!r} is kept by a step, and only an entry takes that"
        if is_entry and given.kind in ("value", "cache", "state"):
            return f"the entry has the {given.kind} input {given.name!r}, which nothing binds"
        if is_entry and given.kind == "weight" and given.tensor is None:
            return f"weight {given.name!r} names no tensor"
        if is_entry and given.kind == "coordinate" and given.axis is None:
            return f"coordinate {given.name!r} names no axis"
        known.add(given.name)
    for node in graph.nodes:
        unknown = [name for name in node.args if name not in known]
        if unknown:
            return f"{node.name!r} reads {unknown[0]!r}, which comes from nowhere"
        if node.region is not None and node.offset is None:
            return f"{node.name!r} has a region and no offset in it"
        problem = _call_problem(program, graph, node) if isinstance(node, CallNode) else _storage_problem(program, node)
        if problem:
            return f"{node.name!r} {problem}"
        known.add(node.name)
    if graph.output not in {node.name for node in graph.nodes}:
        return f"its output {graph.output!r} is not one of its nodes"
    return None


def _storage_problem(program: Program, node: Node) -> str | None:
    if node.region is None or node.offset is None:
        return None
    if not node.shape or _rows(node.shape[0]) != node.region:
        return f"lies in region {node.region} but has the shape {node.shape}"
    if node.offset < 0 or node.offset >= program.largest_frame(node.region):
        return f"lies at {node.offset}, outside of the frame of {program.largest_frame(node.region)} bytes"
    return None


def _rows(extent: int | str) -> str:
    """`T` of `T` and of `T/4`."""
    return str(extent).partition("/")[0]


def _call_problem(program: Program, graph: Graph, node: CallNode) -> str | None:
    callee = program.graphs.get(node.call)
    if callee is None:
        return f"calls {node.call!r}, which is not among the graphs"
    bound = [given for given in callee.inputs if given.kind in ("value", "step", "coordinate")]
    if len(bound) != len(node.args):
        return f"gives {len(node.args)} values to {node.call!r}, which takes {len(bound)}"
    weights = {given.name for given in callee.inputs if given.kind == "weight"}
    taken = {own.name: own for own in callee.inputs if own.kind in ("cache", "state")}
    caches, states = ({name for name, own in taken.items() if own.kind == kind} for kind in ("cache", "state"))
    if weights != set(node.weights) or caches != set(node.caches) or states != set(node.states):
        return f"does not bind exactly the weights and caches of {node.call!r}"
    bound_to = ((node.caches.values(), program.caches), (node.states.values(), program.states))
    if any(not 0 <= index < len(kept) for indices, kept in bound_to for index in indices):
        return "binds a cache that does not exist"
    for name, index in node.states.items():
        state = program.states[index]
        if (state.dtype, [*state.shape]) != (taken[name].dtype, (taken[name].shape or [])[1:]):
            return f"binds a state of {state.dtype}{[*state.shape]}, which {node.call!r} does not take"
    for name, index in node.caches.items():
        cache, wanted = program.caches[index], taken[name]
        if cache.window != wanted.window:
            return f"binds a cache of another window than {node.call!r} takes"
        if (cache.layout, cache.dtype, [*cache.page]) != (wanted.layout, wanted.dtype, (wanted.shape or [])[1:]):
            return f"binds a cache of {cache.dtype}{[*cache.page]} in {cache.layout}, which {node.call!r} does not take"
    own = {given.name: (given.step, given.window) for given in graph.inputs if given.kind == "step"}
    for given, name in zip(bound, node.args, strict=True):
        if given.step in PAGED_INPUTS and own.get(name) != (given.step, given.window):
            return f"gives {name!r} to {node.call!r}, which takes the {given.step} of window {given.window}"
    return None


def _check_kept(file: Path, program: Program) -> None:
    """Refuse plans that keep other things than drafts take; a draft may keep less."""
    wanted = {name: (given.dtype, given.shape) for name, given in program.kept.items()}
    for plan in program.all_plans:
        nodes = (node for node in program.graphs[plan.entry].nodes if isinstance(node, Node) and node.op == KEEP)
        found = {str(node.attrs.get("name")): (node.dtype, node.shape) for node in nodes}
        if found != wanted and (plan in program.plans or not found.items() <= wanted.items()):
            raise _refuse(file, f"graph {plan.entry!r} keeps {found} for drafts that take {wanted}")


def _check_depth(file: Path, program: Program) -> None:
    """Refuse graphs that call themselves, directly or through others."""

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise _refuse(file, f"graph {name!r} calls itself")
        for callee in {node.call for node in program.graphs[name].nodes if isinstance(node, CallNode)}:
            visit(callee, (*path, name))

    for plan in program.all_plans:
        visit(plan.entry, ())
