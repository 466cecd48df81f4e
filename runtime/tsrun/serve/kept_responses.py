"""Responses that were kept for the next turn, by their ids, with whose they are."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from tsrun.serve.http_errors import HttpError

MOST_BYTES = 256 * 2**20
ENTRY_BYTES = 500
"""What one takes beside its texts."""


class KeptResponse(msgspec.Struct):
    """items: the conversation up to its end; response: as it was answered. Both are JSON."""

    items: bytes
    response: bytes

    @property
    def num_bytes(self) -> int:
        return ENTRY_BYTES + len(self.items) + len(self.response)


class KeptResponses:
    """Forgets the oldest where they are more than so many bytes."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, tuple[int, KeptResponse]] = OrderedDict()

    def keep(self, user: int, identity: str, response: KeptResponse) -> None:
        if response.num_bytes > self._most_bytes:
            return
        self._kept[identity] = user, response
        self._bytes += response.num_bytes
        while self._bytes > self._most_bytes:
            self._forget(next(iter(self._kept)))

    def find(self, user: int, identity: str) -> KeptResponse:
        """HttpError 404 where the user has none of that id."""
        owner, found = self._kept.get(identity, (None, None))
        if found is None or owner != user:
            what = f"Response with id '{identity[:64]}' not found."
            raise HttpError(404, what, param="previous_response_id", code="response_not_found")
        return found

    def delete(self, user: int, identity: str) -> None:
        self.find(user, identity)
        self._forget(identity)

    def _forget(self, identity: str) -> None:
        self._bytes -= self._kept.pop(identity)[1].num_bytes
