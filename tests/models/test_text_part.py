"""Text decoders out of checkpoints that have other models beside them, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tests.models.running import compiled, largest_difference, run
from tests.models.tiny import BY_NAME, TinyModels, prompt
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from tsc.cli import main
from tsc.new_model import start
from tsrun.artifact import read_manifest

_VISION = SiglipVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)


@pytest.fixture
def kimi(tiny: TinyModels, tmp_path: Path) -> Path:
    """As Kimi-K2.5 has it: the decoder's configuration under `text_config`, its names under `language_model.`, and a tower beside it."""
    case, folder = BY_NAME["kimi_k2"], tmp_path / "kimi"
    config = json.loads((tiny.checkpoint(case) / "config.json").read_text())
    folder.mkdir()
    outer = {"architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25", "vision_config": {"hidden_size": 8}}
    nested = config | {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2"}
    (folder / "config.json").write_text(json.dumps(outer | {"text_config": nested}))
    tensors = {f"language_model.{name}": t for name, t in load_file(tiny.checkpoint(case) / "model.safetensors").items()}
    others = {f"vision_tower.encoder.blocks.{i}.wqkv.weight": torch.ones(8, 8) for i in range(3)}
    save_file(tensors | others | {"mm_projector.proj.0.weight": torch.ones(48, 8)}, folder / "model.safetensors")
    return folder


def test_a_decoder_under_a_prefix_is_the_same_model(kimi: Path, tiny: TinyModels, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["compile", str(kimi), "--dtype", "f32", "-o", str(tmp_path / "kimi.tsa")])
    assert result.exit_code == 0, result.output
    assert "note: the artifact is of text alone; tensors left out: mm_projector (1), vision_tower (3)\n" in result.output
    assert read_manifest(tmp_path / "kimi.tsa").model.architecture == "DeepseekV3ForCausalLM"
    traces = run(tmp_path / "kimi.tsa", [prompt(17), prompt(5)], 4)
    assert largest_difference(tiny.model(BY_NAME["kimi_k2"]), traces) < 1e-4


def test_a_file_for_it_is_started_from_the_decoders(kimi: Path) -> None:
    found = start(kimi)
    assert found.model.name == "deepseek_v3"
    assert not [d.text for d in found.differences if "weight here" in d.text or "the checkpoint has no" in d.text]


@pytest.mark.parametrize("spelling", ["saved", "language_model.model.", "model.language_model."])
def test_gemma_3_with_images_is_read_as_transformers_saves_it(spelling: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = Gemma3TextConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        vocab_size=160,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=6,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        max_position_embeddings=256,
    )
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=_VISION)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "norm" in name else 0.2)
    folder = tmp_path / "gemma"
    model.save_pretrained(folder)
    if spelling != "saved":
        tensors = load_file(folder / "model.safetensors")
        prefix = min((n for n in tensors if n.endswith("embed_tokens.weight")), key=len).removesuffix("embed_tokens.weight")
        renamed = {n.replace(prefix, spelling) if n.startswith(prefix) else n: t for n, t in tensors.items()}
        save_file(renamed, folder / "model.safetensors")
    traces = run(compiled(folder, tmp_path / "gemma.tsa"), [prompt(17), prompt(5)], 4)
    assert largest_difference(model, traces) < 1e-4
