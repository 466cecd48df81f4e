"""What kernels in Triton have in common: products, functions of one number, turns, and the steps of an online softmax."""

from __future__ import annotations

import triton
import triton.language as tl

# Its interpreter multiplies bf16 as if it were integers, without a word. The product of two bf16 is exact in f32.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E = tl.constexpr(1.4426950408889634)
TWO_OVER_PI = tl.constexpr(0.6366197723675814)
HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def overlap(DEPENDENT: tl.constexpr):
    """What comes first in a function that is launched while others run (`Launch.dependent`): when all blocks are here, the launch after it
    may begin; what is next happens when the launches before it have ended, and what they wrote is there."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def product(x, y, sums):
    """`sums + x @ y`, in f32."""
    if INTERPRETED:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), sums, input_precision="ieee")
    return tl.dot(x, y, sums, input_precision="ieee")


@triton.jit
def sigmoid(x):
    t = tl.exp(-tl.abs(x))
    return tl.where(x < 0, t, 1.0) / (1.0 + t)


@triton.jit
def tanh(x):
    # A quotient of exponentials loses what is small; there the series is.
    t = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - t) / (1.0 + t)
    z = x * x
    small = x * (1.0 + z * (-0.3333333333 + z * (0.1333333333 + z * (-0.0539682540 + z * 0.0218694885))))
    return tl.where(tl.abs(x) < 0.3, small, tl.where(x < 0, -large, large))


@triton.jit
def activated(x, FUNCTION: tl.constexpr):
    """By name, of f32."""
    if FUNCTION == "silu":
        return x * sigmoid(x)
    elif FUNCTION == "sigmoid":
        return sigmoid(x)
    elif FUNCTION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(FUNCTION == "gelu_tanh")
        return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def cosine_and_sine(angle):
    """Of f32 radians of any size. The device's own reduce large angles with a table on the stack; here f64 does."""
    wide = angle.to(tl.float64)
    turns = tl.floor(wide * TWO_OVER_PI + 0.5)
    r = (wide - turns * HALF_PI).to(tl.float32)
    quadrant = turns.to(tl.int64).to(tl.int32) & 3
    z = r * r
    sine = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r
    cosine = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    swapped = (quadrant & 1) == 1
    c, s = tl.where(swapped, sine, cosine), tl.where(swapped, cosine, sine)
    return tl.where((quadrant == 1) | (quadrant == 2), -c, c), tl.where(quadrant >= 2, -s, s)


@triton.jit
def e4m3_code(x):
    """The byte of the nearest, as the layout `fp8_cache` has it: by its definition, since the interpreter rounds otherwise."""
    bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    code = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 a step is 2^-9, as it is of f32 from 2^14 on.
    even = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.uint32, bitcast=True) & 0xF
    code = tl.where(size < 0x3C800000, even, code)
    code = tl.where(size >= 0x43E00000, 0x7E, code)
    code = tl.where(size > 0x7F800000, 0x7F, code)
    return (((bits >> 24) & 0x80) | code).to(tl.uint8)


@triton.jit
def capped(scores, SOFTCAP: tl.constexpr):
    if SOFTCAP == 0:
        return scores
    return SOFTCAP * tanh(scores / SOFTCAP)


@triton.jit
def weigh(scores, largest, total):
    """Scores in powers of two: weights, what went before times which it is to be, and the new largest and total. Rows that have seen
    nothing yet stay at -inf and 0."""
    weights, kept, new = _weighed(scores, largest)
    return weights, kept, new, total * kept + tl.sum(weights, 1)


@triton.jit
def weigh_apart(scores, largest, totals):
    """`weigh` with a total of each column of the tiles of scores, which are added up at the end."""
    weights, kept, new = _weighed(scores, largest)
    return weights, kept, new, totals * kept[:, None] + weights


@triton.jit
def _weighed(scores, largest):
    new = tl.maximum(largest, tl.max(scores, 1))
    base = tl.where(new == -float("inf"), 0.0, new)
    kept = tl.exp2(largest - base)
    return tl.exp2(scores - base[:, None]), kept, new


@triton.jit
def normalized(row, gain, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """A row of its type. gain: loaded before, since a load after the sum would wait for that."""
    wide = row.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + EPS)
    return (wide * inverse * gain).to(row.dtype)
