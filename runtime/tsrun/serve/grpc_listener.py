"""A port on which a worker answers gRPC."""

from __future__ import annotations

import asyncio

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2_grpc as service

from tsrun.serve.grpc_health import HealthService
from tsrun.serve.grpc_worker import SERVICE, Worker
from tsrun.serve.http_listener import bracketed, can_not_listen

_MOST_BYTES = 32 * 1024 * 1024
_GRACE_SECONDS = 0.5  # for what is written; streams of page events have no end of their own
_OPTIONS = (
    ("grpc.max_receive_message_length", _MOST_BYTES),
    ("grpc.so_reuseport", 0),  # a port that is taken is refused
    ("grpc.http2.max_ping_strikes", 0),  # a gateway may look as often as it likes whether the connection lives
)


class GrpcListener:
    """Takes the port when it is made, in a running loop; `add` gives it what it serves. MachineError where the port can not be had."""

    def __init__(self, host: str, port: int) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        try:
            taken = self._server.add_insecure_port(f"{bracketed(host)}:{port}")
        except RuntimeError:
            raise can_not_listen(host, port, "the port is taken, or the address not this machine's") from None
        self.url = f"grpc://{bracketed(host)}:{taken}"
        self._ended = asyncio.Event()
        self._grace: float | None = None

    def add(self, worker: Worker) -> None:
        service.add_TokenSpeedSchedulerServicer_to_server(worker, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthService(worker.health, SERVICE), self._server)

    async def serve(self) -> None:
        await self._server.start()
        await self._ended.wait()
        await self._server.stop(self._grace)

    def end(self, *, at_once: bool) -> None:
        self._grace = None if at_once else _GRACE_SECONDS
        self._ended.set()
