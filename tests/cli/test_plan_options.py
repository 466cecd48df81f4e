"""`tsc plan` beside the table: by step size, beside another plan, and boundaries that would be cheaper."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from tests.cli.conftest import Tsc
from tests.cli.tiny import ROOT

from tsc.front import ModelSource, place_model, read_model
from tsc.parser import parse
from tsc.spans import Source
from tspasses.alternatives import alternatives
from tspasses.placed import Options
from tspasses.plan import plan_of
from tspasses.plan_set import plan_set
from tspasses.suggest import suggestions

CONFIG = ROOT / "examples" / "token_sharded" / "config.json"
SHARDED = ROOT / "examples" / "token_sharded" / "token_sharded.ts"
LLAMA = ROOT / "models" / "llama.ts"
LAYER = "module Layer(x: [T, D], positions: i32[T]) -> [T, D]"
PARALLEL = ROOT / "examples" / "parallel_block" / "parallel.ts"


def plan(tsc: Tsc, model: Path, *options: str) -> str:
    code, output = tsc("plan", str(model), "--config", str(CONFIG), "--mesh", "tp=4", *options)
    assert code == 0, output
    return output


def test_thresholds_between_plans_are_exact() -> None:
    config = json.loads(CONFIG.read_text())
    placed = place_model(read_model(SHARDED), config, {"tp": 4}, Options())
    buckets = plan_set(placed.typed, placed.options)
    assert buckets[0].first == 1
    assert [b.last + 1 for b in buckets[:-1]] == [b.first for b in buckets[1:]]
    assert len(buckets) > 2

    def transitions(tokens: int) -> object:
        found = place_model(read_model(SHARDED), config, {"tp": 4}, Options(tokens=tokens))
        return [(i.id, i.kind, i.before, i.after, i.span) for i in plan_of(found).items]

    for before, bucket in itertools.pairwise(buckets):
        assert transitions(bucket.first - 1) == transitions(before.first)
        assert transitions(bucket.first) != transitions(before.first)
    assert transitions(65536) == transitions(buckets[-1].first)


def test_plans_by_step_size(workspace: Path, tsc: Tsc) -> None:
    lines = plan(tsc, SHARDED, "--by-tokens").splitlines()
    assert lines[0].split("  ")[0] == "tokens a step"
    assert lines[1].startswith("1 to ")
    assert "and more" in lines[-1]
    _, few, many = plan(tsc, LLAMA, "--by-tokens").splitlines()
    assert re.search(r" 65 all_reduce, 1 all_gather +532,480 ", few)
    assert re.search(r" 64 reduce_scatter, 1 all_reduce, 65 all_gather +1,056,768 ", many)  # norms run on a rank's own rows


def test_a_plan_beside_another(workspace: Path, tsc: Tsc) -> None:
    Path("llama.json").write_text(plan(tsc, LLAMA, "--json"))
    assert plan(tsc, LLAMA, "--diff", "llama.json") == "the same collectives as llama.json: 532,480 bytes a token, 256,512 a sequence\n"
    assert tsc("plan", str(LLAMA), "--config", str(CONFIG), "--mesh", "tp=4", "--diff", "llama.json", "--exit-code")[0] == 0
    assert tsc("plan", str(PARALLEL), "--config", str(CONFIG), "--mesh", "tp=4", "--diff", "llama.json", "--exit-code")[0] == 1
    removed, total = plan(tsc, PARALLEL, "--diff", "llama.json").splitlines()
    assert removed == "- 32 x Layer: all_reduce tp bf16[T, D | sum tp] -> bf16[T, D], 8,192 B/token"
    assert total == "bytes a token 532,480 -> 270,336; a sequence 256,512 -> 256,512; 66 -> 34 collectives a step"


@pytest.mark.parametrize("tokens", [1, 8192])
def test_a_suggested_boundary_saves_what_it_says(tokens: int) -> None:
    """Written into the file, the suggestion has the predicted time that was told."""
    config = json.loads(CONFIG.read_text())
    text = LLAMA.read_text()
    placed = place_model(read_model(LLAMA), config, {"tp": 4}, Options(tokens=tokens))
    before = plan_of(placed)
    found = suggestions(placed)
    assert bool(found) == (tokens > 1)
    for suggestion in found:
        assert (suggestion.module, suggestion.what, suggestion.now) == ("Layer", "result", "[T, D]")
        changed = text.replace(LAYER, LAYER.removesuffix("[T, D]") + suggestion.then)
        assert changed != text
        after = plan_of(place_model(_source(changed), config, {"tp": 4}, Options(tokens=tokens)))
        saved = before.step_seconds - after.step_seconds
        assert saved == pytest.approx(suggestion.seconds)
        assert saved > 0


def _source(text: str) -> ModelSource:
    source = Source("changed.ts", text)
    return ModelSource("changed", source, parse(source))


def test_suggestions_are_a_table(workspace: Path, tsc: Tsc) -> None:
    assert plan(tsc, LLAMA, "--suggest") == "no other boundary is cheaper at 1 tokens a step\n"
    lines = plan(tsc, LLAMA, "--suggest", "--tokens", "8192").splitlines()
    assert lines[0].startswith("module  of      declared  cheaper ")
    assert lines[-1] == "each alone, at 8192 tokens a step, links h100-nvlink (modelled)"


def test_options_that_exclude_each_other(workspace: Path, tsc: Tsc) -> None:
    code, output = tsc("plan", str(LLAMA), "--config", str(CONFIG), "--json", "--suggest")
    assert code == 2
    assert "give one of --json, --explain, --by-tokens, --diff, --html, --meshes and --suggest" in output


def test_the_bytes_of_weights(workspace: Path, tsc: Tsc) -> None:
    """Llama-3-8B has 8.03 billion parameters; its norms, (2 * 32 + 1) * 4096, are on every rank."""
    found = json.loads(plan(tsc, LLAMA, "--json"))
    norms = 2 * (2 * 32 + 1) * 4096
    whole = 2 * 8_030_261_248
    assert found["weight_bytes"] == (whole - norms) // 4 + norms
    assert found["weight_bytes_repeated"] == norms - norms // 4
    assert plan(tsc, LLAMA).splitlines()[-1] == "weights: 4.02 GB on each rank, 399,360 bytes of them repeated on others"


def test_what_was_rejected_is_told_with_its_price(workspace: Path, tsc: Tsc) -> None:
    """The residual could be kept on one rank and summed after it, which is as dear."""
    output = plan(tsc, LLAMA, "--explain", "C3")
    both = "all_reduce of `h`, all_reduce of `add` instead of all_reduce of `attention`, all_reduce of `mlp`"
    assert output.endswith(f"  rejected:\n    {both}: +0.0 us, +0 B/token\n"), output
    output = plan(tsc, LLAMA, "--explain", "C2")
    assert output.endswith("  rejected: nothing, since no plan of the module does without it\n")


def test_alternatives_never_cost_less_than_the_plan() -> None:
    config = json.loads(CONFIG.read_text())
    for model in (LLAMA, SHARDED, PARALLEL):
        for tokens in (1, 4096):
            placed = place_model(read_model(model), config, {"tp": 4}, Options(tokens=tokens))
            found = [
                a
                for name, instance in placed.instances.items()
                for t in instance.transitions
                for move in t.moves
                for a in alternatives(placed, name, t.value, move.kind)
            ]
            assert found
            assert min(a.seconds for a in found) > -1e-12


def test_a_split_of_a_weight_in_a_dimension_that_ranks_share_out_is_mended(workspace: Path, tsc: Tsc) -> None:
    """The message has the author's words, `split`, and a declaration that was tried, of a weight that is stored flat."""
    text = (ROOT / "models" / "deepseek_v3.ts").read_text()
    Path("wrong.ts").write_text(text.replace("(H@tp, U), C]", "(H, U@tp), C]"))
    code, output = tsc("check", "wrong.ts")
    assert code == 1
    assert "TS0302]: weight `kv_up` is [(H, U@tp), C], and `split` would have to move it to [(H@tp, U), C] at run time" in output
    assert output.rstrip().endswith("fix: declare `weight kv_up: [(H@tp, U), C]` (checked)")


