"""The dialing end of the exchange: the calls to one peer, which return checked records.

Every call has a deadline. What was not answered is tried again, with growing random pauses and not
for ever; what was refused is not: the refusal says when to come back. A peer's answer is a
stranger's and is checked like a request.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# grpc is partly typed.

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message

from sapo_jax.swarm.calls.peer_client import CallError
from sapo_jax.swarm.calls.status_codes import CODES, DETAIL_KEY, RETRIED_CODES
from sapo_jax.swarm.wire.codec_parts import error_detail_from_message
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.group_calls_codec import (
    get_request_to_message,
    get_response_from_message,
    list_request_to_message,
    list_response_from_message,
    publish_request_to_message,
    publish_response_from_message,
    sample_request_to_message,
    sample_response_from_message,
)
from sapo_jax.swarm.wire.host_calls_codec import (
    node_info_from_message,
    node_info_request_to_message,
    peers_request_to_message,
    peers_response_from_message,
)
from sapo_jax.swarm.wire.limits import DEADLINES, CallLimits, WireLimits
from sapo_jax.swarm.wire.parse import parse
from sapo_jax.swarm.wire.printable import printable
from sapo_jax.swarm.wire.requests import (
    ErrorDetail,
    GetRequest,
    GetResponse,
    GroupRefPage,
    ListRequest,
    NodeInfo,
    PeerExchange,
    PublishRequest,
    PublishResponse,
    SampleRequest,
    SampleResponse,
)

SERVICE_PATH = "/sapo.exchange.v1.RolloutExchangeService/"
_MAX_TEXT_CHARS = 200

# A peer that fails without a detail was refused by the transport, or is no host of ours.
_REASONS_OF_TRANSPORT = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: WireReason.TOO_LARGE,
    grpc.StatusCode.UNIMPLEMENTED: WireReason.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED: WireReason.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: WireReason.NOT_ALLOWED,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often an unanswered call is made, and the pauses between.

    The pause after attempt i is drawn from [0, min(max_pause_s, first_pause_s * 2**i)]: full jitter, so
    that callers of one dead peer do not come back together.
    """

    max_attempts: int = 4
    first_pause_s: float = 0.1
    max_pause_s: float = 2.0
    max_timeouts: int = 2  # of those attempts: a deadline takes seconds each time

    def pause_s(self, attempt: int, rng: np.random.Generator) -> float:
        """Returns the pause after `attempt`, counted from 0."""
        return float(rng.uniform(0.0, min(self.max_pause_s, self.first_pause_s * 2.0**attempt)))


USUAL_RETRY = RetryPolicy()
NO_RETRY = RetryPolicy(max_attempts=1)


