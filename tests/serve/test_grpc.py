"""A worker as a gateway uses it, over gRPC, without a gateway."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.toy import EOS, Toy
from tests.serve.conftest import Server, start
from tests.serve.test_http import eventually, metric

grpc = pytest.importorskip("grpc", reason="the extra `smg` is not installed")
health = pytest.importorskip("grpc_health.v1.health_pb2")
health_service = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
proto = pytest.importorskip("smg_grpc_proto.generated.tokenspeed_scheduler_pb2")
common = pytest.importorskip("smg_grpc_proto.generated.common_pb2")
service = pytest.importorskip("smg_grpc_proto.generated.tokenspeed_scheduler_pb2_grpc")

SERVICE = "tokenspeed.grpc.scheduler.TokenSpeedScheduler"
PAGES, PAGE = 280, 16
PROMPT = [72, 101, 108, 108, 111]


@pytest.fixture(scope="module")
def worker(model: Path) -> Iterator[Server]:
    running = start(model, "--grpc", "--metrics-port", "0", "--num-pages", str(PAGES), "--page-size", str(PAGE))
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def channel(worker: Server) -> Iterator[Any]:
    with grpc.insecure_channel(worker.url.removeprefix("grpc://")) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: Any) -> Any:
    return service.TokenSpeedSchedulerStub(channel)


def asked(prompt: list[int], count: int, /, *, stream: bool = True, identity: str = "r", sampling: Any = None, **more: Any) -> Any:
    fields = {"temperature": 0.0, "max_new_tokens": count, "ignore_eos": True, **(sampling or {})}
    tokenized = proto.TokenizedInput(input_ids=prompt)
    return proto.GenerateRequest(
        request_id=identity, tokenized=tokenized, stream=stream, sampling_params=proto.SamplingParams(**fields), **more
    )


def answers(responses: Any) -> list[tuple[list[int], Any]]:
    """By index: all ids, and the last message."""
    ids: dict[int, list[int]] = {}
    last: dict[int, Any] = {}
    for response in responses:
        part = getattr(response, response.WhichOneof("response"))
        assert part.index not in last, "nothing comes after the complete one"
        ids.setdefault(part.index, []).extend(part.token_ids if response.HasField("chunk") else part.output_ids)
        if response.HasField("complete"):
            last[part.index] = part
        assert part.completion_tokens >= len(ids[part.index])
    return [(ids[index], last[index]) for index in sorted(last)]


def load(stub: Any) -> Any:
    (found,) = stub.GetLoads(proto.GetLoadsRequest()).loads
    return found


def test_a_worker_says_what_it_is(stub: Any, worker: Server) -> None:
    model = stub.GetModelInfo(proto.GetModelInfoRequest())
    assert (model.served_model_name, model.max_context_length, model.vocab_size) == ("toy", 4096, 260)
    assert (list(model.eos_token_ids), list(model.architectures), model.model_dtype) == ([EOS], ["Toy"], "float32")
    found = stub.GetServerInfo(proto.GetServerInfoRequest())
    assert found.max_total_num_tokens == PAGES * PAGE
    assert found.scheduler_info["page_size"] == PAGE
    assert found.server_args["max_sequences"] == 32
    with worker.client() as client:
        assert client.get("/health").json() == {"status": "ok", "requests": 0}
        assert client.get("/v1/models").status_code == 404


def test_health_is_of_the_server_and_its_service(channel: Any, stub: Any) -> None:
    checks = health_service.HealthStub(channel)
    for name in ("", SERVICE):
        assert checks.Check(health.HealthCheckRequest(service=name)).status == health.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as refusal:
        checks.Check(health.HealthCheckRequest(service="vllm.grpc.engine.VllmEngine"))
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    watch = checks.Watch(health.HealthCheckRequest(service=SERVICE))
    assert next(watch).status == health.HealthCheckResponse.SERVING
    watch.cancel()
    assert stub.HealthCheck(proto.HealthCheckRequest()).healthy


def test_tokens_are_the_models_streamed_or_not(stub: Any) -> None:
    expected = Toy(context=4096).greedy(PROMPT, 20)
    for stream in (True, False):
        ((ids, last),) = answers(stub.Generate(asked(PROMPT, 20, stream=stream)))
        assert (ids, last.finish_reason, last.prompt_tokens, last.completion_tokens) == (expected, "length", 5, 20)


def test_several_answers_are_those_of_seeds_that_follow(stub: Any) -> None:
    def sampled(seed: int, n: int) -> list[list[int]]:
        sampling = {"temperature": 1.0, "sampling_seed": seed, "n": n, "top_k": 50, "top_p": 0.95, "frequency_penalty": 0.5}
        return [ids for ids, _ in answers(stub.Generate(asked(PROMPT, 12, sampling=sampling)))]

    together = sampled(7, 3)
    assert together == [sampled(7 + i, 1)[0] for i in range(3)]
    assert len({tuple(ids) for ids in together}) == 3


def test_log_probabilities_come_with_their_tokens(stub: Any) -> None:
    request = asked(PROMPT, 6, return_logprob=True, top_logprobs_num=2)
    ids: list[int] = []
    for response in stub.Generate(request):
        found = response.chunk.output_logprobs
        assert list(found.token_ids) == list(response.chunk.token_ids)
        assert [top.token_ids[0] for top in found.top_logprobs] == list(found.token_ids)  # greedy
        assert [top.values[0] for top in found.top_logprobs] == list(found.token_logprobs)
        ids += found.token_ids
    assert ids == Toy(context=4096).greedy(PROMPT, 6)


def test_what_an_answer_stopped_at_is_said(stub: Any) -> None:
    yes = [*b"yes"]
    letters = {letter: index for index, letter in enumerate(_alphabet())}
    word = [letters[chr(byte)] for byte in yes]

    def written(**sampling: Any) -> tuple[list[int], Any]:
        ((ids, last),) = answers(stub.Generate(asked(PROMPT, 20, sampling={"regex": "yes", "ignore_eos": False, **sampling})))
        return ids, last

    ids, last = written()
    assert (ids, last.finish_reason, last.matched_token_id) == (word, "stop", EOS)
    ids, last = written(no_stop_trim=True)
    assert ids == [*word, EOS]
    ids, last = written(stop=["e"])
    assert (ids, last.finish_reason, last.matched_stop_str) == (word[:2], "stop", "e")
    ids, last = written(stop_token_ids=[word[1]])
    assert (ids, last.matched_token_id) == (word[:1], word[1])
    ids, last = written(logit_bias={str(word[0]): 3.0}, min_p=0.1, repetition_penalty=1.1, presence_penalty=-1.0)
    assert ids == word


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


CONSTRAINTS = {
    "json_schema": json.dumps({"const": "a"}),
    "ebnf_grammar": 'root ::= "\\"a\\""',
}


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_an_answer_is_constrained(stub: Any, kind: str) -> None:
    ((ids, last),) = answers(stub.Generate(asked(PROMPT, 40, sampling={kind: CONSTRAINTS[kind], "ignore_eos": False})))
    assert ("".join(_alphabet()[index] for index in ids), last.finish_reason) == ('"a"', "stop")


def test_what_follows_a_tag_is_constrained(stub: Any) -> None:
    tags = {"structures": [{"begin": "<f>", "schema": {"const": "a"}, "end": "</f>"}], "triggers": ["<f>"]}
    bias = {str(_alphabet().index(letter)): 20.0 for letter in "<f>"}
    sampling = {"structural_tag": json.dumps(tags), "temperature": 3.0, "sampling_seed": 0, "n": 8, "logit_bias": bias}
    found = answers(stub.Generate(asked(PROMPT, 60, sampling=sampling)))
    texts = ["".join(_alphabet()[index] for index in ids if index < 256) for ids, _ in found]
    inside = [text.partition("<f>")[2] for text in texts if "<f>" in text]
    assert inside
    form = re.compile(r'[ĠĊĉč]*("(a("[ĠĊĉč]*(<(/(f(>.*)?)?)?)?)?)?)?', re.DOTALL)  # cut off anywhere
    assert all(form.fullmatch(text) for text in inside), inside


def test_an_answer_has_at_least_so_many_tokens(stub: Any) -> None:
    bias = {str(EOS): 100.0}
    for least in (0, 5):
        ((ids, last),) = answers(
            stub.Generate(asked(PROMPT, 9, sampling={"min_new_tokens": least, "logit_bias": bias, "ignore_eos": False}))
        )
        assert (len(ids), last.finish_reason) == (least, "stop")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "images": (lambda: asked(PROMPT, 3, mm_inputs=proto.MultimodalInputs()), "mm_inputs: the model reads text alone"),
    "prefill elsewhere": (lambda: asked(PROMPT, 3, kv_bootstrap_info=proto.KvBootstrapInfo()), "kv_bootstrap_info: "),
    "pinned": (lambda: asked(PROMPT, 3, data_parallel_rank=0), "data_parallel_rank: "),
    "prompt logprobs": (lambda: asked(PROMPT, 3, return_logprob=True, logprob_start_len=0), "logprob_start_len: "),
    "chosen logprobs": (lambda: asked(PROMPT, 3, token_ids_logprob=[3]), "token_ids_logprob: "),
    "at least": (lambda: asked(PROMPT, 3, sampling={"min_new_tokens": 4}), "min-tokens: got 4"),
    "custom": (lambda: asked(PROMPT, 3, sampling={"custom_params": {"color": "red"}}), "custom_params.color: got 'red'"),
    "priority": (lambda: asked(PROMPT, 3, sampling={"custom_params": {"priority": 9}}), "custom_params.priority: got 9.0"),
    "temperature": (lambda: asked(PROMPT, 3, sampling={"temperature": -1.0}), "temperature: got -1.0"),
    "bias": (lambda: asked(PROMPT, 3, sampling={"logit_bias": {"x": 1.0}}), "logit_bias: a key is not the id"),
    "regex": (lambda: asked(PROMPT, 3, sampling={"regex": "[a"}), 'regex: at 1(8): invalid regex "[a"'),
    "many": (lambda: asked(PROMPT, 3, sampling={"n": 1000}), "n: got 1000"),
    "top": (lambda: asked(PROMPT, 3, return_logprob=True, top_logprobs_num=21), "logprobs: got 21"),
    "nothing": (lambda: asked([], 3), "the prompt is empty"),
    "too long": (lambda: asked([1] * 4096, 3), "the prompt has 4096 tokens, the longest context is 4096"),
    "outside": (lambda: asked([260], 3), "token 260 is outside of the vocabulary of 260"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_is_refused_by_name_in_one_line(stub: Any, name: str) -> None:
    request, said = REFUSED[name]
    with pytest.raises(grpc.RpcError) as refusal:
        list(stub.Generate(request()))
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert said in refusal.value.details()
    assert "\n" not in refusal.value.details()
    assert load(stub).num_total_reqs == 0


def test_custom_parameters_reach_the_engine(stub: Any) -> None:
    prompt = [7] * 40
    for salt, cached in (("a", 0), ("b", 0), ("a", 32)):
        custom = {"cache_salt": salt, "priority": 2, "deadline_seconds": 60}
        ((_, last),) = answers(stub.Generate(asked(prompt, 2, sampling={"custom_params": custom})))
        assert last.cached_tokens == cached


def test_an_abort_ends_all_answers_of_its_request(stub: Any, worker: Server) -> None:
    responses = stub.Generate(asked(PROMPT, 3000, identity="long", sampling={"n": 2}))
    next(responses)
    eventually(lambda: load(stub).num_running_reqs == 2)
    assert load(stub).num_used_tokens > 0
    assert stub.Abort(proto.AbortRequest(request_id="long")).success
    assert [last.finish_reason for _, last in answers(responses)] == ["abort", "abort"]
    for identity in ("long", "never"):  # again, and of what there never was
        assert stub.Abort(proto.AbortRequest(request_id=identity)).success
    eventually(lambda: (load(stub).num_total_reqs, load(stub).num_used_tokens) == (0, 0))
    assert metric(worker, "vllm:kv_cache_usage_perc") == 0


def test_a_client_that_leaves_aborts_its_request(stub: Any) -> None:
    for n in (1, 2):
        responses = stub.Generate(asked(PROMPT, 3000, sampling={"n": n}))
        next(responses)
        eventually(lambda n=n: load(stub).num_running_reqs == n)
        responses.cancel()
        eventually(lambda: (load(stub).num_total_reqs, load(stub).num_used_tokens) == (0, 0))


class Index:
    """What a gateway makes of the events: hashes, and the tokens of each with those before."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.texts: dict[int, tuple[int, ...]] = {}
        self.numbers: list[int] = []
        self.num_removed = 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):  # cancelled
            for batch in self.stream:
                self.numbers.append(batch.sequence_number)
                for event in batch.events:
                    self._take(event)

    def _take(self, event: Any) -> None:
        if event.HasField("cleared"):
            self.texts.clear()
        self.num_removed += len(event.removed.block_hashes)
        for number in event.removed.block_hashes:
            del self.texts[number]
        parent = self.texts[event.stored.parent_block_hash] if event.stored.HasField("parent_block_hash") else ()
        for block in event.stored.blocks:
            assert block.block_size == len(block.token_ids) == PAGE
            parent = self.texts[block.block_hash] = (*parent, *block.token_ids)

    def close(self) -> None:
        self.stream.cancel()
        self._thread.join()


