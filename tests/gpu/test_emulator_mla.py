"""Latent attention decode in CUDA C++, compiled by nvcc for Hopper and Blackwell, is right in the emulator, and faults planted into it are
found."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence

import pytest
from tests.gpu.latent_cuda import DECODES, FOLDER, compile_to_ptx, ptx_of, run
from tests.gpu.mutations import ADDRESS_IN_OTHER_BLOCK, OPERATORS, Mutant, Operator, mutants

from tskernels.emulator import EmulatorFault

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")]
FAULTS = (
    *("wait dropped", "wait for the other parity", "arrival dropped", "proxy fence dropped"),
    *("store to shared memory dropped", "store to the next place"),
)

DEPENDENT = [name for name in DECODES if name.startswith("sm90")]
MOST_ERROR, MOST_OF_LOGARITHMS = 3e-3, 2e-5
OF_PAIRS = ("wait dropped", "cluster barrier dropped", "tcgen05.commit to", "address in the other block", "copy of the pair")
"""Operators of what only pairs have; of others one place is enough here."""
SOURCE_FAULTS = {
    "sm100_pairs": {
        "keys of the other half of the tokens": ("p, rank * half_tokens,", "p, (rank ^ 1) * half_tokens,"),
        "values of the other half of the columns": ("rank * value_blocks + block", "(rank ^ 1) * value_blocks + block"),
        "one barrier for the weights of two tiles": ("arrive_at_leader(shared.weighed[stage])", "arrive_at_leader(shared.weighed[0])"),
        "values not waited for": ("ptx::wait(shared.values_full[stage], parity);", ""),
    },
    "sm90_gangs": {
        "rotated columns come while weights are read": ("part == half || part == rotated_part", "part == half"),
        "weights lie where other warps read keys": ("weights_in_tile = true", "weights_in_tile = false"),
        "scores not waited for": ("end_scores<1>();", "end_scores<2>();"),
        "values given back before they are added": ("end_values<1>(turn + odd);", "end_values<2>(turn + odd);"),
        "keys of a block not waited for": ("{ ptx::wait(full[block]", "{ if (block != 5) ptx::wait(full[block]"),
        "the other's values given back as one's own": (
            "end_values<0>(turn + even);\n        add_own",
            "end_values<0>(turn + odd);\n        add_own",
        ),
    },
}
HARMLESS = ("one round more",)
"""Of the kernel for gangs: loops that clear rows clear the same ones again."""

JOINING_FAULTS = {
    "parts are not counted when all of the block is written": (
        "half_tile_sm90.cuh",
        "      ptx::sync(item_done, consumers);\n      if (threadIdx.x == 0) ptx::count_release",
        "      if (threadIdx.x == 0) ptx::count_release",
    ),
    "parts are counted, and not released": ("half_tile_sm90.cuh", "ptx::count_release", "ptx::count_relaxed"),
    "one part is not waited for": ("join_splits.cuh", "(counter) < item.splits)", "(counter) < item.splits - 1)"),
    "a block's share is read before its copies are there": ("join_splits.cuh", "  ptx::wait_copies();\n", ""),
    "weights are read before they are made": (
        "join_splits.cuh",
        "  ptx::wait_copies();\n  ptx::sync(barrier, threads);\n",
        "  ptx::wait_copies();\n",
    ),
    "splits are weighed without the largest": ("join_splits.cuh", "largest = largest_of_warp(largest);", "largest = 0;"),
    "columns stay in the order of registers": ("join_splits.cuh", "return (kept & ~15) | kept % 4 * 4 | kept / 4 % 4;", "return kept;"),
}
"""File, what is there, and what is wrong."""


@pytest.mark.parametrize("name", ["sm90", "sm90_gangs", "sm90_fp8", "sm100", "sm100_fp8"])
@pytest.mark.parametrize(
    ("heads", "lengths", "queries", "page"),
    [
        (16, (1024, 37), (1, 1), 64),
        (16, (200,), (4,), 32),
        (32, (130, 300), (4, 4), 64),
        (128, (260,), (1,), 64),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_latent_decode_in_cuda(name: str, heads: int, lengths: tuple[int, ...], queries: tuple[int, ...], page: int) -> None:
    is_right(name, heads, lengths, queries, page)


@pytest.mark.parametrize("name", ["sm90", "sm90_gangs", "sm90_fp8", "sm100", "sm100_fp8", "sm100_pairs"])
@pytest.mark.parametrize("page", [1, 3])
def test_pages_of_which_a_token_is_a_box(name: str, page: int) -> None:
    is_right(name, 16, (130,), (1,), page)


@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize(
    ("lengths", "queries", "page"),
    [((1024, 37), (1, 1), 64), ((192, 100), (1, 90), 64), ((130, 300), (4, 4), 32)],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_a_dependent_launch_touches_nothing_that_the_launch_before_writes(
    name: str, lengths: tuple[int, ...], queries: tuple[int, ...], page: int
) -> None:
    """Nor what it still reads."""
    error, of_logarithms, _ = run(DECODES[name], ptx_of(name), 16, lengths, queries, page, dependent=True)
    assert error < MOST_ERROR
    assert of_logarithms < MOST_OF_LOGARITHMS


@pytest.mark.parametrize("name", DEPENDENT)
def test_each_wait_for_the_launch_before_is_needed(name: str) -> None:
    lines, wait = ptx_of(name).split("\n"), "griddepcontrol.wait;"
    places = [number for number, line in enumerate(lines) if wait in line]
    assert len(places) == {"sm90": 4, "sm90_gangs": 3, "sm90_fp8": 2}[name]  # where bf16 is loaded, each loop over tiles has one
    for place in places:
        without = "\n".join([*lines[:place], lines[place].replace(wait, ""), *lines[place + 1 :]])
        with pytest.raises(EmulatorFault) as caught:
            run(DECODES[name], without, 16, (130, 300), (4, 4), 64, dependent=True)
        assert caught.value.kind in ("race", "exit")


@pytest.mark.parametrize("fault", JOINING_FAULTS)
def test_faults_planted_into_the_joining_of_splits_are_found(fault: str) -> None:
    changed, right, wrong = JOINING_FAULTS[fault]
    texts = {name: (FOLDER / name).read_text() for name in ("mla_decode_sm90.cu", "half_tile_sm90.cuh", "join_splits.cuh")}
    assert texts[changed].count(right) == 1
    texts[changed] = texts[changed].replace(right, wrong)
    ptx = compile_to_ptx(texts.pop("mla_decode_sm90.cu"), "90a", headers=texts)
    loud = 64  # so that sums which are not relative to the largest are no numbers
    assert run(DECODES["sm90"], ptx_of("sm90"), 16, (520,), (1,), 64, loud=loud)[0] < MOST_ERROR
    try:
        shown = "missed" if run(DECODES["sm90"], ptx, 16, (520,), (1,), 64, loud=loud)[0] < MOST_ERROR else "wrong"
    except EmulatorFault as found:
        shown = found.kind
    assert shown in ("race", "uninitialized", "wrong")


@pytest.mark.parametrize("magnitude", [2.0**40, 2.0**-40])
@pytest.mark.parametrize("name", ["sm90", "sm90_gangs", "sm100", "sm100_pairs"])
def test_partial_results_may_have_magnitudes_that_f16_has_not(name: str, magnitude: float) -> None:
    error, of_logarithms, _ = run(DECODES[name], ptx_of(name), 16, (300,), (1,), 64, magnitude=magnitude)
    assert error < MOST_ERROR
    assert of_logarithms < MOST_OF_LOGARITHMS


@pytest.mark.parametrize("name", [name for name, decode in DECODES.items() if decode.is_fp8])
def test_faults_planted_where_fp8_is_widened_are_found(name: str) -> None:
    """In the first and in the last place of each kind; five tiles, so that both stages are used again."""
    decode, ptx = DECODES[name], ptx_of(name)
    widening = [number for number, line in enumerate(ptx.split("\n"), 1) if "e4m3x2" in line]
    begin, end = widening[0] - 30, widening[-1] + 40  # with the barriers before and after
    missed, found = [], 0
    for operator in (operator for operator in OPERATORS if operator.name in FAULTS):
        places = [m for m in mutants(ptx, [operator]) if begin <= m.line <= end]
        for mutant in {places[0].line: places[0], places[-1].line: places[-1]}.values():
            found += 1
            try:
                error, of_logarithms, _ = run(decode, mutant.text, 16, (310,), (1,), 64, blocks=1)
                if error < MOST_ERROR and of_logarithms < MOST_OF_LOGARITHMS:
                    missed.append((mutant.operator, mutant.line))
            except (EmulatorFault, AssertionError):
                pass
    assert not missed
    assert found >= 8


@pytest.mark.parametrize(
    ("heads", "lengths", "queries", "page", "loud"),
    [
        (128, (1024,), (1,), 64, 1),
        (32, (130, 300), (4, 4), 64, 8),
        (12, (65, 1, 130), (7, 1, 20), 16, 1),  # rows of one block alone, several pairs of row tiles
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_latent_decode_by_pairs_of_blocks(heads: int, lengths: tuple[int, ...], queries: tuple[int, ...], page: int, loud: float) -> None:
    is_right("sm100_pairs", heads, lengths, queries, page, loud)


def is_right(name: str, heads: int, lengths: tuple[int, ...], queries: tuple[int, ...], page: int, loud: float = 1) -> None:
    error, of_logarithms, _ = run(DECODES[name], ptx_of(name), heads, lengths, queries, page, loud=loud)
    assert error < MOST_ERROR
    assert of_logarithms < MOST_OF_LOGARITHMS


def verdict(name: str, ptx: str, loud: float = 8) -> str:
    """How a fault shows: its kind, a wrong result, or not at all. Where maxima grow, more is waited for."""
    lengths, queries = {"sm100_pairs": ((300,), (1,)), "sm90_gangs": ((300, 130), (1, 1))}[name]
    try:
        error, of_logarithms, _ = run(DECODES[name], ptx, 128, lengths, queries, 16, 2, loud, max_instructions=1_000_000)
    except EmulatorFault as fault:
        return fault.kind
    return "wrong" if error > MOST_ERROR or of_logarithms > MOST_OF_LOGARITHMS else "missed"


def is_run(name: str, mutant: Mutant, ptx: str) -> bool:
    """Whether the line is reached: loops are unrolled for more than there is here."""
    lines = ptx.split("\n")
    lines[mutant.line - 1] = "trap;"
    return verdict(name, "\n".join(lines)) == "trap"


def planted(name: str, operators: Sequence[Operator], places: Callable[[str], int]) -> tuple[set[str], dict[tuple[str, int], str]]:
    """All operators that the kernel has a place for, and how faults show that are planted at so many places of each."""
    ptx = ptx_of(name)
    assert verdict(name, ptx) == "missed"
    by_operator: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants(ptx, list(operators)):
        by_operator[mutant.operator].append(mutant)
    found = {}
    for operator, all_ in by_operator.items():
        most = min(len(all_), places(operator))
        for mutant in (all_[i * len(all_) // most] for i in range(most)):
            shown = verdict(name, mutant.text)
            if shown != "missed" or is_run(name, mutant, ptx):
                found[operator, mutant.line] = verdict(name, mutant.text, 1) if shown == "missed" else shown
    return set(by_operator), found


def test_faults_planted_into_the_kernel_of_pairs_are_found() -> None:
    operators, found = planted("sm100_pairs", [*OPERATORS, ADDRESS_IN_OTHER_BLOCK], lambda name: 3 if name.startswith(OF_PAIRS) else 1)
    assert {operator for operator, _ in found} >= {operator for operator in operators if operator.startswith(OF_PAIRS)}
    assert len(found) >= 50
    assert {place: shown for place, shown in found.items() if shown in ("missed", "unsupported")} == {}


def test_faults_planted_into_the_kernel_of_gangs_are_found() -> None:
    _, found = planted("sm90_gangs", [operator for operator in OPERATORS if operator.name not in HARMLESS], lambda _: 3)
    assert len(found) >= 60
    assert {place: shown for place, shown in found.items() if shown in ("missed", "unsupported")} == {}


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name, faults in SOURCE_FAULTS.items() for fault in faults])
def test_faults_planted_into_the_source_are_found(name: str, fault: str) -> None:
    decode, (right, wrong) = DECODES[name], SOURCE_FAULTS[name][fault]
    source = (FOLDER / decode.file).read_text()
    assert source.count(right) == 1
    assert verdict(name, compile_to_ptx(source.replace(right, wrong), decode.architecture)) not in ("missed", "unsupported")
