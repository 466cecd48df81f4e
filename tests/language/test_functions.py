"""What functions take and refuse, in the words an author reads: biases, rope, latent attention, mixtures, rows."""

from __future__ import annotations

import pytest

from tsc.diagnostics import CompileError
from tsc.elaborate import elaborate
from tsc.parser import parse
from tsc.spans import Source

LONGROPE = {"factor": 2, "original_max_position_embeddings": 9, "short_factor": [1, 1, 1], "long_factor": [1, 2, 3]}
CONFIG = {
    "v": 32,
    "d": 8,
    "h": 2,
    "a": 3,
    "b": 5,
    "n": 4,
    "f": 6,
    "yarn": {"rope_type": "yarn", "factor": 2.0},
    "longrope": {"rope_type": "longrope", **LONGROPE},
    "spiral": {"type": "spiral"},
}


def elaborated(body: str, result: str = "[T, D]") -> None:
    text = f"""config {{ V = v  D = d  H = h  A = a  B = b  N = n  F = f  yarn = yarn  longrope = longrope  spiral = spiral }}
module M(x: [T, D], logits: [T, N], q: [T, H, A], positions: i32[T]) -> {result} {{
  weight w: [H, A, D] = "w"
  weight gate: [N, F, D] = "e.{{N}}.gate"
  weight down: [N, D, F] = "e.{{N}}.down"
  weight bf: [N, F] = "e.{{N}}.bf"
  weight bd: [N, D] = "e.{{N}}.bd"
  cache rows: paged [D]
  {body}
}}
entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V] {{
  weight embed: [V, D] = "embed"
  weight wl: [N, D] = "wl"
  weight wq: [(H, A), D] = "wq"
  let x = embedding(ids, embed)
  let y = M(x, linear(x, wl), linear(x, wq), positions)
  return linear(x[last], embed)
}}"""
    elaborate(parse(Source("model.ts", text)), CONFIG)


