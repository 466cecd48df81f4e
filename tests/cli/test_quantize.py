"""`tsc compile --quantize`: what is stored, what the manifest and the report say of it, and what is told where it can not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.cli.conftest import Tsc
from tests.cli.test_layouts import inputs
from tests.cli.tiny import LAYER, SHAPES, write_checkpoint, write_gguf

from tsc.checkpoint import open_checkpoint
from tsc.quantization import ROUNDED
from tskernels.layouts import layout
from tskernels.simd import is_available
from tsrun.artifact import open_artifact

pytestmark = pytest.mark.skipif(not is_available(), reason="the C++ kernels are not built, or not for this processor")

MATRICES = sum(int(np.prod(shape)) for shape in SHAPES.values() if len(shape) == 2)
TABLE = "model.embed_tokens.weight"
IN_EIGHT = sum(int(np.prod(SHAPES[name])) for name in (TABLE, *(f"{LAYER}self_attn.{kind}_proj.weight" for kind in "qkv")))
"""Numbers in weights that keep 8 bits where others have 4: the table, and those of queries, keys and values, each for four query heads."""


def stored(path: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(path / f"weights/rank-{rank:05}.safetensors")
    return found


def record(path: Path, name: str = "quantization.json") -> Any:
    return json.loads((path / name).read_text())


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_matrices_are_rounded_and_the_report_says_by_how_much(quantize: str, ranks: int, workspace: Path, tsc: Tsc) -> None:
    form = ROUNDED[quantize]
    code, output = tsc("compile", "--weights", "checkpoint", "--mesh", f"tp={ranks}", "--quantize", quantize, "-o", "tiny.tsa")
    assert code == 0, output
    path = workspace / "tiny.tsa"
    given, found = inputs(path), record(path)
    layouts = {g.get("layout") for g in given.values()}
    # What o multiplies is split: half a group of 32 a rank.
    assert layouts == {None, form, f"gated_{form}", "q8_0", *({"panels"} if (ranks, form) == (2, "q8_0") else set())}
    assert given[TABLE]["layout"] == "q8_0"
    kept = {name: s["weights"] for name, s in found["stored"].items() if name != "bf16"}
    assert open_artifact(path).manifest.quantization == kept
    if ranks == 1:
        assert sum(kept.values()) == MATRICES
        w = open_checkpoint(workspace / "checkpoint").read(TABLE)
        unpack = layout("q8_0").unpack
        assert unpack is not None
        assert 0 < float((unpack(stored(path)[TABLE], w.shape) - w).norm() / w.norm()) < 0.01
    assert len(found["largest_errors"]) == 5
    errors = [e["relative_error"] for e in found["largest_errors"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < {"int8": 0.01, "int4": 0.12}[quantize]
    lines = [line.split() for line in output.splitlines()]
    assert [form, *(f"{found['stored'][form][n]:,}" for n in ("weights", "bytes"))] in [line[:3] for line in lines]
    assert [found["largest_errors"][0]["tensor"], f"{errors[0]:.2%}"] in lines
    again = tsc("compile", "--weights", "checkpoint", "--mesh", f"tp={ranks}", "--quantize", quantize, "-o", "again.tsa")
    assert again[0] == 0
    assert record(path, "manifest.json") == record(workspace / "again.tsa", "manifest.json")


def quantized_gguf(path: Path) -> None:
    """Every matrix in blocks; q and k of a llama are stored in another order of rows."""
    write_gguf(path)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    reader, writer, random = gguf.GGUFReader(path), gguf.GGUFWriter(path.with_suffix(".new"), "llama"), np.random.default_rng(0)
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for name, shape in SHAPES.items():
        values = random.standard_normal(shape, dtype=np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0 if "up_proj" in name or "embed" in name else gguf.GGMLQuantizationType.Q4_0
        quantized = len(shape) == 2
        stored_name = names.get_name(name, try_suffixes=(".weight",))
        assert stored_name is not None
        writer.add_tensor(stored_name, gguf.quantize(values, kind) if quantized else values, raw_dtype=kind if quantized else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


def test_blocks_of_a_file_are_kept_as_they_are(workspace: Path, tsc: Tsc) -> None:
    quantized_gguf(workspace / "tiny.gguf")
    checkpoint = open_checkpoint(workspace / "tiny.gguf")
    code, output = tsc("compile", "tiny.gguf", "-o", "tiny.tsa")
    assert code == 0, output
    assert "largest errors" not in output
    path = workspace / "tiny.tsa"
    given, tensors = inputs(path), stored(path)
    # Gate and up are of two formats, so they are not stored together.
    kinds = {name: g.get("layout", "rows") for name, g in given.items() if g["type"].count(",")}
    assert kinds.pop(TABLE) == kinds.pop(LAYER + "mlp.up_proj.weight") == "q8_0"
    assert set(kinds.values()) == {"q4_0"}
    for name, kind in {**kinds, TABLE: "q8_0"}.items():
        rows = torch.cat([checkpoint.read(part) for part in name.split("+")])
        unpack = layout(kind).unpack
        assert unpack is not None
        torch.testing.assert_close(unpack(tensors[name], rows.shape), rows, rtol=1e-6, atol=1e-7)
    assert open_artifact(path).manifest.quantization == {k: v["weights"] for k, v in record(path)["stored"].items() if k != "bf16"}


def test_ranks_that_share_blocks_out_have_them_dequantized(workspace: Path, tsc: Tsc) -> None:
    quantized_gguf(workspace / "tiny.gguf")
    for options in (("--mesh", "tp=2"), ("--quantize", "none")):
        assert tsc("compile", "tiny.gguf", *options, "-o", "tiny.tsa")[0] == 0
        assert not (workspace / "tiny.tsa" / "quantization.json").exists()
        assert record(workspace / "tiny.tsa", "manifest.json")["quantization"] is None


def test_a_target_without_kernels_is_told(workspace: Path, tsc: Tsc) -> None:
    code, output = tsc("compile", "--weights", "checkpoint", "--target", "cpu+", "--quantize", "int8", "-o", "tiny.tsa")
    assert code == 3
    assert output.splitlines()[-1].startswith("error: --quantize int8: no kernel for ")
    quantized_gguf(workspace / "tiny.gguf")
    assert tsc("compile", "tiny.gguf", "--target", "cpu+", "-o", "tiny.tsa")[0] == 0
    assert record(workspace / "tiny.tsa", "manifest.json")["quantization"] is None


def test_an_artifact_without_weights_says_how_they_would_be_stored(workspace: Path, tsc: Tsc) -> None:
    assert tsc("compile", "--config", "checkpoint/config.json", "--quantize", "int4", "-o", "tiny.tsa")[0] == 0
    assert record(workspace / "tiny.tsa", "manifest.json")["quantization"] == {"int4": MATRICES - IN_EIGHT, "q8_0": IN_EIGHT}


def test_how_weights_are_stored_is_in_the_key(workspace: Path, tsc: Tsc) -> None:
    write_checkpoint(workspace / "other")
    keys = [json.loads(tsc("compile", "--weights", "checkpoint", "--key", "--quantize", q)[1]) for q in ("auto", "none", "int8", "int4")]
    assert [key.pop("quantize") for key in keys] == ["auto", "none", "int8", "int4"]
    assert keys[1:] == keys[:-1]
