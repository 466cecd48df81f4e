"""A checkpoint's tensors against a model's weights, and the blocks that each rank stores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from tsc.artifact import SafetensorsStream
from tsc.checkpoint import Checkpoint, TensorInfo
from tsc.diagnostics import CompileError, Diagnostic, Note, near
from tsc.graph import Input, JoinedType, NodeType, Program, WeightPart, bound_weights
from tsc.importance import Importance
from tsc.mesh import Mesh
from tsc.program import TypedModel, runs_of
from tsc.spans import Span
from tsc.types import Placement, Shape, local_dimensions
from tskernels.dtypes import torch_dtype
from tskernels.layouts import FROM_FLOATS, Layout, format_of, layout

IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")
"""Buffers that older checkpoints store and every model recomputes."""


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One tensor of the artifact: checkpoint tensors with their types, joined along dimension 0, and how they are stored."""

    name: str
    parts: tuple[WeightPart, ...]
    layout: str
    span: Span


def stored_weights(program: Program) -> list[StoredWeight]:
    """Every weight of the program in the order in which a step reads them. Raises CompileError as `stored_once` does."""

    def each() -> Iterator[StoredWeight]:
        for prefix, node in bound_weights(program):
            kind: Input = node.meta["input"]
            parts = tuple(WeightPart(prefix + p.tensor, p.type) for p in kind.parts)
            yield StoredWeight(kind.tensor(prefix), parts, kind.layout, node.meta["span"])

    return stored_once(program.mesh, each())


def stored_once(mesh: Mesh, weights: Iterable[StoredWeight]) -> list[StoredWeight]:
    """Those of each name once. Raises CompileError where ranks have other parts of a tensor by one weight than by another."""
    found: dict[str, StoredWeight] = {}
    for weight in weights:
        first = found.setdefault(weight.name, weight)
        assert first.layout == weight.layout, f"{weight.name} is stored in two layouts"
        for one, other in zip(first.parts, weight.parts, strict=True):
            if _held(mesh, one.type) != _held(mesh, other.type):
                message = f'"{one.tensor}" is stored as {one.type.text(mesh)}, and this is {other.type.text(mesh)}'
                notes = (Note("the first is here", first.span),)
                raise CompileError(Diagnostic("TS0204", message, weight.span, notes=notes, fixes=("give both one placement",)))
    return list(found.values())


def _held(mesh: Mesh, kind: NodeType) -> tuple[Sequence[int | str], Sequence[int | str | None]]:
    """What a rank has of a weight: the size of its block, and which dimension each axis cuts."""
    dimension = [d for d, size in enumerate(kind.shape.groups) for _ in range(size)]
    return kind.local(mesh), [dimension[p] if isinstance(p, int) else p for p in kind.placement]


@dataclass(frozen=True, slots=True)
class Declared:
    """A weight of an instance, which is the checkpoint's tensor below one of the prefixes that it is called with."""

    instance: str
    value: int
    shape: Shape
    span: Span
    is_tied: bool


def tensor_names(tensor: str, shape: Shape) -> list[str]:
    """The checkpoint's tensors that a weight is: one, or with `{N}` in its name one for each of its first dimension."""
    mark = "{" + shape.factors[0].name + "}" if shape.factors else ""
    return [tensor.replace(mark, str(i)) for i in range(shape.factors[0].size or 0)] if mark and mark in tensor else [tensor]


def match_checkpoint(typed: TypedModel, checkpoint: Checkpoint, others: Mapping[str, TypedModel] | None = None) -> None:
    """Raise CompileError with every weight that the checkpoint lacks or has in another shape, and every tensor that no weight names.
    others: the file's other entries, whose weights the checkpoint may have and this one need not."""
    declared = dict(declared_weights(typed))
    elsewhere = {entry: dict(declared_weights(other)) for entry, other in (others or {}).items()}
    tensors = checkpoint.tensors
    unused = [
        n
        for n in tensors
        if n not in declared
        and not any(n in names for names in elsewhere.values())
        and not n.endswith(IGNORED_SUFFIXES)
        and not any(fnmatchcase(n, p) for p in typed.unused)
        and not checkpoint.is_needless(n)
    ]
    problems = []
    for name, weight in declared.items():
        if name not in tensors:
            if not weight.is_tied:
                message = f'weight "{name}" is not in {checkpoint.source}{near(name, unused)}'
                fixes = tuple(f"give --entry {entry}, which does without it" for entry, names in elsewhere.items() if name not in names)
                problems.append(Diagnostic("TS0730", message, weight.span, fixes=fixes))
            continue
        wanted = tuple(math.prod(f.size or 0 for f in d) for d in weight.shape.dimensions())
        if tensors[name].shape != wanted:
            message = f'weight "{name}" is {weight.shape.text()} = {list(wanted)}, and {list(tensors[name].shape)} in {checkpoint.source}'
            problems.append(Diagnostic("TS0731", message, weight.span))
    missing = [n for n, w in declared.items() if n not in tensors and not w.is_tied]
    problems.extend(
        Diagnostic(
            "TS0732",
            f'{checkpoint.source} has "{name}" {list(tensors[name].shape)}, which no weight of the model names{near(name, missing)}',
            fixes=("declare it, or compile with the model file of this checkpoint's architecture",),
        )
        for name in unused
    )
    if problems:
        raise CompileError(*_shortened(problems))


