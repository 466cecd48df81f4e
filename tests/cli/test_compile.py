"""`tsc compile`: wrong input is one clear message, exit code 1, and nothing half-written; a full disk leaves the old artifact."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from tests.cli.conftest import Tsc
from tests.cli.tiny import LAYER, ROOT, SHAPES, write_checkpoint

import tsc.request as request_module

K_PROJ = LAYER + "self_attn.k_proj.weight"


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def fails(workspace: Path, tsc: Tsc, *arguments: str) -> str:
    """The output of a compilation that fails with 1 and changes nothing in the working directory."""
    before = tree(workspace)
    code, output = tsc("compile", *arguments)
    assert code == 1, output
    assert tree(workspace) == before
    return "".join(line for line in output.splitlines(keepends=True) if not line.startswith("compile: "))


def test_a_checkpoint_compiles_to_the_same_bytes_twice(workspace: Path, tsc: Tsc) -> None:
    for name in ("one", "two"):
        code, output = tsc("compile", "--weights", "checkpoint", "--mesh", "tp=4", "-o", f"{name}.tsa")
        assert code == 0, output
        assert output.endswith(f"wrote {name}.tsa\n")
    assert tree(workspace / "one.tsa") == tree(workspace / "two.tsa")
    assert sorted(p.name for p in (workspace / "one.tsa" / "weights").iterdir()) == [f"rank-0000{i}.safetensors" for i in range(4)]


def test_a_gguf_compiles_and_the_checkpoint_may_stand_in_the_models_place(workspace: Path, tsc: Tsc) -> None:
    assert tsc("compile", "tiny.gguf")[0] == 0
    assert json.loads((workspace / "tiny.tsa" / "manifest.json").read_text())["model"]["architecture"] == "LlamaForCausalLM"


def test_a_rope_scaling_that_depends_on_the_longest_sequence_is_told_it(workspace: Path, tsc: Tsc) -> None:
    """And no other model: one artifact of it serves sequences of any length."""
    scaling = {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
    write_checkpoint(workspace / "long", rope_scaling=scaling, original_max_position_embeddings=32)

    def divisors(*options: str) -> list[float]:
        code, output = tsc("compile", "--weights", "long", "--dtype", "f32", *options, "-o", "long.tsa")
        assert code == 0, output
        manifest = json.loads((workspace / "long.tsa" / "manifest.json").read_text())
        assert manifest["context"] == int((options or ("", "128"))[1])
        graphs = json.loads((workspace / "long.tsa" / "program.json").read_text())["graphs"].values()
        [found] = {tuple(n["attrs"]["parameters"][1:]) for graph in graphs for n in graph["nodes"] if n.get("op") == "ts::rope"}
        return list(found)

    assert divisors() == divisors("--context", "33") == [3.0, 4.0]
    assert divisors("--context", "32") == [1.0, 2.0]
    code, output = tsc("compile", "--weights", "checkpoint", "--context", "32", "-o", "short.tsa")
    assert code == 0
    assert "note: --context 32 changes nothing: the rope of checkpoint is the same for sequences of any length\n" in output
    for checkpoint, different in (("long", 2), ("checkpoint", 1)):
        keys = {tsc("compile", "--weights", checkpoint, *more, "--key")[1] for more in ([], ["--context", "32"])}
        assert len(keys) == different


def test_a_weight_of_rows_that_the_tensor_has_not_is_missed_and_so_are_rows_without_a_weight(workspace: Path, tsc: Tsc) -> None:
    (workspace / "parts.ts").write_text((workspace / "llama.ts").read_text().replace('"k_proj.weight"', '"kv_proj.weight" from 8'))
    shapes = {n.replace("k_proj", "kv_proj"): s for n, s in SHAPES.items()}
    write_checkpoint(workspace / "parts", shapes)
    output = fails(workspace, tsc, "parts.ts", "--weights", "parts", "-o", "tiny.tsa")
    tensor = LAYER + "self_attn.kv_proj.weight"
    assert f'error[TS0730]: weight "{tensor}[8:16]" is not in parts; did you mean `{tensor}[0:8]`?' in output
    assert f'error[TS0732]: parts has "{tensor}[0:8]" [8, 32], which no weight of the model names' in output
    write_checkpoint(workspace / "parts", shapes | {tensor: (16, 32)})
    output = fails(workspace, tsc, "parts.ts", "--weights", "parts", "-o", "tiny.tsa")
    assert f'error[TS0732]: parts has "{tensor}[0:8]" [8, 32], which no weight of the model names' in output
    assert "TS0730" not in output


def test_missing_and_unused_tensors_offer_each_other(workspace: Path, tsc: Tsc) -> None:
    write_checkpoint(workspace / "renamed", {n.replace("k_proj", "key_proj"): s for n, s in SHAPES.items()})
    output = fails(workspace, tsc, "--weights", "renamed", "-o", "tiny.tsa")
    other = LAYER + "self_attn.key_proj.weight"
    assert f'error[TS0730]: weight "{K_PROJ}" is not in renamed; did you mean `{other}`?' in output
    assert f'error[TS0732]: renamed has "{other}" [8, 32], which no weight of the model names; did you mean `{K_PROJ}`?' in output


def test_a_missing_tensor_is_found_before_anything_is_written(workspace: Path, tsc: Tsc) -> None:
    write_checkpoint(workspace / "cut", {n: s for n, s in SHAPES.items() if n != K_PROJ})
    output = fails(workspace, tsc, "llama.ts", "--weights", "cut", "-o", "tiny.tsa")
    assert output.startswith("llama.ts:27:3: error[TS0730]: ")
    assert "^^^" in output


def test_a_tied_head_may_be_missing_and_an_untied_one_may_not(workspace: Path, tsc: Tsc) -> None:
    assert tsc("compile", "--weights", "checkpoint", "-o", "tied.tsa")[0] == 0
    write_checkpoint(workspace / "untied", tie_word_embeddings=False)
    assert 'error[TS0730]: weight "lm_head.weight" is not in untied' in fails(workspace, tsc, "--weights", "untied", "-o", "untied.tsa")


def test_an_entry_without_a_head_needs_none_and_leaves_one_out(workspace: Path, tsc: Tsc) -> None:
    write_checkpoint(workspace / "headless", tie_word_embeddings=False)
    output = fails(workspace, tsc, "--weights", "headless", "-o", "tiny.tsa")
    assert "  fix: give --entry embed, which does without it\n" in output
    write_checkpoint(workspace / "untied", SHAPES | {"lm_head.weight": (64, 32)}, tie_word_embeddings=False)
    for name in ("headless", "untied"):
        assert tsc("compile", name, "--entry", "embed", "-o", f"{name}.tsa")[0] == 0
        manifest = json.loads((workspace / f"{name}.tsa/manifest.json").read_text())
        assert (manifest["gives"], manifest["embedding"], manifest["vocabulary"]) == ("embeddings", 32, 64)
    (one, other) = (tree(workspace / f"{name}.tsa/weights") for name in ("headless", "untied"))
    assert one == other


def test_a_decoder_may_be_stored_without_the_prefix_of_its_model(workspace: Path, tsc: Tsc) -> None:
    write_checkpoint(workspace / "bare", {n.removeprefix("model."): s for n, s in SHAPES.items()}, architectures=["LlamaModel"])
    for name in ("checkpoint", "bare"):
        assert tsc("compile", name, "--entry", "embed", "-o", f"{name}.tsa")[0] == 0
    assert tree(workspace / "bare.tsa/weights") == tree(workspace / "checkpoint.tsa/weights")


def test_an_entry_that_is_not_there_lists_those_that_are(workspace: Path, tsc: Tsc) -> None:
    output = fails(workspace, tsc, "checkpoint", "--entry", "encode", "-o", "tiny.tsa")
    assert output.splitlines()[0].endswith("error[TS0213]: --entry: there is no entry `encode`; the file has `decode`, `embed`")


def test_entries_are_kept_apart_in_the_cache_of_compilations(workspace: Path, tsc: Tsc) -> None:
    keys = [json.loads(tsc("compile", "checkpoint", *more, "--key")[1]) for more in ([], ["--entry", "decode"], ["--entry", "embed"])]
    assert [key["entry"] for key in keys] == ["decode", "decode", "embed"]


def test_a_wrong_shape_shows_both(workspace: Path, tsc: Tsc) -> None:
    write_checkpoint(workspace / "wide", SHAPES | {K_PROJ: (16, 32)})
    output = fails(workspace, tsc, "--weights", "wide", "-o", "tiny.tsa")
    assert f'error[TS0731]: weight "{K_PROJ}" is [(K, E), D] = [8, 32], and [16, 32] in wide' in output


def test_many_findings_are_cut_short(workspace: Path, tsc: Tsc) -> None:
    write_checkpoint(workspace / "other", {f"{n}_of_another": s for n, s in SHAPES.items()})
    output = fails(workspace, tsc, "--weights", "other", "-o", "tiny.tsa")
    assert output.count("error[") == 12
    assert "  note: 10 more tensors do not match\n" in output


def test_a_truncated_file_is_named_with_both_sizes(workspace: Path, tsc: Tsc) -> None:
    file = workspace / "checkpoint" / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    output = fails(workspace, tsc, "--weights", "checkpoint", "-o", "tiny.tsa")
    expected = f"error[TS0703]: checkpoint/model.safetensors: is truncated: {size} bytes expected, {size - 1} found\n"
    assert output == expected + "  fix: download it again\n"


@pytest.mark.parametrize("is_directory", [False, True])
def test_nothing_but_an_artifact_is_replaced(is_directory: bool, workspace: Path, tsc: Tsc) -> None:
    path = workspace / "notes.tsa"
    if is_directory:
        path.mkdir()
        path /= "notes.txt"
    path.write_text("notes")
    assert "is there already and is no artifact; it is not replaced" in fails(workspace, tsc, "--weights", "checkpoint", "-o", "notes.tsa")


def test_an_unknown_architecture_is_told_how_to_go_on(workspace: Path, tsc: Tsc) -> None:
    write_checkpoint(workspace / "mamba", architectures=["MambaForCausalLM"])
    output = fails(workspace, tsc, "--weights", "mamba", "-o", "tiny.tsa")
    assert output.startswith(
        "error[TS0501]: no bundled model file is for architecture MambaForCausalLM\n  fix: start one from the nearest: "
    )


@pytest.mark.parametrize("target", ["cuda", "cpu+sse9"])
def test_an_unsupported_target(target: str, workspace: Path, tsc: Tsc) -> None:
    output = fails(workspace, tsc, "--weights", "checkpoint", "--target", target, "-o", "tiny.tsa")
    assert output.startswith("error[TS0504]: --target: unknown ")
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["llama.ts", "-o", "tiny.tsa"], "error[TS0505]: the model's sizes are not known"),
        (["--weights", "checkpoint", "-o", "tiny"], "error[TS0503]: -o tiny: an artifact's name ends in .tsa"),
        (["--weights", "nowhere", "-o", "tiny.tsa"], "error[TS0701]: nowhere: there is no such file or directory"),
        (["--weights", "llama.ts", "-o", "tiny.tsa"], "error[TS0701]: llama.ts: is neither a directory nor a GGUF file"),
        (["--weights", "checkpoint", "--mesh", "tp=3", "-o", "tiny.tsa"], "/"),
        (["--weights", "checkpoint", "--mesh", "dp=3", "-o", "tiny.tsa"], "error[TS0211]: --mesh: there is no axis `dp`"),
    ],
)
def test_what_cannot_be_compiled_leaves_nothing(arguments: list[str], start: str, workspace: Path, tsc: Tsc) -> None:
    assert fails(workspace, tsc, *arguments).startswith(start)


# --- a full disk -----------------------------------------------------------------------------------------------------


def compile_in(folder: Path, weights: Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "tsc", "compile", "--weights", str(weights), "--dtype", "f32", "-o", "tiny.tsa"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, preexec_fn=limited)


@pytest.fixture
def disk(workspace: Path) -> Iterator[tuple[Path, int | None]]:
    """A folder on a disk of 256 KiB and no limit; without root an ordinary one, and a limit on the size of a file."""
    folder = workspace / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield folder, 120 << 10
        return
    yield folder, None
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_artifact_byte_for_byte(workspace: Path, disk: tuple[Path, int | None]) -> None:
    folder, limit = disk
    first = compile_in(folder, workspace / "checkpoint")
    assert first.returncode == 0, first.stderr
    before = tree(folder)
    write_checkpoint(workspace / "large", SHAPES | {"model.embed_tokens.weight": (4096, 32)}, vocab_size=4096)
    second = compile_in(folder, workspace / "large", limit)
    assert second.returncode == 3, second.stderr
    assert second.stderr.splitlines()[-1].startswith(f"error: {folder / 'tiny.tsa'}: the disk is full (")
    assert "the artifact that was there is untouched" in second.stderr
    assert "Traceback" not in second.stderr
    assert tree(folder) == before
    assert os.listdir(folder) == ["tiny.tsa"]


def test_the_compilers_own_files_are_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout changes under one version: what it compiled before may not run any more."""
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(request_module, "find_spec", lambda name: ModuleSpec(name, None, origin=str(tmp_path / "__init__.py")))
    wanted = request_module.Request(ROOT / "models" / "llama.ts", None, None, None, "f32", "cpu")
    before = request_module.compile_key(wanted)
    assert request_module.compile_key(wanted) == before
    (tmp_path / "pass.py").write_text("x = 1")
    after = request_module.compile_key(wanted)
    assert after["tsc"] != before["tsc"]
    assert {k: v for k, v in after.items() if k != "tsc"} == {k: v for k, v in before.items() if k != "tsc"}
