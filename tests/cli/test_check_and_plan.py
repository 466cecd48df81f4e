"""`tsc check`, `plan`, `fmt` and `explain`: what is right passes, and wrong input is one clear message with exit code 1."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tests.cli.conftest import Tsc
from tests.cli.tiny import CONFIG, ROOT

from tsc.cli import main

MODELS = sorted((ROOT / "models").glob("*.ts"))
GEMMA = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2, "query_pre_attn_scalar": 4}
MIXTURE = {
    "num_experts": 16,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_routed_experts": 16,
    "shared_expert_intermediate_size": 32,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "head_dim": 8,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
}

HEAD = """config {
  V   = vocab_size
  D   = hidden_size
  F   = intermediate_size
  K   = num_key_value_heads
  eps = rms_norm_eps
}

mesh { tp }

"""
MLP = """module MLP(x: [T, D]) -> [T, D | sum tp] {
  weight up:   [F@tp, D] = "up_proj.weight"
  weight down: [D, F@tp] = "down_proj.weight"
  return linear(silu(linear(x, up)), down)
}

"""
ENTRY = """entry decode(ids: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V@tp, D] = "embed_tokens.weight"
  weight norm:  [D]       = "norm.weight"
  let x = MLP<"mlp">(embedding(ids, embed))
  return rms_norm(x[last], norm, eps)
}
"""
MODEL = HEAD + MLP + ENTRY
PINNED = """  let h: TYPE = linear(x, up)
  return linear(silu(h), down)"""


@pytest.fixture
def check(workspace: Path, tsc: Tsc) -> Tsc:
    """`tsc check` of a text, with options."""

    def run(text: str, *options: str) -> tuple[int, str]:
        (workspace / "model.ts").write_text(text, encoding="utf-8")
        return tsc("check", "model.ts", *options)

    return run


# --- what is right ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tp", [None, 2, 8])
@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("model", MODELS, ids=lambda p: p.stem)
def test_the_bundled_models_check_with_and_without_sizes(model: Path, with_config: bool, tp: int | None, workspace: Path, tsc: Tsc) -> None:
    (workspace / "config.json").write_text(json.dumps(CONFIG | GEMMA | MIXTURE))
    options = ["--config", "config.json"] * with_config + ["--mesh", f"tp={tp}"] * (tp is not None)
    code, output = tsc("check", str(model), *options)
    assert code == 0, output
    mesh = f"mesh tp={tp}" if tp else "any mesh"
    modules = len(re.findall(r"^(module|entry) ", model.read_text(), re.MULTILINE))
    assert output == f"{model}: {modules} modules check ({'config config.json' if with_config else 'any config'}; {mesh})\n"


def test_the_model_of_these_tests_checks(check: Tsc) -> None:
    assert check(MODEL, "--config", "checkpoint", "--mesh", "tp=4")[0] == 0


def test_check_and_plan_do_not_load_torch() -> None:
    code = """
import sys
from tsc.cli import main
for arguments in (
    "check models/llama.ts",
    "plan models/llama.ts --config examples/parallel_block/config.json --mesh tp=4",
    "fmt --check models/llama.ts",
):
    main(arguments.split(), standalone_mode=False)
