"""What PTX means to the emulator, against numpy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.gpu.handwritten import each_thread, run
from tests.gpu.kernels_of_test import KERNELS, Array, difference, from_bf16, from_fp8, normal, text, to_bf16, to_fp8

from tskernels.emulator import TensorMap, Uninitialized

RANDOM = np.random.default_rng(0)


def unary(body: str, x: Array, bits: int = 32) -> Array:
    """Each element through `body`, from %r0 (or %rd0) to %r1 (or %rd1)."""
    out = np.zeros(len(x), x.dtype)
    wide = bits == 64
    source, target = ("%rd0", "%rd1") if wide else ("%r0", "%r1")
    load = f"mad.wide.u32 %rd100, t, {bits // 8}, p0; ld.global.b{bits} {source}, [%rd100];"
    run(f"{load} {body} {each_thread('p1', target, bits)}", [("u64", x), ("u64", out)], block=len(x))
    return out


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("add.s32 %r1, %r0, -7;", lambda x: x - np.uint32(7)),
        ("mul.lo.s32 %r1, %r0, 1000003;", lambda x: x * np.uint32(1000003)),
        ("mul.hi.u32 %r1, %r0, 0xdeadbeef;", lambda x: (x.astype(np.uint64) * 0xDEADBEEF >> 32).astype(np.uint32)),
        ("mad.lo.u32 %r1, %r0, %r0, 5;", lambda x: x * x + np.uint32(5)),
        ("shr.s32 %r1, %r0, 3;", lambda x: (x.view(np.int32) >> 3).view(np.uint32)),
        ("shl.b32 %r1, %r0, 33;", lambda x: np.zeros_like(x)),
        ("bfe.u32 %r1, %r0, 5, 9;", lambda x: x >> 5 & 511),
        ("bfe.s32 %r1, %r0, 4, 8;", lambda x: (x >> 4 & 255).astype(np.uint8).view(np.int8).astype(np.int32).view(np.uint32)),
        ("bfi.b32 %r1, 0x155, %r0, 7, 9;", lambda x: x & ~np.uint32(511 << 7) | np.uint32(0x155 << 7)),
        ("prmt.b32 %r1, %r0, 0x11223344, 0x6420;", lambda x: x & 255 | (x >> 16 & 255) << 8 | np.uint32(0x22440000)),
        (
            "lop3.b32 %r1, %r0, 0x0ff0f00f, 0x33333333, 0xe8;",
            lambda x: x & 0x0FF0F00F | x & 0x33333333 | np.uint32(0x0FF0F00F & 0x33333333),
        ),
        ("shf.l.wrap.b32 %r1, %r0, %r0, 5;", lambda x: x << 5 | x >> 27),
        ("popc.b32 %r1, %r0;", lambda x: np.array([bin(v).count("1") for v in x], np.uint32)),
        ("clz.b32 %r1, %r0;", lambda x: np.array([32 - int(v).bit_length() for v in x], np.uint32)),
        ("max.s32 %r1, %r0, 12;", lambda x: np.maximum(x.view(np.int32), 12).view(np.uint32)),
        ("setp.lt.s32 %p1, %r0, 0; selp.b32 %r1, 1, 2, %p1;", lambda x: np.where(x.view(np.int32) < 0, 1, 2).astype(np.uint32)),
        ("rem.u32 %r1, %r0, 1000;", lambda x: x % 1000),
        ("cvt.rn.f32.s32 %r1, %r0;", lambda x: x.view(np.int32).astype(np.float32).view(np.uint32)),
    ],
    ids=lambda v: v.split(" ")[0] if isinstance(v, str) else "",
)
def test_integers(body: str, expected: object) -> None:
    x = RANDOM.integers(0, 1 << 32, 256, np.uint32)
    assert callable(expected)
    np.testing.assert_array_equal(unary(body, x), expected(x))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("fma.rn.f32 %r1, %r0, %r0, 0f3F800000;", lambda x: (x.double() * x.double() + 1).float()),
        ("div.full.f32 %r1, 0f3F800000, %r0;", lambda x: 1 / x),
        ("ex2.approx.ftz.f32 %r1, %r0;", torch.exp2),
        ("rcp.approx.f32 %r1, %r0;", torch.reciprocal),
        ("max.f32 %r1, %r0, 0f00000000;", lambda x: x.clamp(min=0)),
        ("add.sat.f32 %r1, %r0, 0f00000000;", lambda x: x.clamp(0, 1)),
        ("cvt.rni.f32.f32 %r1, %r0;", torch.round),
        ("cvt.rzi.s32.f32 %r1, %r0; cvt.rn.f32.s32 %r1, %r1;", torch.trunc),
        ("cvt.rn.bf16.f32 %h0, %r0; mov.b32 %r1, {0, %h0};", lambda x: x.bfloat16().float()),
        ("cvt.rn.f16.f32 %h0, %r0; cvt.f32.f16 %r1, %h0;", lambda x: x.half().float()),
        ("cvt.rn.satfinite.e4m3x2.f32 %h0, %r0, %r0; cvt.rn.f16x2.e4m3x2 %r1, %h0; mov.b32 {%h1, %h2}, %r1; cvt.f32.f16 %r1, %h2;",
         lambda x: x.clamp(-448, 448).to(torch.float8_e4m3fn).float()),
    ],
    ids=lambda v: v.split(" ")[0] if isinstance(v, str) else "",
)  # fmt: skip
def test_floats(body: str, expected: object) -> None:
    x = (RANDOM.standard_normal(512) * np.exp2(RANDOM.uniform(-12, 9, 512))).astype(np.float32)
    assert callable(expected)
    found = torch.from_numpy(unary(body, x.view(np.uint32)).view(np.float32))
    torch.testing.assert_close(found, expected(torch.from_numpy(x)), rtol=2e-7, atol=0)


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_all_codes_of_8_bits_widen_exactly(kind: str) -> None:
    codes = np.arange(256, dtype=np.uint32)
    body = f"cvt.u16.u32 %h0, %r0; cvt.rn.f16x2.{kind}x2 %r2, %h0; mov.b32 {{%h1, %h2}}, %r2; cvt.f32.f16 %r1, %h1;"
    found = unary(body, codes).view(np.float32)
    dtype = torch.float8_e4m3fn if kind == "e4m3" else torch.float8_e5m2
    np.testing.assert_array_equal(found, torch.arange(256).to(torch.uint8).view(dtype).float().numpy())


def test_lanes_go_their_own_ways_and_meet_again() -> None:
    """Each lane counts its steps to 1 by the rule of Collatz, then all vote."""
    x = np.arange(1, 33, dtype=np.uint32)
    body = """mov.u32 %r1, 0;
    LOOP: setp.eq.u32 %p1, %r0, 1; @%p1 bra DONE; and.b32 %r2, %r0, 1; setp.eq.u32 %p2, %r2, 0; add.u32 %r1, %r1, 1; @%p2 bra EVEN;
    mad.lo.u32 %r0, %r0, 3, 1; bra LOOP;
    EVEN: shr.u32 %r0, %r0, 1; bra LOOP;
    DONE: vote.sync.ballot.b32 %r3, 1, 0xffffffff; add.u32 %r3, %r3, 1; add.u32 %r1, %r1, %r3;"""

    def steps(n: int) -> int:
        return 0 if n == 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    np.testing.assert_array_equal(unary(body, x), [steps(int(n)) for n in x])


@pytest.mark.parametrize(
    ("shuffle", "lane_of"),
    [
        ("idx.b32 %r1, %r0, 5, 31", lambda n: 5),
        ("bfly.b32 %r1, %r0, 3, 31", lambda n: n ^ 3),
        ("up.b32 %r1, %r0, 2, 0", lambda n: n - 2 if n >= 2 else n),
        ("down.b32 %r1, %r0, 2, 31", lambda n: n + 2 if n + 2 < 32 else n),
        ("idx.b32 %r1, %r0, 1, 0x181f", lambda n: n // 8 * 8 + 1),
    ],
)
def test_shuffles(shuffle: str, lane_of: object) -> None:
    x = RANDOM.integers(0, 1 << 32, 32, np.uint32)
    assert callable(lane_of)
    np.testing.assert_array_equal(unary(f"shfl.sync.{shuffle}, 0xffffffff;", x), x[[lane_of(n) for n in range(32)]])


def test_elect_reduce_and_match_agree_on_a_warp() -> None:
    x = RANDOM.integers(0, 4, 32).astype(np.uint32)
    body = """elect.sync %r2|%p1, 0xffffffff; selp.b32 %r3, 1000, 0, %p1; redux.sync.add.s32 %r4, %r0, 0xffffffff;
    match.any.sync.b32 %r5, %r0, 0xffffffff; popc.b32 %r5, %r5; add.u32 %r1, %r3, %r4; mad.lo.u32 %r1, %r5, 10000, %r1;"""
    expected = x.sum() + 10000 * np.array([(x == v).sum() for v in x]) + 1000 * (np.arange(32) == 0)
    np.testing.assert_array_equal(unary(body, x), expected)


def test_atomics_of_many_blocks_add_up() -> None:
    total, largest = np.zeros(1, np.uint32), np.zeros(1, np.int32)
    body = """mov.u32 %r0, %ctaid.x; mad.lo.u32 %r1, %r0, 64, t; red.global.add.u32 [p0], %r1; atom.global.max.s32 %r2, [p1], %r1;"""
    run(body, [("u64", total), ("u64", largest)], grid=5, block=64)
    assert (total[0], largest[0]) == (sum(range(320)), 319)


def test_copies_to_shared_memory_fill_with_zeros() -> None:
    x, out = RANDOM.integers(0, 1 << 32, 128, np.uint32), np.ones(128, np.uint32)
    x.flags.writeable = False
    body = """mul.wide.u32 %rd0, t, 16; add.u64 %rd1, p0, %rd0; mov.u32 %r0, s; mad.lo.u32 %r0, t, 16, %r0;
    setp.lt.u32 %p1, t, 20; selp.b32 %r1, 16, 0, %p1;
    cp.async.cg.shared.global [%r0], [%rd1], 16, %r1; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
    xor.b32 %r2, t, 31; mov.u32 %r3, s; mad.lo.u32 %r3, %r2, 16, %r3; ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3];
    add.u64 %rd2, p1, %rd0; st.global.v4.b32 [%rd2], {%r4, %r5, %r6, %r7};"""
    run(body, [("u64", x), ("u64", Uninitialized(out))], shared=512)
    expected = x.reshape(32, 4) * (np.arange(32) < 20)[:, None]
    np.testing.assert_array_equal(out.reshape(32, 4), expected[::-1])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_of_a_warp_from_matrices_in_shared_memory(transposed: bool) -> None:
    """mma.sync of bf16 with A by ldmatrix, and B by ldmatrix of its transpose or itself."""
    a, b = to_bf16(normal(16, 16, seed=1)), to_bf16(normal(8, 16, seed=2))
    stored = np.ascontiguousarray(b.T) if transposed else b
    both = np.concatenate([a.ravel(), stored.ravel()])
    out = np.zeros((16, 8), np.float32)
    b_row = "and.b32 %r10, t, 15; mad.lo.u32 %r11, %r10, 16, %r0;" if transposed else (
        "and.b32 %r10, t, 7; shr.u32 %r12, t, 3; and.b32 %r12, %r12, 1; mad.lo.u32 %r11, %r10, 32, %r0; mad.lo.u32 %r11, %r12, 16, %r11;"
    )  # fmt: skip
    body = f"""mov.u32 %r0, s; mul.wide.u32 %rd0, t, 8; add.u64 %rd1, p0, %rd0; mad.lo.u32 %r1, t, 8, %r0;
    ld.global.b64 %rd2, [%rd1]; st.shared.b64 [%r1], %rd2; ld.global.b64 %rd2, [%rd1+256]; st.shared.b64 [%r1+256], %rd2;
    ld.global.b64 %rd2, [%rd1+512]; st.shared.b64 [%r1+512], %rd2; bar.sync 0;
    and.b32 %r2, t, 15; shr.u32 %r3, t, 4; mad.lo.u32 %r4, %r2, 32, %r0; mad.lo.u32 %r4, %r3, 16, %r4;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r4];
    {b_row} ldmatrix.sync.aligned.m8n8.x2{".trans" if transposed else ""}.shared.b16 {{%r13, %r14}}, [%r11+512];
    mov.f32 %f0, 0f00000000;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%f1, %f2, %f3, %f4}}, {{%r5, %r6, %r7, %r8}}, {{%r13, %r14}},
      {{%f0, %f0, %f0, %f0}};
    shr.u32 %r20, t, 2; and.b32 %r21, t, 3; mad.lo.u32 %r22, %r20, 8, 0; mad.lo.u32 %r22, %r21, 2, %r22; mad.wide.u32 %rd5, %r22, 4, p1;
    st.global.v2.f32 [%rd5], {{%f1, %f2}}; st.global.v2.f32 [%rd5+256], {{%f3, %f4}};"""
    run(body, [("u64", both), ("u64", out)], shared=1024)
    assert difference(out, from_bf16(a) @ from_bf16(b).T) < 1e-6


def test_a_product_of_a_warp_of_e4m3() -> None:
    a, b = to_fp8(normal(16, 32, seed=3)), to_fp8(normal(8, 32, seed=4))
    out = np.zeros((16, 8), np.float32)
    body = """shr.u32 %r0, t, 2; and.b32 %r1, t, 3; mul.wide.u32 %rd0, %r0, 32; mul.wide.u32 %rd1, %r1, 4;
    add.u64 %rd2, p0, %rd0; add.u64 %rd2, %rd2, %rd1;
    ld.global.b32 %r5, [%rd2]; ld.global.b32 %r6, [%rd2+256]; ld.global.b32 %r7, [%rd2+16]; ld.global.b32 %r8, [%rd2+272];
    add.u64 %rd3, p1, %rd0; add.u64 %rd3, %rd3, %rd1; ld.global.b32 %r9, [%rd3]; ld.global.b32 %r10, [%rd3+16]; mov.f32 %f0, 0f00000000;
    mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%f1, %f2, %f3, %f4}, {%r5, %r6, %r7, %r8}, {%r9, %r10}, {%f0, %f0, %f0, %f0};
    mad.lo.u32 %r22, %r0, 8, 0; mad.lo.u32 %r22, %r1, 2, %r22; mad.wide.u32 %rd5, %r22, 4, p2;
    st.global.v2.f32 [%rd5], {%f1, %f2}; st.global.v2.f32 [%rd5+256], {%f3, %f4};"""
    run(body, [("u64", a), ("u64", b), ("u64", out)])
    assert difference(out, from_fp8(a) @ from_fp8(b).T) < 1e-6


COPY = """mov.u32 %r0, s; mov.u32 %r1, s; add.u32 %r1, %r1, {bytes};
    setp.eq.u32 %p1, t, 0; @%p1 mbarrier.init.shared::cta.b64 [%r1], 1; @%p1 fence.mbarrier_init.release.cluster; bar.sync 0;
    @!%p1 bra WAIT; mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], {bytes};
    cp.async.bulk.tensor.{dims}d.shared::cta.global.tile{mode}.mbarrier::complete_tx::bytes [%r0], [p0, {{{at}}}], [%r1];
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], 0; @!%p2 bra WAIT;
    mov.u32 %r2, t;
    OUT: mad.wide.u32 %rd0, %r2, 4, p1; mad.lo.u32 %r3, %r2, 4, %r0; ld.shared.b32 %r4, [%r3]; st.global.b32 [%rd0], %r4;
    add.u32 %r2, %r2, 32; setp.lt.u32 %p3, %r2, {words}; @%p3 bra OUT;"""


def copied(tensor: TensorMap, at: tuple[int, ...], mode: str = "", rows: int = 1) -> Array:
    """What TMA writes to shared memory, in order; `at` innermost first."""
    size = int(np.prod(tensor.box)) * tensor.array.itemsize * rows
    out = np.zeros(size // 4, np.uint32)
    body = COPY.format(bytes=size, dims=tensor.array.ndim, at=", ".join(map(str, at)), words=size // 4, mode=mode)
    run(body, [("map", tensor), ("u64", out)], shared=size + 8)
    return out.view(tensor.array.dtype)


def unswizzled(x: Array, swizzle: int) -> Array:
    """Bytes as they lie to bytes in order, where the first is at a multiple of 1,024."""
    offset = np.arange(0, x.nbytes, 16)
    mask = {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]
    found: Array = x.view(np.uint8).reshape(-1, 16)[(offset ^ ((offset >> 7 & mask) << 4)) // 16].view(x.dtype).ravel()
    return found


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_tiles_are_swizzled(swizzle: int) -> None:
    x = RANDOM.integers(0, 1 << 16, (40, 128)).astype(np.uint16)
    width = (swizzle or 256) // 2
    found = copied(TensorMap(x, (16, width), swizzle), (width // 2, 3))  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        unswizzled(found, swizzle).reshape(16, width),
        x[3:19, width // 2 : width // 2 + width] if swizzle else np.pad(x, ((0, 0), (0, 64)))[3:19, 64:192],
    )


@pytest.mark.parametrize("dims", [1, 2, 3, 4, 5])
def test_tiles_of_many_dimensions_are_filled_beyond_the_end(dims: int) -> None:
    shape, box = (5, 4, 3, 6, 64)[-dims:], (2, 3, 2, 4, 64)[-dims:]
    x = RANDOM.integers(1, 1 << 16, shape).astype(np.uint16)
    at = (3, 2, -1, 4, 24)[-dims:]
    padded = np.pad(x, [(8, 8)] * (dims - 1) + [(8, 64)])
    expected = padded[tuple(slice(8 + a, 8 + a + b) for a, b in zip(at, box, strict=True))]
    np.testing.assert_array_equal(copied(TensorMap(x, box, 0), at[::-1]).reshape(box), expected)


def test_rows_that_a_tile_gathers() -> None:
    x = RANDOM.integers(0, 1 << 16, (40, 64)).astype(np.uint16)
    found = copied(TensorMap(x, (1, 64)), (0, 7, 39, 0, 12), "::gather4", rows=4)
    np.testing.assert_array_equal(unswizzled(found, 128).reshape(4, 64), x[[7, 39, 0, 12]])


def test_a_cluster_shares_a_tile_and_its_memory() -> None:
    """Block 0 loads for both; then each stores to the other's shared memory, and reads what it got."""
    x, out = RANDOM.integers(0, 1 << 32, 64, np.uint32), np.zeros(128, np.uint32)
    body = """mov.u32 %r0, s; add.u32 %r1, %r0, 256; mov.u32 %r9, %cluster_ctarank; setp.eq.u32 %p1, t, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r1], 1; @%p1 fence.mbarrier_init.release.cluster;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 256;
    setp.eq.u32 %p3, %r9, 0; and.pred %p3, %p3, %p1; mov.u16 %h0, 3;
    @%p3 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [p0], 256, [%r1], %h0;
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], 0; @!%p2 bra WAIT;
    mad.lo.u32 %r3, t, 8, %r0; ld.shared.v2.b32 {%r4, %r5}, [%r3]; add.u32 %r4, %r4, %r5; xor.b32 %r10, %r9, 1;
    mad.lo.u32 %r11, t, 4, %r0; mapa.shared::cluster.u32 %r12, %r11, %r10; st.shared::cluster.b32 [%r12+512], %r4;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    ld.shared.b32 %r6, [%r11+512]; mad.lo.u32 %r7, %r9, 32, t; mad.wide.u32 %rd0, %r7, 4, p1; st.global.b32 [%rd0], %r6;"""
    run(body, [("u64", x), ("u64", out)], shared=1024, grid=2, cluster=2)
    expected = x[0::2] + x[1::2]
    np.testing.assert_array_equal(out[:64].reshape(2, 32), [expected, expected])


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("across", [False, True], ids=["rows of K", "columns contiguous"])
def test_products_read_every_canonical_layout(swizzle: int, across: bool) -> None:
    """wgmma of a[64, 16] b[64, 16]^T; b K-major, or MN-major."""
    a, b = to_bf16(normal(64, 16, seed=5)), to_bf16(normal(64, 16, seed=6))
    out = np.zeros((128, 32), np.float32)
    span = swizzle or 16
    code = {0: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    # Blocks of 8 elements of K, of 64 rows each: the layout without a swizzle.
    a_map = TensorMap(a.reshape(64, 2, 8).transpose(1, 0, 2), (2, 64, 8), 0)
    if across:  # as blocks of so many columns as the span has, of 16 rows of K each
        stored = np.ascontiguousarray(b.T).reshape(16, 128 // span, span // 2).transpose(1, 0, 2)
        b_map = TensorMap(stored, (128 // span, 16, span // 2), swizzle)  # type: ignore[arg-type]
        b_copy = "cp.async.bulk.tensor.3d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r2], [p1, {0, 0, 0}], [%r1];"
        leading, stride = (span * 16, span * 8) if swizzle else (128, span * 16)
    elif swizzle:
        wide = np.zeros((64, span // 2), np.uint16)
        wide[:, :16] = b
        b_map = TensorMap(wide, (64, span // 2), swizzle)  # type: ignore[arg-type]
        b_copy = "cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r2], [p1, {0, 0}], [%r1];"
        leading, stride = 16, span * 8
    else:
        b_map = TensorMap(b.reshape(64, 2, 8).transpose(1, 0, 2), (2, 64, 8), 0)
        b_copy = "cp.async.bulk.tensor.3d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r2], [p1, {0, 0, 0}], [%r1];"
        leading, stride = 1024, 128
    size = int(np.prod(b_map.box)) * 2
    high = code << 62 | (stride >> 4) << 32 | (leading >> 4) << 16
    sums = ", ".join(f"%f{i}" for i in range(32))
    body = f"""mov.u32 %r0, s; add.u32 %r1, %r0, 16384; add.u32 %r2, %r0, 4096; setp.eq.u32 %p1, t, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r1], 1; @%p1 fence.mbarrier_init.release.cluster; bar.sync 0; @!%p1 bra WAIT;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], {2048 + size};
    cp.async.bulk.tensor.3d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r0], [p0, {{0, 0, 0}}], [%r1]; {b_copy}
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], 0; @!%p2 bra WAIT;
    shr.u32 %r3, %r0, 4; cvt.u64.u32 %rd0, %r3; or.b64 %rd0, %rd0, {64 << 16 | 8 << 32};
    shr.u32 %r4, %r2, 4; cvt.u64.u32 %rd1, %r4; or.b64 %rd1, %rd1, {high};
    wgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{sums}}}, %rd0, %rd1, 0, 1, 1, 0, {int(across)};
    wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; mad.wide.u32 %rd2, t, 128, p2;
    {" ".join(f"st.global.f32 [%rd2+{4 * i}], %f{i};" for i in range(32))}"""
    run(body, [("map", a_map), ("map", b_map), ("u64", out)], shared=16392, block=128)
    thread, register = np.mgrid[:128, :32]
    rows = thread // 32 * 16 + thread % 32 // 4 + register // 2 % 2 * 8
    columns = register // 4 * 8 + thread % 4 * 2 + register % 2
    found = np.zeros((64, 64))
    found[rows, columns] = out
    assert difference(found, from_bf16(a) @ from_bf16(b).T) < 1e-6


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_what_nvcc_emits_computes_what_it_should(name: str) -> None:
    kernel = KERNELS[name]
    error, report = kernel.run(text(kernel.name))
    assert error < kernel.most
    assert report.products > 0
    assert report.copies > 0


def test_blocks_write_their_own_rows() -> None:
    from tests.gpu.kernels_of_test import attention_sm90, attention_sm100

    assert attention_sm90(text("attention_sm90"), tiles=2, blocks=3)[0] < 3e-3
    assert attention_sm100(text("attention_sm100"), tiles=1, blocks=2)[0] < 5e-3
