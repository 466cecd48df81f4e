"""Each sort of fault is found, at its line, and not where it is mended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tests.gpu.handwritten import each_thread, kernel, line_of, run
from tests.gpu.kernels_of_test import KERNELS, text
from tests.gpu.mutations import mutants

from tskernels.emulator import Argument, EmulatorFault, TensorMap, Uninitialized, launch

SHARED = "mov.u32 %r0, s; mad.lo.u32 %r1, t, 4, %r0; xor.b32 %r2, t, 1; mad.lo.u32 %r2, %r2, 4, %r0;"
BARRIER = """mov.u32 %r0, s; add.u32 %r8, %r0, 512; setp.eq.u32 %p1, t, 0;
@%p1 mbarrier.init.shared::cta.b64 [%r8], {count}; @%p1 fence.mbarrier_init.release.cluster; bar.sync 0;"""

ALLOCATE = "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 "


def faults(
    body: str,
    kind: str,
    at: str = "",
    *,
    shared: int = 1024,
    block: int = 64,
    grid: int = 1,
    arguments: Sequence[tuple[str, Argument]] = (),
) -> None:
    with pytest.raises(EmulatorFault) as caught:
        run(body, arguments, shared=shared, block=block, grid=grid)
    assert caught.value.kind == kind, str(caught.value)
    if at:
        source = kernel(body, [k for k, _ in arguments], shared)
        assert caught.value.line == line_of(source, at), str(caught.value)


@pytest.mark.parametrize("barrier", ["bar.sync 0;", "bar.warp.sync 0xffffffff;", ""])
def test_threads_that_exchange_through_shared_memory_must_meet(barrier: str) -> None:
    """Neighbours are in one warp: its own barrier is enough."""
    out = np.zeros(64, np.uint32)
    body = f"{SHARED} st.shared.b32 [%r1], t;\n{barrier}\nld.shared.b32 %r3, [%r2]; {each_thread('p0', '%r3')}"
    if barrier:
        run(body, [("u64", out)], shared=1024, block=64)
        np.testing.assert_array_equal(out, np.arange(64) ^ 1)
    else:
        faults(body, "race", "^ld.shared", arguments=[("u64", out)])


def test_a_shuffle_orders_no_memory() -> None:
    faults(
        f"{SHARED} st.shared.b32 [%r1], t;\nshfl.sync.idx.b32 %r9, t, 0, 31, 0xffffffff;\nld.shared.b32 %r3, [%r2];", "race", "^ld.shared"
    )


def test_what_is_read_must_be_read_before_it_is_written_again() -> None:
    body = f"{SHARED} st.shared.b32 [%r1], t; bar.sync 0; ld.shared.b32 %r3, [%r2];\nst.shared.b32 [%r1], %r3;"
    faults(body, "race", "^st.shared")


@pytest.mark.parametrize("released", ["release.gpu", "relaxed.gpu"])
def test_a_flag_between_blocks_needs_release_and_acquire(released: str) -> None:
    data, flag, out = np.zeros(1, np.uint32), np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    body = f"""mov.u32 %r0, %ctaid.x; setp.eq.u32 %p1, %r0, 1; @%p1 bra TAKE;
    st.global.b32 [p0], 77; st.{released}.global.b32 [p1], 1; ret;
    TAKE: ld.acquire.gpu.global.b32 %r1, [p1]; setp.eq.u32 %p2, %r1, 0; @%p2 bra TAKE;
    ld.global.b32 %r2, [p0]; st.global.b32 [p2], %r2;"""
    arguments: list[tuple[str, Argument]] = [("u64", data), ("u64", flag), ("u64", Uninitialized(out))]
    if released == "release.gpu":
        run(body, arguments, grid=2, block=1)
        assert out[0] == 77
    else:
        faults(body, "race", "ld.global", grid=2, block=1, arguments=arguments)


@pytest.mark.parametrize("fenced", [True, False])
def test_a_counter_after_a_memory_fence_hands_on_what_a_block_wrote(fenced: bool) -> None:
    """The last block to count reads what all wrote: the pattern of splits that are joined."""
    parts, counter, out = np.zeros(4 * 32, np.uint32), np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    fence = "fence.acq_rel.gpu;" if fenced else ""
    body = f"""mov.u32 %r0, %ctaid.x; mad.lo.u32 %r1, %r0, 32, t; mad.wide.u32 %rd0, %r1, 4, p0; st.global.b32 [%rd0], %r1; bar.sync 0;
    setp.ne.u32 %p1, t, 0; @%p1 bra END; {fence} atom.global.add.u32 %r2, [p1], 1; {fence} setp.ne.u32 %p2, %r2, 3; @%p2 bra END;
    mov.u32 %r3, 0; mov.u32 %r4, 0;
    SUM: mad.wide.u32 %rd1, %r3, 4, p0; ld.global.b32 %r5, [%rd1]; add.u32 %r4, %r4, %r5; add.u32 %r3, %r3, 1;
    setp.lt.u32 %p3, %r3, 128; @%p3 bra SUM; st.global.b32 [p2], %r4;
    END:"""
    arguments: list[tuple[str, Argument]] = [("u64", Uninitialized(parts)), ("u64", counter), ("u64", Uninitialized(out))]
    if fenced:
        run(body, arguments, grid=4)
        assert out[0] == sum(range(128))
    else:
        faults(body, "race", "^    SUM", grid=4, block=32, arguments=arguments)


@pytest.mark.parametrize("newest", [0, 1])
def test_a_copy_must_be_waited_for_by_its_group(newest: int) -> None:
    x = np.arange(256, dtype=np.uint32)
    body = f"""mov.u32 %r0, s; mad.lo.u32 %r1, t, 16, %r0; mul.wide.u32 %rd0, t, 16; add.u64 %rd0, p0, %rd0;
    cp.async.cg.shared.global [%r1], [%rd0], 16; cp.async.commit_group; cp.async.commit_group; cp.async.wait_group {newest};
    ld.shared.b32 %r3, [%r1];"""
    run(body, [("u64", x)], shared=1024, block=64)  # the empty group is the newest
    body = body.replace("commit_group; cp.async.commit_group", "commit_group", 1)
    if newest:
        faults(body, "race", "ld.shared", arguments=[("u64", x)])
    else:
        run(body, [("u64", x)], shared=1024, block=64)


@pytest.mark.parametrize("fence", ["fence.proxy.async.shared::cta;", "fence.acq_rel.cta;", ""])
def test_what_threads_write_needs_a_proxy_fence_before_it_is_copied(fence: str) -> None:
    out = np.zeros((8, 64), np.uint16)
    body = f"""mov.u32 %r0, s; mad.lo.u32 %r1, t, 16, %r0; st.shared.v4.b32 [%r1], {{t, t, t, t}}; {fence} bar.sync 0;
    setp.ne.u32 %p1, t, 0; @%p1 bra END;\ncp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [p0, {{0, 0}}], [%r0];
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:"""
    arguments: list[tuple[str, Argument]] = [("map", TensorMap(out, (8, 64), 0))]
    if "proxy" in fence:
        run(body, arguments, shared=1024, block=64)
        np.testing.assert_array_equal(out.view(np.uint32).reshape(64, 4)[:, 0], np.arange(64))
    else:
        faults(body, "proxy", "^cp.async", arguments=arguments)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("mov.u32 %r0, s; ld.shared.b32 %r1, [%r0];", "uninitialized"),
        ("mov.u32 %r0, s; mad.lo.u32 %r0, t, 32, %r0; st.shared.b32 [%r0], t;", "out of bounds"),
        ("mov.u32 %r0, s; mad.lo.u32 %r0, t, 4, %r0; st.shared.v2.b32 [%r0], {t, t};", "misaligned"),
        ("setp.lt.u32 %p1, t, 32; @%p1 bar.sync 0; bar.sync 1;", "deadlock"),
        ("setp.lt.u32 %p1, t, 5; @%p1 bar.warp.sync 0xffffffff; bar.sync 0;", "deadlock"),
        ("setp.lt.u32 %p1, t, 32; @%p1 bar.sync 1, 64; @!%p1 bar.sync 1, 32;", "barrier"),
        ("L: bra L;", "deadlock"),
        ("trap;", "trap"),
        ("fancy.instruction.b32 %r1, %r2;", "unsupported"),
        ("mov.u32 %r0, s; mbarrier.arrive.shared::cta.b64 _, [%r0];", "mbarrier"),
        (BARRIER.format(count=1) + "mbarrier.arrive.shared::cta.b64 _, [%r8], 2;", "mbarrier"),
        (BARRIER.format(count=1) + "st.shared.b32 [%r8], t;", "mbarrier"),
        (BARRIER.format(count=1) + "W: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r8], 0; @!%p2 bra W;", "deadlock"),
        (BARRIER.format(count=1) + "W: mbarrier.test_wait.parity.shared::cta.b64 %p2, [%r8], 0; @!%p2 bra W;", "deadlock"),
        (BARRIER.format(count=1).replace("bar.sync 0;", "W: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r8], 1;"), "race"),
        (BARRIER.format(count=9) + "mov.u32 %r9, 16; mbarrier.expect_tx.shared::cta.b64 [%r8], %r9;", "exit"),
        (ALLOCATE + "[s], 48;", "tensor memory"),
        (ALLOCATE + "[s], 512;" + ALLOCATE + "[s+4], 32;", "tensor memory"),
        (ALLOCATE + "[s], 32; tcgen05.dealloc.cta_group::2.sync.aligned.b32 0, 32;", "tensor memory"),
        (ALLOCATE + "[s], 32; tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r1}, [0];", "uninitialized"),
        ("tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r1}, [64];", "tensor memory"),
        ("barrier.cluster.wait.aligned;", "barrier"),
    ],
)  # fmt: skip
def test_other_faults(body: str, kind: str) -> None:
    one_warp = "tcgen05" in body
    with pytest.raises(EmulatorFault) as caught:
        launch(kernel(body, [], 1024), "k", 1, 32 if one_warp else 64, [], max_instructions=500_000)
    assert caught.value.kind == kind, str(caught.value)


PAIR = """mov.u32 %r0, s; mov.u32 %r9, %cluster_ctarank; setp.eq.u32 %p1, t, 0; setp.eq.u32 %p2, %r9, 0; and.pred %p3, %p1, %p2;
    @%p1 mbarrier.init.shared::cta.b64 [%r0+8], 1; @%p1 fence.mbarrier_init.release.cluster;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%r0], 32;
    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
    shr.u32 %r1, %r0, 4; add.u32 %r1, %r1, 64; cvt.u64.u32 %rd0, %r1; or.b64 %rd0, %rd0, 4611756662049538048; mov.b32 %r2, 134743184;
    setp.ne.u32 %p4, t, t; @!%p3 bra REST;
    tcgen05.mma.cta_group::2.kind::f16 [0], %rd0, %rd0, %r2, %p4;
    mov.b16 %h0, 3; tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%r0+8], %h0;
    REST: W: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r0+8], 0; @!%p5 bra W;
    END: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    tcgen05.dealloc.cta_group::2.sync.aligned.b32 0, 32;"""
"""Blocks of a pair allocate tensor memory, the leader multiplies, and both wait for it."""


@pytest.mark.parametrize(
    ("was", "wrong", "kind"),
    [
        ("", "", ""),
        ("    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;\n", "", "race"),
        ("REST: W:", "REST: @!%p2 bra END; W:", "exit"),
        ("%h0, 3;", "%h0, 1;", "deadlock"),
        ("%h0, 3;", "%h0, 2;", "deadlock"),
        ("commit.cta_group::2", "commit.cta_group::1", "tensor memory"),
    ],
)
def test_a_pair_of_blocks_waits_for_each_other(was: str, wrong: str, kind: str) -> None:
    """For the other's tensor memory before products, and in both blocks for the leader's products."""
    body = PAIR.replace(was, wrong, 1)
    if not kind:
        assert run(body, [], shared=10240, grid=2, cluster=2).products == 1
        return
    with pytest.raises(EmulatorFault) as caught:
        run(body, [], shared=10240, grid=2, cluster=2)
    assert caught.value.kind == kind, str(caught.value)


def test_a_tile_signals_its_own_block_or_its_pair() -> None:
    """With cta_group::2, and no other."""
    x = np.zeros((8, 64), np.uint16)
    body = """mov.u32 %r0, s; mov.u32 %r9, %cluster_ctarank; setp.eq.u32 %p1, t, 0; mapa.shared::cluster.u32 %r1, %r0, {to};
    @%p1 mbarrier.init.shared::cta.b64 [%r0+1024], 1; @%p1 fence.mbarrier_init.release.cluster;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; setp.eq.u32 %p2, %r9, 1; and.pred %p2, %p2, %p1;
    @%p2 cp.async.bulk.tensor.2d{group}.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r0], [p0, {{0, 0}}], [%r1+1024];
    setp.eq.u32 %p3, %r9, {to}; and.pred %p4, %p3, %p1;
    @%p4 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r0+1024], 1024;
    @!%p3 bra END; W: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r0+1024], 0; @!%p5 bra W;
    END: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"""
    arguments: list[tuple[str, Argument]] = [("map", TensorMap(x, (8, 64)))]
    for to, group, is_right in ((1, "", True), (0, ".cta_group::2", True), (0, "", False), (2, ".cta_group::2", False)):
        if is_right:
            run(body.format(to=to, group=group), arguments, shared=2048, grid=4, cluster=4)
            continue
        with pytest.raises(EmulatorFault) as caught:
            run(body.format(to=to, group=group), arguments, shared=2048, grid=4, cluster=4)
        assert caught.value.kind == "mbarrier", str(caught.value)


def test_arrays_have_bounds_and_may_be_for_reading_alone() -> None:
    x = np.zeros(63, np.uint32)
    faults(each_thread("p0", "t"), "out of bounds", "st.global", arguments=[("u64", x)])
    y = np.zeros(64, np.uint32)
    y.flags.writeable = False
    faults(each_thread("p0", "t"), "out of bounds", "st.global", arguments=[("u64", y)])
    faults("ld.global.b32 %r0, [p0];", "uninitialized", "ld.global", arguments=[("u64", Uninitialized(np.zeros(4, np.uint32)))])


@pytest.mark.parametrize(
    ("before", "after", "kind", "at"),
    [
        ("ld.global.b32 %r0, [%rd0];", "ld.global.b32 %r1, [%rd1]; st.global.b32 [%rd2], %r1;", "", ""),
        ("ld.global.b32 %r1, [%rd1];", "", "race", "^ld.global"),
        ("st.global.b32 [%rd1], t;", "", "race", "^st.global"),  # which the launch before may still read
        ("st.global.b32 [%rd2], t;", "", "race", "^st.global"),
        ("setp.ne.u32 %p0, t, 3;\n@%p0", "ret;", "exit", "^ret"),  # one thread goes by
    ],
)
def test_a_dependent_launch_touches_nothing_of_the_launch_before_until_it_has_waited(before: str, after: str, kind: str, at: str) -> None:
    """p0 no launch writes; p1 and p2 the launch before may still use, or a part of them."""
    x, y, out = (np.arange(64, dtype=np.uint32) for _ in range(3))
    x.flags.writeable = False
    arguments: list[tuple[str, Argument]] = [("u64", x), ("u64", y), ("u64", Uninitialized(out))]
    places = "".join(f"mad.wide.u32 %rd{i}, t, 4, p{i};" for i in range(3))
    body = f"{places}\n{before} griddepcontrol.wait;\n{after}"
    if not kind:
        run(body, arguments, unfinished=[y, out])
        return
    source = kernel(body, [k for k, _ in arguments])
    with pytest.raises(EmulatorFault) as caught:
        run(body, arguments, unfinished=[y, out])
    assert (caught.value.kind, caught.value.line) == (kind, line_of(source, at)), str(caught.value)
    if at == "^ld.global":
        run(body, arguments, unfinished=[y[32:], out])


def test_a_fault_says_what_where_and_how_to_mend_it() -> None:
    what = r"race: reads shared memory 0x4.. while the write of line \d+ may be under way; wait for it"
    with pytest.raises(EmulatorFault, match=rf"line \d+ \(`ld.shared.b32 %r3, \[%r2\];`\): {what}"):
        run(f"{SHARED}\nst.shared.b32 [%r1], t;\nld.shared.b32 %r3, [%r2];", [], shared=1024, block=64)


def test_tensor_maps_are_refused_that_the_device_would_refuse() -> None:
    x = np.zeros((8, 128), np.uint16)
    for box, swizzle in (((8, 128), 128), ((8,), 0), ((300, 8), 0), ((8, 4), 0)):
        with pytest.raises(ValueError, match="box"):
            TensorMap(x, box, swizzle)  # type: ignore[arg-type]


FEW = (
    *("wait dropped", "wait for the other parity", "too few bytes expected"),
    *("proxy fence dropped", "tcgen05.fence dropped", "wgmma wait dropped"),
)


@pytest.mark.parametrize("name", ["attention_sm90", "attention_sm100"])
def test_a_few_planted_faults_are_found(name: str) -> None:
    """The whole matrix is a slow test."""
    done = []
    for mutant in mutants(text(name)):
        if mutant.operator not in FEW or mutant.operator in done:
            continue
        done.append(mutant.operator)
        with pytest.raises(EmulatorFault):
            KERNELS[name].run(mutant.text)
    assert len(done) >= 4
