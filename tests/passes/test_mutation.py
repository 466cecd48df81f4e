"""Change any one inserted collective, in any way that there is, and somebody notices: the verifier, or else the simulated ranks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
import torch.fx
from tests.passes.test_semantics import MESHES, expected, run
from tests.passes.tiny_models import CONFIGS, lowered

from tsc.graph import Program, node_type, op_of, operands, target_of
from tsc.graph_parser import parse_program
from tspasses.transitions import COLLECTIVES
from tspasses.verify import VerificationError, verify

MOVES = (*COLLECTIVES, "local_slice", "keep_first")
Mutation = tuple[str, str, dict[str, object]]
"""A description, the op that is put in its place (empty: none), and its attributes."""


def inserted(program: Program) -> list[tuple[str, str]]:
    """Graph and name of every node that changes a placement."""
    return [(g, n.name) for g, graph in program.graphs.items() for n in graph.nodes if n.op == "call_function" and op_of(n) in MOVES]


def node_of(program: Program, graph: str, name: str) -> torch.fx.Node:
    found: torch.fx.Node = next(n for n in program.graphs[graph].nodes if n.name == name)
    return found


def mutations(program: Program, node: torch.fx.Node) -> Iterator[Mutation]:
    """Remove it; every other kind, along every dimension; other dimensions, axes and reductions."""
    own, axis = op_of(node), str(node.kwargs["axis"])
    dims = range(len(node_type(node).shape.factors))
    parts = axis.split("*")
    axes = {axis, *("*".join(c) for n in range(1, len(parts)) for c in combinations(parts, n)), *(a.name for a in program.mesh.active)}
    yield "removed", "", {}
    for kind in MOVES:
        for name in sorted(axes):
            match kind:
                case "all_reduce":
                    choices: list[dict[str, object]] = [{"reduction": r} for r in ("sum", "max")]
                case "all_gather" | "reduce_scatter" | "local_slice":
                    choices = [{"dim": d} for d in dims]
                case "all_to_all":
                    choices = [{"split_dim": a, "concat_dim": b} for a in dims for b in dims if a != b]
                case _:
                    choices = [{}]
            for attributes in choices:
                changed = {"axis": name, **attributes}
                if (kind, changed) != (own, dict(node.kwargs)):
                    yield f"{kind} {changed}", kind, changed


def mutate(program: Program, node: torch.fx.Node, op: str, attributes: dict[str, object]) -> None:
    """Types stay as they are: a pass that got a collective wrong would have believed them."""
    if not op:
        node.replace_all_uses_with(operands(node)[0])
        node.graph.erase_node(node)
    else:
        node.target = target_of(op)
        node.kwargs = attributes  # type: ignore[assignment]


def caught(program: Program, model: str) -> bool:
    try:
        verify(program, "mutation")
    except VerificationError:
        return True
    try:
        results = run(program)
    except (RuntimeError, AssertionError, IndexError, ValueError):  # ranks that do not meet, shapes that do not fit
        return True
    return any(not torch.allclose(f, w, rtol=1e-9, atol=1e-9) for logits in results for f, w in zip(logits, expected(model), strict=True))


@pytest.mark.parametrize(
    ("mesh", "model"),
    [
        pytest.param(*m, marks=[pytest.mark.slow] * (m[0] != {"tp": 2}), id=f"{m[1]}-{m[0]}")
        for m in MESHES
        if m[0] not in ({"tp": 1}, {"dp": 4})
    ],
)
def test_every_mutation_of_a_collective_is_caught(model: str, mesh: dict[str, int]) -> None:
    program = lowered(model, mesh)
    assert len(inserted(program)) >= 4
    missed, tried = [], 0
    for graph, name in inserted(program):
        for what, op, attributes in mutations(program, node_of(program, graph, name)):
            mutant = lowered(model, mesh)
            mutate(mutant, node_of(mutant, graph, name), op, attributes)
            tried += 1
            if not caught(mutant, model):
                missed.append(f"{graph}: %{name}: {what}")
    print(f"{model} on {mesh}: {tried - len(missed)} of {tried} mutants caught")
    assert missed == []
    assert tried >= 9 * len(inserted(program))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(%layer, %slots_w4, ", "(%layer, %slots, ", "%slots is given for the step's slots of window 4"),
        (
            "%spans, %lengths, %tables_w4) : f32[T, D]",
            "%spans, %lengths, %tables_w9) : f32[T, D]",
            "%tables_w9 is given for the step's tables",
        ),
        ("%kv: f32[pages, 2, K, E] window 4", "%kv: f32[pages, 2, K, E]", "%slots_w4 is given for the step's slots of window 0"),
        ("softcap = 0.0, window = 4", "softcap = 0.0, window = 9", "attention sees a window of 9, and its cache has 4"),
        ("%slots_w4_split, %slots_w4) :", "%slots_w4_split, %tables_w4) :", "%tables_w4 is given for the step's slots"),
        ("%lengths, %tables_w4, shard = 0", "%lengths, %slots_w4, shard = 0", "%slots_w4 is given for the step's tables"),
    ],
)
def test_pages_of_other_caches_are_caught(old: str, new: str, message: str) -> None:
    text = (Path(__file__).parent / "cases/lower/windows.out").read_text()
    assert text.count(old) == 1
    with pytest.raises(VerificationError, match=message):
        verify(parse_program(text.replace(old, new)), "mutation")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(%made, %content, %turned, %rows, %k_up, %v_up,", "(%made, %content, %turned, %rows, %v_up, %k_up,", "not those of %made"),
        ("(%made, %content,", "(%content, %content,", "%content is not what latent attention alone has made"),
        ("%v_up, %spans, %lengths,", "%v_up, %spans, %spans,", "not those of %made"),
        ("window = 0, expanded_from = 97", "window = 0, expanded_from = 98", "says other than"),
        ("scale = 0.25, expanded_from", "scale = 0.5, expanded_from", "says other than"),
        ("ts.add(%made_all, %made_all)", "ts.add(%made_all, %made)", "%made is not what latent attention alone has made"),
    ],
)
def test_rows_that_are_expanded_of_something_else_are_caught(old: str, new: str, message: str) -> None:
    text = (Path(__file__).parent / "cases/expand-latents/long_chunks.out").read_text()
    assert text.count(old) == 1
    with pytest.raises(VerificationError, match=message):
        verify(parse_program(text.replace(old, new)), "mutation")


@pytest.mark.parametrize(
    ("case", "old", "new", "message"),
    [
        ("fuse-qk-rope/heads", "k_heads = 1, width = 8, theta", "k_heads = 2, width = 8, theta", "is not 2 heads of 8"),
        ("fuse-qk-rope/heads", "width = 8, eps", "width = 4, eps", "is not 1 heads of 4"),
        ("fuse-qk-rope/heads", "ts.qk_rope(%q_k_v, %positions", "ts.qk_rope(%x, %positions", "does not begin with"),
        ("fuse-qk-rope/heads", 'kn: f32[E] = "1', 'kn: f32[D] = "1', "the norm's weight has the last dimension of the value"),
        ("fuse-qk-rope/heads", "fraction = 0.5)", "fraction = 0.1)", "a fraction of 0.1 of `E`"),
        ("fuse-residual/one_rank", "ts.add_norm(%d, %x", "ts.add_norm(%u, %x", "needs two values of one type"),
        ("fuse-residual/one_rank", 'n: f32[D] = "n"', 'n: f32[F] = "n"', "the norm's weight has the last dimension of the value"),
        ("fuse-residual/layer", "ts.all_reduce_add_norm(%d, %x", "ts.all_reduce_add_norm(%x, %x", "no sum over tp leads from"),
    ],
)
def test_what_joined_ops_do_not_stand_for_is_caught(case: str, old: str, new: str, message: str) -> None:
    text = (Path(__file__).parent / f"cases/{case}.out").read_text()
    assert text.count(old) == 1
    with pytest.raises(VerificationError, match=message):
        verify(parse_program(text.replace(old, new)), "mutation")


def test_the_program_as_it_is_passes() -> None:
    for model in CONFIGS:
        assert not caught(lowered(model, {"tp": 4}), model)
