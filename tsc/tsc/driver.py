"""`tsc compile`: a model file, a checkpoint and a mesh to an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tsc import __version__
from tsc.artifact import ArtifactWriter, split_tokenizer
from tsc.checkpoint import Checkpoint, open_checkpoint
from tsc.checkpoint.arranged import arranged
from tsc.checkpoint.config import for_sequences_of, load_config, longest_sequence
from tsc.checkpoint.head import guessed_tokens, with_head
from tsc.checkpoint.parts import in_parts
from tsc.diagnostics import CompileError, Diagnostic, MissingCapability
from tsc.elaborate import drafter_of, elaborate
from tsc.front import ModelSource, kept_by, place_model, require_nothing_kept
from tsc.graph import Program
from tsc.importance import read_importance
from tsc.machine_code import compile_kernels
from tsc.quantization import ROUNDED, QuantizationReport, report, wanted_formats
from tsc.request import Cache, Request, find_model, importance_of, target_of, tuning_of
from tsc.weights import (
    StoredWeight,
    declared_weights,
    has_weights_of,
    match_checkpoint,
    require_importance,
    stored_once,
    stored_tensors,
    stored_weights,
    write_weights,
)
from tskernels.cache_layouts import FP8_CACHE, INT8_CACHE
from tskernels.registry import ROWS, KernelMissing, Measurements
from tskernels.target import JAX, Target, platforms_of
from tskernels.tuning import threads_of_rank
from tspasses.emit import Plans, Record, emit
from tspasses.launch_table import launch_table
from tspasses.pipeline import compile_graphs
from tspasses.placed import Options, PlacedModel
from tspasses.plan import plan_of
from tspasses.plan_set import Bucket, coarse_plan_set
from tspasses.select_kernels import chosen_by_measurement
from tspasses.step_buckets import StepLimits
from tspasses.topology import topology

Progress = Callable[[str, int, int], None]
"""(stage, done, total)"""


LINKS = {
    "cpu": "local",
    "jax": "local",
    "sm_90a": "h100-nvlink",
    "sm_100a": "b200-nvlink",
    "sm_103a": "b200-nvlink",
    "gfx942": "mi300x-fabric",
    "gfx950": "mi300x-fabric",
}
"""The links that ranks of a target have, where none are said."""
CACHE_LAYOUTS: Mapping[Cache, str] = {"dtype": ROWS, "int8": INT8_CACHE, "fp8": FP8_CACHE}


@dataclass(frozen=True, slots=True)
class Drafter:
    """The entry that guesses one token further, from what the compiled one keeps; and a program for each range of step sizes."""

    buckets: Sequence[Bucket]
    programs: Sequence[Program]

    @property
    def entry(self) -> str:
        return self.buckets[0].placed.entry.instance.module


@dataclass(frozen=True, slots=True)
class Graphs:
    """A model before it is written: what was read and found, and a program for each range of step sizes. digest: of the config."""

    target: Target
    checkpoint: Checkpoint | None
    config: Mapping[str, Any]
    digest: str
    model: ModelSource
    buckets: Sequence[Bucket]
    programs: Sequence[Program]
    drafter: Drafter | None = None

    @property
    def placed(self) -> PlacedModel:
        return self.buckets[0].placed


@dataclass(frozen=True, slots=True)
class Compiled:
    """measured: how many of the distinct calls of kernels have theirs by measurement; left_out: tensors of models beside the decoder."""

    quantization: QuantizationReport
    measured: int
    calls: int
    left_out: Mapping[str, int]


GUESSED_TOKENS = "guessed_tokens.i32"
"""The file of an artifact that says the model's token for each that its entry for drafts guesses; little endian."""
Measuring = Callable[[int], Measurements | None]
"""What kernels took on a machine that so many ranks share."""


