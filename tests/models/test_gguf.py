"""Models out of GGUF files, beside the same models out of the directories that a converter makes such files of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tests.models.gguf_writer import write_gguf
from tests.models.running import compiled, run
from tests.models.tiny import BY_NAME, Case, TinyModels, prompt

from tsc.checkpoint import Checkpoint, open_checkpoint
from tsc.checkpoint.architectures import ARCHITECTURES, OF_EXPERTS, OF_SIGMOIDS
from tsc.diagnostics import CompileError
from tsc.front import model_for

_KINDS = ["sliding_attention", "full_attention"]


def changed(case: str, name: str = "", **settings: Any) -> Case:
    """A case as a GGUF can state it, which lacks some settings."""
    found = BY_NAME[case]
    return replace(found, name=f"gguf_{name or case}", settings=found.settings | settings)


CASES = (
    changed("mixtral", sliding_window=None),
    changed("qwen2", use_sliding_window=False),
    changed("qwen3_moe"),
    changed("phi3", rope_parameters=BY_NAME["phi3"].settings["rope_parameters"] | {"factor": 256 / 12}),  # which the file does not state
    changed("olmo2"),
    changed("gemma2", query_pre_attn_scalar=16),  # of the head, as all sizes but one have it
    changed("glm4_moe", num_nextn_predict_layers=0),
    changed("deepseek_v2"),
    changed("deepseek_v2_lite"),
    changed("deepseek_v3", "deepseek_v3", rope_parameters=BY_NAME["deepseek_v3"].settings["rope_parameters"] | {"mscale_all_dim": 1.0}),
    changed("gpt_oss", swiglu_limit=7.0, layer_types=[_KINDS[0], _KINDS[1], _KINDS[0]]),
    changed("qwen3_next", layer_types=["linear_attention", "full_attention"] * 2, full_attention_interval=2),
)
EVERYDAY = ("gguf_deepseek_v2", "gguf_gpt_oss", "gguf_qwen3_next")
"""Those whose metadata differ most."""
ROUNDED = ("norm", "A_log")
"""What the converter adds to, or takes the exponential of."""


def state_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def config_of(case: Case, tiny: TinyModels) -> dict[str, Any]:
    """As config.json has it, with what it leaves out."""
    path = tiny.checkpoint(case)
    written: dict[str, Any] = json.loads((path / "config.json").read_text())
    return written | open_checkpoint(path).config


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gguf_has_the_weights_that_it_was_made_of(case: Case, tiny: TinyModels, tmp_path: Path) -> None:
    directory = open_checkpoint(tiny.checkpoint(case))
    expected = state_of(directory)
    write_gguf(tmp_path / "model.gguf", config_of(case, tiny), expected)
    found = open_checkpoint(tmp_path / "model.gguf")
    assert set(found.tensors) == set(expected) - ({"lm_head.weight"} if directory.config["tie_word_embeddings"] else set())
    for name in found.tensors:
        value = found.read(name)
        assert tuple(value.shape) == found.tensors[name].shape
        tolerance = 1e-6 if any(part in name for part in ROUNDED) else 0
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c), marks=[] if c.name in EVERYDAY else [pytest.mark.slow]) for c in CASES])
def test_a_gguf_is_the_same_model(case: Case, tiny: TinyModels, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", config_of(case, tiny), state_of(open_checkpoint(tiny.checkpoint(case))))
    prompts = [prompt(17), prompt(5)]
    one, other = (
        run(compiled(path, tmp_path / f"{name}.tsa", context=case.context), prompts, 3)
        for name, path in (("directory", tiny.checkpoint(case)), ("gguf", tmp_path / "model.gguf"))
    )
    for mine, theirs in zip(other, one, strict=True):
        assert mine.tokens == theirs.tokens
        for position, logits in theirs.logits.items():
            torch.testing.assert_close(mine.logits[position], logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", [c for c in CASES if "deepseek" in c.name], ids=str)
def test_latent_weights_in_one_tensor_are_read_too(case: Case, tiny: TinyModels, tmp_path: Path) -> None:
    """As converters of before 2025 wrote them."""
    expected = state_of(open_checkpoint(tiny.checkpoint(case)))
    config = config_of(case, tiny)
    write_gguf(tmp_path / "model.gguf", config, expected, splits_latent=False)
    found = open_checkpoint(tmp_path / "model.gguf")
    assert all(torch.equal(found.read(name), value) for name, value in expected.items())
    for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank", "num_key_value_heads"):
        assert found.config[key] == config[key], key


def test_a_layer_that_predicts_further_is_no_layer_of_the_model(tiny: TinyModels, tmp_path: Path) -> None:
    case = next(c for c in CASES if "glm" in c.name)
    expected = state_of(open_checkpoint(tiny.checkpoint(case)))
    config = config_of(case, tiny) | {"num_nextn_predict_layers": 1}
    last = f"model.layers.{config['num_hidden_layers']}."
    further = {n.replace("model.layers.2.", last): t for n, t in expected.items() if n.startswith("model.layers.2.")}
    further |= {last + f"{n}.weight": torch.ones(48) for n in ("enorm", "hnorm", "shared_head.norm")}
    further |= {last + "eh_proj.weight": torch.ones(48, 96), last + "embed_tokens.weight": torch.ones(160, 48)}
    write_gguf(tmp_path / "model.gguf", config, expected | further)
    found = open_checkpoint(tmp_path / "model.gguf")
    assert found.config["num_hidden_layers"] == 3
    assert set(found.tensors) == {*expected, *further}
    compiled(tmp_path / "model.gguf", tmp_path / "model.tsa")


def test_experts_are_read_out_of_quantized_stacks(tiny: TinyModels, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    case = changed("qwen3_moe", "wide", hidden_size=64, moe_intermediate_size=32)
    expected = state_of(open_checkpoint(tiny.checkpoint(case)))
    write_gguf(tmp_path / "model.gguf", config_of(case, tiny), expected, kind)
    found = open_checkpoint(tmp_path / "model.gguf")
    for name, value in expected.items():
        rounded = torch.from_numpy(gguf.dequantize(gguf.quantize(value.numpy(), kind), kind)) if value.ndim > 1 else value
        assert torch.equal(found.read(name), rounded), name
        if value.ndim > 1:
            assert found.formats[name] == "q8_0"
            assert found.blocks(name).shape == (value.shape[0], value.shape[1] // 32 * 34)


@pytest.mark.parametrize("kind", ["MXFP4", "Q8_0"])
def test_gates_that_a_file_keeps_apart_are_put_side_by_side(kind: str, tiny: TinyModels, tmp_path: Path) -> None:
    of, name = gguf.GGMLQuantizationType[kind], "model.layers.1.mlp.experts.gate_up_proj"
    case = next(c for c in CASES if "gpt_oss" in c.name)
    expected = state_of(open_checkpoint(tiny.checkpoint(case)))
    write_gguf(tmp_path / "model.gguf", config_of(case, tiny), expected, of)
    rows = expected[name].transpose(1, 2).contiguous().numpy()
    rounded = torch.from_numpy(gguf.dequantize(gguf.quantize(rows, of), of)).transpose(1, 2)
    assert torch.equal(open_checkpoint(tmp_path / "model.gguf").read(name), rounded)


def test_four_bit_experts_are_kept_as_they_are(tiny: TinyModels, tmp_path: Path) -> None:
    case = next(c for c in CASES if "gpt_oss" in c.name)
    expected = state_of(open_checkpoint(tiny.checkpoint(case)))
    write_gguf(tmp_path / "model.gguf", config_of(case, tiny), expected, gguf.GGMLQuantizationType.MXFP4)
    found = open_checkpoint(tmp_path / "model.gguf")
    kept = [name for name, form in found.formats.items() if form == "mxfp4"]
    assert sorted(kept) == [f"model.layers.{i}.mlp.experts.{name}" for i in range(3) for name in ("down_proj", "gate_up_proj")]
    assert {found.block_dimension(name) for name in kept} == {1}
    one, other = (
        run(compiled(tmp_path / "model.gguf", tmp_path / f"{how}.tsa", dtype="bf16", quantize=how), [prompt(17)], 3)[0]
        for how in ("auto", "none")
    )
    assert "mxfp4" in (tmp_path / "auto.tsa" / "quantization.json").read_text()
    assert one.tokens == other.tokens
    for position, logits in other.logits.items():
        assert torch.equal(one.logits[position], logits)


def test_every_architecture_has_a_model_file() -> None:
    rows = [*ARCHITECTURES.values(), *OF_EXPERTS.values(), *OF_SIGMOIDS.values()]
    without = [row.class_name for row in rows if not _has_model(row.class_name)]
    assert without == ["GemmaForCausalLM"]


def _has_model(architecture: str) -> bool:
    try:
        return bool(model_for([architecture]))
    except CompileError:
        return False


def test_another_family_under_a_known_name_is_refused(tiny: TinyModels, tmp_path: Path) -> None:
    case = next(c for c in CASES if "olmo2" in c.name)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "olmo2")
    writer.add_sliding_window(4096)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert case.architectures == ["Olmo2ForCausalLM"]
    with pytest.raises(CompileError, match=r"TS0706.*states `olmo2.attention.sliding_window`"):
        open_checkpoint(tmp_path / "model.gguf")