print(sorted({"torch", "numpy", "gguf", "safetensors", "tokenizers"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.endswith("\n[]\n"), run.stdout + run.stderr


def test_the_bundled_models_are_formatted(tsc: Tsc) -> None:
    assert tsc("fmt", "--check", *map(str, MODELS)) == (0, "")


def test_fmt_formats_in_place_and_then_has_nothing_to_do(workspace: Path, tsc: Tsc) -> None:
    path = workspace / "model.ts"
    path.write_text(MODEL.replace("  weight norm:  [D] ", "  weight norm: [ D ] "))
    assert tsc("fmt", "--check", "model.ts") == (1, "would format model.ts\n")
    assert tsc("fmt", "model.ts") == (0, "formatted model.ts\n")
    assert path.read_text() == MODEL
    assert tsc("fmt", "model.ts", "--check") == (0, "")


def test_fmt_leaves_a_file_alone_that_does_not_parse(workspace: Path, tsc: Tsc) -> None:
    (workspace / "model.ts").write_text("module X {")
    code, output = tsc("fmt", "model.ts")
    assert (code, (workspace / "model.ts").read_text()) == (1, "module X {")
    assert "error[TS01" in output


def test_explain_prints_the_page(tsc: Tsc) -> None:
    code, output = tsc("explain", "TS0207")
    assert code == 0
    assert output.startswith("# TS0207: an axis does not divide a factor\n")


def test_explain_of_an_unknown_code_offers_near_ones(tsc: Tsc) -> None:
    code, output = tsc("explain", "TS020")
    assert code == 1
    assert "there is no error code `TS020`; did you mean `TS0" in output


# --- plan ------------------------------------------------------------------------------------------------------------

PLAN = ("plan", "llama.ts", "--config", "checkpoint", "--mesh", "tp=4")


def test_a_plan_as_json_is_the_same_twice(workspace: Path, tsc: Tsc) -> None:
    code, output = tsc(*PLAN, "--json")
    assert code == 0
    plan = json.loads(output)
    assert plan
    assert tsc(*PLAN, "--json") == (0, output)


def test_a_plan_lists_the_collectives_and_explains_each(workspace: Path, tsc: Tsc) -> None:
    code, table = tsc(*PLAN)
    assert code == 0
    ids = [line.split()[0] for line in table.splitlines() if line.startswith("C") and line[1].isdigit()]
    assert ids == ["C1", "C2", "C3", "C4"]
    assert "2 all_reduce" in table
    for id in ids:
        code, text = tsc(*PLAN, "--explain", id)
        assert code == 0
        assert text.startswith(f"{id}: ")
        assert "the value is made here: llama.ts:" in text
        assert "forced here" in text


def test_one_rank_needs_no_collective(workspace: Path, tsc: Tsc) -> None:
    code, table = tsc("plan", "llama.ts", "--config", "checkpoint", "--mesh", "tp=1")
    assert code == 0
    assert "no collectives" in table


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_a_syntax_error_has_a_caret(check: Tsc) -> None:
    code, output = check(MODEL.replace("silu(linear(x, up))", "silu(linear(x up))"))
    assert code == 1
    assert output.startswith("model.ts:14:31: error[TS01")
    assert output.splitlines()[1:3] == ["  14 |   return linear(silu(linear(x up)), down)", "     |                               ^^"]


def test_a_typescript_file_is_told_apart(check: Tsc) -> None:
    code, output = check('import { readFileSync } from "fs"\n\nexport function main(): void {}\n')
    assert code == 1
    assert "error[TS0103]: this is TypeScript" in output


def test_an_unknown_op_offers_the_near_one(check: Tsc) -> None:
    code, output = check(MODEL.replace("silu(", "sillu("))
    assert code == 1
    assert "error[TS0202]: there is no op or module `sillu`; did you mean `silu`?" in output
    assert len(output.splitlines()) == 3


def test_a_shape_mismatch_shows_both_places(check: Tsc) -> None:
    code, output = check(MODEL.replace("[D, F@tp]", "[F@tp, D]"))
    assert code == 1
    assert "error[TS0204]: `linear` contracts the last dimension of its weight, D, and the value [T, F] does not end in that" in output
    assert "note: [T, F] comes from here (model.ts:14:17)" in output
    assert "note: `down` is declared here as [F, D] (model.ts:13:3)" in output


def test_a_weight_that_would_be_gathered_is_an_error_with_a_checked_fix(check: Tsc) -> None:
    wrong = MODEL.replace("weight norm:  [D]   ", "weight norm:  [D@tp]")
    code, output = check(wrong, "--config", "checkpoint", "--mesh", "tp=4")
    assert code == 1
    assert "error[TS0302]: weight `norm` is [D@tp], and `rms_norm` would have to gather it to [D] at run time" in output
    assert "fix: declare `weight norm: [D]` (checked; 4 x the bytes of this weight on each rank, no collective)" in output
    assert check(MODEL, "--config", "checkpoint", "--mesh", "tp=4")[0] == 0


def test_a_pin_that_cannot_hold_is_an_error(check: Tsc) -> None:
    pinned = MODEL.replace("  return linear(silu(linear(x, up)), down)", PINNED.replace("TYPE", "[T, F | max tp]"))
    code, output = check(pinned)
    assert code == 1
    assert "error[TS0303]: `h` is [T, F@tp], and cannot become [T, F | max tp]" in output
    assert "fix: drop the type: `h` is then [T, F@tp] (checked)" in output


def test_a_pin_that_holds_is_kept(check: Tsc) -> None:
    pinned = MODEL.replace("  return linear(silu(linear(x, up)), down)", PINNED.replace("TYPE", "[T, F]"))
    assert check(pinned, "--deny", "all_reduce")[0] == 1
    assert check(pinned)[0] == 0


@pytest.mark.parametrize(("mesh", "fix"), [("tp=6", "tp=4"), ("tp=12", "tp=8"), ("tp=3", "tp=2"), ("tp=128", "tp=64")])
def test_a_mesh_that_does_not_divide_offers_the_largest_that_checks(mesh: str, fix: str, check: Tsc) -> None:
    code, output = check(MODEL.replace("V@tp", "V").replace("norm.weight", "n.weight"), "--config", "checkpoint", "--mesh", mesh)
    assert code == 1
    assert "error[TS0207]: axis `tp` has" in output
    assert f"fix: run with --mesh {fix} (checked)" in output
    assert f"`F` is intermediate_size, 64 in this config; `tp` is {mesh[3:]} from --mesh" in output


def test_an_axis_that_is_part_of_a_product_is_mended_at_the_product(workspace: Path, tsc: Tsc) -> None:
    code, output = tsc("check", "llama.ts", "--config", "checkpoint", "--mesh", "tp=32")
    assert code == 1
    assert "error[TS0207]: axis `q` has 16 ranks and cannot split `G`, which is 4" in output
    assert "`q` is a part of `tp`, and `tp` is 32 from --mesh" in output
    assert "fix: run with --mesh tp=8 (checked)" in output
    assert tsc("check", "llama.ts", "--config", "checkpoint", "--mesh", "tp=8")[0] == 0


def test_without_a_size_that_checks_no_fix_is_offered(check: Tsc) -> None:
    broken = MODEL.replace("weight norm:  [D]  ", "weight norm:  [7@tp]").replace("V@tp", "V")
    code, output = check(broken, "--config", "checkpoint", "--mesh", "tp=4")
    assert code == 1
    assert "fix:" not in output


def test_heads_that_repeat_are_offered_as_a_product(check: Tsc) -> None:
    attention = """module MLP(x: [T, D]) -> [T, D] {
  weight up:   [(K@tp, 4), D] = "up_proj.weight"
  weight down: [D, (K@tp, 4)] = "down_proj.weight"
  return linear(silu(linear(x, up)), down)
}

"""
    code, output = check(HEAD + attention + ENTRY, "--config", "checkpoint", "--mesh", "tp=4")
    assert code == 1
    fix = "let `K` repeat over a part of `tp`: mesh { tp = kv * q where kv = gcd(K, tp) }, and `K@kv` for each `K@tp` (checked)"
    assert f"fix: {fix}" in output
    mended = (HEAD + attention + ENTRY).replace("mesh { tp }", "mesh { tp = kv * q where kv = gcd(K, tp) }").replace("K@tp", "K@kv")
    assert check(mended, "--config", "checkpoint", "--mesh", "tp=4")[0] == 0


def test_an_unknown_mesh_axis_names_those_there_are(workspace: Path, tsc: Tsc) -> None:
    message = "error[TS0211]: --mesh: there is no axis `tpp`; the model's mesh has tp; did you mean `tp`?\n"
    assert tsc("check", "llama.ts", "--mesh", "tpp=2") == (1, message)


@pytest.mark.parametrize("mesh", ["tp", "tp=", "tp=0", "tp=99999999999999999999", "tp=２", "tp=-1", "tp=two", "tp=2,tp=4", "tp=2.0"])
def test_a_mesh_that_is_no_mesh(mesh: str, workspace: Path, tsc: Tsc) -> None:
    code, output = tsc("check", "llama.ts", "--mesh", mesh)
    assert code == 1
    assert output.startswith(("error[TS0211]: --mesh: `tp", "error[TS0211]: --mesh: axis `tp` is given twice"))
    assert len(output.splitlines()) == 1


def test_a_strict_module_has_no_collective(check: Tsc) -> None:
    assert check(MODEL.replace("| sum tp] {", "| sum tp] strict {"))[0] == 0
    code, output = check(MODEL.replace("[T, D | sum tp] {", "[T, D] strict {"))
    assert code == 1
    assert "error[TS0304]: `MLP` is strict, and `linear` [T, D | sum tp] would need all_reduce" in output
    assert "fix: declare `MLP(...) -> [T, D | sum tp]` (checked)" in output


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather"])
def test_a_denied_collective_that_is_needed(kind: str, workspace: Path, tsc: Tsc) -> None:
    code, output = tsc("check", "llama.ts", "--mesh", "tp=2", "--config", "checkpoint", "--deny", kind)
    assert code == 1
    assert f"needs a collective that is denied ({kind})" in output
    assert "TS0303" not in output


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("x[last]", "x[last] / 0"), "TS0210"),
        (("norm, eps)", 'norm, "small")'), "TS0210"),
        (("norm, eps)", "norm, eps, offset = none)"), "TS0210"),
        (("let x = MLP", "for i in 0..2 carry x { x = x }\n  let x = MLP"), "TS0201"),
        (("  return rms", "  for i in 0..2.5 carry x { x = x }\n  return rms"), "TS0210"),
        (("  return rms", "  for i in 0..D / 3 carry x { x = x }\n  return rms"), "TS0210"),
        (("mesh { tp }", "mesh { tp = a * b where a = K / 4 }"), "TS0211"),
        (("mesh { tp }", "mesh { tp = a * b }"), "TS0211"),
        (("x[last]", "(x - x)[last]"), "TS0206"),
        (("norm, eps)", "norm, -x)"), "TS0206"),
        (("  return rms", "  let y = x\n  for i in 0..2 carry x { y = x + x }\n  return rms"), "TS0214"),
        (("module MLP(x: [T, D])", "module MLP(x: [(T, D)])"), "TS0204"),
        (("ids: i32[T]", "tokens: i32[T]"), "TS0205"),
        (("ids: i32[T]", "ids: i32[T | sum tp]"), "TS0215"),
        (("weight norm:  [D]", "weight norm:  [D | max tp]"), "TS0215"),
        (("weight norm:  [D]", "weight norm:  [D | sum tp]"), "TS0302"),
        (("module MLP(x: [T, D])", "module MLP(x: [S@tp, D])"), "TS0215"),
        (("rms_norm(x[last], norm, eps)", "rms_norm(x[last], norm, hidden)"), "TS0201"),
    ],
)
def test_what_cannot_be_is_a_finding_and_no_crash(change: tuple[str, str], code: str, check: Tsc) -> None:
    exit_code, output = check(MODEL.replace(*change), "--config", "checkpoint", "--mesh", "tp=2")
    assert exit_code == 1, output
    assert f"error[{code}]" in output, output