def test_every_way_to_arrange_the_ranks_is_costed(workspace: Path, tsc: Tsc) -> None:
    config = str(ROOT / "examples" / "data_parallel" / "config.json")
    model = str(ROOT / "examples" / "data_parallel" / "data_parallel.ts")
    code, output = tsc("plan", model, "--config", config, "--mesh", "dp=4,tp=4", "--tokens", "64", "--meshes")
    assert code == 0
    rows = {line.split()[0]: line for line in output.splitlines()[1:-1]}
    assert set(rows) == {f"dp={n},tp={16 // n}" for n in (1, 2, 4, 8, 16)}
    assert re.search(r"16,384 B a rank +2 ", rows["dp=1,tp=16"])  # 8 K/V heads on 16 ranks: twice
    assert re.search(r"8,192 B a rank +1 ", rows["dp=16,tp=1"])
    alone = [tsc("plan", model, "--config", config, "--mesh", m, "--tokens", "64")[1] for m in rows]
    for row, plan in zip(rows.values(), alone, strict=True):
        bytes_a_token = re.search(r"a step: ([\d,]+) bytes a token", plan)
        assert bytes_a_token is not None
        assert f" {bytes_a_token[1]} " in row
    times = [float(row.split()[-2].replace(",", "")) for row in rows.values()]
    assert times == sorted(times)


def test_ranks_that_a_model_cannot_have_are_told_with_why(workspace: Path, tsc: Tsc) -> None:
    config = str(ROOT / "examples" / "data_parallel" / "config.json")
    code, output = tsc("plan", str(ROOT / "examples/data_parallel/data_parallel.ts"), "--config", config, "--mesh", "dp=64", "--meshes")
    assert code == 0
    assert re.search(r"dp=1,tp=64 +cannot be: axis `q` has 8 ranks and cannot split `G`, which is 4", output)
    code, output = tsc("plan", str(ROOT / "models/llama.ts"), "--config", config, "--mesh", "tp=1", "--meshes")
    assert (code, output.splitlines()[1].split()[0]) == (0, "tp=1")