def compile_graphs_of(request: Request, measured: Measuring, progress: Progress) -> Graphs:
    """All that is done before anything is written. Raises CompileError."""
    target = target_of(request)
    progress("read", 0, 1)
    checkpoint = open_checkpoint(request.weights) if request.weights else None
    if request.head is not None:
        if checkpoint is None:
            raise CompileError(Diagnostic("TS0505", "--head: the model has no weights, which the head is for", fixes=("give --weights",)))
        checkpoint = with_head(checkpoint, request.head)
    config, digest = _config(request, checkpoint)
    config = for_sequences_of(config, request.context)
    model = find_model(request, config)
    progress("place", 0, 1)
    options = Options(request.dtype, topology=topology(request.topology or LINKS[target.architecture or target.family]))
    placed = place_model(model, config, request.mesh or {}, options, entry=request.entry)
    require_nothing_kept(placed)
    names = [m.name for m in model.file.modules if m.is_entry and m.name != placed.entry.instance.module]
    others = {name: elaborate(model.file, config, request.mesh or {}, entry=name) for name in names} if checkpoint is not None else {}
    if checkpoint is not None:
        declared = {name: weight.shape for typed in (placed.typed, *others.values()) for name, weight in declared_weights(typed)}
        checkpoint = in_parts(arranged(checkpoint, declared), declared)
        match_checkpoint(placed.typed, checkpoint, others)
    entry = drafter_of(model.file, placed.entry.instance.module)
    drafts = None
    if entry is not None and target.family != JAX.family and checkpoint is not None and has_weights_of(others[entry.name], checkpoint):
        match_checkpoint(others[entry.name], checkpoint, {**others, placed.entry.instance.module: placed.typed})
        drafts = place_model(model, config, request.mesh or {}, options, entry=entry.name)
        _require_guesses(drafts, placed, own_vocabulary=request.head is not None)
    if request.head is not None and drafts is None:
        what = f"--head: {model.name} has no entry for the tensors of {request.head}"
        raise CompileError(Diagnostic("TS0505", what, fixes=("leave it out, or use a model file that has one, as llama_eagle3.ts",)))

    entries = [placed] if drafts is None else [placed, drafts]
    buckets = [coarse_plan_set(p, progress=lambda tokens: progress(f"place, {tokens} tokens", 0, 1)) for p in entries]
    try:
        programs = compile_graphs(
            [bucket.placed for several in buckets for bucket in several],
            target,
            lambda name: progress(name, 0, 1),
            screen=request.screen,
            formats={n: f for p in reversed(entries) for n, f in wanted_formats(request.quantize, p.typed, checkpoint).items()},
            cache_layout=CACHE_LAYOUTS[request.cache],
            measured=measured(placed.mesh.ranks),
            kept=[] if drafts is None else kept_by(drafts),
        )
    except KernelMissing as error:
        raise MissingCapability(f"{str(error).splitlines()[0]}; `tsc kernels why OP --target {target}` says of each why") from None
    first = len(buckets[0])
    drafter = None if drafts is None else Drafter(buckets[1], programs[first:])
    return Graphs(target, checkpoint, config, digest, model, buckets[0], programs[:first], drafter)


def _require_guesses(drafts: PlacedModel, placed: PlacedModel, *, own_vocabulary: bool) -> None:
    """An entry for drafts gives logits, as the one does that it guesses for. own_vocabulary: perhaps over fewer tokens."""
    (name, found), (other, wanted) = ((p.entry.instance.module, p.entry.instance.values[p.entry.instance.result]) for p in (drafts, placed))
    is_alike = found.shape.agrees(wanted.shape) or (own_vocabulary and len(found.shape.factors) == 2)
    if found.shape.dtype or not is_alike:
        what = f"`{name}` guesses for `{other}` and gives {found.shape.text()}; both are to give each sequence's logits, [S, V]"
        raise CompileError(Diagnostic("TS0213", what, drafts.entry.instance.result_span or found.span))