def test_a_file_that_is_not_there(workspace: Path, tsc: Tsc) -> None:
    code, output = tsc("check", "lama.ts")
    assert code == 1
    assert output == "error[TS0115]: cannot read `lama.ts`: no such file or directory; did you mean `llama.ts`?\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["check"],
        ["check", "llama.ts", "--nonsense"],
        ["check", "llama.ts", "--deny", "everything"],
        ["plan", "llama.ts", "--tokens", "0"],
        ["plan", "llama.ts", "--dtype", "f8"],
        ["compile"],
        ["fmt"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], workspace: Path, tsc: Tsc) -> None:
    code, output = tsc(*arguments)
    assert code == 2
    assert "Usage: tsc" in output


def test_debug_shows_a_traceback_and_nothing_else_does(workspace: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tsc", *arguments], cwd=workspace, capture_output=True, text=True, check=False)

    plain = run("check", "none.ts")
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr == "error[TS0115]: cannot read `none.ts`: no such file or directory\n"
    for arguments in (["--debug", "check", "none.ts"], ["check", "none.ts", "--debug"]):
        debug = run(*arguments)
        assert debug.returncode == 1
        assert "Traceback (most recent call last):" in debug.stderr
        assert "CompileError: error[TS0115]" in debug.stderr


def _commands(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*names, name)
        if isinstance(command, click.Group):
            yield from _commands(command, *names, name)


def test_every_command_takes_debug(tsc: Tsc) -> None:
    every = list(_commands(main))
    assert ("kernels", "why") in every
    assert [names for names in every if "--debug" not in tsc(*names, "--help")[1]] == []


def test_check_begins_with_the_entry_that_is_named(workspace: Path, tsc: Tsc) -> None:
    for name in ("decode", "embed"):
        assert tsc("check", "llama.ts", "--entry", name) == (0, "llama.ts: 5 modules check (any config; any mesh)\n")
    code, output = tsc("check", "llama.ts", "--entry", "encode")
    assert code == 1
    assert "error[TS0213]: --entry: there is no entry `encode`; the file has `decode`, `embed`" in output


# --- rope scalings that depend on the longest sequence ---------------------------------------------------------------


@pytest.fixture
def longrope(workspace: Path) -> Path:
    """Of a model whose long factors are one too few."""
    scaling = {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0]}
    config = CONFIG | {"rope_scaling": scaling, "original_max_position_embeddings": 32}
    (workspace / "long.json").write_text(json.dumps(config))
    return workspace / "long.json"


