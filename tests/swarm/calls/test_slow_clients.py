"""Callers that hold what they can: as many slow ones as connect hold no place that an honest one needs."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from sapo_jax.swarm.calls import pipeline
from sapo_jax.swarm.calls.grpc_server import CLOSED_CALL_LIMITS
from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.requests import PublishRequest, SampleRequest
from tests.swarm.calls.hosts import (
    FakeClock,
    Host,
    half_sent,
    in_progress,
    outcomes,
    run,
    signed_group,
    until,
)

ANN = Identity.generate()
SLOW = 256


def test_t17_two_hundred_slow_callers_hold_all_places_and_every_honest_call_succeeds() -> None:
    """With the limits as they are: 256 calls whose bodies do not come, over 128 places."""

    async def test() -> None:
        clock, places = FakeClock(), CLOSED_CALL_LIMITS.max_calls
        host = Host()
        async with host.serve(clock=clock) as served, contextlib.AsyncExitStack() as stack:
            client = served.client()
            await client.get_node_info()
            channels = [served.channel() for _ in range(SLOW // 8)]
            slow = []
            for number in range(SLOW):
                slow.append(await stack.enter_async_context(half_sent(served, channels[number // 8])))
                if number == places - 1:
                    await until(lambda: in_progress(served) == places)
                    clock.now_s += 1.0  # these are slow from now on; the others find no place but theirs
            await until(lambda: sum(call.task.done() for call in slow) == SLOW - places)
            assert in_progress(served) == places
            clock.now_s += 1.0
            for number in range(20):
                group = signed_group(ANN, index=number, sequence=number + 1)
                assert outcomes((await client.publish_groups(PublishRequest(groups=(group,)))).results) == ["accepted"]
                assert (await client.sample_groups(SampleRequest(count=1))).groups
            assert served.pauses == []  # not one of them had to be repeated
            await until(lambda: in_progress(served) == places - 1)
            assert sum(call.task.done() for call in slow) == SLOW - places + 1  # one place was enough

    run(test)


def test_t17_callers_that_do_not_read_their_answers_hold_nobody_up() -> None:
    """Large answers that stay in the transport: the window is closed and never opened."""

    async def test() -> None:
        host = Host()
        groups = tuple(signed_group(ANN, index=i, sequence=i + 1, text_bytes=60_000) for i in range(32))
        host.ready().publish(PublishRequest(groups=groups), prefix="elsewhere")
        async with host.serve() as served:
            deaf = [await asyncio.open_connection("127.0.0.1", served.server.port) for _ in range(12)]
            for _, writer in deaf:
                writer.write(_one_sample_call(window_bytes=16))
            client = served.client()
            await until(lambda: in_progress(served) >= len(deaf) // 2)  # answered, and not taken
            for _ in range(20):
                await client.get_node_info()
            for _, writer in deaf:
                writer.transport.abort()
            await until(lambda: in_progress(served) == 0)

    run(test)


def _one_sample_call(*, window_bytes: int) -> bytes:
    """Returns the bytes of an HTTP/2 connection that asks for 32 groups and takes `window_bytes` of the answer."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def header(name: bytes, value: bytes) -> bytes:
        return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value  # literal, not indexed

    headers = b"".join(
        header(name, value)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/sapo.exchange.v1.RolloutExchangeService/SampleGroups"),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"grpc-timeout", b"5S"),
        )
    )
    body = b"\x08\x20"
    return b"".join(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            frame(4, 0, 0, b"\x00\x04" + window_bytes.to_bytes(4, "big")),
            frame(1, 4, 1, headers),
            frame(0, 1, 1, b"\x00" + len(body).to_bytes(4, "big") + body),
        )
    )


def test_t17_a_refused_caller_that_has_vanished_is_no_defect() -> None:
    """Grpc logs whatever else a handler raises, with a traceback."""

    class Gone:
        async def abort(self, *_: object) -> None:
            raise grpc.aio.InternalError("the connection is closed")

    with pytest.raises(asyncio.CancelledError):
        run(lambda: pipeline._abort(Gone(), ServiceError(WireReason.MALFORMED, "a request is required")))  # type: ignore[arg-type]
