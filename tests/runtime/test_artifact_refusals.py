"""Every kind of damage to an artifact is refused with one line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.toy import Toy, program_of, write_artifact, write_manifest

from tsrun.artifact import open_artifact
from tsrun.engine import Engine
from tsrun.errors import ArtifactError
from tsrun.program import read_program
from tsrun.weights import Weights

WEIGHTS = "weights/rank-00000.safetensors"


@pytest.fixture
def copy(toy_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_artifact, tmp_path / "copy.tsa"))


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught, Engine(path):
        pass
    assert "\n" not in caught.value.line
    return caught.value.line


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["program.json", "plan.json", WEIGHTS, "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize(("damage", "said"), [(flip, "edited"), (cut, "truncated"), (Path.unlink, "missing")])
def test_a_damaged_file_is_named(copy: Path, name: str, damage: Callable[[Path], None], said: str) -> None:
    damage(copy / name)
    assert refusal(copy).startswith(f"{copy / name}: {said}")


def test_a_file_that_grew_is_named(copy: Path) -> None:
    (copy / "plan.json").write_text("{}\n")
    assert refusal(copy).startswith(f"{copy / 'plan.json'}: grown: 3 bytes, the manifest says 2")


def test_a_foreign_file_is_named(copy: Path) -> None:
    (copy / "weights" / "extra.safetensors").write_bytes(b"")
    assert refusal(copy).startswith(f"{copy / 'weights' / 'extra.safetensors'}: foreign")


def test_an_artifact_without_a_manifest_is_refused(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    assert "manifest.json: missing: this is not an artifact" in refusal(copy)


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.tsa") == f"{tmp_path / 'no.tsa'}: does not exist; give the path of a NAME.tsa directory"


def edit_manifest(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.update(changes)
    (path / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "tsa/1"}, "has format 'tsa/1', this tsrun reads 'tsa/2'; compile it again"),
        ({"novelty": 1}, "contains unknown field `novelty`"),
        ({"vocabulary": ...}, "missing required field `vocabulary`"),
        ({"axes": [["tp", 3]]}, "1 ranks do not fill the axes"),
        ({"ranks": 2, "axes": [["tp", 2]]}, "lists no weights/rank-00001.safetensors"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}, "program.json": {"bytes": 1, "sha256": ""}}}, "lists no weights"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(copy: Path, changes: dict[str, Any], said: str) -> None:
    edit_manifest(copy, **changes)
    line = refusal(copy)
    assert line.startswith(f"{copy / 'manifest.json'}: ")
    assert said in line


def test_a_manifest_that_names_files_outside_is_refused(copy: Path) -> None:
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edit_manifest(copy, files={**files, "../outside": {"bytes": 1, "sha256": ""}})
    assert "lists '../outside', which is not a path inside the artifact" in refusal(copy)


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"format": "tsa/2"'])
def test_a_manifest_that_is_not_json_is_refused(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    assert refusal(copy).startswith(f"{copy / 'manifest.json'}: ")


def test_weights_of_another_artifact_are_refused(toy: Toy, copy: Path) -> None:
    other = write_artifact(Toy(layers=1), copy.parent / "other.tsa")
    shutil.copy(other / WEIGHTS, copy / WEIGHTS)
    write_manifest(toy, copy)
    assert refusal(copy) == f"{copy / WEIGHTS}: holds no tensor '1.n1', which the program names; compile the artifact again"


def test_weights_of_another_shape_are_refused(toy: Toy, copy: Path) -> None:
    other = write_artifact(Toy(F=40), copy.parent / "other.tsa")
    shutil.copy(other / WEIGHTS, copy / WEIGHTS)
    write_manifest(toy, copy)
    assert "tensor '0.gate' is f32 [40, 32], the program wants f32 [48, 32]" in refusal(copy)


def test_weights_of_negative_lengths_are_refused(toy: Toy, copy: Path) -> None:
    file = copy / WEIGHTS
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header["0.gate"]["shape"] = [-length for length in header["0.gate"]["shape"]]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])
    write_manifest(toy, copy)
    assert "says of tensor '0.gate' what can not be: F32 [-48, -32]" in refusal(copy)


def test_weights_of_another_type_are_refused(copy: Path) -> None:
    weights = Weights(copy / WEIGHTS)
    with pytest.raises(ArtifactError, match=r"tensor '0.gate' is f32 \[48, 32\], the program wants i32 of any shape; compile"):
        weights.place("0.gate", "i32", None)
    with pytest.raises(ArtifactError, match=r"tensor '0.gate' is f32 \[48, 32\], the program wants i32 \[\]; compile"):
        weights.place("0.gate", "i32", ())


def test_a_weightless_artifact_says_what_to_do(toy: Toy, tmp_path: Path) -> None:
    path = write_artifact(toy, tmp_path / "light.tsa", weightless=True)
    line = refusal(path)
    assert line.startswith(f"{path}: the artifact is weightless")
    assert "tsc compile --weights" in line


def test_an_intact_artifact_reports_its_progress(toy_artifact: Path) -> None:
    seen: list[tuple[int, int]] = []
    artifact = open_artifact(toy_artifact, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == sum(entry.bytes for entry in artifact.manifest.files.values())


def test_a_rank_leaves_the_digests_of_other_ranks_weights_to_them(toy_artifact_of_two_ranks: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(toy_artifact_of_two_ranks, tmp_path / "copy.tsa"))
    flip(path / "weights/rank-00001.safetensors")
    open_artifact(path, rank=0)
    for rank in (None, 1):
        with pytest.raises(ArtifactError, match="rank-00001"):
            open_artifact(path, rank=rank)


def _nodes(program: dict[str, Any], graph: str = "Layer") -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = program["graphs"][graph]["nodes"]
    return nodes


def _inputs(program: dict[str, Any], graph: str = "decode") -> dict[str, dict[str, Any]]:
    return {given["name"]: given for given in program["graphs"][graph]["inputs"]}


PROGRAMS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "format": (lambda p: p.update(format=2, entry="decode"), "has format 2, this tsrun reads 7"),
    "no plan": (lambda p: p.update(plans=[]), "has plans for steps of [] tokens, which is not from 1 on in rising order"),
    "plans": (lambda p: p["plans"].append(p["plans"][0]), "has plans for steps of [1, 1] tokens"),
    "small steps": (lambda p: p["plans"][0].update(tokens=2), "has plans for steps of [2] tokens"),
    "multiple": (lambda p: p["plans"][0].update(token_multiple=0), "pads steps to a multiple of 0 for 1 groups of ranks"),
    "groups": (lambda p: p.update(sequence_groups=2), "pads steps to a multiple of 1 for 2 groups of ranks"),
    "entry": (lambda p: p["plans"][0].update(entry="prefill"), "its entry 'prefill' is not among its graphs"),
    "field": (lambda p: p.update(extra=1), "contains unknown field `extra`"),
    "node field": (lambda p: _nodes(p)[0].update(extra=1), "contains unknown field `extra`"),
    "call field": (lambda p: _nodes(p, "decode")[1].update(extra=1), "contains unknown field `extra`"),
    "argument": (lambda p: _nodes(p)[1].update(args=["nowhere", "qkv"]), "'qkv_' reads 'nowhere', which comes from nowhere"),
    "offset": (lambda p: _nodes(p)[0].update(offset=None), "'h' has a region and no offset in it"),
    "place": (lambda p: _nodes(p)[0].update(offset=10**9), "outside of the frame"),
    "region": (lambda p: _nodes(p)[0].update(region="S"), "lies in region S but has the shape"),
    "callee": (lambda p: _nodes(p, "decode")[1].update(call="Layers"), "calls 'Layers', which is not among the graphs"),
    "values": (lambda p: _nodes(p, "decode")[1].update(args=["x"]), "gives 1 values to 'Layer', which takes 6"),
    "weights": (lambda p: _nodes(p, "decode")[1]["weights"].pop("n1"), "does not bind exactly the weights and caches of 'Layer'"),
    "cache": (lambda p: _nodes(p, "decode")[1].update(caches={"kv": 2}), "binds a cache that does not exist"),
    "output": (lambda p: p["graphs"]["Layer"].update(output="z"), "its output 'z' is not one of its nodes"),
    "kernel": (lambda p: _nodes(p)[0].update(kernel="avx9000"), "kernel 'avx9000' of 'ts::rms_norm' can not be had here"),
    "no constants": (
        lambda p: next(node for node in _nodes(p) if node["op"] == "ts::rope").pop("constants"),
        "ts::rope can not be bound (without the constants that its kernel `simd` takes)",
    ),
    "op": (lambda p: _nodes(p)[0].update(op="ts::norm"), "of 'ts::norm' can not be had here"),
    "step input": (lambda p: _inputs(p)["ids"].update(step="tokens"), "step input 'ids' is 'tokens', which is not one of"),
    "window": (lambda p: _inputs(p)["slots_w12"].update(window=13), "'slots_w12' is of window 13, which no cache has"),
    "window of ids": (lambda p: _inputs(p)["ids"].update(window=12), "'ids' is of window 12, and ids are the same for all caches"),
    "cache of a window": (lambda p: _inputs(p, "Layer")["kv"].update(window=12), "binds a cache of another window than 'Layer' takes"),
    "layout": (
        lambda p: _inputs(p, "Layer")["qkv"].update(layout="tiles"),
        "'qkv' is in the layout 'tiles', which is not one of rows, panels, gated_panels",
    ),
    "layout of a cache": (
        lambda p: _inputs(p, "Layer")["kv"].update(layout="panels"),
        "binds a cache of f32[2, 2, 8] in rows, which 'Layer' does not take",
    ),
    "layout of a value": (
        lambda p: _inputs(p, "Layer")["x"].update(layout="panels"),
        "'x' is in the layout 'panels', and no weight or cache",
    ),
    "cache in another layout": (
        lambda p: _inputs(p, "Layer")["kv"].update(layout="int8_cache", dtype="u8", shape=["pages", 80]),
        "binds a cache of f32[2, 2, 8] in rows, which 'Layer' does not take",
    ),
    "cache in an unknown layout": (lambda p: p["caches"][0].update(layout="int9"), "has a cache in the layout 'int9', which is not one of"),
    "cache of an unknown type": (lambda p: p["caches"][0].update(dtype="i4"), "has a cache of 'i4', which is not one of f64, f32"),
    "constants": (lambda p: _nodes(p)[0].update(constants=["one"]), "is not a program that this tsrun knows"),
    "tables of a window": (
        lambda p: _nodes(p, "decode")[1].update(args=["x", "positions", "spans", "lengths", "slots", "tables_w12"]),
        "gives 'tables_w12' to 'Layer', which takes the tables of window 0",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_can_not_run_is_refused(toy: Toy, tmp_path: Path, name: str) -> None:
    change, said = PROGRAMS[name]
    program = program_of(toy, 1)
    change(program)
    path = write_artifact(toy, tmp_path / "bad.tsa", program=program)
    line = refusal(path)
    assert line.startswith(f"{path / 'program.json'}: ")
    assert said in line


def test_a_program_that_calls_itself_is_refused(toy: Toy, tmp_path: Path) -> None:
    program = program_of(toy, 1)
    _nodes(program).append({**_nodes(program, "decode")[1], "name": "again", "args": ["y", *_nodes(program, "decode")[1]["args"][1:]]})
    file = tmp_path / "program.json"
    file.write_text(json.dumps(program))
    with pytest.raises(ArtifactError, match="graph 'Layer' calls itself"):
        read_program(file)
