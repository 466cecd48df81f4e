"""`tsc new`: what is started for an architecture that nobody knows is the file of the one that it is, and it works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.models.running import compiled, largest_difference, run
from tests.models.tiny import BY_NAME, CASES, Case, TinyModels, prompt

from tsc.checkpoint import open_checkpoint
from tsc.diagnostics import CompileError
from tsc.front import model_for, place_model, read_model
from tsc.new_model import start, write
from tsc.parser import parse
from tsc.printer import format_file
from tsc.spans import Source
from tspasses.placed import Options

KNOWN = [case for case in CASES if not case.variant]


def renamed(case: Case, tiny: TinyModels, folder: Path, **changes: object) -> Path:
    """The checkpoint of a case under a name that no model file has."""
    shutil.copytree(tiny.checkpoint(case), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"architectures": ["ZygomorphForCausalLM"], "model_type": "zygomorph"} | changes)
    )
    return folder


@pytest.mark.parametrize("case", KNOWN, ids=str)
def test_a_known_model_under_another_name_is_known_by_its_weights_and_without_them_gives_a_file_that_checks(
    case: Case, tiny: TinyModels, tmp_path: Path
) -> None:
    checkpoint = renamed(case, tiny, tmp_path / "checkpoint")
    found = start(checkpoint)
    assert found.model.name == model_for(case.architectures).name
    assert [d.text for d in found.differences if "weight" in d.text or "the checkpoint" in d.text] == []
    assert format_file(Source("new.ts", found.text)) == found.text

    (checkpoint / "model.safetensors").unlink()
    write(tmp_path / "new.ts", start(checkpoint / "config.json").text)
    model = read_model(tmp_path / "new.ts")
    assert model.file.architectures == ("ZygomorphForCausalLM",)
    place_model(model, None, None, Options(), every=True)


def test_what_is_started_compiles_and_runs(tiny: TinyModels, tmp_path: Path) -> None:
    case = BY_NAME["qwen3"]
    checkpoint = renamed(case, tiny, tmp_path / "checkpoint")
    write(tmp_path / "new.ts", start(checkpoint).text)
    traces = run(compiled(checkpoint, tmp_path / "new.tsa", model=tmp_path / "new.ts"), [prompt(20)], 4)
    assert largest_difference(tiny.model(case), traces) < 1e-4


def test_what_differs_is_marked_where_it_is(tiny: TinyModels, tmp_path: Path) -> None:
    checkpoint = renamed(BY_NAME["mistral"], tiny, tmp_path / "checkpoint", hidden_act="gelu", residual_multiplier=0.22)
    found = start(checkpoint)
    assert [d.text for d in found.differences] == [
        'this does not hold: `hidden_act` is "gelu"',
        "`residual_multiplier` of the config is not read: 0.22",
    ]
    lines = found.text.splitlines()
    [marked] = [i for i, line in enumerate(lines) if line.strip().startswith("// differs: this does not hold")]
    assert lines[marked + 1].strip().startswith("require (hidden_act")


def test_weights_that_differ_are_told(tiny: TinyModels, tmp_path: Path) -> None:
    """qwen3 as an index of a checkpoint that has no norm of keys, and sinks."""
    checkpoint = renamed(BY_NAME["qwen3"], tiny, tmp_path / "checkpoint")
    names = [name for name in open_checkpoint(checkpoint).tensors if not name.endswith("k_norm.weight")]
    names += [f"model.layers.{i}.self_attn.sinks" for i in range(4)]
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    found = start(checkpoint)
    assert found.model.name == "qwen3"
    assert {d.text for d in found.differences} == {
        'the checkpoint has no "model.layers.#.self_attn.k_norm.weight"',
        'no weight here is "model.layers.#.self_attn.sinks", 4 of them',
    }
    lines = found.text.splitlines()
    [marked] = [i for i, line in enumerate(lines) if "the checkpoint has no" in line]
    assert lines[marked + 1].strip().startswith("weight kn:")


@pytest.mark.parametrize(
    ("architectures", "expected"), [("OneForCausalLM", ("OneForCausalLM",)), (["A-b", "C"], ("Ab", "C")), (None, ("ZygomorphForCausalLM",))]
)
def test_an_odd_config_gives_a_file_that_says_what_it_lacks(architectures: object, expected: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": architectures, "model_type": "zygomorph", "hidden_size": 8}))
    found = start(path)
    assert parse(Source("new.ts", found.text)).architectures == expected
    assert "the config has no `num_hidden_layers`" in {d.text for d in found.differences}


def test_nothing_is_written_over(tmp_path: Path) -> None:
    write(tmp_path / "new.ts", "one")
    with pytest.raises(CompileError, match="there is such a file"):
        write(tmp_path / "new.ts", "two")
    assert (tmp_path / "new.ts").read_text() == "one"