def compile_artifact(request: Request, path: Path, progress: Progress) -> Compiled:
    """Write the artifact at `path`, and say how its weights are stored. Raises CompileError, MissingCapability; the old artifact stays
    unless all went well."""
    if path.suffix != ".tsa":
        raise CompileError(Diagnostic("TS0503", f"-o {path}: an artifact's name ends in .tsa"))
    limits = _step_limits(request)
    tuning, _ = tuning_of(request)
    path_of_importance = importance_of(request)
    importance = None if path_of_importance is None else read_importance(path_of_importance)

    def measured(ranks: int) -> Measurements | None:
        return None if tuning is None else tuning.of(threads_of_rank(ranks))

    graphs = compile_graphs_of(request, measured, progress)
    target, checkpoint, mesh, drafter = graphs.target, graphs.checkpoint, graphs.placed.mesh, graphs.drafter
    programs = [*graphs.programs, *(drafter.programs if drafter else ())]
    weights = _stored(graphs)
    found = report(mesh, weights, {})
    if importance is not None:
        require_importance(importance, graphs.digest, stored_weights(graphs.programs[0]))
    if request.quantize in ROUNDED and not found.formats:
        raise MissingCapability(f"--quantize {request.quantize}: no kernel for {target} reads a weight of this model so")
    measurements = measured(mesh.ranks)
    decided, calls = (0, 0) if measurements is None else chosen_by_measurement(programs, target, measurements)
    kernels = compile_kernels(launch_table(programs, target), target, progress)
    with ArtifactWriter(path) as writer:
        if kernels is not None:
            kernels.write(writer)
        drafts = _plans(drafter.buckets, drafter.programs) if drafter else []
        program = emit(_plans(graphs.buckets, graphs.programs), drafts)
        writer.write_json("program.json", program)
        if limits is not None:
            _write_exported(writer, graphs, program, limits, longest_sequence(graphs.config, request.context), progress)
        writer.write_json("plan.json", _shown_plans(graphs))
        if checkpoint is not None:
            for name, data in split_tokenizer(checkpoint.tokenizer_files()).items():
                writer.write_bytes(f"tokenizer/{name}", data)
            streams = writer.weights(mesh.ranks, [stored_tensors(mesh, weights)] * mesh.ranks)
            errors = write_weights(mesh, checkpoint, weights, streams, lambda done: progress("weights", done, len(weights)), importance)
            found = report(mesh, weights, errors, importance)
        if request.head is not None:
            writer.write_bytes(GUESSED_TOKENS, guessed_tokens(request.head).numpy().astype("<i4").tobytes())
        if found.formats:
            writer.write_json("quantization.json", found.to_json())
        progress("finish", 0, 1)
        stored = {
            "quantization": dict(found.formats) or None,
            "importance": None if importance is None else importance.to_json(),
            "tuning": {"sha256": tuning.digest, "calls": decided} if tuning is not None and decided else None,
            "drafter": None if drafter is None else drafter.entry,
        }
        writer.finish({**_manifest(request, graphs.model, graphs.placed, graphs.config, graphs.digest, checkpoint), **stored})
    return Compiled(found, decided, calls, {} if checkpoint is None else checkpoint.left_out)


def _step_limits(request: Request) -> StepLimits | None:
    """What the programs of a target of fixed shapes hold; None of any other. Raises CompileError."""
    if target_of(request).family != JAX.family:
        if request.steps:
            what = f"--steps: programs for {request.target} take steps of any size"
            raise CompileError(Diagnostic("TS0513", what, fixes=("give sizes to `tsrun`, or --target jax",)))
        return None
    try:
        return StepLimits.of(request.steps)
    except ValueError as error:
        raise CompileError(Diagnostic("TS0513", f"--steps: {error}")) from None


def _write_exported(
    writer: ArtifactWriter, graphs: Graphs, program: Record, limits: StepLimits, context: int | None, progress: Progress
) -> None:
    """The program of each size of step, as StableHLO."""
    from tspasses.export_jax import export_steps  # needs JAX

    axes = [(a.name, a.known_size) for a in graphs.placed.mesh.axes]
    platforms = platforms_of(graphs.target)
    exported = export_steps(program, axes, platforms, limits, context, lambda done, total: progress("export", done, total))
    writer.write_json("jax.json", exported.record)
    for name, data in exported.files.items():
        writer.write_bytes(name, data)