class GrpcPeerClient:
    """The calls to one peer, through a channel of a `ClientPool`; a `PeerClient`.

    Each method raises CallError if the peer refused or did not answer, and WireError if its answer is
    nonsense. `timeout_s` is the deadline of one attempt.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        metadata: tuple[tuple[str, str], ...],
        sleep: Callable[[float], Awaitable[None]],
        rng: np.random.Generator,
        retry: RetryPolicy,
        limits: WireLimits,
        release: Callable[[bool], Awaitable[None]],
    ) -> None:
        """Uses `channel`; made by `ClientPool.connect`. `release` is told whether the last call was answered."""
        self._metadata = metadata
        self._sleep = sleep
        self._rng = rng
        self._retry = retry
        self._limits = limits
        self._release: Callable[[bool], Awaitable[None]] | None = release
        self._is_answering = True  # until a call finds nobody
        self._is_closed = False
        self._in_flight = 0
        self._calls: dict[str, Any] = {name: channel.unary_unary(SERVICE_PATH + name) for name in DEADLINES}
        # More at a time would be refused, so they wait here.
        self._places = asyncio.Semaphore(CallLimits().max_calls_per_peer)

    async def publish_groups(self, request: PublishRequest, *, timeout_s: float | None = None) -> PublishResponse:
        """Hands over groups; returns one result per group."""
        raw = await self._call("PublishGroups", publish_request_to_message(request), timeout_s, self._retry)
        message = parse(pb.PublishGroupsResponse, raw, self._limits)
        return publish_response_from_message(message, asked=len(request.groups))

    async def sample_groups(self, request: SampleRequest, *, timeout_s: float | None = None) -> SampleResponse:
        """Asks for random groups; not tried again, because another peer does as well."""
        raw = await self._call("SampleGroups", sample_request_to_message(request), timeout_s, NO_RETRY)
        message = parse(pb.SampleGroupsResponse, raw, self._limits)
        return sample_response_from_message(message, asked=request.count, limits=self._limits)

    async def list_groups(self, request: ListRequest, *, timeout_s: float | None = None) -> GroupRefPage:
        """Asks for references after a cursor."""
        raw = await self._call("ListGroups", list_request_to_message(request), timeout_s, self._retry)
        message = parse(pb.ListGroupsResponse, raw, self._limits)
        return list_response_from_message(message, asked=request.max_references, limits=self._limits)

    async def get_groups(self, request: GetRequest, *, timeout_s: float | None = None) -> GetResponse:
        """Asks for groups by id."""
        raw = await self._call("GetGroups", get_request_to_message(request), timeout_s, self._retry)
        message = parse(pb.GetGroupsResponse, raw, self._limits)
        return get_response_from_message(message, asked=len(request.group_ids), limits=self._limits)

    async def get_node_info(self, *, timeout_s: float | None = None) -> NodeInfo:
        """Asks the peer about itself."""
        raw = await self._call("GetNodeInfo", node_info_request_to_message(), timeout_s, self._retry)
        return node_info_from_message(parse(pb.GetNodeInfoResponse, raw, self._limits), self._limits)

    async def exchange_peers(self, request: PeerExchange, *, timeout_s: float | None = None) -> PeerExchange:
        """Swaps peer records; not tried again, the next swap is soon."""
        raw = await self._call("ExchangePeers", peers_request_to_message(request), timeout_s, NO_RETRY)
        return peers_response_from_message(parse(pb.ExchangePeersResponse, raw, self._limits), self._limits)

    async def close(self) -> None:
        """Gives the channel back once no call is in progress; once more does nothing."""
        self._is_closed = True
        await self._let_go()

    async def _let_go(self) -> None:
        # A channel that closes cancels its calls, which looks to their tasks as if these were canceled.
        if self._is_closed and not self._in_flight and self._release is not None:
            release, self._release = self._release, None
            await release(self._is_answering)

    async def _call(self, name: str, request: Message, timeout_s: float | None, retry: RetryPolicy) -> bytes:
        self._in_flight += 1
        try:
            return await self._attempt(name, request, timeout_s, retry)
        finally:
            self._in_flight -= 1
            await self._let_go()

    async def _attempt(self, name: str, request: Message, timeout_s: float | None, retry: RetryPolicy) -> bytes:
        """Returns the raw response of one RPC after at most `retry.max_attempts` attempts."""
        deadline_s = DEADLINES[name].client_s if timeout_s is None else timeout_s
        body = request.SerializeToString()
        timeouts = 0
        attempt = 0
        while True:
            try:
                async with self._places:
                    answer = await self._calls[name](body, timeout=deadline_s, metadata=self._metadata)
                self._is_answering = True
                return answer
            except grpc.aio.AioRpcError as error:
                failed = error
            code = failed.code()
            detail = _detail_of(failed, self._limits)
            self._is_answering = detail is not None or code not in RETRIED_CODES
            timeouts += code is grpc.StatusCode.DEADLINE_EXCEEDED
            pause_s = max(retry.pause_s(attempt, self._rng), 0.0 if detail is None else detail.retry_after_s)
            attempt += 1
            if (
                code not in RETRIED_CODES
                or attempt >= retry.max_attempts
                or timeouts >= retry.max_timeouts
                or pause_s > retry.max_pause_s
            ):
                raise _call_error(name, failed, detail) from None
            await self._sleep(pause_s)


def _detail_of(error: grpc.aio.AioRpcError, limits: WireLimits) -> ErrorDetail | None:
    """Returns the detail of a failed call, or None if there is none that can be read."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAIL_KEY and isinstance(value, bytes):
            try:
                return error_detail_from_message(parse(pb.ErrorDetail, value, limits), limits)
            except WireError:
                return None
    return None


def _call_error(name: str, error: grpc.aio.AioRpcError, detail: ErrorDetail | None) -> CallError:
    """Returns what the caller learns; a code that contradicts its detail counts as having none."""
    code = error.code()
    text = f"{name}: {code.name}: {printable(error.details() or '', _MAX_TEXT_CHARS)}"
    if detail is None or CODES[detail.reason] is not code:
        return CallError(text, reason=_REASONS_OF_TRANSPORT.get(code))
    return CallError(text, reason=detail.reason, retry_after_s=detail.retry_after_s)
