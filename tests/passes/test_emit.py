"""program.json: what kernels wanted computed comes through with every bit."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from tests.passes.made_up_kernels import MADE_UP, made_up_kernels
from tests.passes.tiny_models import lowered

from tsc.artifact.readable_json import dumps
from tskernels.registry import Call, Kernel, add_kernel
from tspasses.emit import emit
from tspasses.pipeline import passes

NUMBERS = torch.tensor([1 / 3, 2.0**-149, 3.4028235e38, 0.1, -7.0])


def test_constants_of_a_kernel_are_the_same_numbers_in_the_program() -> None:
    asked: list[Call] = []

    def constants(call: Call) -> Sequence[float]:
        asked.append(call)
        found: list[float] = NUMBERS.tolist()
        return found

    with made_up_kernels():
        add_kernel(Kernel("ts::rope", "fast", "compute", print, MADE_UP, ("f32",), None, lambda call, target: 0.0, __file__, {}, constants))
        program = lowered("llama", {"tp": 2})
        for step in passes(MADE_UP):
            program = step.run(program)
        found = json.loads(dumps(emit([(1, program)])))
    ropes = [n for g in found["graphs"].values() for n in g["nodes"] if n.get("kernel") == "fast"]
    assert len(ropes) == len(asked) > 0
    assert all(torch.equal(torch.tensor(n["constants"]), NUMBERS) for n in ropes)
    assert {(c.op, c.attributes["kind"], c.operands[0].shape[-1]) for c in asked} == {("ts::rope", "linear", 8)}
    assert not [n for g in found["graphs"].values() for n in g["nodes"] if "constants" in n and n not in ropes]
