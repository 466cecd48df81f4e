"""The entry that guesses one token further, beside the same model in PyTorch (`examples/pico/model.py`), which transformers does not have;
and answers of pico, whose tokens are the same with guesses and without.

Dimensions: N tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tests.models.running import compiled
from tests.runtime.test_speculation import tokens_of
from torch import Tensor

from tsc.checkpoint import load_config
from tsc.cli import main
from tsc.diagnostics import CompileError
from tsc.driver import compile_artifact
from tsc.front import place_drafter, place_model, read_model
from tsc.request import Request
from tsc.simulation.simulate import simulate
from tspasses.placed import Options
from tspasses.plan import plan_of
from tspasses.topology import topology
from tsrun.artifact import PROGRAM, open_artifact, read_manifest
from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.executor import Executor
from tsrun.generation import Event, GenerationRequest
from tsrun.importance import importance
from tsrun.limits import LimitOptions, row_bytes, settle
from tsrun.program import read_program
from tsrun.sampler import Sampling
from tsrun.step import Step

PICO = Path(__file__).parents[2] / "examples" / "pico"
SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "max_position_embeddings": 128,
}
PAGE = 8
OFF = LimitOptions(num_pages=2048, speculate="off")
MTP = LimitOptions(num_pages=2048, speculate="mtp")
_DOWN = 'weight other: [D, J] = "model.layers.{L}.mlp.shared_experts.down_proj.weight"'
CODE = (Path(__file__).parent / "code.txt").read_text()  # Python that changes with nothing else


@pytest.fixture(scope="module")
def pico() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pico_model", PICO / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(pico: ModuleType) -> Any:
    torch.manual_seed(3)
    made = pico.Pico(pico.Config(**SMALL))
    for mixture in made.mixtures:
        mixture.gate.weight.data.normal_()  # so that tokens choose their experts
    return made


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(model, tmp_path_factory.mktemp("pico"))


def saved(model: Any, folder: Path, *, without: str = "no tensor") -> Path:
    save_file({n: v.contiguous() for n, v in model.state_dict().items() if without not in n}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.c.written()))
    return folder


class OneSequence:
    """Runs chunks of one sequence on one rank, and what guesses further after each."""

    def __init__(self, path: Path) -> None:
        artifact = open_artifact(path)
        program = read_program(artifact.file(PROGRAM))
        rows = row_bytes((cache.dtype, cache.page, cache.window) for cache in program.caches)
        limits = settle(LimitOptions(num_pages=8, page_size=PAGE), context=64, row_bytes=rows, ranks=1)
        self._executor = Executor(artifact, program, 0, limits, 1)
        self._table = np.array([[0, 0, column, column] for column in range(8)], dtype=np.int32)

    def run(
        self, ids: Tensor, first: int, last: int, *, drafting: bool = False, carried: int | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[V], after the tokens from `first` to before `last`; where drafting after the one that follows them. carried: the row of
        the draft before that this one goes on from."""
        given = ids[first + drafting : last + drafting].numpy().astype(np.int32)
        rows, count = np.arange(first, last, dtype=np.int32), last - first

        def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
            return np.array(values, dtype=np.int32)

        step = Step(
            ids=given,
            positions=rows,
            slots=rows[None],
            spans=ints(0, count).reshape(1, 2),
            lengths=ints(last),
            last=ints(count - 1),
            keep=ints(0),
            table_rows=ints(0),
            table_updates=self._table,
            copies=np.zeros((0, 3), dtype=np.int32),
            carried=ints() if carried is None else ints(carried),
            drafting=drafting,
        )
        output = self._executor.run(step)
        numbers: np.ndarray[Any, np.dtype[np.float32]] = output.numbers()[0].copy()
        assert output.largest is None or output.largest[0] == numbers.argmax()
        return numbers


