"""`tsc tune` measures kernels on this machine into a file, and `tsc compile` chooses by it where it fits and where bits allow."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.cli.conftest import Tsc
from tests.cli.test_compile import tree
from tests.cli.tiny import write_checkpoint
from tests.models.running import run_for_tokens

from tsc.cli import main
from tskernels import simd
from tskernels.tuning import default_path, this_machine
from tsrun.limits import LimitOptions

OPTIONS = ("--weights", "checkpoint", "--dtype", "f32")
TUNE = ("tune", *OPTIONS, "--tokens", "1,4")
NATIVE = pytest.mark.skipif(not simd.is_available(), reason="this processor has no C++ kernels to choose among")
DOWN = "ts::linear(f32[?, 64], f32[32, 64]"
Tuning = dict[str, Any]


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The tuning file of the tiny model: real measurements, made once."""
    folder = tmp_path_factory.mktemp("taken")
    write_checkpoint(folder / "checkpoint")
    file = folder / "tuning.json"
    command = (*TUNE[:2], str(folder / "checkpoint"), *TUNE[3:], "-o", str(file))
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    new, calls = measured(result.output)
    assert new == calls > 5
    return file.read_bytes()


@pytest.fixture
def tuning(workspace: Path, taken: bytes) -> Path:
    """That file where the test runs."""
    (workspace / "tuning.json").write_bytes(taken)
    return workspace / "tuning.json"