@pytest.mark.parametrize("command", [["check"], ["plan"], ["simulate", "--mesh", "tp=2"]])
def test_every_command_takes_the_factors_of_the_longest_sequence(command: list[str], longrope: Path, tsc: Tsc) -> None:
    arguments = [*command, "llama.ts", "--config", longrope.name]
    for more in ([], ["--context", "33"]):
        code, output = tsc(*arguments, *more)
        assert code == 1
        assert "error[TS0210]: `long_factor` of longrope has a number for each of 2 pairs, and these are 1" in output
    code, output = tsc(*arguments, "--context", "32")
    assert code == 0, output
    assert "note" not in output


@pytest.mark.parametrize("command", [["check"], ["plan"], ["simulate", "--mesh", "tp=2"]])
def test_a_context_that_changes_nothing_is_said(command: list[str], workspace: Path, tsc: Tsc) -> None:
    code, output = tsc(*command, "llama.ts", "--config", "checkpoint", "--context", "32")
    assert code == 0, output
    assert output.startswith("note: --context 32 changes nothing: the rope of checkpoint is the same for sequences of any length\n")


def test_a_context_without_a_config_is_wrong_usage(workspace: Path, tsc: Tsc) -> None:
    code, output = tsc("check", "llama.ts", "--context", "32")
    assert code == 2
    assert "--context is about the rope scaling of a config: give --config" in output


