"""The standard health service, by which a gateway finds out what it has in front of it: SERVING for "" and the names that are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as proto

from tsrun.serve.health import Health

_LOOK_SECONDS = 0.5


class HealthService:
    """What it says is looked up when it is asked. Never ends by itself: `Watch` goes on until the server stops."""

    def __init__(self, health: Health, *services: str) -> None:
        self._health = health
        self._services = ("", *services)

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service '{request.service}'")
        return self._status(request.service)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                yield status
            told = status
            await asyncio.sleep(_LOOK_SECONDS)

    async def List(self, request: Any, context: Any) -> Any:
        return proto.HealthListResponse(statuses={name: self._status(name) for name in self._services})

    def _status(self, service: str) -> Any:
        kinds = proto.HealthCheckResponse
        known = kinds.SERVING if self._health.unready() is None else kinds.NOT_SERVING
        return kinds(status=known if service in self._services else kinds.SERVICE_UNKNOWN)