@pytest.fixture
def cache(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where measurements are kept, empty."""
    monkeypatch.setenv("TSC_CACHE", str(workspace / "cache"))
    return default_path()


def edit(path: Path, change: Callable[[Tuning], None]) -> Tuning:
    tuning: Tuning = json.loads(path.read_text())
    change(tuning)
    path.write_text(json.dumps(tuning))
    return tuning


def kernels(artifact: Path) -> dict[str, str]:
    """By node."""
    graphs = json.loads((artifact / "program.json").read_text())["graphs"]
    return {f"{name}.{node['name']}": node["kernel"] for name, graph in graphs.items() for node in graph["nodes"] if "kernel" in node}


def measured(output: str) -> tuple[int, int]:
    found = re.search(r"^measured (\d+) of (\d+) calls with \d+ threads; ", output, re.MULTILINE)
    assert found is not None, output
    return int(found[1]), int(found[2])


def compiled(workspace: Path, tsc: Tsc, *arguments: str) -> tuple[dict[str, str], str]:
    code, output = tsc("compile", *OPTIONS, *arguments, "-o", "tiny.tsa")
    assert code == 0, output
    return kernels(workspace / "tiny.tsa"), output


def greedy(artifact: Path) -> list[list[int]]:
    return run_for_tokens(artifact, [[1, 2, 3], [7, 8]], 6, LimitOptions(page_size=16, num_pages=8, max_sequences=2, max_step_tokens=64))


def test_a_file_has_what_every_contender_took(tuning: Path) -> None:
    found = json.loads(tuning.read_text())
    assert found["machine"]["cores"] == this_machine().cores
    linears = [entry for entry in found["calls"] if entry["call"].startswith(DOWN)]
    assert {name for entry in linears for name in entry["seconds"]} == {"torch", *(["simd", "simd_panels"] if simd.is_available() else [])}
    for entry in found["calls"]:
        for seconds in entry["seconds"].values():
            assert list(seconds) == ["1", "4"]
            assert all(0 < s < 1 for s in seconds.values())


def test_a_rerun_measures_only_what_is_missing(tuning: Path, tsc: Tsc) -> None:
    before = tuning.read_bytes()
    new, calls = measured(tsc(*TUNE, "-o", "tuning.json")[1])
    assert new == 0
    assert tuning.read_bytes() == before
    lost = edit(tuning, lambda t: t["calls"].pop(0))
    assert measured(tsc(*TUNE, "-o", "tuning.json")[1]) == (1, calls)
    again = json.loads(tuning.read_text())
    assert [entry for entry in again["calls"] if entry in lost["calls"]] == lost["calls"]
    assert len(again["calls"]) == len(lost["calls"]) + 1


@pytest.mark.slow
def test_again_measures_all_of_it_and_another_size_is_added(tuning: Path, tsc: Tsc) -> None:
    def slow(tuning: Tuning) -> None:
        for entry in tuning["calls"]:
            entry["seconds"] = {name: dict.fromkeys(seconds, 1e6) for name, seconds in entry["seconds"].items()}

    edit(tuning, slow)
    new, calls = measured(tsc(*TUNE[:-1], "2", "-o", "tuning.json", "--again")[1])
    assert new == calls
    for entry in json.loads(tuning.read_text())["calls"]:
        for seconds in entry["seconds"].values():
            assert (seconds["1"], seconds["4"]) == (1e6, 1e6)
            assert seconds["2"] < 1


def test_ranks_are_measured_with_their_share_of_the_cores(workspace: Path, tsc: Tsc) -> None:
    code, output = tsc(*TUNE, "--mesh", "tp=2", "--tokens", "1", "-o", "tuning.json")
    assert code == 0, output
    assert {e["threads"] for e in json.loads((workspace / "tuning.json").read_text())["calls"]} == {max(1, this_machine().cores // 2)}


@NATIVE
def test_measurements_overrule_the_model_and_the_artifact_says_so(workspace: Path, tuning: Path, tsc: Tsc) -> None:
    """The model stores `down` in panels; a file by which rows are quicker has them stored, and what runs says the same."""
    modelled, output = compiled(workspace, tsc)
    assert "measurement" not in output
    assert json.loads((workspace / "tiny.tsa" / "manifest.json").read_text())["tuning"] is None
    tokens = greedy(workspace / "tiny.tsa")

    def rows_are_quick(tuning: Tuning) -> None:
        for entry in tuning["calls"]:
            if entry["call"].startswith(DOWN):
                for name in entry["seconds"]:
                    entry["seconds"][name] = {"1": 1e-9 if name == "simd" else 1e-3, "4": 1e-9 if name == "simd" else 1e-3}

    edit(tuning, rows_are_quick)
    found, output = compiled(workspace, tsc, "--tuning", "tuning.json")
    assert modelled["Layer.linear_5"] == "simd_panels"
    assert found["Layer.linear_5"] == "simd"
    total = re.search(r"^kernels of (\d+) of (\d+) calls chosen by measurement$", output, re.MULTILINE)
    assert total is not None
    digest = hashlib.sha256(tuning.read_bytes()).hexdigest()
    manifest = json.loads((workspace / "tiny.tsa" / "manifest.json").read_text())
    assert manifest["tuning"] == {"sha256": digest, "calls": int(total[1])}
    assert int(total[1]) == int(total[2])
    assert greedy(workspace / "tiny.tsa") == tokens
    first = tree(workspace / "tiny.tsa")
    compiled(workspace, tsc, "--tuning", "tuning.json")
    assert tree(workspace / "tiny.tsa") == first
    assert compiled(workspace, tsc, "--no-tuning")[0] == modelled


@NATIVE
@pytest.mark.parametrize(
    ("rows", "panels", "kernel"),
    [
        ({"1": 1e-5}, {"1": 1e-4, "512": 1e-4}, "simd"),  # quicker in steps of one, which both have
        ({"1": 1e-4}, {"1": 1e-5, "512": 1e3}, "simd_panels"),
        ({"1": 1e-9}, {"4": 1e-3}, "simd_panels"),  # none in common: as the model has it
    ],
)
def test_layouts_are_compared_in_steps_of_the_sizes_that_all_were_measured_at(
    rows: dict[str, float], panels: dict[str, float], kernel: str, workspace: Path, tuning: Path, tsc: Tsc
) -> None:
    def change(tuning: Tuning) -> None:
        for entry in tuning["calls"]:
            if entry["call"].startswith(DOWN):
                entry["seconds"] = dict.fromkeys(entry["seconds"], panels if "in panels" in entry["call"] else rows)

    edit(tuning, change)
    assert compiled(workspace, tsc, "--tuning", "tuning.json")[0]["Layer.linear_5"] == kernel


@NATIVE
def test_the_table_compares_the_sizes_that_all_were_measured_at(tuning: Path, tsc: Tsc) -> None:
    def change(tuning: Tuning) -> None:
        for entry in tuning["calls"]:
            if entry["call"].startswith(DOWN):
                for name in entry["seconds"]:
                    entry["seconds"][name] = {"1": 1e-4, "4": 1e-4, "512": 1e3} if name == "simd_panels" else {"1": 1e-3, "4": 1e-3}

    edit(tuning, change)
    code, output = tsc(*TUNE, "-o", "tuning.json")
    assert code == 0
    lines = output.splitlines()
    [first] = [i for i, line in enumerate(lines) if re.match(r"\s*linear f32\[\?, 64\] f32\[32, 64\] ", line)]
    assert re.search(r" simd_panels .* 1\.00x", lines[first]), output
    assert re.search(r" simd .* 10\.00x", lines[first + 1]), output


@NATIVE
def test_no_measurement_lets_a_kernel_in_whose_bits_depend_on_the_company(workspace: Path, tuning: Path, tsc: Tsc) -> None:
    modelled, _ = compiled(workspace, tsc)

    def torch_is_quick(tuning: Tuning) -> None:
        for entry in tuning["calls"]:
            for name in entry["seconds"]:
                entry["seconds"][name] = {"1": 1e-12 if name == "torch" else 1e-3}

    edit(tuning, torch_is_quick)
    found, output = compiled(workspace, tsc, "--tuning", "tuning.json")
    assert "chosen by measurement" in output
    assert set(found.values()) == set(modelled.values())
    assert "torch" not in found.values()


@pytest.mark.slow
def test_a_compilation_finds_what_was_measured_here(workspace: Path, tsc: Tsc, cache: Path) -> None:
    modelled, output = compiled(workspace, tsc)
    assert "measurement" not in output
    key = tsc("compile", *OPTIONS, "--key")[1]
    assert json.loads(key)["tuning"] == "none"
    assert tsc(*TUNE)[0] == 0
    assert cache.is_file()
    assert "chosen by measurement" in compiled(workspace, tsc)[1]
    assert json.loads(tsc("compile", *OPTIONS, "--key")[1])["tuning"] == hashlib.sha256(cache.read_bytes()).hexdigest()
    assert tsc("compile", *OPTIONS, "--key", "--no-tuning")[1] == key
    assert compiled(workspace, tsc, "--no-tuning")[0] == modelled
    shapes = ("--shape", "f32[T, 64]", "--shape", "f32[32, 64]")
    assert "torch        measured " in tsc("kernels", "why", "linear", *shapes)[1]
    assert "torch        predicted " in tsc("kernels", "why", "linear", *shapes, "--no-tuning")[1]
    assert "measurement" not in compiled(workspace, tsc, "--target", "cpu+")[1]


def _other_machine(tuning: Tuning) -> None:
    tuning["machine"]["processor"] = "Abacus"


def _other_kernels(tuning: Tuning) -> None:
    tuning["versions"]["torch"] = "1.0"


def _split_lines(tuning: Tuning) -> None:
    tuning["machine"]["processor"] = "Aba\ncus\u2028"


def _split_versions(tuning: Tuning) -> None:
    tuning["versions"]["kernels"] = "a\r\nb"


def _other_format(tuning: Tuning) -> None:
    tuning["format"] = 99


def _not_seconds(tuning: Tuning) -> None:
    tuning["calls"][0]["seconds"]["torch"]["1"] = 0


REFUSED = [
    (_other_machine, r"was measured on another machine \(Abacus, \d+ cores, cpu\S*; this is .*\)"),
    (_other_kernels, r"was measured with other kernels \(kernels (\w+) with torch 1.0; these are kernels \1 with torch .*\)"),
    (_other_format, "is of format 99, this is for format 1"),
    (_not_seconds, r"is no tuning file \(Expected `float` >= 1e-12.*\)"),
    (_split_lines, r"was measured on another machine \(Aba cus , \d+ cores, cpu\S*; this is .*\)"),
    (_split_versions, r"was measured with other kernels \(kernels a b with torch .*; these are .*\)"),
    (lambda tuning: tuning.clear(), r"is no tuning file \(Object missing required field `format`\)"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_a_file_that_does_not_fit_is_ignored_where_found_and_refused_where_named(
    change: Callable[[Tuning], None], reason: str, workspace: Path, tuning: Path, tsc: Tsc, cache: Path
) -> None:
    modelled, _ = compiled(workspace, tsc, "--no-tuning")
    edit(tuning, change)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(tuning.read_bytes())
    found, output = compiled(workspace, tsc)
    assert found == modelled
    end = "; measure again with `tsc tune`"
    assert re.search(f"^note: measurements are ignored: {re.escape(str(cache))}: {reason}{end}$", output, re.MULTILINE), output
    assert "chosen by" not in output
    for command, option in (("compile", "--tuning"), ("tune", "--output")):
        code, output = tsc(command, *OPTIONS, option, "tuning.json")
        assert code == 1
        assert re.match(rf"error\[TS0510\]: {option}: tuning\.json: {reason}{end}\n", output), output


@pytest.mark.slow
def test_a_file_that_does_not_fit_is_begun_anew(workspace: Path, tuning: Path, tsc: Tsc, cache: Path) -> None:
    edit(tuning, _other_machine)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(tuning.read_bytes())
    code, output = tsc(*TUNE, "--tokens", "1")
    assert code == 0
    assert f"note: measuring all anew: {cache}: " in output
    new, calls = measured(output)
    assert new == calls
    assert "note" not in compiled(workspace, tsc)[1]
    assert tsc(*TUNE, "--tokens", "1", "-o", "tuning.json", "--again")[0] == 0
    assert json.loads(tuning.read_text())["machine"] == json.loads(cache.read_text())["machine"]


GIVE = "; give a file that `tsc tune` has written"


def test_what_can_not_be_measured_is_told_in_one_line(workspace: Path, tsc: Tsc) -> None:
    code, output = tsc("compile", *OPTIONS, "--tuning", "nowhere.json", "-o", "tiny.tsa")
    assert (code, output) == (1, f"error[TS0510]: --tuning: nowhere.json: can not be read (No such file or directory){GIVE}\n")
    code, output = tsc("compile", *OPTIONS, "--tuning", "checkpoint", "-o", "tiny.tsa")
    assert (code, output) == (1, f"error[TS0510]: --tuning: checkpoint: can not be read (Is a directory){GIVE}\n")
    for tokens in ("", "0", "1,x", "-1", "²", "1,65537", "5000000000", "9" * 23, "9" * 5000):
        code, output = tsc("tune", *OPTIONS, "--tokens", tokens)
        assert code == 2
        assert f"--tokens: '{tokens}' is no list of numbers from 1 to 65,536, as in 1,8,64,512" in output
    code, output = tsc("compile", *OPTIONS, "--tuning", "tuning.json", "--target", "cpu+avx2", "-o", "tiny.tsa")
    assert code == 1
    assert "can only be of this machine" in output
    code, output = tsc("tune", *OPTIONS, "--tokens", "1", "-o", "llama.ts/tuning.json")
    assert (code, output) == (3, "error: --output: llama.ts/tuning.json: can not be written (File exists); give another --output\n")
    for again in ((), ("--again",)):
        for folder in ("checkpoint", "/"):
            code, output = tsc("tune", *OPTIONS, "--tokens", "1", "-o", folder, *again)
            assert (code, output) == (1, f"error[TS0510]: --output: {folder}: is a directory; give another --output\n")