def settled(index: Index) -> bool:
    """Whether nothing has come for a while: what an answer did to the pages may be told after it."""
    before = len(index.numbers)
    time.sleep(0.5)
    return len(index.numbers) == before


def test_followers_know_the_pages_that_there_are(stub: Any) -> None:
    """While more is asked than pages hold; who comes late, or again, knows the same."""
    first = Index(stub.SubscribeKvEvents(common.SubscribeKvEventsRequest()))
    prompts = [[number, *range(100, 200), *([number] * 700)] for number in range(7)]
    for prompt in prompts:
        answers(stub.Generate(asked(prompt, 3)))
    late = Index(stub.SubscribeKvEvents(common.SubscribeKvEventsRequest(start_sequence_number=41)))
    try:
        eventually(lambda: tuple(prompts[-1][:800]) in first.texts.values())
        eventually(lambda: first.texts == late.texts)
        assert first.num_removed > 0
        assert 200 < len(first.texts) <= PAGES
        assert first.numbers == list(range(1, len(first.numbers) + 1))
        assert late.numbers[0] == 42
        for prompt in prompts:  # the engine finds what the followers know, and no more
            eventually(lambda: settled(first))
            known = max((len(text) for text in first.texts.values() if list(text) == prompt[: len(text)]), default=0)
            ((_, last),) = answers(stub.Generate(asked(prompt, 1)))
            assert last.cached_tokens == known
            eventually(lambda: first.texts == late.texts)
    finally:
        first.close()
        late.close()


