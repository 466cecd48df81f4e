"""The importance of a compiled model's inputs, whose weights are joined and in panels, is that of transformers' modules by their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.tiny import BY_NAME, TinyModels, prompt
from torch import Tensor

from tsc.driver import compile_artifact
from tsc.request import Request
from tsrun.artifact import open_artifact
from tsrun.importance import measured, write
from tsrun.text_windows import Text


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_every_linear_of_the_checkpoint_has_its_own(name: str, tiny: TinyModels, tmp_path: Path) -> None:
    case, ids = BY_NAME[name], prompt(28)
    model, sums = tiny.model(case), dict[str, Tensor]()
    modules = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    hooks = [
        m.register_forward_hook(lambda _, given, __, n=n: sums.update({f"{n}.weight": given[0][0].double().square().mean(0).float()}))
        for n, m in modules.items()
    ]
    with torch.inference_mode():
        model(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    artifact = open_artifact(tiny.artifact(case))
    found = dict(measured(artifact, Text([], ids)))
    write(tmp_path / "i.safetensors", artifact, found, text_sha256="0" * 64, tokens=len(ids))
    request = Request(None, tiny.checkpoint(case), None, None, "f32", "cpu", quantize="int4", importance=tmp_path / "i.safetensors")
    compile_artifact(request, tmp_path / "int4.tsa", lambda stage, done, total: None)
    entry = open_artifact(tmp_path / "int4.tsa").manifest.importance
    assert entry is not None
    assert entry.tokens == len(ids)
    tied = {"model.embed_tokens.weight", "lm_head.weight"}
    heads = [found.pop(n) for n in tied if n in found]
    assert len(heads) == 1
    torch.testing.assert_close(heads[0], sums.pop("lm_head.weight"), rtol=1e-3, atol=1e-5)
    assert found.keys() == sums.keys()
    for tensor, values in sums.items():
        torch.testing.assert_close(found[tensor], values, rtol=1e-3, atol=1e-5, msg=tensor)