def _plans(buckets: Sequence[Bucket], programs: Sequence[Program]) -> Plans:
    return [(bucket.first, program) for bucket, program in zip(buckets, programs, strict=True)]


def _shown_plans(graphs: Graphs) -> dict[str, Any]:
    """What plan.json has."""
    shown = {"plans": [{"first": b.first, "last": b.last, **plan_of(b.placed).to_json()} for b in graphs.buckets]}
    if graphs.drafter is not None:
        drafts = [(b, plan_of(graphs.placed, b.placed).drafter) for b in graphs.drafter.buckets]
        shown["drafts"] = [{"first": b.first, "last": b.last, **plan.to_json()} for b, plan in drafts if plan is not None]
    return shown


def _stored(graphs: Graphs) -> list[StoredWeight]:
    """Every weight once, as all plans of all entries read it. Raises CompileError."""
    found: list[StoredWeight] = []
    for programs in (graphs.programs, graphs.drafter.programs if graphs.drafter else ()):
        of_plans = [stored_weights(program) for program in programs]
        assert len({frozenset(weight.name for weight in weights) for weights in of_plans}) <= 1, "plans of one entry store the same"
        found += [weight for weights in of_plans for weight in weights]
    return stored_once(graphs.placed.mesh, found)


def _config(request: Request, checkpoint: Checkpoint | None) -> tuple[dict[str, Any], str]:
    if request.config is not None:
        return load_config(request.config)
    if checkpoint is not None:
        return checkpoint.config, checkpoint.digest
    fix = "give --weights CHECKPOINT, or --config config.json for an artifact without weights"
    raise CompileError(Diagnostic("TS0505", "the model's sizes are not known", fixes=(fix,)))


def _manifest(
    request: Request, model: ModelSource, placed: PlacedModel, config: Mapping[str, Any], digest: str, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    architectures = list(config.get("architectures") or ())
    named = [a for a in architectures if a in model.file.architectures]
    gives, vocabulary, width = _result(placed)
    return {
        "tsc": __version__,
        "model": {
            "name": model.name,
            "architecture": (named or architectures or list(model.file.architectures))[0],
            "source": model.source.text,
            "source_sha256": model.digest,
            "config_sha256": digest,
        },
        "axes": [[a.name, a.known_size] for a in placed.mesh.axes],
        "ranks": placed.mesh.ranks,
        "target": request.target,
        "dtype": request.dtype,
        "cache": request.cache,
        "vocabulary": vocabulary,
        "gives": gives,
        "embedding": width if gives == "embeddings" else None,
        "context": longest_sequence(config, request.context),
        "eos_token_ids": list(checkpoint.eos_token_ids) if checkpoint else _ids(config.get("eos_token_id")),
        "bos_token_id": checkpoint.bos_token_id if checkpoint else config.get("bos_token_id"),
        "weightless": checkpoint is None,
    }


def _result(placed: PlacedModel) -> tuple[Literal["logits", "tokens", "embeddings"], int | None, int | None]:
    """What the entry gives of each sequence, how many tokens there are, and the width of a row. Rows over the tokens are logits."""
    entry = placed.entry.instance
    instances = (entry, *(p.instance for p in placed.instances.values()))
    tables = [i.values[o.operands[1]].shape for i in instances for o in i.operations if o.op == "embedding"]
    result = entry.values[entry.result].shape
    vocabulary, last = tables[0].factors[0] if tables else result.factors[-1], result.factors[-1]
    if result.dtype == "i32":
        return "tokens", vocabulary.size, None
    return "logits" if last.agrees(vocabulary) else "embeddings", vocabulary.size, last.size


def _ids(value: Any) -> list[int]:
    return [] if value is None else [int(v) for v in (value if isinstance(value, list) else [value])]
