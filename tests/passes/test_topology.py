"""Topologies: what comes with the compiler, a user's own, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsc.diagnostics import CompileError
from tspasses.cost import seconds
from tspasses.topology import known, topology
from tspasses.transitions import Move

LINKS = "launch_us = 4.0\nhop_us = 1.0\ngb_per_s = 100.0\n"
TABLE = """
[[measured]]
kind = "all_reduce"
ranks = 4
bytes = [1000, 100000]
us = [10.0, 1000.0]
"""


def test_those_that_come_with_the_compiler_are_read() -> None:
    assert known() == ["b200-nvlink", "gb200-nvl72", "h100-nvlink", "ib-400g", "local", "mi300x-fabric", "pcie4"]
    for name in known():
        assert topology(name).bytes_per_second > 1e9


def test_a_file_of_ones_own_with_measurements(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(LINKS + TABLE)
    links, reduce = topology(str(path)), Move("all_reduce", ("tp",), reduction="sum")
    assert seconds(reduce, 4, 1000, links) == pytest.approx(10e-6)
    assert seconds(reduce, 4, 10000, links) == pytest.approx(100e-6)  # half way on logarithms
    assert seconds(reduce, 4, 100000, links) == pytest.approx(1000e-6)
    modelled = topology("h100-nvlink").measured("all_reduce", 4, 1000)
    assert modelled is None
    assert seconds(reduce, 4, 200000, links) == pytest.approx(4e-6 + min(6e-6 + 1.5 * 2e-6, 1e-6 + 3 * 2e-6))
    assert seconds(reduce, 2, 1000, links) == pytest.approx(4e-6 + 1e-6 + 1e-8)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("launch_us = 1", "`hop_us` is a number above 0, and this is None"),
        (LINKS.replace("4.0", "-1"), "`launch_us` is a number above 0, and this is -1"),
        (LINKS.replace("4.0", "true"), "`launch_us` is a number above 0, and this is True"),
        (LINKS + "extra = 1", "`extra` is none of launch_us"),
        ("launch_us =", "Invalid value"),
        (LINKS + TABLE.replace("all_reduce", "allreduce"), "not of 'allreduce' on 4"),
        (LINKS + TABLE.replace("ranks = 4", "ranks = 1"), "not of 'all_reduce' on 1"),
        (LINKS + TABLE.replace("[1000, 100000]", "[100000, 1000]"), "`bytes` rise"),
        (LINKS + TABLE.replace("[10.0, 1000.0]", "[10.0]"), "equally many numbers"),
        (LINKS + TABLE.replace("[10.0, 1000.0]", '"10"'), "equally many numbers"),
        (LINKS + "measured = 1", "write [[measured]]"),
    ],
)
def test_a_wrong_file_is_one_finding(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(CompileError) as raised:
        topology(str(path))
    [diagnostic] = raised.value.diagnostics
    assert diagnostic.code == "TS0507"
    assert says in diagnostic.render()


def test_no_file_and_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.toml", "binary.toml", "nothing"):
        with pytest.raises(CompileError):
            topology(str(tmp_path / name) if name.endswith(".toml") else name)
