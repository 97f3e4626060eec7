"""Fuzzes a host over real connections with the requests of `request_fuzz`; the status that a caller sees counts."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# grpc is partly typed.

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from sapo_jax.swarm.calls.certificate import TLS_NAME, pem_of
from sapo_jax.swarm.calls.grpc_server import SERVICE
from sapo_jax.swarm.calls.status_codes import DETAIL_KEY
from sapo_jax.swarm.calls.trust import TOKEN_HEADER
from sapo_jax.swarm.wire.codec_parts import error_detail_from_message
from sapo_jax.swarm.wire.errors import STATUS_CODE, WireError, WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.limits import DEADLINES
from sapo_jax.swarm.wire.parse import parse
from scripts.faults.fuzz_server import Server
from scripts.faults.fuzz_worker import DOCUMENTED, MAX_KEPT, decoded, fits, keep_message
from scripts.faults.request_fuzz import ANY, OPEN, Request, RequestFuzz

CHANNELS, TASKS = 4, 12
_PATIENCE_S = 14.0
_HUNG_S = 60.0  # no call takes that long, with or without a deadline
_TRIES, _BUSY_S = 40, 0.25  # of a call that finds no place


@dataclass(kw_only=True)
class CallTally:
    """What came of the calls."""

    calls: int = 0
    messages: int = 0
    resigned: int = 0
    abuses: int = 0
    wrong: int = 0
    undocumented: int = 0
    late: int = 0  # no answer within the caller's deadline; on a busy machine nobody's fault
    busy: int = 0  # calls that were made again because the host had no place for them
    reasons: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    kept: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended: the status code's name, the reason that came with it, and the response."""

    code: str
    reason: WireReason | None = None
    response: bytes = b""
    text: str = ""

    @property
    def is_late(self) -> bool:
        """Whether the caller gave up by itself."""
        return self.code == "DEADLINE_EXCEEDED" and self.reason is None


