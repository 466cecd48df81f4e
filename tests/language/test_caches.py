"""What a module may do with a cache, and with stored values: each of these compiled once, and computed something nobody meant."""

from __future__ import annotations

import pytest

from tsc.diagnostics import CompileError
from tsc.elaborate import elaborate
from tsc.parser import parse
from tsc.spans import Source

MODEL = """
config {{ D = hidden_size  V = vocab_size  K = heads  G = group  E = head_dim }}

module Attention(x: [T, D]) -> [T, D] {{
  weight wq: [(K, G, E), D] = "q"
  weight wk: [(K, E), D] = "k"
  weight wo: [D, (K, G, E)] = "o"
  cache  kv: paged [2, K, E]
  let q = linear(x, wq)
  let k = linear(x, wk)
  {body}
}}

entry decode(ids: i32[T], last: i32[S]) -> [S, V] {{
  weight embed: [V, D] = "embed"
  return linear(Attention<"a">(embedding(ids, embed))[last], embed)
}}
"""


def elaborated(body: str) -> None:
    elaborate(parse(Source("model.ts", MODEL.format(body=body))))


def test_attention_reads_what_append_returns() -> None:
    elaborated("return linear(attention(q, kv.append(k, k), scale = 1.0), wo)")
    with pytest.raises(CompileError, match=r"TS0206.*reads a cache"):
        elaborated("return linear(attention(q, kv, scale = 1.0), wo)")


def test_a_step_appends_to_a_cache_once() -> None:
    once = "let once = kv.append(k, k)"
    elaborated(f"{once} return linear(attention(q, once, scale = 1.0), wo) + linear(attention(q, once, scale = 2.0), wo)")
    for again in ("kv.append(k, k)", "once.append(k, k)"):
        with pytest.raises(CompileError, match=r"TS0205.*appends to"):
            elaborated(f"{once} let twice = {again} return linear(attention(q, twice, scale = 1.0), wo)")


def test_branches_that_exclude_each_other_may_both_append() -> None:
    branch = "return linear(attention(q, kv.append(k, k), scale = 1.0), wo)"
    elaborated(f"if heads == 1 {{ {branch} }} else {{ {branch} }}")


def test_what_is_stored_has_extents_that_are_known_before_a_step() -> None:
    with pytest.raises(CompileError, match=r"TS0204.*known only when a step runs"):
        elaborated('weight n: [T] = "n" return linear(attention(q, kv.append(k, k), scale = 1.0), wo)')


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(CompileError, match=r"TS0210.*no finite number"):
        elaborated("return linear(attention(q, kv.append(k, k), scale = 1e308 * 10.0), wo)")


STATE = """config {{ V = v  D = d  P = past  W = taps }}
module M(x: [T, D]) -> [T, D] {{
  weight w: [D, 1, W] = "w"
  cache kept: state f32[P, D]
  cache rows: paged [D]
  {body}
}}
entry decode(ids: i32[T], last: i32[S]) -> [S, V] {{
  weight embed: [V, D] = "embed"
  return linear(M(embedding(ids, embed))[last], embed)
}}
"""


def with_state(body: str, taps: int = 4) -> None:
    elaborate(parse(Source("model.ts", STATE.format(body=body))), {"v": 9, "d": 8, "past": 3, "taps": taps})


def test_a_step_overwrites_a_state_once() -> None:
    with_state("return short_conv(x, w, kept)")
    with pytest.raises(CompileError, match=r"TS0205.*overwrites `kept` once"):
        with_state("return short_conv(short_conv(x, w, kept), w, kept)")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return short_conv(x, w, rows)", "TS0206.*has a state"),
        ("return short_conv(x, w, x)", "TS0206.*has a state"),
        ("let y = kept.append(x, x) return x", "TS0206.*for a cache of pages"),
        ("cache other: state f32[P, D] window 3 return x", "TS0205.*has no window"),
        ("cache other: ring [D] return x", "TS0205.*`paged` or a `state`"),
        ("cache other: state [P, D] return short_conv(x, w, other)", r"TS0204.*f32\[W - 1, D\]"),
    ],
)
def test_what_is_no_use_of_a_state_is_refused(body: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        with_state(body)


def test_a_state_has_what_the_taps_look_back_at() -> None:
    with pytest.raises(CompileError, match=r"TS0204.*5 taps looks back at 4 inputs, and its state has 3"):
        with_state("return short_conv(x, w, kept)", taps=5)
