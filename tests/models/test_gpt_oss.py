"""gpt-oss beyond the table of parity: experts over ranks, the configuration of its release, and experts in MXFP4.

Kept in MXFP4 they are multiplied as what they stand for, so that logits have the bits that those of the dequantized model have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.mxfp4_writer import write_mxfp4
from tests.models.running import compiled, largest_difference, run
from tests.models.tiny import BY_NAME, TinyModels, prompt
from tests.runtime.toy import byte_tokenizer
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tsc.checkpoint import open_checkpoint
from tsc.diagnostics import CompileError
from tskernels.simd import is_available
from tsrun.artifact import open_artifact
from tsrun.limits import LimitOptions
from tsrun.parsing import Choice, choose
from tsrun.tokenizer import Tokenizer

TOLERANCE = 1e-4
CASE = BY_NAME["gpt_oss"]
OPTIONS = LimitOptions(num_pages=128, page_size=4, max_step_tokens=24)
PROMPTS = [prompt(length, seed=length) for length in (1, 19, 4, 33)]
needs_simd = pytest.mark.skipif(not is_available(), reason="the C++ kernels are not built, or not for this processor")


@pytest.fixture(scope="module")
def quantized(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt_oss") / "mxfp4"
    write_mxfp4(folder, tiny.checkpoint(CASE))
    return folder


@pytest.fixture(scope="module")
def plain(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers makes of it."""
    folder = tmp_path_factory.mktemp("gpt_oss") / "plain"
    folder.mkdir()
    stored = load_file(quantized / "model.safetensors")
    for name in [n.removesuffix("_blocks") for n in stored if n.endswith("_blocks")]:
        stored[name] = convert_moe_packed_tensors(stored.pop(f"{name}_blocks"), stored.pop(f"{name}_scales"), dtype=torch.float32)
    save_file(stored, folder / "model.safetensors")
    config = json.loads((quantized / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("mesh", [{"dp": 2}, pytest.param({"dp": 2, "tp": 2}, marks=pytest.mark.slow)], ids=str)
def test_experts_over_ranks_make_the_logits_of_the_model(mesh: dict[str, int], tiny: TinyModels, tmp_path: Path) -> None:
    """Sequences are shared out over dp, experts over all ranks."""
    traces = run(compiled(tiny.checkpoint(CASE), tmp_path / "ranks.tsa", mesh=mesh), PROMPTS, 12, OPTIONS)
    difference = largest_difference(tiny.model(CASE), traces)
    print(f"largest difference {difference:.1e}")
    assert difference < TOLERANCE


def test_the_configuration_of_the_release_means_the_same(tiny: TinyModels, tmp_path: Path) -> None:
    """It has rope_scaling beside rope_theta, and no swiglu_alpha."""
    old = shutil.copytree(tiny.checkpoint(CASE), tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    rope = config.pop("rope_parameters")
    assert rope["truncate"] is False
    assert config.pop("swiglu_alpha", 1.702) == 1.702
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "initial_context_length": 64, "experts_per_token": 3}
    (old / "config.json").write_text(json.dumps(config))
    traces = run(compiled(old, tmp_path / "old.tsa"), [prompt(28)], 4)
    assert largest_difference(tiny.model(CASE), traces) < TOLERANCE


def test_a_model_without_biases_is_refused(tiny: TinyModels, tmp_path: Path) -> None:
    other = shutil.copytree(tiny.checkpoint(CASE), tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"attention_bias": False}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompileError) as found:
        compiled(other, tmp_path / "other.tsa")
    assert [d.code for d in found.value.diagnostics] == ["TS0216"]


# ---- MXFP4


def test_mxfp4_reads_as_transformers_dequantizes_it(quantized: Path, plain: Path) -> None:
    checkpoint, wanted = open_checkpoint(quantized), load_file(plain / "model.safetensors")
    assert set(checkpoint.tensors) == set(wanted)
    assert set(checkpoint.formats.values()) == {"mxfp4"}
    assert len(checkpoint.formats) == 2 * CASE.config.num_hidden_layers
    for name, tensor in wanted.items():
        found = checkpoint.read(name)
        assert checkpoint.tensors[name].shape == tuple(found.shape) == tuple(tensor.shape)
        assert torch.equal(found.float(), tensor), name


@needs_simd
@pytest.mark.parametrize(("dtype", "mesh"), [("f32", {}), ("bf16", {}), ("bf16", {"tp": 2}), ("f32", {"dp": 2})], ids=str)
def test_kept_in_mxfp4_logits_have_the_bits_of_the_dequantized_model(
    dtype: str, mesh: dict[str, int], quantized: Path, plain: Path, tmp_path: Path
) -> None:
    kept = compiled(quantized, tmp_path / "kept.tsa", dtype=dtype, mesh=mesh or {"tp": 1}, quantize="auto")
    other = compiled(plain, tmp_path / "plain.tsa", dtype=dtype, mesh=mesh or {"tp": 1}, quantize="auto")
    config = CASE.config
    experts = config.num_hidden_layers * config.num_local_experts * 3 * config.hidden_size * config.intermediate_size
    assert open_artifact(kept).manifest.quantization == {"mxfp4": experts}
    assert open_artifact(other).manifest.quantization is None
    report = json.loads((kept / "quantization.json").read_text())
    assert report["stored"]["mxfp4"]["bits_per_weight"] == 4.25
    found, wanted = (run(path, PROMPTS, 12, OPTIONS) for path in (kept, other))
    assert [trace.tokens for trace in found] == [trace.tokens for trace in wanted]
    for one, two in zip(found, wanted, strict=True):
        assert one.logits.keys() == two.logits.keys()
        assert all(torch.equal(one.logits[position], two.logits[position]) for position in two.logits)


def test_the_logits_of_mxfp4_are_those_of_transformers(quantized: Path, plain: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(plain, attn_implementation="eager", dtype=torch.float32).eval()
    traces = run(compiled(quantized, tmp_path / "kept.tsa", quantize="auto"), PROMPTS, 12, OPTIONS)
    assert largest_difference(model, traces) < TOLERANCE


def test_blocks_of_another_size_are_refused(quantized: Path, tmp_path: Path) -> None:
    other = shutil.copytree(quantized, tmp_path / "other")
    stored = load_file(other / "model.safetensors")
    name = next(n for n in stored if n.endswith("down_proj_scales"))
    save_file(stored | {name: stored[name][..., :1].contiguous()}, other / "model.safetensors")
    with pytest.raises(CompileError, match="down_proj_scales") as found:
        open_checkpoint(other)
    assert [d.code for d in found.value.diagnostics] == ["TS0712"]


# ---- harmony


def test_its_answers_are_parsed_as_harmony(quantized: Path, tmp_path: Path) -> None:
    """By the marks in its template; and where that has none, by the model."""
    checkpoint = shutil.copytree(quantized, tmp_path / "model")
    byte_tokenizer().save(str(checkpoint / "tokenizer.json"))
    template = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant<|channel|>"
    for text in (template, "{{ messages[0].content }}"):
        (checkpoint / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": text}))
        path = compiled(checkpoint, tmp_path / "model.tsa", quantize="auto")
        artifact = open_artifact(path)
        assert choose(Tokenizer(path / "tokenizer").template_source, artifact.manifest.model.name) == Choice("harmony", "harmony")
