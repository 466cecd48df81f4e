"""torch.ops.ts: the references under torch.library, also on tensors without data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import symbolic_trace
from torch.fx.passes.shape_prop import ShapeProp

from tskernels import library
from tskernels.communicator import MeshCommunicator, use
from tskernels.normalization import rms_norm
from tskernels.registry import isolated, op, ops
from tskernels.simulated import run_ranks

ts = torch.ops.ts
I32 = torch.int32


def test_every_op_is_defined() -> None:
    assert {f"ts::{name.removeprefix('ts::')}" for name in ops() if hasattr(ts, name.removeprefix("ts::"))} == set(ops())


def test_op_runs_the_reference() -> None:
    x, w = torch.randn(3, 8), torch.randn(8)
    assert torch.equal(ts.rms_norm(x, w, 1e-6, 0.0), rms_norm(x, w, 1e-6, 0.0))
    assert torch.equal(ts.rms_norm(x, w, eps=1e-6, offset=1.0), rms_norm(x, w, 1e-6, 1.0))


def test_schemas_follow_the_annotations() -> None:
    def text(name: str) -> str:
        return str(getattr(ts, name).default._schema)

    assert text("cache_append") == "ts::cache_append(Tensor(a!) cache, Tensor k, Tensor v, Tensor slots) -> Tensor(a!)"
    assert text("linear") == "ts::linear(Tensor x, Tensor w, Tensor? bias=None) -> Tensor"
    assert text("split") == "ts::split(Tensor(a) x, int[] sizes, int dim=-1) -> Tensor(a)"
    assert (
        text("rope")
        == "ts::rope(Tensor x, Tensor positions, float theta, str kind, float[] parameters, bool interleaved, float fraction=1.) -> Tensor"
    )


def test_cache_append_writes_through() -> None:
    cache = torch.zeros(2, 2, 2, 1, 3)
    result = ts.cache_append(cache, torch.ones(1, 1, 3), torch.full((1, 1, 3), 2.0), torch.tensor([3], dtype=I32))
    assert result.data_ptr() == cache.data_ptr()
    assert cache[1, 1].flatten().tolist() == [1, 1, 1, 2, 2, 2]
    assert cache.sum() == 9


def test_defining_again_adds_only_what_is_new() -> None:
    library.define_ops()
    with isolated():

        @op("ts::twice_for_the_test")
        def twice_for_the_test(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        library.define_ops()
        library.define_ops()
        assert ts.twice_for_the_test(torch.ones(2)).tolist() == [2, 2]


def test_shapes_are_those_of_a_real_run() -> None:
    def step(x: torch.Tensor, ids: torch.Tensor, table: torch.Tensor, cache: torch.Tensor, spans: torch.Tensor) -> list[torch.Tensor]:
        lengths, tables = spans[:, 1], torch.zeros(1, 1, dtype=I32)
        h = ts.add(x, ts.embedding(ids, table, 0))
        q = ts.rope(ts.split(ts.narrow(h, 0, 16), [1, 2, 8]), ids, 1e4, "default", [], False)
        k = ts.split(ts.narrow(h, 16, 8), [1, 8])
        cache = ts.cache_append(cache, k, k, ids)
        o = ts.merge(ts.attention(q, cache, spans, lengths, tables, 0, 1.0, 0, 0.0), 3)
        y = ts.softcap(ts.silu(ts.scale(ts.linear(o, table[:, :16]), 2.0)), 3.0)
        turn = {"theta": 1e4, "kind": "default", "parameters": [], "interleaved": False}
        qk = ts.qk_rope(h, ids, q_heads=1, k_heads=1, width=8, **turn)
        normed = ts.qk_norm_rope(h, ids, h[0, :8], h[0, :8], 1, 1, 8, 1e-6, 0.0, 1e4, "default", [], False)
        both = ts.add_norm(h, x, table[0], 1e-6, 0.0)
        return [h, q, k, cache, o, y, qk, normed, both, ts.take_rows(ts.keep_first(ts.all_reduce(y, "kv", "sum"), "kv"), lengths - 1)]

    def inputs() -> tuple[torch.Tensor, ...]:
        spans = torch.tensor([[0, 3]], dtype=I32)
        return torch.ones(3, 24), torch.arange(3, dtype=I32), torch.ones(5, 24), torch.zeros(1, 4, 2, 1, 8), spans

    real = [value.shape for value in step(*inputs())]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert [value.shape for value in step(*map(mode.from_tensor, inputs()))] == real


def test_shapes_of_mixtures_and_latent_attention_are_those_of_a_real_run() -> None:
    def step(x: torch.Tensor, up: torch.Tensor, gate: torch.Tensor, cache: torch.Tensor, spans: torch.Tensor) -> list[torch.Tensor]:
        lengths, tables = spans[:, 1], torch.zeros(1, 1, dtype=I32)
        q = ts.einsum(ts.split(x, [2, 3], 1), up, "the,hec->thc")
        cache = ts.latent_append(cache, q[:, 0], x[:, :2], spans[:, 0].expand(3))
        o = ts.latent_attention(q, q[..., :2], cache, spans, lengths, tables, 0, 1.0, 0)
        choice = {"top_k": 1, "score": "softmax", "normalize": True, "scale": 1.0, "groups": 1, "top_groups": 1, "group_best": 1}
        weights = ts.route(ts.narrow(x, 2, 2, 1), **choice)
        return [q, cache, o, weights, ts.experts(x, weights, gate, gate, gate.mT)]

    def inputs() -> tuple[torch.Tensor, ...]:
        return torch.ones(3, 6), torch.ones(2, 3, 4), torch.ones(2, 5, 6), torch.zeros(1, 4, 6), torch.tensor([[0, 3]], dtype=I32)

    real = [value.shape for value in step(*inputs())]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert [value.shape for value in step(*map(mode.from_tensor, inputs()))] == real


def test_collective_shapes_are_those_of_a_real_run() -> None:
    def all_of_them(device: str) -> list[torch.Size]:
        x = torch.ones(4, 6, device=device)
        results = [ts.all_gather(x, "q", 1), ts.reduce_scatter(x, "q", 1), ts.all_to_all(x, "q", 0, 1), ts.local_slice(x, "q", 0)]
        return [result.shape for result in results]

    sizes = {"q": 2}
    real = run_ranks(sizes, lambda _: all_of_them("cpu"))[0]
    with use(MeshCommunicator(sizes, 0, connect=lambda members: NeverCalled())):
        assert all_of_them("meta") == real == [(4, 12), (4, 3), (2, 12), (2, 6)]


class NeverCalled:
    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        raise AssertionError

    def swap(self, blocks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        raise AssertionError


def test_fx_propagates_shapes() -> None:
    def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = ts.silu(ts.linear(x, w))
        return hidden

    graph = symbolic_trace(model)
    ShapeProp(graph).propagate(torch.empty(3, 8, device="meta"), torch.empty(5, 8, device="meta"))
    assert [node.meta["tensor_meta"].shape for node in graph.graph.nodes] == [(3, 8), (5, 8), (3, 5), (3, 5), (3, 5)]