_SINKS = """
  weight qs: [(B, H, A), D] = "qs"
  weight ks: [(B, A), D] = "ks"
  weight sinks: {} = "sinks"
  cache grouped: paged [2, B, A]
  let k = linear(x, ks)
  let y = sink_attention(linear(x, qs), grouped.append(k, k), sinks, scale = 1.0)
  return x"""


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ('return einsum("t h a, h a d -> t d", q, w)', "[T, D]"),
        ("let a, b = split(x, D, A, B) return a", "[T, A]"),
        ("return experts(x, route(logits, top_k = 2), gate, gate, down)", "[T, D]"),
        ('weight o: [D, (H, A)] = "o" weight b: [D] = "b" return linear(q, o, b)', "[T, D]"),
        ('weight o: [D, (H, A)] = "o" weight b: [D] = "b" when v > 32 return linear(q, o, b)', "[T, D]"),
        ('weight f: [(F, N), D] = "f" from 2 * F return linear(x, f)', "[T, F, N]"),
        ('weight n: [H, A] = "n" return rms_norm_rows(q, n, 0.1, offset = 1.0)', "[T, H, A]"),
        ("return rope(x, positions, fraction = 0.5)", "[T, D]"),
        ("return rope(q, positions, fraction = 0.7)", "[T, H, A]"),
        (_SINKS.format("[(B, H)]"), "[T, D]"),
        ("return experts(x, logits, gate, gate, down, bf, bf, bd, alpha = 1.7, limit = 7, offset = 1)", "[T, D]"),
        ('weight r: [N, D] = "r[D, (N, 1 of 3)]" return x + experts(x, linear(x, r), gate, gate, down)', "[T, D]"),
        ("return softmax(x)", "f32[T, D]"),
        ("let values, indices = top_k(logits, 2) return indices", "i32[T, 2]"),
        ("let a, b = split(x, D, A, B) let kv = rows.append(a, b) return latent_attention(q, q, kv, scale = 1.0)", "[T, H, A]"),
    ],
)
def test_what_is_right(body: str, result: str) -> None:
    elaborated(body, result)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            'weight o: [D, (H, A)] = "o" weight b: [N] = "b" return linear(q, o, b)',
            "TS0204.*the bias has the first dimension of the weight, D",
        ),
        ('weight o: [D, (H, A)] = "o" when v > 32 return linear(q, o)', "TS0206.*`w` of `linear` is a tensor"),
        ('weight f: [F, D] = "f" from -1 return linear(x, f)', "TS0210.*counted from 0, and this is -1"),
        ('weight f: [F, D] = "f" from 0.5 return linear(x, f)', "TS0210.*a tensor's row is a whole number"),
        ('weight n: [A, H] = "n" return rms_norm_rows(q, n, 0.1)', r"TS0204.*all dimensions of \[T, H, A\] but the first, got \[A, H\]"),
        ("return rms_norm_rows(x, x, x)", "TS0206.*`eps` of `rms_norm_rows` is a config value"),
        ("return rope(q, positions)", "TS0210.*`rope` turns pairs, and a fraction of 1.0 of `A`, 3, is 3 elements"),
        ("return rope(x, positions, fraction = 1.5)", "TS0210.*of `D`, 8, is 12 elements"),
        ("return rope(x, positions, scaling = yarn)", "TS0210.*yarn rope scaling needs original_max_position_embeddings"),
        (
            "return rope(x, positions, scaling = longrope)",
            "TS0210.*`short_factor` of longrope has a number for each of 4 pairs, and these are 3",
        ),
        ("return rope(x, positions, scaling = spiral)", "TS0210.*knows the scalings default, linear, .*, longrope, dynamic, not 'spiral'"),
        ('return einsum("t h a, h a d", q, w)', "TS0210.*a letter for each dimension"),
        ('return einsum("t h a, h d -> t d", q, w)', "TS0204.*has 2 dimensions"),
        ('return einsum("t h a, a h d -> t d", q, w)', "TS0204.*`a` is A and H"),
        ('return einsum("t h a, h a d -> t d d", q, w)', "TS0210.*a letter stands once"),
        ('return einsum("t h a, h a d -> t d z", q, w)', "TS0210.*`z` of the result is in no operand"),
        ('return einsum("t h a, h a d -> t h", q, w)', "TS0210.*`d` is summed over"),
        ("let a, b = split(x, D, A, A) return a", r"TS0204.*`D` is 8, and its parts A 3 \+ A 3 are 6"),
        ("let a, b = split(x, N, A, B) return a", "TS0204.*no dimension `N`"),
        ("let a = split(x, D, A, B) return a", "TS0205.*a name for each"),
        ("let a, b = silu(x) return a", "TS0205.*only `split` and `top_k`"),
        ("return slice(x, 0, 0, 3, 3)", "TS0205.*by `let a, b = split"),
        ("return experts(x, route(logits, top_k = 5), gate, gate, down)", "TS0210.*picks 5 of 4"),
        ("return experts(x, route(logits, top_k = 2, groups = 3), gate, gate, down)", "TS0210.*4 experts into 3"),
        ("return experts(x, route(logits, top_k = 2, groups = 2, top_groups = 3), gate, gate, down)", "TS0210.*3 of 2 groups"),
        ('return experts(x, route(logits, top_k = 2, score = "relu"), gate, gate, down)', "TS0210.*softmax, sigmoid"),
        ("return experts(x, route(logits, top_k = 2, normalize = 1), gate, gate, down)", "TS0210.*true or false"),
        ("return experts(x, logits, gate, down, down)", r"TS0204.*`up` of `experts` is \[N, F, D\]"),
        ("return experts(x, logits, gate, gate, down, bf)", "TS0204.*a bias of `gate`, of `up` and of `down`, or none"),
        ("return experts(x, logits, gate, gate, down, bf, bd, bd)", r"TS0204.*`up_bias` of `experts` is \[N, F\]"),
        ('return experts(x, logits, gate, gate, down, limit = "7")', "TS0210.*`limit` of `experts` is a number"),
        (_SINKS.format("[H, A]"), r"TS0204.*a sink for each query head, \[B, H\], got \[H, A\]"),
        ('weight r: [N, D] = "r[N, F]" return x', "TS0204.*stores the factors of a weight, each once: N, D, not N, F"),
        ('weight r: [N, D] = "r[D, (N, 3 of 3)]" return x', "TS0204.*`3 of 3` is none of 3 parts"),
        ("return softmax(x, 3)", "TS0205.*parameters"),
        ("return top_k(logits, 2)", "TS0205.*gives 2 values"),
        ("let v, i = top_k(logits, x) return v", "TS0206.*config value"),
        ("let v, i = top_k(logits, 5) return v", "TS0210.*a block has 4"),
        ("return latent_attention(q, q, rows, scale = 1.0)", "TS0206.*reads a cache"),
        ("let kv = rows.append(x, x) return x", "TS0204.*holds 8 numbers"),
        ('return x + einsum("h a d, h a d -> a d", w, w)', "TS0217.*of weights alone"),
    ],
)
def test_what_is_refused(body: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        elaborated(body)