class Caller:
    """Makes calls to one server and keeps the tally. Open it with `async with`."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.tally = CallTally()
        self._folder = folder
        self._channels: list[grpc.aio.Channel] = []
        self.token = ((TOKEN_HEADER, server.token),)

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    def channel(self) -> grpc.aio.Channel:
        """Returns a connection of its own, without any of the bounds that our client keeps."""
        options = [
            ("grpc.ssl_target_name_override", TLS_NAME),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
        ]
        credentials = grpc.ssl_channel_credentials(pem_of(self.server.certificate))
        channel = grpc.aio.secure_channel(self.server.address, credentials, options=options)
        self._channels.append(channel)
        return channel

    async def call(
        self, channel: grpc.aio.Channel, rpc: str, body: bytes | AsyncIterator[bytes], **options: Any
    ) -> Outcome:
        """Makes one call, again and again while the host says that it has no place for it."""
        outcome = Outcome("")
        for _ in range(_TRIES):
            outcome = await self.call_once(channel, rpc, body, **options)
            if outcome.reason is not WireReason.CONCURRENCY or not isinstance(body, bytes):
                break
            self.tally.busy += 1
            await asyncio.sleep(_BUSY_S)
        return outcome

    async def call_once(
        self,
        channel: grpc.aio.Channel,
        rpc: str,
        body: bytes | AsyncIterator[bytes],
        *,
        timeout_s: float | None = _PATIENCE_S,
        metadata: tuple[tuple[str, str | bytes], ...] | None = None,
        compression: grpc.Compression | None = None,
    ) -> Outcome:
        """Makes one call, once; `rpc` is a name of the exchange or a whole path."""
        path = rpc if rpc.startswith("/") else f"/{SERVICE}/{rpc}"
        make = channel.unary_unary(path) if isinstance(body, bytes) else channel.stream_unary(path)
        self.tally.calls += 1
        try:
            async with asyncio.timeout(_HUNG_S):
                response = await make(
                    body,
                    timeout=timeout_s,
                    metadata=self.token if metadata is None else metadata,
                    compression=compression,
                )
            outcome = Outcome("OK", response=response)
        except grpc.aio.AioRpcError as error:
            outcome = Outcome(error.code().name, _reason_of(error), text=error.details() or "")
        except TimeoutError:
            outcome = Outcome("HUNG", text=f"neither answer nor status within {_HUNG_S:g} s")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            outcome = Outcome("BROKEN", text="the connection broke")  # so grpc says of calls with a stream
        self.tally.codes[outcome.code] += 1
        if outcome.reason is not None:
            self.tally.reasons[outcome.reason.value] += 1
        self.tally.late += outcome.is_late
        if outcome.code != "OK" and outcome.code not in DOCUMENTED:
            self.tally.undocumented += 1
        return outcome

    def complain(self, request: Request, what: str) -> None:
        """Counts and keeps a message that was not answered as it must be."""
        self.tally.wrong += 1
        self.keep(request, what)

    def keep(self, request: Request, what: str) -> None:
        """Keeps a message that was not answered as it must be."""
        if len(self.tally.kept) < MAX_KEPT:
            path = self._folder / f"offending_call_{len(self.tally.kept)}.txt"
            keep_message(path, request, what)
            self.tally.kept.append(str(path))

    async def send(self, channel: grpc.aio.Channel, request: Request) -> bool:
        """Makes the call of a request and judges what comes of it; returns whether it went through."""
        timeout_s = min(_PATIENCE_S, DEADLINES[request.rpc].server_max_s)
        outcome = await self.call(channel, request.rpc, request.body, timeout_s=timeout_s)
        self.tally.messages += request.messages
        self.tally.resigned += request.resigned
        if outcome.is_late:
            # On a busy machine nobody's fault, but not twice.
            if (await self.call(channel, request.rpc, request.body, timeout_s=timeout_s)).is_late:
                self.complain(request, "no answer, and none when it was sent again")
            return False
        if outcome.code != "OK":
            if outcome.code not in DOCUMENTED:
                self.keep(request, f"{outcome}")
            elif request.expected != ANY and not _is_refused_for(request, outcome):
                self.complain(request, f"{outcome}")
            return False
        if request.expected not in (OPEN, ANY):
            self.complain(request, f"answered with {len(outcome.response)} bytes")
            return False
        try:
            results = decoded(request, outcome.response)
        except WireError as error:
            self.complain(request, f"the answer is nonsense: {error}")
            return False
        for i, result in enumerate(results):
            if result.reason is not None:
                self.tally.reasons[result.reason.value] += 1
            if i < len(request.groups) and not fits(request.groups[i], result):
                self.complain(request, f"group {i} ({request.names[i]}): {result}, expected {request.groups[i]}")
                return False
        return True


def _is_refused_for(request: Request, outcome: Outcome) -> bool:
    if not isinstance(request.expected, WireReason) or outcome.code != STATUS_CODE[request.expected]:
        return False
    # What is too large never reaches us: the transport refuses it, without a detail.
    return outcome.reason in (request.expected, None) or request.expected is WireReason.TOO_LARGE


def _reason_of(error: grpc.aio.AioRpcError) -> WireReason | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAIL_KEY and isinstance(value, bytes):
            return error_detail_from_message(parse(pb.ErrorDetail, value)).reason
    return None


async def send_all(caller: Caller, requests: list[Request]) -> None:
    """Makes the calls of given requests, one after the other."""
    channel = caller.channel()
    for request in requests:
        await caller.send(channel, request)


async def fuzz(caller: Caller, fuzz: RequestFuzz, calls: int) -> None:
    """Makes that many calls, several at a time on several connections."""
    channels = [caller.channel() for _ in range(CHANNELS)]
    left = iter(range(calls))

    async def work(channel: grpc.aio.Channel) -> None:
        for _ in left:
            request = fuzz.next()
            if await caller.send(channel, request):
                fuzz.went_through(request)

    await asyncio.gather(*(work(channels[i % CHANNELS]) for i in range(TASKS)))
