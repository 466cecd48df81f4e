"""What the engine takes and gives: requests, events, and the logits that an observer may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tsrun.sampler import Sampling

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt and how to continue it. `max_tokens` None is as far as the context goes."""

    prompt: Sequence[int]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """What a step brought a request. A token may bring no text yet; the last event carries the reason."""

    request: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class StepLogits:
    """The logits of one step, for an observer. `logits` is the executor's own memory: copy what outlives the call.

    Row s belongs to `requests[s]` and follows the token at `positions[s]`. Where `samples[s]` is false the row is that
    of a prefill chunk which does not end its prompt.
    """

    requests: NDArray[np.int64]
    positions: NDArray[np.int32]
    samples: NDArray[np.bool_]
    logits: Tensor
