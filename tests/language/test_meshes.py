"""Axes that are products of others, and pages that an axis splits."""

from __future__ import annotations

import pytest

from tsc.diagnostics import CompileError
from tsc.elaborate import elaborate
from tsc.front import ModelSource, place_model
from tsc.parser import parse
from tsc.spans import Source
from tspasses.placed import Options, PlacedModel

MODEL = """
config {{ D = hidden_size  V = vocab_size  K = heads  G = group  E = head_dim }}
mesh {{ {mesh} }}

module Attention(x: [T@dp, D]) -> [T@dp, D | sum tp] {{
  weight wq: [(K@tp, G, E), D] = "q"
  weight wk: [(K@tp, E), D] = "k"
  weight wo: [D, (K@tp, G, E)] = "o"
  cache  kv: {cache} [2, K@tp, E]
  let q = linear(x, wq)
  let k = linear(x, wk)
  return linear(attention(q, kv.append(k, k), scale = 1.0), wo)
}}

entry decode(ids: i32[T], last: i32[S]) -> [S, V] {{
  weight embed: [V@ep, D] = "embed"
  return linear(Attention<"a">(embedding(ids, embed))[last], embed)
}}
"""
SIZES = {"hidden_size": 32, "vocab_size": 64, "heads": 4, "group": 2, "head_dim": 8}


def placed(mesh: str = "dp tp ep = dp * tp", cache: str = "paged@dp", sizes: dict[str, int] | None = None) -> PlacedModel:
    source = Source("model.ts", MODEL.format(mesh=mesh, cache=cache))
    return place_model(ModelSource("model", source, parse(source)), SIZES, sizes or {"dp": 2, "tp": 2}, Options())


def kinds(model: PlacedModel, instance: str) -> list[str]:
    return [f"{m.kind} {'*'.join(m.axes)}" for t in model.instances[instance].transitions for m in t.moves]


def test_an_axis_over_others_has_all_their_ranks() -> None:
    mesh = placed().mesh
    assert [(a.name, a.size) for a in mesh.axes] == [("dp", 2), ("tp", 2)]
    assert mesh.leaves("ep") == ("dp", "tp")
    assert mesh.name_of(("dp", "tp")) == "ep"


def test_an_axis_over_a_product_has_its_parts() -> None:
    mesh = elaborate(
        parse(Source("model.ts", MODEL.format(mesh="dp  tp = kv * q where kv = gcd(K, tp)  ep = dp * tp", cache="paged@dp"))),
        SIZES,
        {"dp": 2, "tp": 4},
    ).mesh
    assert mesh.leaves("ep") == ("dp", "kv", "q")


def test_a_part_alone_has_the_name_that_was_given_ranks() -> None:
    assert placed(sizes={"tp": 2}).mesh.name_of(("tp",)) == "tp"
    assert placed(sizes={"dp": 2}).mesh.name_of(("dp",)) == "dp"


def test_attention_on_sequences_of_their_own_needs_nothing_of_other_groups() -> None:
    assert kinds(placed(), "Attention") == []
    assert kinds(placed(sizes={"dp": 4}), "Attention") == []


def test_without_pages_of_their_own_the_tokens_are_gathered() -> None:
    assert any("all_gather dp" in k for k in kinds(placed(cache="paged"), "Attention"))


@pytest.mark.parametrize(
    ("mesh", "sizes", "message"),
    [
        ("dp tp ep = dp * xp", None, "`xp` is not declared above"),
        ("dp ep = dp * tp tp", None, "`tp` is not declared above"),
        ("dp tp ep = tp * dp", None, "in the order of declaration"),
        ("dp tp ep = dp * dp", None, "once each"),
        ("dp tp ep = dp * tp where dp = 2", None, "`where` sizes the parts"),
        ("dp tp ep = dp * tp", {"ep": 4}, "give those, as in dp=...,tp=..."),
    ],
)
def test_a_product_that_does_not_add_up_is_told(mesh: str, sizes: dict[str, int] | None, message: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        placed(mesh, sizes=sizes)
    assert [d.code for d in caught.value.diagnostics] == ["TS0211"]


def test_pages_and_rows_are_not_split_over_one_axis() -> None:
    with pytest.raises(CompileError, match=r"TS0209.*splits the pages and a factor"):
        placed(cache="paged@tp")


def test_a_cache_that_is_split_otherwise_than_its_tokens_is_told() -> None:
    with pytest.raises(CompileError, match=r"TS0208.*no axis `xp`"):
        placed(cache="paged@xp")
