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
