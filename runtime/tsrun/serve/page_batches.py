"""What the prefix cache has, in the gateway's words: pages that follow each other are one event."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from smg_grpc_proto.generated import common_pb2 as common

from tsrun.generation import PageEvent


def batch_of(number: int, events: Sequence[PageEvent], *, anew: bool) -> Any:
    """The number-th `KvEventBatch` of a stream, from 1 on. anew: what the gateway knows of this worker does not count."""
    batch = common.KvEventBatch(sequence_number=number, timestamp=time.time())
    if anew:
        batch.events.add().cleared.SetInParent()
    before: PageEvent | None = None
    for event in events:
        if event.stored:
            follows = before is not None and before.stored and (before.hash, before.rank_group) == (event.parent, event.rank_group)
            if not follows:
                stored = batch.events.add().stored
                if event.parent:
                    stored.parent_block_hash = _signed(event.parent)
            stored.blocks.add(block_hash=_signed(event.hash), token_ids=event.tokens, block_size=len(event.tokens))
        else:
            if before is None or before.stored:
                removed = batch.events.add().removed
            removed.block_hashes.append(_signed(event.hash))
        before = event
    for place, one in enumerate(batch.events):
        one.event_id = place
    return batch


def _signed(number: int) -> int:
    """The same 64 bits."""
    return number - 2**64 if number >= 2**63 else number