def has_weights_of(typed: TypedModel, checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has a tensor for each weight."""
    return all(weight.is_tied or name in checkpoint.tensors for name, weight in declared_weights(typed))


def _shortened(problems: Sequence[Diagnostic], most: int = 12) -> list[Diagnostic]:
    kept = list(problems[:most])
    if len(problems) > most:
        kept[-1] = replace(kept[-1], notes=(Note(f"{len(problems) - most} more tensors do not match"),))
    return kept


def declared_weights(typed: TypedModel) -> Iterator[tuple[str, Declared]]:
    """What the model calls its weights in a checkpoint."""
    for prefix, instance in runs_of(typed):
        for weight in instance.weights:
            value = instance.values[weight.value]
            names = tensor_names(prefix + weight.tensor, value.shape)
            shape = value.shape if len(names) == 1 else _one_of(value.shape)
            for tensor in names:
                yield tensor, Declared(instance.name, weight.value, shape, value.span, weight.tied is not None)


def _one_of(stacked: Shape) -> Shape:
    """The shape of each of the tensors that a weight stacks."""
    return Shape(stacked.dtype, stacked.factors[1:], stacked.groups[1:])


def stored_tensors(mesh: Mesh, weights: Sequence[StoredWeight]) -> dict[str, TensorInfo]:
    """Every rank's tensors: placements are the same on all ranks, so their shapes are too."""
    found = {}
    for weight in weights:
        rows = JoinedType(tuple(p.type for p in weight.parts), 0)
        found[weight.name] = TensorInfo(*layout(weight.layout).stored(rows.dtype, [int(d) for d in rows.local(mesh)]))
    return found


def write_weights(
    mesh: Mesh,
    checkpoint: Checkpoint,
    weights: Sequence[StoredWeight],
    streams: Sequence[SafetensorsStream],
    done: Callable[[int], None],
    importance: Importance | None = None,
) -> Mapping[str, float]:
    """Append each weight to every rank's stream. Holds one stored weight at a time, as the checkpoint's type and as the artifact's, and
    of stacked ones one of the stack. Returns the relative error of each of the checkpoint's tensors that was rounded to fewer bits: of
    the rank whose part has most. importance: of the inputs of what is rounded by it."""
    errors: dict[str, float] = {}
    coordinates = list(rank_coordinates(mesh))
    for index, weight in enumerate(weights):
        if len(names := tensor_names(weight.parts[0].tensor, weight.parts[0].type.shape)) > 1:
            assert format_of(weight.layout) is None, "what is stacked keeps its bits"
            _write_stacked(mesh, checkpoint, weight, names, dict(zip(streams, coordinates, strict=True)))
            done(index + 1)
            continue
        stored = layout(weight.layout)
        form = format_of(weight.layout)
        if form is not None and all(checkpoint.formats.get(p.tensor) == form for p in weight.parts):
            files = [(checkpoint.blocks(p.tensor), p.type) for p in weight.parts]
            for stream, coordinate in zip(streams, coordinates, strict=True):
                stream.append(weight.name, stored.pack(_joined([_rank_blocks(b, kind, mesh, coordinate) for b, kind in files])))
            done(index + 1)
            continue
        assert form is None or form in FROM_FLOATS, "the blocks of a file are all that such a weight is made of"
        # What is rounded to fewer bits is not rounded to the model's type before.
        tensors = [(t if form else t.to(torch_dtype(p.type.dtype)), p.type) for p in weight.parts for t in (checkpoint.read(p.tensor),)]
        for stream, coordinate in zip(streams, coordinates, strict=True):
            blocks = [rank_block(t, kind, mesh, coordinate) for t, kind in tensors]
            if importance is not None and stored.pack_by is not None:
                packed = stored.pack_by(_joined(blocks), _rank_importance(importance, weight, mesh, coordinate))
            else:
                packed = stored.pack(_joined(blocks))
            stream.append(weight.name, packed)
            for part, error in zip(weight.parts, _errors(stored, packed, blocks) if form else (), strict=False):
                errors[part.tensor] = max(error, errors.get(part.tensor, 0.0))
        done(index + 1)
    return errors


def require_importance(importance: Importance, config_sha256: str, weights: Sequence[StoredWeight]) -> None:
    """Raise CompileError where it lacks something of the weights that are rounded by it."""
    parts = (p for w in weights if layout(w.layout).pack_by is not None for p in w.parts)
    importance.require(config_sha256, ((p.tensor, math.prod(f.size or 0 for f in p.type.shape.dimensions()[-1])) for p in parts))


def _rank_importance(importance: Importance, weight: StoredWeight, mesh: Mesh, coordinate: dict[str, int]) -> torch.Tensor:
    """Of a rank's inputs [K]. What is joined has the same inputs, so those of the first part are those of all."""
    part = weight.parts[0]
    shape = [math.prod(f.size or 0 for f in d) for d in part.type.shape.dimensions()]
    return rank_block(importance.of(part.tensor).expand(shape), part.type, mesh, coordinate)[0]


def _rank_blocks(blocks: torch.Tensor, kind: NodeType, mesh: Mesh, coordinate: dict[str, int]) -> torch.Tensor:
    """A rank's part of blocks [..., bytes of a row], of which each has as many bytes."""
    if mesh.ranks == 1:
        return blocks
    factors = kind.shape.factors
    in_bytes = replace(kind.shape, factors=(*factors[:-1], replace(factors[-1], size=blocks.shape[-1])))
    return rank_block(blocks, replace(kind, shape=in_bytes), mesh, coordinate)


def _joined(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks))


