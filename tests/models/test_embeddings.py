"""The entry `embed` of the model files against transformers: the hidden state of a prompt's last token, after the final norm, at length 1.

Dimensions: N tokens of a sequence, D hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.models.running import compiled
from tests.models.tiny import BY_NAME, TinyModels, prompt
from torch import Tensor
from transformers.models.auto.modeling_auto import AutoModel

from tsc.diagnostics import CompileError
from tsrun.engine import Engine
from tsrun.generation import EmbeddingRequest
from tsrun.limits import LimitOptions

TOLERANCE = 1e-5
MODELS = ["llama", "llama_tied", "mistral", "qwen3", "gemma3"]
PROMPTS = [prompt(length, seed=length) for length in (1, 19, 4, 33, 8)]
ALONE = LimitOptions(num_pages=64, max_sequences=1, prefix_cache=False, depth=1)


def embed(path: Path, prompts: Sequence[Sequence[int]], options: LimitOptions | None = None, threads: int = 1) -> list[Tensor]:
    """[D] of each prompt, all as one batch."""
    found: dict[int, Tensor] = {}
    with Engine(path, options or LimitOptions(num_pages=64), threads=threads) as engine:
        numbers = [engine.submit(EmbeddingRequest(ids)) for ids in prompts]
        for event in engine.events():
            found[event.request] = vector(event.embedding)
    return [found[number] for number in numbers]


def vector(data: bytes | None) -> Tensor:
    assert data is not None
    return torch.from_numpy(np.frombuffer(data, dtype="<f4").copy())


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def reference(decoder: Any, ids: Sequence[int]) -> Tensor:
    """[D] of transformers, one pass over the whole sequence by a model without a head."""
    with torch.inference_mode():
        hidden: Tensor = decoder(torch.tensor([list(ids)]), use_cache=False).last_hidden_state[0, -1].float()
    return torch.nn.functional.normalize(hidden, dim=0)


def largest_difference(decoder: Any, prompts: Sequence[Sequence[int]], found: Sequence[Tensor]) -> float:
    return max(float((a - reference(decoder, ids)).abs().max()) for ids, a in zip(prompts, found, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embed")


def artifact(tiny: TinyModels, folder: Path, name: str, tp: int = 1, dtype: str = "f32") -> Path:
    path = folder / f"{name}-{tp}-{dtype}.tsa"
    return path if path.exists() else compiled(tiny.checkpoint(BY_NAME[name]), path, tp=tp, dtype=dtype, entry="embed")


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_those_of_transformers(name: str, tp: int, tiny: TinyModels, folder: Path) -> None:
    found = embed(artifact(tiny, folder, name, tp), PROMPTS, LimitOptions(num_pages=64, page_size=4, max_step_tokens=16))
    difference = largest_difference(tiny.model(BY_NAME[name]).model, PROMPTS, found)
    print(f"largest difference {difference:.1e}")
    assert difference < TOLERANCE


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_company_chunks_and_threads_change_no_bit(name: str, dtype: str, tiny: TinyModels, folder: Path) -> None:
    path = artifact(tiny, folder, name, dtype=dtype)
    alone = [embed(path, [ids], ALONE)[0] for ids in PROMPTS]
    for options, threads in (
        (LimitOptions(num_pages=64), 2),
        (LimitOptions(num_pages=64, page_size=3, max_step_tokens=5), 1),
        (LimitOptions(num_pages=16, page_size=4, max_step_tokens=16, max_context=64), 2),
    ):
        assert_equal(embed(path, PROMPTS, options, threads), alone)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_prompt_found_in_the_prefix_cache_has_the_same_bits(name: str, tiny: TinyModels, folder: Path) -> None:
    path, ids = artifact(tiny, folder, name), prompt(45, seed=1)
    prompts = [ids, [*ids, 3, 4], ids[:41]]
    alone = [embed(path, [each], ALONE)[0] for each in prompts]
    with Engine(path, LimitOptions(page_size=4, num_pages=64), threads=1) as engine:
        engine.submit(EmbeddingRequest(ids))
        list(engine.events())
        numbers = [engine.submit(EmbeddingRequest(each)) for each in prompts]
        found = {event.request: event for event in engine.events()}
    assert all(found[number].cached_tokens >= 40 for number in numbers)
    assert_equal([vector(found[number].embedding) for number in numbers], alone)


def test_the_artifact_has_no_head(tiny: TinyModels, folder: Path) -> None:
    """Though the checkpoint has one, which another entry names."""
    path = artifact(tiny, folder, "llama")
    with safe_open(path / "weights/rank-00000.safetensors", "np") as weights:
        names = set(weights.keys())
    assert "model.norm.weight" in names
    assert not any("lm_head" in name for name in names)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["gives"], manifest["embedding"], manifest["vocabulary"]) == ("embeddings", 48, 160)
    decoding = json.loads((tiny.artifact(BY_NAME["llama"]) / "manifest.json").read_text())
    assert (decoding["gives"], decoding["embedding"], decoding["vocabulary"]) == ("logits", None, 160)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("says_causal", [False, True])
def test_a_checkpoint_without_a_head_is_read(name: str, says_causal: bool, tiny: TinyModels, tmp_path: Path) -> None:
    """As embedding models are saved: no `model.` before the names, and the architecture one or the other."""
    case = BY_NAME[name]
    tiny.model(case).model.save_pretrained(tmp_path / "headless")
    file = tmp_path / "headless/config.json"
    config = json.loads(file.read_text())
    assert config["architectures"] == [f"{case.config.__class__.__name__.removesuffix('Config')}Model"]
    if says_causal:
        file.write_text(json.dumps(config | {"architectures": [config["architectures"][0].replace("Model", "ForCausalLM")]}))
    found = embed(compiled(tmp_path / "headless", tmp_path / "headless.tsa", entry="embed"), PROMPTS)
    decoder = AutoModel.from_pretrained(tmp_path / "headless", attn_implementation="eager").float().eval()
    assert largest_difference(decoder, PROMPTS, found) < TOLERANCE
    with pytest.raises(CompileError) as refused:
        compiled(tmp_path / "headless", tmp_path / "decode.tsa")
    (finding,) = refused.value.diagnostics
    assert (finding.code, finding.fixes) == ("TS0730", ("give --entry embed, which does without it",))
