"""The table of architectures: logits of small random models against transformers, which runs the same weights in float32.

`pytest tests/models/test_parity.py -s` prints it, `-m 'not slow'` without the variants. What could be computed otherwise and still look
right is looked for: each sequence alone and in company, in chunks and whole, on one rank and on two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

import pytest
from tests.models.running import Trace, differences, run
from tests.models.tiny import CASES, Case, TinyModels, prompt

from tsc.front import model_for, models_directory
from tsrun.limits import LimitOptions

TOLERANCE = 1e-4
"""Of logits that spread over several units: float32 with another order of sums stays within half of this."""
LONGEST = 28
RANKS = (1, 2)
COLUMNS = ("prefill", "chunks", "decode")
MOST_LINES = {"deepseek_v3": 170}
MEDIAN_LINES = 110


@dataclass
class Table:
    """The largest difference of each case, by the number of ranks and the column."""

    found: dict[Case, dict[tuple[int, str], float]] = field(default_factory=dict)

    def text(self) -> str:
        heads = [f"{column} tp={tp}" for tp in RANKS for column in COLUMNS]
        width = max(len(str(case)) for case in self.found)
        lines = [f"{'logits against transformers':<{width}}  {'model file':<16} lines  " + "  ".join(f"{h:>12}" for h in heads)]
        for case, row in self.found.items():
            name, count = lines_of(case)
            cells = (f"{row[tp, column]:>12.1e}" if (tp, column) in row else f"{'':>12}" for tp in RANKS for column in COLUMNS)
            lines.append(f"{case!s:<{width}}  {name + '.ts':<16} {count:>5}  " + "  ".join(cells))
        return "\n".join(lines)


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    table = Table()
    yield table
    if table.found:
        print(f"\n{table.text()}")


def lines_of(case: Case) -> tuple[str, int]:
    """The model file that a checkpoint of the case is compiled with, and how long it is."""
    [architecture] = case.architectures
    model = model_for([architecture])
    return model.name, len(model.source.text.splitlines())


def runs(case: Case, tiny: TinyModels, tp: int) -> Iterator[list[Trace]]:
    """On several ranks one run, in which all is: what is looked for there is how the ranks share the work."""
    path = tiny.artifact(case, tp=tp)
    if tp == 1:
        lengths = range(case.shortest, LONGEST + 1)
        yield run(path, [prompt(length) for length in lengths], 1)
        for chunk in (1, 5):
            [trace] = run(path, [prompt(LONGEST)], 2, LimitOptions(num_pages=64, page_size=4, max_step_tokens=chunk))
            assert set(range(chunk - 1, LONGEST, chunk)) < set(trace.logits)
            yield [trace]
    # Steps of 16 tokens: some sequences decode while others are still in their prefill.
    prompts = [prompt(length, seed=length) for length in (1, 19, 4, 33, 8)]
    traces = run(path, prompts, 20, LimitOptions(num_pages=128, page_size=4, max_step_tokens=16))
    assert [len(trace.tokens) for trace in traces] == [20] * 5
    yield traces


def column(trace: Trace, position: int) -> str:
    """What made the logits there: a chunk that ends within the prompt, the end of the prompt, or a token after it."""
    last = len(trace.prompt) - 1
    return "chunks" if position < last else "prefill" if position == last else "decode"


@pytest.mark.parametrize("tp", RANKS)
@pytest.mark.parametrize("case", [pytest.param(c, id=str(c), marks=[pytest.mark.slow] if c.variant else []) for c in CASES])
def test_logits_are_those_of_transformers(case: Case, tp: int, tiny: TinyModels, table: Table) -> None:
    row = table.found.setdefault(case, {})
    for traces in runs(case, tiny, tp):
        for trace, position, difference in differences(tiny.model(case), traces):
            key = tp, column(trace, position)
            row[key] = max(difference, row.get(key, 0.0))
    assert {name for ranks, name in row if ranks == tp} == set(COLUMNS)
    assert all(difference < TOLERANCE for difference in row.values()), row


def test_model_files_are_short() -> None:
    lines = {path.stem: len(path.read_text().splitlines()) for path in models_directory().glob("*.ts")}
    print(f"\nlines: {lines}, median {median(lines.values()):g}")
    assert median(lines.values()) < MEDIAN_LINES
    assert all(lines[name] < most for name, most in MOST_LINES.items())
