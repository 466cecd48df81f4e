"""llama.cpp in process, through the C API that `llama-cpp-python` binds, since that package's own loop runs one sequence.

Sequences have keys and values apart (`kv_unified` off), which is the faster way where they share no prefix. Gemma's windowed layers keep
all keys (`swa_full`), without which a prompt that was here before is computed again. The next token is the largest logit, found with numpy.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version as installed

import llama_cpp
import numpy as np
from cpu_driver import Setup, Token

_BATCH = 2048  # tokens of a call; 512 of them are computed at once, as is llama.cpp's default


def version() -> str:
    return installed("llama-cpp-python")


class Engine:
    def __init__(self, setup: Setup) -> None:
        self._log = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)  # kept: C holds no reference
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(setup.model.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise ValueError("llama.cpp does not read the file")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = setup.sequences * setup.context
        parameters.n_seq_max = setup.sequences
        parameters.n_batch = min(_BATCH, parameters.n_ctx)
        parameters.n_threads = parameters.n_threads_batch = setup.threads
        parameters.swa_full = True
        parameters.kv_unified = False
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise ValueError("llama.cpp makes no context of that size")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.kept: list[list[int]] = [[] for _ in range(setup.sequences)]  # tokens whose keys and values each sequence has

    def encode(self, text: str) -> list[int]:
        vocabulary, data = llama_cpp.llama_model_get_vocab(self.model), text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 2))()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), True, True)
        if count < 0:
            raise ValueError("llama.cpp makes no tokens of the text")
        return list(ids[:count])

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Token]:
        found: list[Token] = []
        start = time.perf_counter()
        newest: dict[int, int] = {}
        for sequence, token in self._prefill(prompts):
            newest[sequence] = token
            found.append(Token(time.perf_counter() - start, sequence, token))
        for _ in range(new_tokens - 1):
            newest = dict(self._run([(sequence, token, True) for sequence, token in newest.items()]))
            now = time.perf_counter() - start
            found += [Token(now, sequence, token) for sequence, token in newest.items()]
        return found

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
        """Run what the sequences have not kept of their prompts; the first token of each."""
        waiting: list[tuple[int, int, bool]] = []
        for sequence, prompt in enumerate(prompts):
            kept = self._reuse(sequence, prompt)
            waiting += [(sequence, token, place == len(prompt) - 1) for place, token in enumerate(prompt) if place >= kept]
        for place in range(0, len(waiting), _BATCH):
            yield from self._run(waiting[place : place + _BATCH])

    def _reuse(self, sequence: int, prompt: Sequence[int]) -> int:
        """Drop what a sequence has beyond the beginning that it shares with a prompt; that beginning's length."""
        kept = self.kept[sequence]
        same = 0
        while same < min(len(kept), len(prompt) - 1) and kept[same] == prompt[same]:  # the last token is run for its logits
            same += 1
        if not llama_cpp.llama_memory_seq_rm(self.memory, sequence, same, -1):
            raise ValueError("llama.cpp cannot drop the end of a sequence")
        del kept[same:]
        return same

    def _run(self, tokens: Sequence[tuple[int, int, bool]]) -> list[tuple[int, int]]:
        """One call: (sequence, token, whether it needs logits); the next token of those that do."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for place, (sequence, token, wanted) in enumerate(tokens):
            batch.token[place] = token
            batch.pos[place] = len(self.kept[sequence])
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = wanted
            self.kept[sequence].append(token)
        code = llama_cpp.llama_decode(self.context, batch)
        if code:
            raise ValueError(f"llama_decode gave {code}")
        return [(sequence, self._largest(place)) for place, (sequence, _, wanted) in enumerate(tokens) if wanted]

    def _largest(self, place: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, place)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax())