def test_the_tokenizer_comes_as_one_file(stub: Any, model: Path) -> None:
    chunks = list(stub.GetTokenizer(common.GetTokenizerRequest()))
    data = b"".join(chunk.data for chunk in chunks)
    assert [chunk.sha256 for chunk in chunks] == [*[""] * (len(chunks) - 1), hashlib.sha256(data).hexdigest()]
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert bundle.read(name) == (model / "tokenizer" / name).read_bytes()


def test_what_is_not_done_says_so(stub: Any) -> None:
    assert not stub.FlushCache(common.FlushCacheRequest()).success
    for call, request in ((stub.StartProfile, common.StartProfileRequest()), (stub.StopProfile, common.StopProfileRequest())):
        with pytest.raises(grpc.RpcError) as refusal:
            call(request)
        assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_worker_that_is_told_to_end_ends_what_runs(model: Path) -> None:
    server = start(model, "--grpc")
    with grpc.insecure_channel(server.url.removeprefix("grpc://")) as channel:
        stub = service.TokenSpeedSchedulerStub(channel)
        following = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest())
        next(following)
        responses = stub.Generate(asked(PROMPT, 400))
        begun = next(responses)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: not stub.HealthCheck(proto.HealthCheckRequest()).healthy)
        with pytest.raises(grpc.RpcError) as refusal:
            list(stub.Generate(asked(PROMPT, 3)))
        assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
        ((ids, last),) = answers(responses)
        assert (len(begun.chunk.token_ids) + len(ids), last.finish_reason) == (400, "length")
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--grpc", "--port", "TAKEN"], 3, "can not listen there (the port is taken"),
        (["--grpc", "--api-key", "x"], 2, "--api-key: given with --grpc, but a gateway sends its workers none"),
        (["--grpc", "--tool-parser", "hermes"], 2, "--tool-parser: given with --grpc, but the gateway reads calls"),
        (["--grpc", "--host", "0.0.0.0"], 2, "anyone who reaches 0.0.0.0 could use the model"),
        (["--metrics-port", "0"], 2, "--metrics-port: HTTP has its metrics at --port"),
    ],
)
def test_a_worker_that_can_not_start_says_why(model: Path, worker: Server, arguments: list[str], code: int, said: str) -> None:
    given = [{"TAKEN": worker.url.rpartition(":")[2]}.get(argument, argument) for argument in arguments]
    command = [sys.executable, "-m", "tsrun", "serve", str(model), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (code, True, 1), done.stderr


def test_http_needs_no_grpc(model: Path) -> None:
    code = "import sys\nsys.modules['grpc'] = None\nimport tsrun.serve.server\nfrom tsrun.cli import run\nsys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", str(model), "--grpc"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "--grpc: the package `grpc` is not installed; pip install 'tsc-llm[smg]'" in done.stderr


def test_a_generation_is_one_line_of_the_log(stub: Any, worker: Server) -> None:
    list(stub.Generate(asked(PROMPT, 3, identity="told")))
    with pytest.raises(grpc.RpcError):
        list(stub.Generate(asked([], 3, identity="refused")))

    def line(identity: str) -> dict[str, Any] | None:
        found = [json.loads(line) for line in worker.lines if f'"{identity}"' in line]
        return found[0] if found else None

    eventually(lambda: line("told") and line("refused"))
    told, refused = line("told"), line("refused")
    assert told is not None
    assert refused is not None
    assert (told["path"], told["status"], told["finish_reason"]) == (f"/{SERVICE}/Generate", "OK", "length")
    assert (told["prompt_tokens"], told["completion_tokens"], told["model"]) == (len(PROMPT), 3, "toy")
    assert (refused["status"], refused["level"], "finish_reason" in refused) == ("INVALID_ARGUMENT", "info", False)
