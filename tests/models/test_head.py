"""An EAGLE-3 head, in the format that its authors publish, beside the same in PyTorch; answers have the same tokens with it and without.

The heads here are of random weights. Dimensions: N tokens of a sequence, D width, V vocabulary of the model, G of the head.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.models.test_drafts import OneSequence, answers
from tests.models.tiny import BY_NAME, TinyModels
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from tsc.diagnostics import CompileError
from tsc.driver import compile_artifact
from tsc.request import Request
from tsrun.generation import GenerationRequest
from tsrun.guesses import GuessDrafter
from tsrun.limits import LimitOptions
from tsrun.output import Second
from tsrun.sampler import Sampling

HEADS, KEYS, WIDTH, GUESSED = 4, 2, 12, 40
OFF = LimitOptions(num_pages=512, speculate="off")
ON = LimitOptions(num_pages=512, speculate="mtp")


class Head(nn.Module):
    """As EAGLE's `cnets.py` has it: the embedding of a token and what is known of the one before, side by side, into one decoder layer."""

    def __init__(self, hidden: int, inner: int, rope: LlamaConfig) -> None:
        super().__init__()
        eps = 0.05
        self.fc = nn.Linear(3 * hidden, hidden, bias=False)
        layer = nn.Module()
        layer.input_layernorm, layer.hidden_norm = LlamaRMSNorm(hidden, eps), LlamaRMSNorm(hidden, eps)
        layer.post_attention_layernorm = LlamaRMSNorm(hidden, eps)
        layer.self_attn, layer.mlp = nn.Module(), nn.Module()
        for name, rows in (("q_proj", HEADS), ("k_proj", KEYS), ("v_proj", KEYS)):
            setattr(layer.self_attn, name, nn.Linear(2 * hidden, rows * WIDTH, bias=False))
        layer.self_attn.o_proj = nn.Linear(HEADS * WIDTH, hidden, bias=False)
        layer.mlp.gate_proj, layer.mlp.up_proj = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        layer.mlp.down_proj = nn.Linear(inner, hidden, bias=False)
        self.midlayer: Any = layer
        self.norm = LlamaRMSNorm(hidden, eps)
        self.lm_head = nn.Linear(hidden, GUESSED, bias=False)
        self.rotary = LlamaRotaryEmbedding(rope)
        for name, weight in self.named_parameters():
            weight.data.uniform_(0.5, 1.5) if "norm" in name else weight.data.normal_(std=0.2)

    def forward(self, embedded_ND: Tensor, made_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, G], and what it makes [N, D]."""
        count, layer = len(made_ND), self.midlayer
        both = torch.cat((layer.input_layernorm(embedded_ND), layer.hidden_norm(made_ND)), dim=-1)
        q, k, v = (getattr(layer.self_attn, n)(both).view(1, count, -1, WIDTH).transpose(1, 2) for n in ("q_proj", "k_proj", "v_proj"))
        q, k = apply_rotary_pos_emb(q, k, *self.rotary(both, torch.arange(count)[None]))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        h = made_ND + layer.self_attn.o_proj(mixed.transpose(1, 2).reshape(count, -1))
        y = layer.post_attention_layernorm(h)
        h = h + layer.mlp.down_proj(nn.functional.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
        return self.lm_head(self.norm(h)), h


def saved(head: Head, vocabulary: int, hidden: int, inner: int, folder: Path, **changed: Any) -> Path:
    """The head with the maps between the vocabularies: every fourth token."""
    folder.mkdir()
    ids = torch.arange(GUESSED) * 4 % vocabulary
    known = torch.zeros(vocabulary, dtype=torch.bool)
    known[ids] = True
    maps = {"d2t": ids - torch.arange(GUESSED), "t2d": known.to(torch.uint8)}
    save_file({**head.state_dict(), **maps}, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "head_dim": WIDTH,
        "vocab_size": vocabulary,
        "draft_vocab_size": GUESSED,
        "rms_norm_eps": 0.05,
        "rope_theta": 10000.0,
    }
    (folder / "config.json").write_text(json.dumps(config | changed))
    return folder


@dataclass(frozen=True)
class Made:
    """A model, a head for it, and both compiled."""

    model: Any
    head: Head
    path: Path
    checkpoint: Path
    head_checkpoint: Path

    @torch.no_grad()
    def fused(self, ids_N: Tensor) -> Tensor:
        """[N, D]: of what comes into layers 2, 4 and 5 of the 8."""
        states = self.model(ids_N[None], output_hidden_states=True).hidden_states
        fused: Tensor = self.head.fc(torch.cat([states[i][0] for i in (2, 4, 5)], dim=-1))
        return fused

    @torch.no_grad()
    def guessed(self, following_N: Tensor, made_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, G], and what the head makes [N, D]."""
        return self.head.forward(self.model.model.embed_tokens(following_N), made_ND)


def compile_with_head(checkpoint: Path, head: Path, path: Path, dtype: str = "f32", tp: int = 1) -> Path:
    compile_artifact(Request(None, checkpoint, None, {"tp": tp}, dtype, "cpu", head=head), path, lambda *_: None)
    return path