def _errors(stored: Layout, packed: torch.Tensor, blocks: Sequence[torch.Tensor]) -> Iterator[float]:
    """Of each block that was packed: the norm of what is lost, relative to its own."""
    assert stored.unpack is not None
    values = stored.unpack(packed, (sum(b.shape[0] for b in blocks), blocks[0].shape[1]))
    for block, value in zip(blocks, torch.split(values, [b.shape[0] for b in blocks]), strict=True):
        norm = float(block.float().norm())
        yield float((value - block).norm()) / norm if norm else 0.0


def _write_stacked(
    mesh: Mesh,
    checkpoint: Checkpoint,
    weight: StoredWeight,
    tensors: Sequence[str],
    streams: Mapping[SafetensorsStream, dict[str, int]],
) -> None:
    """Each tensor of a stack to the ranks that have it: those whose block of the first factor it is in."""
    kind, pack = weight.parts[0].type, layout(weight.layout).pack
    inner = NodeType(_one_of(kind.shape), tuple((p - 1 if p else None) if isinstance(p, int) else p for p in kind.placement))
    for number, tensor in enumerate(tensors):
        whole = checkpoint.read(tensor).to(torch_dtype(kind.dtype))
        for stream, coordinate in streams.items():
            blocks, position = _position(mesh, kind.placement, 0, coordinate)
            if number // (len(tensors) // blocks) == position:
                stream.extend(weight.name, pack(rank_block(whole, inner, mesh, coordinate))[None])


def rank_coordinates(mesh: Mesh) -> Iterator[dict[str, int]]:
    """Each rank's index on every axis, ranks in row-major order."""
    for rank in range(mesh.ranks):
        found, rest = {}, rank
        for axis in reversed(mesh.axes):
            rest, found[axis.name] = divmod(rest, axis.known_size)
        yield found


def rank_block(tensor: torch.Tensor, kind: NodeType, mesh: Mesh, coordinate: dict[str, int]) -> torch.Tensor:
    """A rank's block of a whole tensor, in its local physical shape, contiguous. Of what is pending a sum the first rank has the tensor,
    and the others zeros."""
    if any(place == "sum" and coordinate[axis.name] for axis, place in zip(mesh.active, kind.placement, strict=True)):
        tensor = torch.zeros_like(tensor)
    blocked = tensor.reshape([f.size or 0 for f in kind.shape.factors])
    for index, factor in enumerate(kind.shape.factors):
        blocks, position = _position(mesh, kind.placement, index, coordinate)
        if blocks > 1:
            size = (factor.size or 0) // blocks
            blocked = blocked.narrow(index, position * size, size)
    return blocked.reshape([int(d) for d in local_dimensions(kind.shape, mesh, kind.placement)]).contiguous()


def _position(mesh: Mesh, placement: Placement, index: int, coordinate: dict[str, int]) -> tuple[int, int]:
    """Into how many blocks a factor is split, and which one is this rank's."""
    blocks, position = 1, 0
    for axis, place in zip(mesh.active, placement, strict=True):
        if place == index:
            blocks *= axis.known_size
            position = position * axis.known_size + coordinate[axis.name]
    return blocks, position
