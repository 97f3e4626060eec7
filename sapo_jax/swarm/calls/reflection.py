"""Server reflection, on request only: lets grpcurl and its like list the services and their messages."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# grpc's reflection package is untyped.

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, cast

from grpc_reflection.v1alpha import reflection, reflection_pb2

from sapo_jax.swarm.calls.pipeline import StreamRpc
from sapo_jax.swarm.wire.parse import parse


def reflection_streams(services: Iterable[str]) -> Mapping[str, StreamRpc]:
    """Returns the reflection service for `services`, full names, by method."""
    servicer = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))

    async def requests(bodies: AsyncIterator[bytes]) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        async for body in bodies:
            yield parse(reflection_pb2.ServerReflectionRequest, body)

    async def answer(bodies: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        # Its stub declares a coroutine; it is an asynchronous generator.
        responses: AsyncIterator[Any] = cast(Any, servicer.ServerReflectionInfo(requests(bodies), None))
        async for response in responses:
            yield response.SerializeToString()

    return {f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": StreamRpc(name="ServerReflectionInfo", answer=answer)}
