"""The collectives that the compiler puts into each model: how many, why, where and how large."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tsc.front import models_directory, place_model, read_model
from tspasses.placed import Options
from tspasses.plan import Plan, PlanItem, plan_of

LLAMA_3_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "sliding_window": None,
}
GEMMA = LLAMA_3_8B | {"sliding_window": 1024, "query_pre_attn_scalar": 128}
MODELS = [("llama", LLAMA_3_8B), ("qwen3", LLAMA_3_8B), ("gemma3", GEMMA)]

FORCED_BY = {
    "llama": {'let h = x + Attention<"self_attn">(': "`add` needs it", 'return h + MLP<"mlp">(': "`add` needs it"},
    "qwen3": {'let h = x + Attention<"self_attn">(': "`add` needs it", 'return h + MLP<"mlp">(': "`add` needs it"},
    "gemma3": {"let h = x + rms_norm(a, n2,": "`rms_norm` needs it", "return h + rms_norm(m, n4,": "`rms_norm` needs it"},
}
"""In a layer: the start of the line at the span, and what the reason says."""


def plan(name: str, config: Mapping[str, object], tp: int, dtype: str = "bf16") -> Plan:
    return plan_of(place_model(read_model(models_directory() / f"{name}.ts"), config, {"tp": tp}, Options(dtype)))


def from_span(item: PlanItem) -> str:
    """The text of the model file from the item's span to the end of the line."""
    path, line, column = item.span.rsplit(":", 2)
    return Path(path).read_text().splitlines()[int(line) - 1][int(column) - 1 :]


def line_of(item: PlanItem) -> str:
    path, line, _ = item.span.rsplit(":", 2)
    return Path(path).read_text().splitlines()[int(line) - 1].strip()


def in_layers(found: Plan) -> list[PlanItem]:
    return [item for item in found.items if item.module.startswith("Layer")]


@pytest.mark.parametrize(("name", "config"), MODELS, ids=["llama", "qwen3", "gemma3"])
def test_each_layer_has_two_all_reduces(name: str, config: Mapping[str, object]) -> None:
    items = in_layers(plan(name, config, 4))
    modules = {item.module for item in items}
    assert len(modules) == (2 if name == "gemma3" else 1)  # gemma's two kinds of layers
    for module in modules:
        mine = [item for item in items if item.module == module]
        assert [(item.kind, item.axis, item.ranks, item.row) for item in mine] == [("all_reduce", "tp", 4, "T")] * 2
        assert {(item.before, item.after) for item in mine} == {("bf16[T, D | sum tp]", "bf16[T, D]")}
        assert len({item.times for item in mine}) == 1
    assert sum(item.times for item in items) == 2 * 32


@pytest.mark.parametrize(("name", "config"), MODELS, ids=["llama", "qwen3", "gemma3"])
def test_each_all_reduce_names_the_line_that_forced_it(name: str, config: Mapping[str, object]) -> None:
    for module in {item.module for item in in_layers(plan(name, config, 4))}:
        mine = [item for item in in_layers(plan(name, config, 4)) if item.module == module]
        for item, (start, reason) in zip(mine, FORCED_BY[name].items(), strict=True):
            assert line_of(item).startswith(start)
            assert item.reason == reason
            # The span is the operation's own: the sum in llama and qwen3, the norm in gemma3.
            assert from_span(item).startswith("rms_norm(" if name == "gemma3" else ("x + Att", "h + MLP"))


@pytest.mark.parametrize(("name", "config"), MODELS, ids=["llama", "qwen3", "gemma3"])
def test_the_entry_has_one_all_reduce_and_gathers_only_rows_that_are_sampled(name: str, config: Mapping[str, object]) -> None:
    found = plan(name, config, 4)
    reduce, gather = [item for item in found.items if item.module == "decode"]
    assert (reduce.kind, reduce.row, reduce.times, reduce.bytes_per_row) == ("all_reduce", "T", 1, 8192)
    assert from_span(reduce).startswith('Layer<"model.layers.{i}">(x, positions')
    assert reduce.reason == "the boundary of `Layer` declares it"
    assert (gather.kind, gather.row, gather.times, gather.bytes_per_row) == ("all_gather", "S", 1, 2 * 128256)
    assert (gather.before, gather.after) == ("bf16[S, V@tp]", "bf16[S, V]")
    assert line_of(gather).startswith("return linear(rms_norm(x[last], norm, eps")
    assert "sampling" in gather.reason
    assert [item for item in found.items if item.kind != "all_reduce"] == [gather]


@pytest.mark.parametrize("tp", [2, 4, 8, 16, 32])
def test_a_layer_of_llama_3_8b_moves_16384_bytes_a_token(tp: int) -> None:
    """On any number of ranks, with as many as K/V heads, fewer and more: payload is the tensor's, not the ranks'."""
    found = plan("llama", LLAMA_3_8B, tp)
    assert found.mesh == {"kv": min(tp, 8), "q": tp // min(tp, 8)}
    assert [item.bytes_per_row for item in in_layers(found)] == [8192, 8192]
    assert sum(item.bytes_per_row * item.times for item in in_layers(found)) == 32 * 16384
    assert found.cache_copies == tp // min(tp, 8)
    assert found.cache_bytes_per_token == 32 * 2 * (8 // min(tp, 8)) * 128 * 2


@pytest.mark.parametrize(("name", "config"), MODELS, ids=["llama", "qwen3", "gemma3"])
def test_payload_follows_the_element_type(name: str, config: Mapping[str, object]) -> None:
    halves, wholes = plan(name, config, 4), plan(name, config, 4, "f32")
    assert [2 * item.bytes_per_row for item in halves.items] == [item.bytes_per_row for item in wholes.items]


@pytest.mark.parametrize(("name", "config"), MODELS, ids=["llama", "qwen3", "gemma3"])
def test_one_rank_has_no_collectives(name: str, config: Mapping[str, object]) -> None:
    assert plan(name, config, 1).items == ()
