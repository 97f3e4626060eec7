"""Abuse of what surrounds a request, over real connections to a host.

Deadlines, tokens, methods, metadata, sizes, compression, bodies that never come, connections that talk
nonsense.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# grpc is partly typed.

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc

from sapo_jax.swarm.calls.certificate import TLS_NAME, pem_of
from sapo_jax.swarm.calls.grpc_server import SERVICE
from sapo_jax.swarm.calls.trust import TOKEN_HEADER
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.limits import DEADLINES, KIB, MIB
from scripts.faults.fuzz_calls import Caller, Outcome
from scripts.faults.request_fuzz import Request

STALLED_CHANNELS, STALLED_CALLS = 8, 64  # eight calls at a time on one connection: as many as a host grants
_OVERTAKING_S = 3.0  # how long further calls are made on a connection that is full

NEVER = "none"  # there was no call, or it was taken back

# Abuse: name -> how often at full scale, the statuses that may come of it, the reason if one must, and the call.

Act = Callable[[Caller, grpc.aio.Channel, random.Random], Awaitable[Outcome]]

_ADMIN = ("Status", "Drain", "Pause", "BanPeer", "UnbanPeer", "Checkpoint", "SetLogLevel", "x" * 1000)
_NOWHERE = (f"/{SERVICE}/WatchGroups", f"/{SERVICE}/", "/a.B/C", "/x", "/%00/%ff", "/" + "y" * 2000)


def _rpc(rng: random.Random) -> str:
    return rng.choice(list(DEADLINES))


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def _twice() -> AsyncIterator[bytes]:
    yield b""
    yield b"\xff" * 100


def _with_tokens(*tokens: str) -> Act:
    metadata = tuple((TOKEN_HEADER, token) for token in tokens)
    return lambda caller, channel, rng: caller.call(channel, _rpc(rng), b"", metadata=metadata, timeout_s=5)


def _with_metadata(*more: tuple[str, str | bytes]) -> Act:
    return lambda caller, channel, rng: caller.call(
        channel, "GetNodeInfo", b"", metadata=(*caller.token, *more), timeout_s=5
    )


def _with_body(size_bytes: int, compression: grpc.Compression | None = None) -> Act:
    return lambda caller, channel, rng: caller.call(
        channel, "PublishGroups", bytes(size_bytes), compression=compression
    )


async def _cancelled(caller: Caller, channel: grpc.aio.Channel, rng: random.Random) -> Outcome:
    task = asyncio.ensure_future(caller.call(channel, _rpc(rng), bytes(rng.randrange(100_000)), timeout_s=5))
    await asyncio.sleep(rng.random() * 0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return Outcome(NEVER)


async def _plain_nonsense(caller: Caller, channel: grpc.aio.Channel, rng: random.Random) -> Outcome:
    await _talk(caller, None, rng.randbytes(rng.choice((1, 24, 3000))))
    return Outcome(NEVER)


async def _encrypted_nonsense(caller: Caller, channel: grpc.aio.Channel, rng: random.Random) -> Outcome:
    """Talks HTTP/2 up to some point, then sends frames of random kind, length and content."""
    context = ssl.create_default_context(cadata=pem_of(caller.server.certificate).decode())
    context.set_alpn_protocols(["h2"])
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    frames = b""
    for _ in range(rng.choice((1, 3, 50))):
        content = rng.randbytes(rng.choice((0, 4, 8, 100)))
        head = len(content).to_bytes(3, "big") + bytes((rng.randrange(12), rng.randrange(256)))
        frames += head + rng.randrange(4).to_bytes(4, "big") + content
    await _talk(caller, context, rng.choice((greeting, greeting, b"")) + frames)
    return Outcome(NEVER)


async def _talk(caller: Caller, context: ssl.SSLContext | None, content: bytes) -> None:
    """Sends bytes on a connection of its own, listens for a moment and hangs up."""
    host, _, port = caller.server.address.partition(":")
    names = {} if context is None else {"ssl": context, "server_hostname": TLS_NAME}
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, int(port), **names)
            try:
                writer.write(content)
                await writer.drain()
                async with asyncio.timeout(0.05):
                    await reader.read()
            finally:
                writer.transport.abort()


_HEALTH = "/grpc.health.v1.Health/Check"
_GZIP = grpc.Compression.Gzip

ABUSES: Mapping[str, tuple[int, tuple[str, ...], WireReason | None, Act]] = {
    "no deadline": (
        600,
        ("INVALID_ARGUMENT",),
        WireReason.NO_DEADLINE,
        lambda caller, channel, rng: caller.call(channel, _rpc(rng), b"", timeout_s=None),
    ),
    "too long a deadline": (
        600,
        ("INVALID_ARGUMENT",),
        WireReason.NO_DEADLINE,
        lambda caller, channel, rng: caller.call(channel, _rpc(rng), b"", timeout_s=rng.choice((40.0, 1e6))),
    ),
    "no token": (400, ("UNAUTHENTICATED",), WireReason.UNAUTHENTICATED, _with_tokens()),
    "wrong token": (400, ("UNAUTHENTICATED",), WireReason.UNAUTHENTICATED, _with_tokens("x" * 43)),
    "two tokens": (400, ("UNAUTHENTICATED",), WireReason.UNAUTHENTICATED, _with_tokens("x", "x")),
    "admin call": (
        1_100,
        ("PERMISSION_DENIED",),
        WireReason.NOT_ALLOWED,
        lambda caller, channel, rng: caller.call(
            channel, f"/sapo.admin.v1.NodeAdminService/{rng.choice(_ADMIN)}", b"", timeout_s=5
        ),
    ),
    "another version": (
        1_100,
        ("FAILED_PRECONDITION",),
        WireReason.UNSUPPORTED_VERSION,
        lambda caller, channel, rng: caller.call(
            channel, f"/sapo.exchange.v{rng.choice('029')}.RolloutExchangeService/{_rpc(rng)}", b"", timeout_s=5
        ),
    ),
    "no such call": (
        1_100,
        ("UNIMPLEMENTED",),
        WireReason.NOT_IMPLEMENTED,
        lambda caller, channel, rng: caller.call(channel, rng.choice(_NOWHERE), b"", timeout_s=5),
    ),
    "no message": (
        100,
        ("INVALID_ARGUMENT",),
        WireReason.MALFORMED,
        lambda caller, channel, rng: caller.call(channel, "GetNodeInfo", _nothing(), timeout_s=5),
    ),
    "two messages": (
        100,
        ("OK", "INVALID_ARGUMENT"),
        None,
        lambda caller, channel, rng: caller.call(channel, "GetNodeInfo", _twice(), timeout_s=5),
    ),
    "metadata of 7 KiB": (100, ("OK",), None, _with_metadata(("filler", "x" * 7 * KIB))),
    "metadata of 9 KiB": (200, ("RESOURCE_EXHAUSTED",), None, _with_metadata(("filler", "x" * 9 * KIB))),
    "metadata of 64 KiB": (100, ("RESOURCE_EXHAUSTED",), None, _with_metadata(("filler", "x" * 64 * KIB))),
    "binary metadata": (100, ("OK",), None, _with_metadata(("filler-bin", bytes(range(256))))),
    "500 headers": (100, ("RESOURCE_EXHAUSTED",), None, _with_metadata(*((f"h{i}", "x" * 20) for i in range(500)))),
    "5 MiB": (40, ("RESOURCE_EXHAUSTED",), None, _with_body(5 * MIB)),
    "64 MiB": (4, ("RESOURCE_EXHAUSTED",), None, _with_body(64 * MIB)),
    "5 MiB of zeros, compressed": (40, ("RESOURCE_EXHAUSTED",), None, _with_body(5 * MIB, _GZIP)),
    "64 MiB of zeros, compressed": (10, ("RESOURCE_EXHAUSTED",), None, _with_body(64 * MIB, _GZIP)),
    "3 MiB of zeros, compressed": (20, ("INVALID_ARGUMENT",), WireReason.MALFORMED, _with_body(3 * MIB, _GZIP)),
    "health": (
        50,
        ("OK",),
        None,
        lambda caller, channel, rng: caller.call(channel, _HEALTH, b"", timeout_s=5, metadata=()),
    ),
    "malformed health": (
        50,
        ("INVALID_ARGUMENT",),
        None,
        lambda caller, channel, rng: caller.call(channel, _HEALTH, b"\xff\xff", timeout_s=5, metadata=()),
    ),
    "cancelled": (200, ("OK", "INVALID_ARGUMENT", NEVER), None, _cancelled),
    "nonsense": (100, (NEVER,), None, _plain_nonsense),
    "encrypted nonsense": (100, (NEVER,), None, _encrypted_nonsense),
}


async def abuse(caller: Caller, rng: random.Random, scaled: Callable[[int], int]) -> None:
    """Goes through all abuse, `scaled` down if need be."""
    channel = caller.channel()
    for name, (count, codes, reason, act) in ABUSES.items():
        for _ in range(scaled(count)):
            outcome = await act(caller, channel, rng)
            caller.tally.abuses += 1
            if outcome.is_late:
                continue
            if outcome.code not in codes or (reason is not None and outcome.reason is not reason):
                caller.complain(Request(rpc="abuse", name=name, body=b""), f"{outcome}, expected {codes} {reason}")


async def stall(caller: Caller, wanted: int) -> None:
    """Starts calls whose body never comes, until that many have timed out; further ones find no place."""
    channels = [caller.channel() for _ in range(STALLED_CHANNELS)]
    timed_out = refused = 0
    while timed_out < wanted:
        stalled = [
            asyncio.ensure_future(_stalled(caller, channels[i % STALLED_CHANNELS])) for i in range(STALLED_CALLS)
        ]
        # By now most are at the server; those that are not yet leave a place, and then the call goes through.
        end_s = asyncio.get_running_loop().time() + _OVERTAKING_S
        await asyncio.sleep(0.5)
        while refused < wanted and asyncio.get_running_loop().time() < end_s:
            outcomes = await asyncio.gather(
                *(caller.call_once(each, "GetNodeInfo", b"", timeout_s=5) for each in channels)
            )
            for outcome in outcomes:
                caller.tally.abuses += 1
                refused += outcome.reason is WireReason.CONCURRENCY
                if outcome.code != "OK" and not outcome.is_late and outcome.reason is not WireReason.CONCURRENCY:
                    caller.complain(Request(rpc="GetNodeInfo", name="no place", body=b""), f"{outcome}")
        before = timed_out
        for outcome in await asyncio.gather(*stalled):
            caller.tally.abuses += 1
            timed_out += outcome.reason is WireReason.TIMEOUT
            if not outcome.is_late and outcome.reason not in (WireReason.TIMEOUT, WireReason.CONCURRENCY):
                caller.complain(Request(rpc="PublishGroups", name="no body", body=b""), f"{outcome}")
        if timed_out == before:
            return  # it will not come to that


async def _stalled(caller: Caller, channel: grpc.aio.Channel) -> Outcome:
    over = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        await over.wait()
        yield b""

    outcome: Any = await caller.call(channel, "PublishGroups", body())
    over.set()
    return outcome