# --- sizes that are a mistake ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, GEMMA | {"model_type": "gemma3_text", "layer_types": None}], ids=["llama", "gemma3"])
def test_a_config_of_a_billion_layers_is_refused_in_one_line(changes: dict[str, object], workspace: Path, tsc: Tsc) -> None:
    (workspace / "deep.json").write_text(json.dumps(CONFIG | changes | {"num_hidden_layers": 10**9}))
    for arguments in (["check", "llama.ts", "--config", "deep.json"], ["new", "deep.json"], ["compile", "--config", "deep.json"]):
        code, output = tsc(*arguments)
        assert code == 1
        message = "error[TS0210]: deep.json: `num_hidden_layers` is 1,000,000,000, and a model has at most 4,096 layers\n"
        assert message in output


def test_loops_of_a_billion_rounds_and_stacks_of_a_billion_weights_are_refused(check: Tsc, workspace: Path) -> None:
    (workspace / "config.json").write_text(json.dumps(CONFIG | {"blocks": 10**9, "experts": 10**9}))
    loop = '  for i in 0..blocks carry x { x = MLP<"mlp">(x) }\n  return rms_norm'
    code, output = check(MODEL.replace("  return rms_norm", loop), "--config", "config.json")
    assert code == 1
    assert "error[TS0210]: a module's loops have at most 4,096 rounds, and this makes 1,000,000,000" in output
    nested = '  for i in 0..4096 carry x { for j in 0..2 carry x { x = MLP<"mlp">(x) } }\n  return rms_norm'
    code, output = check(MODEL.replace("  return rms_norm", nested), "--config", "config.json")
    assert code == 1
    assert "error[TS0210]: a module's loops have at most 4,096 rounds, and this makes 4,098" in output
    stacked = MODEL.replace("  V   = vocab_size\n", "  V   = vocab_size\n  N   = experts\n")
    stacked = stacked.replace(
        '  weight down: [D, F@tp] = "down', '  weight many: [N, D] = "many.{N}.weight"\n  weight down: [D, F@tp] = "down'
    )
    code, output = check(stacked, "--config", "config.json")
    assert code == 1
    assert "error[TS0210]: a weight is at most 65,536 of the checkpoint's tensors, and `N` is 1,000,000,000" in output


UNCALLED = """config { D = hidden_size  V = vocab_size  F = intermediate_size }
mesh { tp }

module Spare(x: [T, D], wide) -> [T, D | sum tp] {
  weight up:   [F@tp, D] = "up"
  weight down: [D, F@tp] = "down"
  if wide { let y = linear(x, up) } else { let y = linear(x, up) * 2.0 }
  return %s
}

entry decode(ids: i32[T], last: i32[S]) -> [S, V] {
  weight embed: [V, D] = "embed"
  return linear(embedding(ids, embed)[last], embed)
}
"""


def test_modules_that_nothing_calls_are_checked_too(workspace: Path, tsc: Tsc) -> None:
    Path("right.ts").write_text(UNCALLED % "linear(y, down)")
    assert tsc("check", "right.ts") == (0, "right.ts: 2 modules check (any config; any mesh)\n")
    Path("wrong.ts").write_text(UNCALLED % "linear(silu(linear(y, down)), up)")
    code, output = tsc("check", "wrong.ts")
    assert code == 1
    assert "`Spare` returns [T, F], and declares [T, D]" in output
