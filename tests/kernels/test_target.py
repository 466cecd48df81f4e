"""Targets and element types."""

from __future__ import annotations

import pytest
import torch

from tskernels.dtypes import SIZES, dtype_name, size_bytes, torch_dtype
from tskernels.target import CPU, TCGEN05, Target, cpu, gpu, parse_target


def test_cpu_target_has_what_torch_found() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    expected = {"AVX512": {"avx512f", "avx512bw", "avx512vl"}, "AVX2": {"avx2", "fma"}}.get(capability, set())
    assert expected <= parse_target("cpu").features


def test_named_features_are_taken_as_written() -> None:
    assert parse_target("cpu+avx2+fma") == cpu("fma", "avx2")
    assert parse_target("cpu+") == CPU
    assert parse_target(str(cpu("fma", "avx2"))) == cpu("fma", "avx2")


def test_unknown_target_and_feature_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown target `tpu`; known: cpu"):
        parse_target("tpu")
    with pytest.raises(ValueError, match="unknown CPU features avx1024"):
        parse_target("cpu+avx1024")


def test_a_machine_lacks_what_a_kernel_needs() -> None:
    assert cpu("avx2").lacks(CPU) is None
    assert CPU.lacks(cpu("avx2")) == "needs avx2, which this cpu lacks"
    assert CPU.lacks(Target("cuda")) == "runs on cuda, not on cpu"
    assert gpu("sm_100a").lacks(TCGEN05) is gpu("sm_103a").lacks(TCGEN05) is None
    assert gpu("sm_90a").lacks(TCGEN05) == "needs tcgen05, which this cuda lacks"
    assert parse_target("sm_103a") == parse_target(str(gpu("sm_103a"))) == gpu("sm_103a")


@pytest.mark.parametrize("name", SIZES)
def test_element_type_names_go_both_ways(name: str) -> None:
    assert dtype_name(torch_dtype(name)) == name
    assert torch.empty(1, dtype=torch_dtype(name)).element_size() == size_bytes(name)


def test_unknown_element_types_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown element type `fp8`"):
        torch_dtype("fp8")
    with pytest.raises(ValueError, match="torch dtype `bool`"):
        dtype_name(torch.bool)
