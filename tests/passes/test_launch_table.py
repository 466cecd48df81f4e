"""What launches read while others still run is nothing that these write."""

from __future__ import annotations

import pytest

from tsc.graph import op_of
from tsc.graph_parser import parse_program
from tskernels.target import gpu
from tspasses.launch_table import launch_table

PROGRAM = """\
program Products: bf16
mesh {}
sizes { D = 8, F = 16 }

graph Products {
  value %x: bf16[T, D]
  weight %w: bf16[F, D] = "w"
  value %made: bf16[F, D]
  %one = ts.linear(%x, %w) : bf16[T, F]
  %other = ts.linear(%x, %made) : bf16[T, F]
  return %other
}
"""

LATENT = """\
program Latent: bf16
mesh {}
sizes { C = 512, H = 16, R = 64, W = 576 }

graph Latent {
  value %q: bf16[T, H, C]
  value %turned: bf16[T, H, R]
  value %latent: bf16[T, C]
  value %rotated: bf16[T, R]
  value %made: i32[S, S.pages]
  cache %rows: bf16[pages, W]
  step %slots: i32[T]
  step %spans: i32[S, 2]
  step %lengths: i32[S]
  step %tables: i32[S, S.pages]
  %new = ts.latent_append(%rows, %latent, %rotated, %slots) : bf16[pages, W]
  %one = ts.latent_attention(%q, %turned, %new, %spans, %lengths, %tables, shard = 0, scale = 0.25, window = 0) : bf16[T, H, C]
  %other = ts.latent_attention(%q, %turned, %new, %spans, %lengths, %made, shard = 0, scale = 0.25, window = 0) : bf16[T, H, C]
  return %other
}
"""


@pytest.mark.parametrize("target", ["sm_90a", "gfx950"])
def test_a_product_with_a_value_waits_before_it_reads_it(target: str) -> None:
    program = parse_program(PROGRAM)
    products = [node for node in program.graphs["Products"].nodes if node.op == "call_function" and op_of(node) == "linear"]
    for node in products:
        node.meta["kernel"] = "triton"
    table = launch_table([program], gpu(target))
    begins_early = []
    for node in products:
        [of_one, of_few, of_many] = table.plans[node.meta["plan"]]["variants"]
        begins_early.append([table.functions[launch["function"]].dependent for v in (of_one, of_few) for launch in v["launches"]])
        assert (of_many["tokens"], of_many["kernel"], of_many["launches"]) == (17, "torch", [])
    assert begins_early == [[True, False], [False, False]]


def test_latent_attention_reads_early_what_earlier_steps_cached_and_tables_that_the_step_is_given() -> None:
    program = parse_program(LATENT)
    nodes = [node for node in program.graphs["Latent"].nodes if node.op == "call_function" and op_of(node) == "latent_attention"]
    for node in program.graphs["Latent"].nodes:
        if node.op == "call_function":
            node.meta["kernel"] = "cuda" if node in nodes else "triton"
    table = launch_table([program], gpu("sm_90a"))
    begins_early = []
    for node in nodes:
        launches = [launch for variant in table.plans[node.meta["plan"]]["variants"] for launch in variant["launches"]]
        begins_early.append([table.functions[launch["function"]].dependent for launch in launches])
    assert begins_early == [[True, True], [False, False]]  # for sequences of few rows and of many
