"""Other clients' own packages against a server: openai-node and Vercel's `ai` in JavaScript, and what Python has beside openai's."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serve.client_packages import CLIENTS, client_environment, node_folder, python_folder
from tests.serve.conftest import Server
from tests.serve.scripted_engine import ASIDE, Task, call
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

pytestmark = pytest.mark.clients

CITY = "Köln"
ANSWER = "The sun shines."


@pytest.fixture
def task(script: Path) -> None:
    Task("job-node-7", [call("weather", city=CITY), ANSWER]).write(script, "node")


def run(command: Sequence[str | Path], commands: Path, folder: Path) -> str:
    """Run a client in a folder of its own; return what it printed."""
    environment = client_environment(commands, folder / "home")
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def run_node(name: str, server: Server, folder: Path) -> Any:
    """What a program of `clients/` found."""
    installed = node_folder()
    (folder / "node_modules").symlink_to(installed)  # imports are looked for beside the program
    program = shutil.copy(CLIENTS / name, folder)
    return json.loads(run(["node", program, f"{server.url}/v1"], installed / ".bin", folder))


def run_python(name: str, server: Server, folder: Path) -> Any:
    installed = python_folder()
    printed = run([installed / "python", CLIENTS / name, f"{server.url}/v1"], installed, folder)
    return json.loads(printed.splitlines()[-1])


def is_thing(found: Any) -> bool:
    return set(found) == {"color", "count"} and found["color"] in ("red", "green") and 1 <= found["count"] <= 9


@pytest.mark.usefixtures("task")
def test_openai_node(scripted: Server, tmp_path: Path) -> None:
    found = run_node("openai_node.mjs", scripted, tmp_path)
    assert (found["call"]["name"], json.loads(found["call"]["arguments"]), found["finish"]) == ("weather", {"city": CITY}, "tool_calls")
    assert found["pieces"] > 2
    assert found["answer"] == found["ran"] == found["responded"] == ANSWER
    assert is_thing(found["parsed"])
    assert is_thing(found["formed"])
    assert (found["item"]["name"], json.loads(found["item"]["arguments"])) == ("weather", {"city": CITY})
    assert found["events"] == ["response.created", "response.completed"]
    assert found["error"] == ["BadRequestError", 400, "context_length_exceeded"]


@pytest.mark.usefixtures("task")
def test_vercel_ai(scripted: Server, tmp_path: Path) -> None:
    found = run_node("vercel_ai.mjs", scripted, tmp_path)
    assert (found["text"], found["asked"], found["steps"]) == (ANSWER, [CITY], 2)
    assert {"tool-input-delta", "tool-call", "tool-result", "text-delta", "finish"} <= set(found["kinds"])
    assert found["usage"]["inputTokens"] > found["usage"]["outputTokens"] > 0
    assert is_thing(found["object"])


@pytest.mark.usefixtures("task")
def test_langchain(scripted: Server, tmp_path: Path) -> None:
    found = run_python("langchain_client.py", scripted, tmp_path)
    for api in ("chat", "responses"):
        assert (found[api]["call"], found[api]["answer"]) == (["weather", {"city": CITY}], ANSWER)
        assert found[api]["chunks"] > 2  # how many there are depends on how quick both sides are
        assert found[api]["usage"] > 50
        assert is_thing(found[api]["thing"])
        assert is_thing(found[api]["required"])
    whole, streamed = found["completion"]
    assert whole == streamed != ""


@pytest.mark.usefixtures("task")
def test_litellm(scripted: Server, tmp_path: Path) -> None:
    found = run_python("litellm_client.py", scripted, tmp_path)
    for api in ("openai", "anthropic"):
        assert (found[api]["call"], found[api]["answer"]) == (["weather", {"city": CITY}], ANSWER)
        assert found[api]["chunks"] > 2  # how many there are depends on how quick both sides are
        assert found[api]["usage"] > 50
    assert is_thing(found["thing"])
    assert found["responded"] == ASIDE


QUESTIONS = (
    {"question": "The sky is", "choices": [" blue", " a kernel of many parts"], "answer": 0},
    {"question": "A page holds", "choices": [" sixteen tokens", " the moon"], "answer": 0},
)


def test_lm_eval_gets_the_likelihoods_of_the_model(scripted: Server, agent_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in QUESTIONS))
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "tiny.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(task))  # which is YAML too
    installed = python_folder()
    model = f"base_url={scripted.url}/v1/completions,model=agent,num_concurrent=2,max_retries=1"
    tokenizer = f"tokenizer_backend=huggingface,tokenizer={agent_checkpoint}"
    command: list[str | Path] = [
        installed / "lm_eval",
        "--model",
        "local-completions",
        "--model_args",
        f"{model},{tokenizer}",
        "--tasks",
        "tiny",
    ]
    run([*command, "--include_path", tmp_path, "--output_path", tmp_path / "out", "--log_samples"], installed, tmp_path)

    (samples,) = (tmp_path / "out").rglob("samples_tiny_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(found) == len(QUESTIONS)
    torch_model, encode = LlamaForCausalLM.from_pretrained(agent_checkpoint), Tokenizer.from_file(str(agent_checkpoint / "tokenizer.json"))
    for sample in found:
        for asked, (likelihood, _) in zip(sample["arguments"].values(), sample["filtered_resps"], strict=True):
            start, ids = len(encode.encode(asked["arg_0"]).ids), encode.encode(asked["arg_0"] + asked["arg_1"]).ids
            with torch.inference_mode():
                logprobs_TV = torch_model(torch.tensor([ids])).logits[0].log_softmax(-1)
            wanted = sum(float(logprobs_TV[place - 1, ids[place]]) for place in range(start, len(ids)))
            assert float(likelihood) == pytest.approx(wanted, abs=1e-3)


def test_evalscope_loads_the_server(scripted: Server, agent_checkpoint: Path, tmp_path: Path) -> None:
    installed = python_folder("requirements-load.txt")
    command: list[str | Path] = [
        installed / "evalscope",
        "perf",
        "--url",
        f"{scripted.url}/v1/chat/completions",
        "--model",
        "agent",
        "--api",
        "openai",
    ]
    prompts: list[str | Path] = [
        "--dataset",
        "random",
        "--tokenizer-path",
        agent_checkpoint,
        "--min-prompt-length",
        "50",
        "--max-prompt-length",
        "100",
    ]
    load = ["--number", "12", "--parallel", "4", "--max-tokens", "16", "--extra-args", '{"ignore_eos": true}', "--stream"]
    run([*command, *prompts, *load, "--outputs-dir", tmp_path / "out", "--no-timestamp"], installed, tmp_path)
    (file,) = (tmp_path / "out").rglob("benchmark_summary.json")
    found = json.loads(file.read_text())
    assert (found["Success Requests"], found["Failed Requests"], found["Stream Requests"]) == (12, 0, 12)
    assert found["Avg Output Tokens"] == 16
    assert 50 <= found["Avg Input Tokens"] <= 200


def test_vllm_bench_loads_the_server(scripted: Server, agent_checkpoint: Path, tmp_path: Path) -> None:
    installed = python_folder("vllm.lock.txt")
    command: list[str | Path] = [installed / "python", CLIENTS / "vllm_bench.py", "--backend", "openai-chat", "--base-url", scripted.url]
    command += ["--endpoint", "/v1/chat/completions", "--model", "agent", "--tokenizer", agent_checkpoint, "--dataset-name", "random"]
    command += ["--random-input-len", "64", "--random-output-len", "16", "--num-prompts", "12", "--max-concurrency", "4", "--ignore-eos"]
    run([*command, "--save-result", "--result-filename", "found.json"], installed, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (12, 0, 12 * 16)
    assert found["mean_ttft_ms"] > 0
