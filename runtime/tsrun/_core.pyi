"""The scheduler, written in C++ (runtime/csrc): requests in, step plans out. The sampler: logits in, tokens out. What a text says of its
next tokens. And a vocabulary's merges.

Dimensions: T tokens and S sequences in a step, G groups of caches (0 full, then windows, then states), U changed table entries,
C copied states.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class StepPlan:
    """What one step runs. Its arrays are the scheduler's memory, valid until the step's commit."""

    @property
    def step(self) -> int: ...
    @property
    def requests(self) -> NDArray[np.int64]:
        """[S]"""
    @property
    def ids(self) -> NDArray[np.int32]:
        """[T]. Negative: not known here. -2**31 in row j of a span is the j-th token that the device drafted for the sequence's table row;
        any other `id` is the token that sequence `~id` of the step before samples last."""
    @property
    def positions(self) -> NDArray[np.int32]:
        """[T]; where the sequence follows one with drafts under way, as if all drafts were accepted (see `follows`)"""
    @property
    def slots(self) -> NDArray[np.int32]:
        """[G, T]: page * page_size + row, where a token's keys and values go; of a state group the page of its sequence's state"""
    @property
    def spans(self) -> NDArray[np.int32]:
        """[S, 2]: a sequence's first row and the one after its last"""
    @property
    def lengths(self) -> NDArray[np.int32]:
        """[S]: tokens of the sequence at the end of the step, as if all drafts were accepted"""
    @property
    def last(self) -> NDArray[np.int32]:
        """[S]: the row of the sequence's last token in the step"""
    @property
    def samples(self) -> NDArray[np.bool_]:
        """[S]: false for a chunk that does not end its prompt"""
    @property
    def num_drafts(self) -> NDArray[np.int32]:
        """[S]: of the sequence's rows the last so many are of drafts"""
    @property
    def follows(self) -> NDArray[np.int32]:
        """[S]: the sequence of the step before whose outcome this one builds on, -1 where that is known. Where it had drafts and not
        all are accepted, positions, slots and lengths move back by as many."""
    @property
    def table_rows(self) -> NDArray[np.int32]:
        """[S]: the row of the block tables that is the sequence's"""
    @property
    def table_updates(self) -> NDArray[np.int32]:
        """[U, 4]: group, row, index, page; applied in order before the step. Entries that are never updated are never read."""
    @property
    def copies(self) -> NDArray[np.int32]:
        """[C, 3]: state group, source page, target page; in order, before the step"""

class Scheduler:
    """Decides what the next step runs. ValueError for what can never run, RuntimeError for calls out of order. One thread at a time."""

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        max_sequences: int,
        max_step_tokens: int,
        max_context: int,
        windows: Sequence[tuple[int, int]] = (),  # (window in tokens, pages)
        states: Sequence[tuple[int, int]] = (),  # at most one: (tokens between snapshots, pages)
        num_rank_groups: int = 1,
        paddings: Sequence[tuple[int, int]] = (),
        num_host_pages: int = 0,
        depth: int = 1,  # steps under way at once: 1 or 2
        prefix_cache: bool = True,
        namespace: int = 0,  # of the cache: the model's digest
        events: bool = False,  # keep page events for `page_events`
        aging_seconds: float = 30.0,  # a waiting request rises by one priority class after so long
        floor: float = 0.0,  # tokens per second that every decoding request keeps
        scored_rows: int = 64,  # of a step at most, in prompts that are scored
    ) -> None: ...
    def refusal(self, prompt_tokens: int, max_new_tokens: int) -> str | None:
        """Why a request of this size can never run, or None; asked before `submit`."""
    def submit(
        self,
        request: int,
        prompt: NDArray[np.int32],
        max_new_tokens: int,
        *,
        user: int = 0,
        priority: int = 0,  # 0 first, to 7
        deadline: float = ...,  # in the seconds of `now`
        salt: int = 0,  # of the cache: requests of another salt or adapter share no pages
        device_drafts: int = 0,  # tokens that the device drafts for each step
        scores_prompt: bool = False,  # the logits of all its prompt are looked at: it is computed whole, in chunks of few rows
        needs_token: bool = False,  # the next step needs the last token on the host
        now: float = 0.0,
    ) -> None: ...
    def draft(self, request: int, tokens: NDArray[np.int32]) -> None:
        """Tokens to verify with the request's next decode, which is in no step then that follows one under way; the last call before `plan`
        counts."""
    def abort(self, request: int) -> None: ...
    def finish(self, request: int) -> None:
        """It met a stop condition; for a request that has made a token. One that ended is no error."""
    def drain(self) -> None:
        """Take no more requests; those that are here go on."""
    def plan(self, now: float = 0.0) -> StepPlan | None:
        """None: nothing runs before the next submit, commit or transfer. Nothing under way: no request is here."""
    def commit(self, step: int, tokens: NDArray[np.int32], counts: NDArray[np.int32] | None = None, *, now: float = 0.0) -> None:
        """Steps are committed in order. tokens: at least 0, one a sequence, of no meaning where the plan does not sample. With `counts` [S]
        as many as it says for each sequence, one after the other: accepted drafts and the token after them; 0 where it does not sample."""
    def fail(self, step: int) -> None:
        """The step was lost, and with it every later one: what they would have written is computed again."""
    def ended(self) -> list[tuple[int, str]]:
        """Requests that the scheduler itself ended since the last call: `length` or `deadline`."""
    def cached_tokens(self, request: int) -> int:
        """Tokens of its prompt that an open request found in the prefix cache when it was first admitted."""
    def running(self) -> list[tuple[int, str, int, int, int, int]]:
        """Requests that hold a slot, who goes first first: number, state, tokens of the prompt, tokens in all, tokens of committed steps
        in its pages, pages of the full group."""
    def transfers(self) -> list[tuple[int, str, int, NDArray[np.int32]]]:
        """New transfers to start: number, `store` (device to host) or `load`, group of ranks, and [N, 2] device page, host page."""
    def transferred(self, transfer: int, ok: bool) -> None: ...
    def page_events(self) -> list[tuple[str, int, int, int, NDArray[np.int32]]]:
        """Since the last call, in order: `stored` or `removed`, rank group, block hash, parent's hash (0: none), its tokens."""
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_free_pages(self) -> int:
        """Of the full groups: those that a request could have now, cached ones that nobody reads included."""
    @property
    def num_cached_pages(self) -> int:
        """Of the full groups: those that the prefix cache can give again."""
    @property
    def preemptions(self) -> int: ...
    @staticmethod
    def transitions() -> list[tuple[str, str, str, str]]:
        """The table of a request's states: state, event, next state or empty, and the reason or meaning."""

