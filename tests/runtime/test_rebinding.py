"""A GPU's program on a CPU: what expands latents is left out."""

from __future__ import annotations

from tsrun.program import Graph, Node
from tsrun.rebinding import absorbed


def node(name: str, op: str, *args: str, **attrs: int | float) -> Node:
    return Node(name, f"ts::{op}", "triton", list(args), "f32", ["T", 2, 4], dict(attrs))


def test_latents_are_absorbed_for_all_sequences() -> None:
    nodes = [
        node("mixed", "latent_attention", "q", "turned", "rows", "spans", "lengths", "tables", shard=0, window=0, expanded_from=171),
        node("made", "einsum", "mixed", "v_up"),
        node(
            "all",
            "expanded_attention",
            "made",
            "content",
            "turned",
            "rows",
            "k_up",
            "v_up",
            "spans",
            "lengths",
            "tables",
            expanded_from=171,
        ),
        node("twice", "add", "all", "all"),
    ]
    found = absorbed(Graph([], list(nodes), "twice"))
    assert [n.name for n in found.nodes] == ["mixed", "made", "twice"]
    mixed, _, twice = found.nodes
    assert isinstance(mixed, Node)
    assert mixed.attrs == {"shard": 0, "window": 0}
    assert twice.args == ["made", "made"]
    assert absorbed(Graph([], list(nodes[:3]), "all")).output == "made"
