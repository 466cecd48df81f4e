"""Answers that must be of a form: that they are, whatever else is asked for and whoever else is there; and grammars that mean harm."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLParserLimits
from tests.runtime.numpy_sampler import logprobs
from tests.runtime.test_engine import PROMPTS
from tests.runtime.toy import EOS, Toy, byte_tokenizer

from tsrun import grammar_check, grammar_compiler
from tsrun.constraint import Constraint
from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.generation import Event, GenerationRequest
from tsrun.grammar_check import GrammarCheck
from tsrun.limits import LimitOptions
from tsrun.matching import Matching
from tsrun.sampler import Draws, Sampling
from tsrun.simd_program import SimdPrograms
from tsrun.torch_program import TorchPrograms

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "t": {"enum": ["a", "é"]}},
    "required": ["n", "t"],
    "additionalProperties": False,
}
TAGS = {"structures": [{"begin": "<f>", "schema": {"type": "integer", "maximum": 9, "minimum": 0}, "end": "</f>"}], "triggers": ["<f>"]}

XGRAMMAR_TAGS = {
    "type": "structural_tag",
    "format": {
        "type": "triggered_tags",
        "triggers": ["<f>"],
        "tags": [{"type": "tag", "begin": "<f>", "content": {"type": "json_schema", "json_schema": {"enum": [*range(10)]}}, "end": "</f>"}],
        "at_least_one": False,
    },
}


def is_of_schema(text: str) -> bool:
    found = json.loads(text)
    return list(found) == ["n", "t"] and 0 <= found["n"] <= 99 and found["t"] in ("a", "é")


CHOICES = ["yes", 'no "\\\n', "😀", "\t\x00\x1b\x7f"]
CASES: dict[str, tuple[Constraint, Callable[[str], object]]] = {
    "json_schema": (Constraint("json_schema", json.dumps(SCHEMA)), is_of_schema),
    "json_object": (Constraint("json_object"), lambda text: isinstance(json.loads(text), dict)),
    "regex": (Constraint("regex", "[0-9]{3}-é?(x|yz)"), re.compile("[0-9]{3}-é?(x|yz)").fullmatch),
    "choice": (Constraint("choice", json.dumps(CHOICES)), lambda text: text in CHOICES),
    "lark": (Constraint("lark", 'start: "<" item ("," item){1,3} ">"\nitem: /[ab]{2}/'), re.compile("<[ab]{2}(,[ab]{2}){1,3}>").fullmatch),
    "gbnf": (Constraint("gbnf", 'root ::= "(" item item? ")"\nitem ::= [0-9] "é"?'), re.compile(r"\(([0-9]é?)+\)").fullmatch),
}
kinds = pytest.mark.parametrize("kind", CASES)
LENGTH = 70


def id_of(letter: str) -> int:
    (index,) = byte_tokenizer().encode(letter).ids
    return int(index)


def requests_of(constraints: list[Constraint | None], temperature: float = 1.0, **more: object) -> list[GenerationRequest]:
    samplings = [Sampling(temperature, seed=i) for i in range(len(constraints))]
    made = zip(PROMPTS, samplings, constraints, strict=False)
    return [GenerationRequest(p, LENGTH if len(p) < 25 else 40, s, constraint=c, **more) for p, s, c in made]  # type: ignore[arg-type]


def run(engine: Engine, requests: list[GenerationRequest]) -> list[list[Event]]:
    events: dict[int, list[Event]] = {engine.submit(request): [] for request in requests}
    for event in engine.events():
        events[event.request].append(event)
    return list(events.values())


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


@pytest.fixture(scope="module")
def engine(toy_artifact: Path) -> Engine:
    return Engine(toy_artifact)


@pytest.fixture(scope="module", autouse=True)
def _closed(engine: Engine) -> object:
    yield
    engine.close()


@kinds
@pytest.mark.parametrize("ignore_eos", [False, True], ids=["ends", "ignores-eos"])
def test_an_answer_is_of_its_form(engine: Engine, kind: str, ignore_eos: bool) -> None:
    constraint, is_valid = CASES[kind]
    num_ended = 0
    for seed in range(12):
        request = GenerationRequest([9, seed], LENGTH, Sampling(1.0, seed=seed), constraint=constraint, ignore_eos=ignore_eos)
        (events,) = run(engine, [request])
        if events[-1].finish_reason == "stop":
            assert is_valid(text_of(events)), text_of(events)
            assert (tokens_of(events)[-1], events[-1].stopped_by) == (EOS, EOS)
            num_ended += 1
        else:
            assert events[-1].finish_reason == "length"
            assert kind.startswith("json")  # white space is most of what a toy makes of it
    assert num_ended > 0


def test_a_greedy_token_is_the_largest_that_is_allowed(engine: Engine, toy: Toy) -> None:
    for prompt in PROMPTS:
        (events,) = run(engine, [GenerationRequest(prompt, 20, constraint=Constraint("regex", "[0-9]{12}"))])
        ids = list(prompt)
        for token in tokens_of(events)[:-1]:
            digits = [id_of(str(digit)) for digit in range(10)]
            assert token == digits[int(toy.logits(ids)[-1][digits].argmax())]
            ids.append(token)
        assert len(ids) == len(prompt) + 12


@kinds
def test_one_token_is_permitted_if_it_is_among_all_that_are(engine: Engine, kind: str) -> None:
    """As greedy sampling asks, whose largest logit is allowed most often."""
    rng = np.random.default_rng(3)
    for ignore_eos, least in ((False, 0), (True, 0), (False, 4)):
        asked = GenerationRequest([9], constraint=CASES[kind][0], ignore_eos=ignore_eos, min_tokens=least)
        place, same = (engine._constraints.allowed(asked) for _ in range(2))
        assert place is not None
        assert same is not None
        for _ in range(30):
            place.fill()
            allowed = [token for token in range(260) if place.bits[token // 32] >> np.uint32(token % 32) & 1]
            permitted = [token for token in range(260) if same.permits(token)]
            assert permitted == allowed or (allowed == [EOS] and not permitted), "where it is over, all are looked at"
            token = int(rng.choice(allowed))
            if token == EOS:
                break
            place.take(token)
            same.take(token)


@pytest.mark.parametrize("tags", [TAGS, XGRAMMAR_TAGS], ids=["structures", "xgrammar"])
def test_free_text_goes_on_to_a_tag(engine: Engine, tags: object) -> None:
    constraint = Constraint("structural_tag", json.dumps(tags))
    bias = {id_of(letter): 20.0 for letter in "<f>"}
    samplings = [Sampling(3.0, seed=seed, logit_bias=bias) for seed in range(12)]
    answers = run(engine, [GenerationRequest([9], 60, sampling, constraint=constraint, ignore_eos=True) for sampling in samplings])
    found = [value for events in answers for value in re.findall("<f>(.*?)(?:</f>|$)", text_of(events), re.DOTALL)]
    assert found
    assert all(re.fullmatch(r"[ \t\n\r]*[0-9]?[ \t\n\r]*(<(/(f)?)?)?", each) for each in found), found


MIXED: list[Constraint | None] = [CASES["json_schema"][0], None, CASES["regex"][0], CASES["json_object"][0], CASES["choice"][0]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        LimitOptions(),
        LimitOptions(max_sequences=2, depth=1),
        LimitOptions(max_step_tokens=3),
        LimitOptions(page_size=4, num_pages=24, max_step_tokens=16),
        LimitOptions(page_size=4, num_pages=24, max_step_tokens=16, depth=1),
    ],
    ids=["batched", "one-step-at-a-time", "chunked", "preempted", "preempted-one-step-at-a-time"],
)
def test_tokens_do_not_depend_on_the_batch(engine: Engine, toy_artifact: Path, options: LimitOptions, temperature: float) -> None:
    requests = requests_of(MIXED, temperature, ignore_eos=True)
    alone = [tokens_of(run(engine, [request])[0]) for request in requests]
    with Engine(toy_artifact, options) as other:
        assert [tokens_of(events) for events in run(other, requests)] == alone
        assert (other.num_preemptions > 0) == (options.num_pages is not None)


def test_penalties_and_filters_work_on_what_is_allowed(engine: Engine) -> None:
    constraint = Constraint("regex", "[ab]{30}")
    bias = {id_of("a"): 50.0, id_of("z"): 100.0}
    (biased,) = run(engine, [GenerationRequest([9], 40, Sampling(logit_bias=bias), constraint=constraint)])
    assert text_of(biased) == "a" * 30
    penalized = Sampling(logit_bias={id_of("a"): 50.0, id_of("b"): 49.0}, frequency_penalty=2.0)
    (turns,) = run(engine, [GenerationRequest([9], 40, penalized, constraint=constraint)])
    assert 13 <= text_of(turns).count("b") <= 17
    (filtered,) = run(engine, [GenerationRequest([9], 40, Sampling(2.0, top_k=2, seed=1), constraint=constraint)])
    assert set(text_of(filtered)) == {"a", "b"}


def test_log_probabilities_are_those_of_the_model(engine: Engine, toy: Toy) -> None:
    (events,) = run(engine, [GenerationRequest([9], 5, constraint=CASES["regex"][0], logprobs=1)])
    ids = [9]
    for event in events:
        expected_V = logprobs(toy.logits(ids)[-1].numpy())
        (found,) = event.logprobs
        assert found.logprob == pytest.approx(expected_V[found.token], abs=1e-3)
        assert found.top[0][0] == int(np.argmax(expected_V))
        ids.append(found.token)


REFUSED = {
    "keyword": (Constraint("json_schema", '{"type": "object", "if": {}}'), "json_schema: the keyword `if` is not supported; leave it out"),
    "keywords": (Constraint("json_schema", '{"contains": {}, "uniqueItems": true}'), "the keyword `contains`, `uniqueItems` is not"),
    "told to be lenient": (Constraint("json_schema", '{"x-guidance": {"lenient": true}, "if": {}}'), "the keyword `if` is not supported"),
    "type": (Constraint("json_schema", '{"type": "foo"}'), "json_schema: Invalid type: foo"),
    "empty": (Constraint("json_schema", "false"), "nothing is of the schema `false`"),
    "no JSON": (Constraint("json_schema", "{"), "json_schema: it is not JSON"),
    "deep JSON": (Constraint("json_schema", '{"items":' * 50_000), "json_schema: it is not JSON"),
    "no schema": (Constraint("json_schema", "3"), "json_schema: it is no object"),
    "regex": (Constraint("regex", "[a"), r"regex: .*invalid regex \"\[a\""),
    "lark": (Constraint("lark", "start: x"), 'lark: .*unknown name: "x"'),
    "choice": (Constraint("choice", "[]"), "choice: it is no list of texts"),
    "tag": (Constraint("structural_tag", '{"structures": [{"begin": "a"}], "triggers": ["b"]}'), "'a' begins with none of the triggers"),
    "format": (Constraint("structural_tag", '{"format": {"type": "sequence", "elements": []}}'), "the format `sequence` is not supported"),
    "flag": (
        Constraint("structural_tag", '{"format": {"type": "triggered_tags", "at_least_one": true, "triggers": [], "tags": []}}'),
        "structural_tag: `at_least_one` is not supported",
    ),
    "gbnf": (Constraint("gbnf", 'root ::= "a'), "gbnf: Unexpected end of input"),
    "rule": (Constraint("gbnf", "root ::= x"), "gbnf: Rule 'x' not found"),
    "deep gbnf": (Constraint("gbnf", "root ::= " + "(" * 50_000), "gbnf: maximum recursion depth exceeded"),
    "no tag": (Constraint("structural_tag", "[]"), "structural_tag: it is none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_compiled_is_refused_in_one_line(engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constraint, said = REFUSED[name]
    for _ in range(2):  # the second time without a look at it
        with pytest.raises(RequestError, match=said) as refusal:
            engine.submit(GenerationRequest([9], constraint=constraint))
        assert "\n" not in refusal.value.line
        monkeypatch.setattr(GrammarCheck, "error", None)
    assert engine.num_open == 0


def test_a_kind_or_size_that_there_is_not_is_refused() -> None:
    with pytest.raises(RequestError, match="constraint: got 'xml'; give one of json_schema, "):
        Constraint("xml")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="regex: it has 524,289 characters; give at most 524,288"):
        Constraint("regex", "a" * (2**19 + 1))


def checking_process(engine: Engine) -> subprocess.Popen[bytes]:
    grammars = engine._constraints._grammars
    assert grammars is not None
    process = grammars._check._process
    assert process is not None
    return process


def crashing(count: int) -> Constraint:
    """llguidance follows rules by recursion: its process would overflow its stack."""
    rules = "\n".join(f'r{i}: "a" | "b" r{(i + 1) % count}' for i in range(count))
    return Constraint("lark", "start: " + " ".join(f"r{i}" for i in range(count)) + "\n" + rules)


def test_a_grammar_that_crashes_its_compiler_harms_nobody(toy_artifact: Path) -> None:
    with Engine(toy_artifact) as engine:
        other = engine.submit(GenerationRequest([9], 20, ignore_eos=True))
        engine.step()
        with pytest.raises(RequestError, match="lark: it is nested too deeply, or too large, to be compiled"):
            engine.submit(GenerationRequest([9], constraint=crashing(15_000)))
        again = engine.submit(GenerationRequest([9], 20, constraint=CASES["regex"][0]))
        reasons = {event.request: event.finish_reason for event in engine.events() if event.finish_reason}
        assert reasons == {other: "length", again: "stop"}


def test_a_grammar_that_takes_too_long_is_given_up(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(toy_artifact) as engine:
        engine.prepare(CASES["choice"][0])
        monkeypatch.setattr(grammar_check, "_CHECK_SECONDS", 0.2)
        stuck = checking_process(engine)
        stuck.send_signal(signal.SIGSTOP)  # as one that finds no end
        while Path(f"/proc/{stuck.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        with pytest.raises(RequestError, match=r"regex: it takes more than 0\.2 seconds to compile"):
            engine.prepare(CASES["regex"][0])
        assert stuck.poll() is not None
        engine.prepare(CASES["choice"][0])
        monkeypatch.undo()
        engine.prepare(CASES["lark"][0])


def test_a_constraint_that_can_not_go_on_ends_its_request_alone(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_compiler, "LIMITS", LLParserLimits(step_max_items=12))
    for depth in (1, 2):
        with Engine(toy_artifact, LimitOptions(depth=depth)) as engine:
            other = GenerationRequest([9], 30, ignore_eos=True)
            (expected,) = run(engine, [other])
            ambiguous = Constraint("lark", 'start: "x" s\ns: s s | "a" s | "a"')
            failed, good = run(engine, [GenerationRequest([9], constraint=ambiguous), other])
            assert failed[-1].finish_reason == "error"
            assert failed[-1].error is not None
            assert re.match(r"position \d+: the constraint can not go on: .*; give another constraint", failed[-1].error)
            assert tokens_of(good) == tokens_of(expected)
            assert engine.num_open == 0


def test_masks_are_found_while_the_model_runs(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other to have begun, which none could that comes after it."""
    runs, fills = threading.Semaphore(0), threading.Semaphore(0)
    fill, programs = Matching.fill, TorchPrograms if _needs_torch(toy_artifact) else SimdPrograms
    run_program = programs.run

    def slow_fill(self: Matching, drafts: Sequence[int] = ()) -> None:
        fills.release()
        assert runs.acquire(timeout=20)
        fill(self, drafts)

    def slow_run(self: object, *sizes: int) -> object:
        runs.release()
        assert fills.acquire(timeout=20)
        return run_program(self, *sizes)  # type: ignore[arg-type]

    with Engine(toy_artifact) as engine:
        engine.prepare(CASES["regex"][0])
        monkeypatch.setattr(Matching, "fill", slow_fill)
        monkeypatch.setattr(programs, "run", slow_run)
        (events,) = run(engine, [GenerationRequest([9], 5, constraint=CASES["regex"][0])])
        assert len(tokens_of(events)) == 5