class Vocabulary:
    """A byte pair encoding: V ids, W words of the model, M merges.

    ValueError where the arrays do not fit each other, are not in their orders, or words are not UTF-8.
    """

    def __init__(
        self,
        text: NDArray[np.uint8],
        begin: NDArray[np.int32],  # [V + 1]: of each id's word in `text`
        order: NDArray[np.int32],  # [W]: ids by the bytes of their words
        first: NDArray[np.int32],  # [V + 1]: of each id's merges as the left half, ordered by the right one
        right: NDArray[np.int32],  # [M]
        rank: NDArray[np.int32],  # [M]
        result: NDArray[np.int32],  # [M]
        whole: bool,  # a word that is one of the vocabulary is taken without its merges
    ) -> None: ...
    def merge(self, symbols: Sequence[int], words: Sequence[int | None]) -> list[int]:
        """Ids of a text that was cut into symbols: those that follow each other with the same word are merged, one with None stays."""
    def words(self, ids: Sequence[int]) -> list[str]:
        """Their texts; ids that there are not are left out."""
    def find(self, word: str) -> int | None:
        """The id of a word of the model."""

class Sampler:
    """How the tokens of one request are chosen: `tsrun.sampler.Sampling` with a seed, and not checked again. It remembers the tokens that
    it has chosen, where penalties look back at them."""

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        logit_bias: Sequence[tuple[int, float]] = (),
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        prompt: NDArray[np.int32] | None = None,  # for penalties
        allowed: NDArray[np.uint32] | None = None,  # [R * W]: a bit for each token, padded to a multiple of 128; row r after r drafts
        num_logprobs: int = -1,  # of the likeliest tokens, beside that of the chosen one; -1: none at all
    ) -> None: ...
    @property
    def seed(self) -> int: ...

Logprobs = tuple[float, list[tuple[int, float]]]
"""Of one token, and of the likeliest with their ids, the likeliest first: the logarithms of the softmax of what the model gave."""

def choose(
    address: int,  # of logits [S + D, V], row after row: of the S sequences' last rows, then of those before their D drafts
    dtype: str,
    width: int,  # V
    samplers: Sequence[Sampler | None],  # [S]; None: its rows are not looked at
    positions: NDArray[np.int32],  # [S], of the tokens that are chosen by the last rows
    largest: NDArray[np.int32] | None = None,  # [S + D]: what greedy samplers would choose, where it is known
    keep: NDArray[np.int32] | None = None,  # [S + D]: so many of a row's largest logits are there, others may be -inf; 0, or None: all are
    num_drafts: NDArray[np.int32] | None = None,  # [S]: None is 0
    drafts: NDArray[np.int32] | None = None,  # [D], sequence after sequence
) -> tuple[NDArray[np.int32], dict[int, Logprobs]]:
    """[S + D]: a token for each row, -1 where its largest logit is not finite or one is NaN, -2 where no token that is allowed has a finite
    one, -3 where the largest is not allowed and others were not kept, 0 where there is no sampler. Of a sequence with drafts the rows
    are looked at in order, the last row last, as long as each gives its draft; those after that are -4. And for rows whose samplers ask
    for them the log probabilities. A token depends on nothing but its row's logits, sampler, position and the tokens before. ValueError
    for what can not be rows of logits, or not of these samplers."""

def score(
    address: int,  # of logits [R, V], row after row
    dtype: str,
    width: int,  # V
    rows: NDArray[np.int32],  # [N]
    tokens: NDArray[np.int32],  # [N]
    counts: NDArray[np.int32],  # [N]: of the likeliest
) -> list[Logprobs]:
    """[N]: of each token by its row, as `choose` gives them. NaN where the row's largest logit is not finite."""

def uniform(seed: int, position: int) -> float:
    """The random number of a token: `numpy.random.Generator(numpy.random.Philox(key=seed, counter=position)).random()`."""

class Outputs:
    """What was written lately, by requests that may see each other's: the last `most` tokens at least, twice as many at most."""

    def __init__(self, most: int) -> None: ...
    def append(self, tokens: NDArray[np.int32]) -> None:
        """One more."""

class Lookup:
    """What followed the last tokens of a text before, in itself and in outputs. A token costs the same however long the text is."""

    def __init__(self, prompt: NDArray[np.int32], outputs: Outputs) -> None: ...
    def take(self, token: int) -> None:
        """The text goes on."""
    def draft(self, most: int) -> tuple[list[int], list[float]]:
        """So many tokens at most that may follow, and how likely each comes with all before it, by what came true lately."""