@pytest.mark.parametrize("chunks", [(23,), (9, 16, 17, 18, 23)], ids=["whole", "chunks"])
def test_a_draft_has_the_logits_of_the_model(chunks: tuple[int, ...], model: Any, checkpoint: Path, tmp_path: Path) -> None:
    ids = torch.randint(SMALL["vocab_size"], (24,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits, made = model(ids[None, :-1])
        further = model.further(made, ids[None, 1:])
    sequence, first = OneSequence(compiled(checkpoint, tmp_path / "small.tsa")), 0
    for last in chunks:
        found = sequence.run(ids, first, last)
        drafted = sequence.run(ids, first, last, drafting=True)
        np.testing.assert_allclose(found, logits[0, last - 1], atol=1e-4)
        np.testing.assert_allclose(drafted, further[0, last - 1], atol=1e-4)
        first = last


def test_a_chain_of_drafts_has_the_logits_of_the_model(model: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Each goes on from what the layer made of the one before, at the position after it."""
    ids = torch.randint(SMALL["vocab_size"], (24,), generator=torch.Generator().manual_seed(5))
    sequence = OneSequence(compiled(checkpoint, tmp_path / "small.tsa"))
    sequence.run(ids, 0, 15)
    found = sequence.run(ids, 0, 15, drafting=True)
    with torch.no_grad():
        _, made = model(ids[None, :15])
        cos, sin = model.rotation(24, ids.device)
        for last in range(15, 20):
            embedded = model.model["embed_tokens"](ids[None, 1 : last + 1])
            predicted = model.model["layers"][-1].predict(made, embedded, cos[..., :last, :], sin[..., :last, :])
            expected = torch.nn.functional.linear(predicted[0, -1], model.model["embed_tokens"].weight)
            np.testing.assert_allclose(found, expected, atol=1e-4)
            found = sequence.run(ids, last, last + 1, drafting=True, carried=14 if last == 15 else 0)
            made = torch.cat((made, predicted[:, -1:]), dim=1)


def test_a_checkpoint_without_the_layer_is_compiled_without_drafts(model: Any, checkpoint: Path, tmp_path: Path) -> None:
    path = compiled(saved(model, tmp_path, without="layers.2."), tmp_path / "small.tsa")
    assert read_manifest(path).drafter is None
    assert "ts::keep" not in (path / PROGRAM).read_text()
    whole = compiled(checkpoint, tmp_path / "whole.tsa")
    assert read_manifest(whole).drafter == "draft"
    assert '"kept"' in (whole / PROGRAM).read_text()


def requests(path: Path, count: int) -> list[GenerationRequest]:
    """About pieces of Python, chosen in several ways."""
    with Engine(path, OFF) as engine:
        assert engine.tokenizer is not None
        prompts = [engine.tokenizer.encode(CODE[97 * i :][: 20 + 5 * i]) for i in range(count)]
    kinds = [
        Sampling(),
        Sampling(0.7, seed=5),
        Sampling(1.0, top_k=20, seed=6),
        Sampling(repetition_penalty=1.2),
    ]
    return [GenerationRequest(prompt, 24, kinds[i % 4], ignore_eos=i % 3 > 0) for i, prompt in enumerate(prompts)]


def answers(path: Path, options: LimitOptions, asked: list[GenerationRequest], *, aborts: bool = False) -> tuple[list[list[int]], int, int]:
    """The tokens of each request, and how many were drafted and came. aborts: of every fifth request, after its first tokens."""
    with Engine(path, options, threads=1) as engine:  # small as it is: more of them wait for each other
        events: dict[int, list[Event]] = {engine.submit(request): [] for request in asked}
        while engine.num_open:
            for event in engine.step():
                events[event.request].append(event)
                if aborts and event.request % 5 == 0:
                    engine.abort(event.request)
        assert not any(event.error for found in events.values() for event in found)
        return [tokens_of(found) for found in events.values()], engine.speculated.draft_tokens, engine.speculated.accepted_tokens


@pytest.mark.slow
def test_guesses_change_no_token_of_a_hundred_answers(trained: Path, guesses_alone: None) -> None:
    asked = requests(trained, 100)
    expected, drafted, _ = answers(trained, OFF, asked)
    assert drafted == 0
    for options in (
        replace(MTP, max_sequences=3, depth=1),
        replace(MTP, num_pages=60, max_sequences=8, max_step_tokens=24, prefix_cache=False),
    ):
        found, drafted, accepted = answers(trained, options, asked)
        assert found == expected
        assert drafted > 4000
        assert accepted > 0.1 * drafted  # all 8 of each chain are verified
    found, _, _ = answers(trained, MTP, asked, aborts=True)
    assert all(whole[: len(part)] == part for whole, part in zip(expected, found, strict=True))
    assert sum(part == whole for whole, part in zip(expected, found, strict=True)) >= 80


def test_guesses_change_no_token(trained: Path, guesses_alone: None) -> None:
    asked = requests(trained, 12)
    expected, _, _ = answers(trained, OFF, asked)
    for options in (replace(MTP, max_sequences=3, page_size=4), replace(MTP, num_pages=90, page_size=4, max_step_tokens=24, depth=1)):
        found, drafted, accepted = answers(trained, options, asked)
        assert found == expected
        assert drafted > 500
        assert accepted > 0.1 * drafted


def test_guesses_of_two_ranks_change_no_token(trained: Path, guesses_alone: None, tmp_path: Path) -> None:
    path = compiled(PICO / "checkpoint", tmp_path / "two.tsa", tp=2, dtype="bf16")
    asked = requests(trained, 12)
    expected, _, _ = answers(path, OFF, asked)
    found, drafted, accepted = answers(path, MTP, asked)
    assert found == expected
    assert accepted > 0.1 * drafted > 40


def test_who_has_no_entry_for_drafts_is_told(model: Any, tmp_path: Path) -> None:
    path = compiled(saved(model, tmp_path, without="layers.2."), tmp_path / "small.tsa")
    with pytest.raises(RequestError, match="no entry for drafts"):
        Engine(path, LimitOptions(speculate="mtp"))


def test_an_entry_for_drafts_gives_logits(checkpoint: Path, tmp_path: Path) -> None:
    text = (PICO.parents[1] / "models" / "deepseek_v3.ts").read_text()
    head, mark, draft = text.partition("entry draft(")
    assert "-> [S, V@ep]" in draft
    changed = (mark + draft).replace("-> [S, V@ep]", "-> [S, D]")
    changed = changed.replace("return linear(made[last], head)", "return made[last]")
    model = tmp_path / "model.ts"
    model.write_text(head + changed)
    with pytest.raises(CompileError, match=r"TS0213.*`draft` guesses for `decode` and gives \[S, D\]"):
        compiled(checkpoint, tmp_path / "x.tsa", model=model)


@pytest.mark.parametrize(
    ("of_decode", "of_draft"),
    [
        (_DOWN, ""),
        (f"{_DOWN} let looked = embedding(ids, other)", ""),
        (f"{_DOWN} x = x + linear(embedding(ids, other), other) * 0.0", ""),
        ("", _DOWN.replace("{L}", "1")),
    ],
    ids=["declared by the first", "read by it for nothing", "a table to the first", "declared by the second"],
)
def test_what_entries_read_otherwise_is_stored_once(of_decode: str, of_draft: str, checkpoint: Path, tmp_path: Path) -> None:
    text = (PICO.parents[1] / "models" / "deepseek_v3.ts").read_text()
    (head, decode, draft) = re.split(r"(?=^entry )", text, flags=re.MULTILINE)
    decode = decode.replace("  keep made", f"  {of_decode}\n  keep made")
    draft = draft.replace("  let of_next", f"  {of_draft}\n  let of_next")
    (tmp_path / "model.ts").write_text(head + decode + draft)
    plain = compiled(checkpoint, tmp_path / "plain.tsa")
    changed = compiled(checkpoint, tmp_path / "changed.tsa", model=tmp_path / "model.ts")
    sizes = [sum(math.prod(t.shape) for t in load_file(path / "weights" / "rank-00000.safetensors").values()) for path in (plain, changed)]
    assert sizes[0] == sizes[1]
    ids = torch.randint(SMALL["vocab_size"], (10,), generator=torch.Generator().manual_seed(5))
    one, other = OneSequence(plain), OneSequence(changed)
    for drafting in (False, True):
        np.testing.assert_allclose(one.run(ids, 0, 9, drafting=drafting), other.run(ids, 0, 9, drafting=drafting), atol=1e-5)


def test_a_tensor_that_entries_share_out_otherwise_among_ranks_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    text = (PICO.parents[1] / "models" / "deepseek_v3.ts").read_text()
    table = 'weight table: [V, D] = "model.embed_tokens.weight"  x = x + 0.0 * embedding(ids, table)'
    (tmp_path / "model.ts").write_text(text.replace("  keep made", f"  {table}\n  keep made"))
    compiled(checkpoint, tmp_path / "one.tsa", model=tmp_path / "model.ts")
    with pytest.raises(CompileError, match=r'TS0204.*"model.embed_tokens.weight" is stored as f32\[V@tp, D\], and this is f32\[V, D\]'):
        compiled(checkpoint, tmp_path / "two.tsa", model=tmp_path / "model.ts", tp=2)


@pytest.mark.parametrize("tp", [1, 2])
def test_a_plan_counts_what_the_drafter_stores(tp: int, checkpoint: Path, tmp_path: Path) -> None:
    path = compiled(checkpoint, tmp_path / "small.tsa", tp=tp)
    source, (config, _) = read_model(PICO.parents[1] / "models" / "deepseek_v3.ts"), load_config(checkpoint)
    placed = place_model(source, config, {"tp": tp}, Options("f32", topology=topology("local")))
    drafts = place_drafter(source, config, {"tp": tp}, placed)
    plan = plan_of(placed, drafts)
    assert plan.drafter is not None
    assert plan.drafter.weight_bytes > 0
    stored = load_file(path / "weights" / "rank-00000.safetensors").values()
    assert plan.weight_bytes + plan.drafter.weight_bytes == 4 * sum(t.numel() for t in stored)
    caches = json.loads((path / PROGRAM).read_text())["caches"]
    assert plan.cache_bytes_per_token + plan.drafter.cache_bytes_per_token == sum(4 * math.prod(c["page"]) for c in caches)
    assert [i.id for i in plan.drafter.items] == [f"D{n + 1}" for n in range(len(plan.drafter.items))]
    shown = json.loads((path / "plan.json").read_text())
    assert [i["kind"] for i in shown["drafts"][0]["items"]] == [i.kind for i in plan.drafter.items]
    assert {p["weight_bytes"] for p in shown["drafts"]} == {plan.drafter.weight_bytes}


def test_a_plan_shows_the_drafter_as_such(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["plan", str(PICO.parents[1] / "models" / "deepseek_v3.ts"), "--config", str(checkpoint), "--mesh", "tp=2"]

    def shown(*more: str) -> str:
        result = CliRunner().invoke(main, [*arguments, *more])
        assert result.exit_code == 0, result.output
        return result.output

    text = shown()
    own, drafter = text.split("\ndrafter `draft`, which runs after each step on its rows, where the checkpoint has its weights:\n")
    assert "D1  draft" in drafter
    assert "D1" not in own
    assert "\ndrafter's cache: " in drafter
    assert "\ndrafter's weights: " in drafter
    assert shown("--explain", "D1").startswith("D1: all_reduce over tp (2 ranks)\n")
    (tmp_path / "plan.json").write_text(shown("--json"))
    assert shown("--diff", str(tmp_path / "plan.json")).startswith("the same collectives")
    arguments[-1] = "dp=2"
    assert ", 128 B/token (drafter)\n" in shown("--diff", str(tmp_path / "plan.json"))
    assert "drafter" not in shown("--entry", "draft")


def test_an_entry_for_drafts_is_not_run_alone(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"TS0213.*takes `made`, which another entry keeps"):
        compiled(checkpoint, tmp_path / "x.tsa", entry="draft")
    model = read_model(PICO.parents[1] / "models" / "deepseek_v3.ts")
    with pytest.raises(CompileError, match=r"TS0213.*takes `made`"):
        simulate(model, json.loads((checkpoint / "config.json").read_text()), {"tp": 2}, entry="draft")


def test_weights_are_rounded_by_an_importance_that_knows_nothing_of_drafts(trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(CODE[:3000])
    importance(trained, text, tmp_path / "pico.importance.safetensors", 400, 2)
    request = Request(
        None, PICO / "checkpoint", None, {}, "bf16", "cpu", None, quantize="int4", importance=tmp_path / "pico.importance.safetensors"
    )
    compile_artifact(request, tmp_path / "int4.tsa", lambda *_: None)
    assert read_manifest(tmp_path / "int4.tsa").drafter == "draft"