@pytest.fixture(scope="module")
def made(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("head")
    case = replace(BY_NAME["llama"], name="llama_deep", settings=BY_NAME["llama"].settings | {"num_hidden_layers": 8})
    model, checkpoint = tiny.model(case), tiny.checkpoint(case)
    config = model.config
    torch.manual_seed(11)
    head = Head(config.hidden_size, 64, LlamaConfig(hidden_size=WIDTH * HEADS, num_attention_heads=HEADS, head_dim=WIDTH))
    head_checkpoint = saved(head, config.vocab_size, config.hidden_size, 64, folder / "head")
    return Made(model, head, compile_with_head(checkpoint, head_checkpoint, folder / "deep.tsa"), checkpoint, head_checkpoint)


@pytest.mark.parametrize("chunks", [(15,), (6, 13, 14, 15)], ids=["whole", "chunks"])
def test_a_head_has_the_logits_of_the_published_one(made: Made, chunks: tuple[int, ...]) -> None:
    """After a step, and then on what it made itself."""
    ids = torch.randint(made.model.config.vocab_size, (24,), generator=torch.Generator().manual_seed(5))
    sequence, first = OneSequence(made.path), 0
    for last in chunks:
        sequence.run(ids, first, last)
        found, first, rows = sequence.run(ids, first, last, drafting=True), last, last - first
    known = made.fused(ids[:15])
    for last in range(15, 20):
        logits, states = made.guessed(ids[1 : last + 1], known)
        np.testing.assert_allclose(found, logits[-1], atol=2e-4)
        found = sequence.run(ids, last, last + 1, drafting=True, carried=rows - 1)
        known, rows = torch.cat((known, states[-1:])), 1


@pytest.fixture
def guessed(guesses_alone: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[Second | None]]]:
    """All that is guessed, all of which is verified."""
    seen: list[tuple[list[int], list[Second | None]]] = []
    guess = GuessDrafter.guess

    def guess_and_tell(self: GuessDrafter, tokens: list[int], beside: list[Second | None]) -> None:
        seen.append((tokens, beside))
        guess(self, tokens, beside)

    monkeypatch.setattr(GuessDrafter, "guess", guess_and_tell)
    return seen


def asked(count: int) -> list[GenerationRequest]:
    samplings = [Sampling(), Sampling(1.0, seed=3), Sampling(0.7, top_p=0.9, seed=4), Sampling(repetition_penalty=1.2)]
    prompts = [[(7 * i + j * j) % 150 for j in range(3 + i % 20)] for i in range(count)]
    return [GenerationRequest(prompt, 24, samplings[i % 4], ignore_eos=True) for i, prompt in enumerate(prompts)]


def test_guesses_are_tokens_of_the_model(made: Made, guessed: list[tuple[list[int], list[Second | None]]]) -> None:
    request = asked(1)[0]
    [tokens], _, _ = answers(made.path, replace(ON, branches=2), [request])
    ids = torch.tensor([*request.prompt, tokens[0]])
    logits, _ = made.guessed(ids[1:], made.fused(ids[:-1]))
    largest, second = (int(index) * 4 % made.model.config.vocab_size for index in logits[-1].topk(2).indices)
    first, beside = guessed[0]
    assert first[0] == largest
    assert beside[0] is not None
    assert beside[0][0] == second
    assert beside[0][1] == pytest.approx(float(logits[-1].softmax(0).topk(2).values[1]), rel=1e-2)
    assert beside[1] is not None
    assert {*beside[2:]} == {None}
    assert {token % 4 for guesses, seconds in guessed for token in (*guesses, *(one[0] for one in seconds if one))} == {0}


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_a_head_changes_no_token(made: Made, count: int, guesses_alone: None) -> None:
    requests = asked(count)
    expected, _, _ = answers(made.path, OFF, requests)
    for options in (replace(ON, max_sequences=3, page_size=4), replace(ON, num_pages=60, page_size=4, max_step_tokens=24, depth=1)):
        found, drafted, _ = answers(made.path, options, requests)
        assert found == expected
        assert drafted > 30 * count


def test_a_head_of_two_ranks_changes_no_token(made: Made, guesses_alone: None, tmp_path: Path) -> None:
    path = compile_with_head(made.checkpoint, made.head_checkpoint, tmp_path / "two.tsa", "bf16", tp=2)
    requests = asked(6)
    expected, _, _ = answers(path, OFF, requests)
    found, drafted, _ = answers(path, ON, requests)
    assert found == expected
    assert drafted > 100


def test_who_is_no_head_for_the_model_is_refused(made: Made, tiny: TinyModels, tmp_path: Path) -> None:
    def head(name: str, **changed: Any) -> Path:
        return saved(made.head, made.model.config.vocab_size, made.model.config.hidden_size, 64, tmp_path / name, **changed)

    wide = head("wide", hidden_size=96)
    with pytest.raises(CompileError, match=r"TS0711.*wide: its hidden_size is 96, and a head for .*llama_deep has 48"):
        compile_with_head(made.checkpoint, wide, tmp_path / "x.tsa")
    taps = head("taps", eagle_config={"eagle_aux_hidden_state_layer_ids": [0, 1, 2]})
    with pytest.raises(CompileError, match=r"TS0711.*taps: it takes what layers \[0, 1, 2\] make, and heads are given that of \[1, 3, 4\]"):
        compile_with_head(made.checkpoint, taps, tmp_path / "x.tsa")
    more = head("more", draft_vocab_size=GUESSED + 1)
    with pytest.raises(CompileError):
        compile_with_head(made.checkpoint, more, tmp_path / "x.tsa")
    qwen = tiny.checkpoint(BY_NAME["qwen2"])
    with pytest.raises(CompileError):
        compile_with_head(qwen, head("other", vocab_size=tiny.model(BY_NAME["qwen2"]).config.vocab_size), tmp_path / "x.tsa")
