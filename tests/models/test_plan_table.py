"""The table of `benchmarks/plans.py`: known blocks move no more than the best plan we know of, nor more than XLA's."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
plans = importlib.import_module("plans")


@pytest.mark.parametrize("case", plans.CASES, ids=lambda c: c.name)
def test_a_block_has_the_best_known_collectives(case: plans.Case) -> None:  # type: ignore[name-defined]
    found = plans.measure(case)
    assert dict(found.kinds) == dict(case.kinds)
    assert found.bytes_per_row <= case.bytes_per_row


@pytest.mark.slow
def test_no_block_moves_more_than_in_xla() -> None:
    pytest.importorskip("jax")
    results = [r for r in plans.beside_jax([plans.measure(c) for c in plans.CASES]) if r.jax_bytes is not None]
    assert len(results) == len({c.jax for c in plans.CASES if c.jax})
    for result in results:
        assert result.bytes_per_row <= result.jax_bytes, result.case
    by_name = {r.case: r for r in results}
    assert by_name["parallel attention + MLP block"].jax_bytes == 2 * 8192  # XLA reduces the two sums side by side: the check has teeth
