"""The standard health service, `grpc.health.v1`: of the whole server and of each service.

Check goes through the server's pipeline like any call, but needs no token: probes have none.
Watch is a stream for as long as somebody watches; few are served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping

from grpc_health.v1 import health_pb2

from sapo_jax.swarm.calls.pipeline import Rpc, StreamRpc
from sapo_jax.swarm.calls.service_error import ServiceError, UnknownServiceError
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.parse import parse

SERVICE = "grpc.health.v1.Health"
MAX_DEADLINE_S = 20.0
WHOLE_SERVER = ""


class Health:
    """Owns what probes are told; the server's loop is the only user."""

    def __init__(self, services: Iterable[str]) -> None:
        """Starts as not serving, for the whole server and for each of `services`."""
        self._names = (WHOLE_SERVER, *services)
        self._is_serving = False
        self._is_closed = False
        self._changed = asyncio.Condition()

    async def set_serving(self, is_serving: bool) -> None:
        """Changes what probes are told, and tells watchers at once."""
        async with self._changed:
            self._is_serving = is_serving
            self._changed.notify_all()

    async def close(self) -> None:
        """Ends the streams of watchers."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def rpcs(self) -> Mapping[str, Rpc]:
        """Returns the calls of the service by method."""
        return {
            f"/{SERVICE}/Check": Rpc(
                name="Check", answer=self._check, max_deadline_s=MAX_DEADLINE_S, needs_token=False
            ),
        }

    def streams(self) -> Mapping[str, StreamRpc]:
        """Returns the streams of the service by method."""
        return {f"/{SERVICE}/Watch": StreamRpc(name="Watch", answer=self._watch, needs_token=False)}

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if name not in self._names:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._is_serving:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    def _check(self, body: bytes, prefix: str) -> bytes:
        name = parse(health_pb2.HealthCheckRequest, body).service
        if name not in self._names:
            raise UnknownServiceError(WireReason.FIELD, "no such service here", field="service")
        return health_pb2.HealthCheckResponse(status=self._status(name)).SerializeToString()

    async def _watch(self, bodies: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        body = await anext(bodies, None)
        if body is None:
            raise ServiceError(WireReason.MALFORMED, "a request is required")
        name = parse(health_pb2.HealthCheckRequest, body).service
        told = None
        while not self._is_closed:
            status = self._status(name)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status).SerializeToString()
                continue  # it may have changed while the answer left
            async with self._changed:
                await self._changed.wait()