def _needs_torch(artifact: Path) -> bool:
    with Engine(artifact) as engine:
        return engine._ranks._executor.needs_torch


def test_the_same_constraint_is_compiled_once_from_any_thread(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    error = GrammarCheck.error

    def count(self: GrammarCheck, grammar: str) -> str | None:
        asked.append(grammar)
        return error(self, grammar)

    monkeypatch.setattr(GrammarCheck, "error", count)
    with Engine(toy_artifact) as engine, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: engine.prepare(CASES["regex"][0]), range(16)))
        assert len(asked) == 1
        run(engine, [GenerationRequest([9], 5, constraint=CASES["regex"][0])] * 2)
        assert len(asked) == 1


def test_the_process_that_checks_ends_with_the_engine(toy_artifact: Path) -> None:
    with Engine(toy_artifact) as engine:
        engine.prepare(CASES["regex"][0])
        process = checking_process(engine)
        os.kill(process.pid, 0)
    assert process.poll() is not None


def test_without_a_tokenizer_or_an_end_nothing_is_constrained(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(toy_artifact) as engine:
        monkeypatch.setattr(engine._constraints, "_tokenizer", None)
        with pytest.raises(RequestError, match="constraint: the artifact has no tokenizer"):
            engine.submit(GenerationRequest([9], constraint=CASES["regex"][0]))


def test_samplers_read_what_is_allowed_at_each_choice() -> None:
    allowed = np.zeros(8, dtype=np.uint32)
    rows = np.arange(200, dtype=np.float32)[None]
    sampler = Sampling().sampler(allowed=allowed)

    def chosen() -> int:
        from tests.runtime.test_sampler import output

        return int(Draws([sampler], np.zeros(1, dtype=np.int32)).choose(output(rows, "f32")).tokens[0])

    assert chosen() == -2
    allowed[1] = 0b101
    assert chosen() == 34
    allowed[6] = 1 << 7
    assert chosen() == 199
    rows[0, 199] = np.nan
    assert chosen() == -1
