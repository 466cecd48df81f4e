"""Attention of many rows in CUDA C++, compiled by nvcc for Hopper, is right in the emulator, and faults planted into it are found."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence

import pytest
from tests.gpu.attention_cuda import FOLDER, compile_to_ptx, ptx_of, run
from tests.gpu.mutations import OPERATORS, Mutant, mutants

from tskernels.emulator import EmulatorFault

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")]
MOST_ERROR = 3e-3
SHAPE = (1, 4, 128)
Case = tuple[list[tuple[int, int]], float]
CASES: tuple[Case, ...] = (([(200, 70)], 8), ([(0, 100)], 8), ([(200, 70)], 1))
"""Sequences, and what queries are multiplied by. Items of three tiles of keys and of one, where others wait; three items and more, so that
all that takes turns is used again."""
OF_MASKS = "one round more"
"""Changes comparisons of masks, too, for columns at which no row of the cases ends; a fault of the source stands for them."""
NEEDLESS = ["wgmma.fence dropped"]
"""The one between scores and values that are begun one after the other."""
SOURCE_FAULTS = {
    "values past the end are not cleared": ("    clear_values(item, start, turn);\n", ""),
    "a key too many is seen": ("/ group + 1 - start;", "/ group + 2 - start;"),
    "masks are left out a tile too early": ("if (start + keys_per_tile <= item.position", "if (start <= item.position"),
    "queries of the item before": ("shared.q[slot][0]) + side", "shared.q[slot ^ 1][0]) + side"),
    "what is kept is not of the base": ("kept[which] = ptx::exp2(base[which] - finite);", "kept[which] = 1;"),
    "the last values are added before they are there": (
        "    ptx::wait(shared.values_full[turn % stages], turn / stages % 2);\n    begin_values(turn);\n    wgmma::wait<0>();",
        "    begin_values(turn);\n    wgmma::wait<0>();",
    ),
}


@pytest.mark.parametrize(
    ("shape", "sequences", "page", "blocks", "gap", "loud"),
    [
        ((1, 4, 128), [(0, 40)], 64, 1, 0, 1),
        ((2, 4, 128), [(100, 70), (0, 200)], 16, 2, 3, 8),
        ((1, 7, 128), [(300, 40), (0, 5)], 32, 2, 1, 8),  # two rows of a tile are no token's
        ((2, 3, 64), [(100, 70), (3, 200), (50, 1)], 48, 3, 3, 8),
        ((1, 1, 128), [(0, 300)], 128, 1, 0, 1),
        ((1, 8, 64), [(2000, 40)], 64, 6, 0, 8),  # splits
        ((1, 4, 128), [(700, 40)], 8, 3, 2, 8),  # splits that are not all of a size
        ((1, 48, 128), [(10, 40)], 8, 2, 2, 1),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_attention_of_many_rows(
    shape: tuple[int, int, int], sequences: list[tuple[int, int]], page: int, blocks: int, gap: int, loud: float
) -> None:
    error, _ = run(ptx_of(*shape), shape, sequences, page, blocks, gap, loud)
    assert error < MOST_ERROR


def verdict(ptx: str, cases: Sequence[Case] = CASES) -> str:
    """How a fault shows in one of the cases: its kind, a wrong result, or not at all."""
    for sequences, loud in cases:
        try:
            error, _ = run(ptx, SHAPE, sequences, 64, 1, 0, loud, max_instructions=600_000)
        except EmulatorFault as fault:
            return fault.kind
        except AssertionError:
            return "counter"
        if error > MOST_ERROR:
            return "wrong"
    return "missed"


def is_run(mutant: Mutant, ptx: str) -> bool:
    lines = ptx.split("\n")
    lines[mutant.line - 1] = "trap;"
    return verdict("\n".join(lines), CASES[:1]) == "trap"


def test_planted_faults_are_found() -> None:
    ptx = ptx_of(*SHAPE)
    assert verdict(ptx) == "missed"
    by_operator: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants(ptx, [operator for operator in OPERATORS if operator.name != OF_MASKS]):
        by_operator[mutant.operator].append(mutant)
    found = {}
    for operator, all_ in by_operator.items():
        most = min(len(all_), 8)
        for mutant in (all_[i * len(all_) // most] for i in range(most)):
            shown = verdict(mutant.text)
            if shown != "missed" or is_run(mutant, ptx):
                found[operator, mutant.line] = shown
    assert len(found) >= 100
    missed = [operator for (operator, _), shown in found.items() if shown in ("missed", "unsupported")]
    assert missed == NEEDLESS


@pytest.mark.parametrize("fault", SOURCE_FAULTS)
def test_faults_planted_into_the_source_are_found(fault: str) -> None:
    right, wrong = SOURCE_FAULTS[fault]
    source = (FOLDER / "attention_sm90.cu").read_text()
    assert source.count(right) == 1
    assert verdict(compile_to_ptx(source.replace(right, wrong), *SHAPE)) not in ("missed", "unsupported")
