"""The dialing end of the exchange: cached channels to peers, and calls that return checked records.

Every call has a deadline. What was not answered is tried again, with growing random pauses and not
for ever; what was refused is not: the refusal says when to come back. A peer's answer is a
stranger's and is checked like a request.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# grpc is partly typed.

from __future__ import annotations

import asyncio
import datetime
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message

from sapo_jax.swarm.calls.certificate import TLS_NAME, pem_of
from sapo_jax.swarm.calls.peer_client import CallError
from sapo_jax.swarm.calls.status_codes import CODES, DETAIL_KEY, RETRIED_CODES
from sapo_jax.swarm.calls.trust import Trust
from sapo_jax.swarm.wire.addresses import split_address
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.limits import DEADLINES, DEFAULT_WIRE_LIMITS, CallLimits, WireLimits
from sapo_jax.swarm.wire.messages import (
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
from sapo_jax.swarm.wire.parse import parse
from sapo_jax.swarm.wire.printable import printable
from sapo_jax.swarm.wire.service_codec import (
    error_detail_from_message,
    get_request_to_message,
    get_response_from_message,
    list_request_to_message,
    list_response_from_message,
    node_info_from_message,
    node_info_request_to_message,
    peers_request_to_message,
    peers_response_from_message,
    publish_request_to_message,
    publish_response_from_message,
    sample_request_to_message,
    sample_response_from_message,
)

SERVICE_PATH = "/sapo.exchange.v1.RolloutExchangeService/"
MAX_CHANNELS = 64
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 10_000
CONNECT_MS = 5_000  # for one attempt to connect
FIRST_RECONNECT_MS, MAX_RECONNECT_MS = 200, 10_000
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


NO_RETRY = RetryPolicy(max_attempts=1)


@dataclass(eq=False, slots=True)
class _Channel:
    channel: grpc.aio.Channel
    users: int = 0


class ClientPool:
    """Owns the channels of a host, one per peer and certificate; used in one loop.

    A channel whose users have all closed stays for the next one; beyond `max_channels` the one that
    was free longest is closed.
    """

    def __init__(
        self,
        trust: Trust,
        *,
        sleep: Callable[[float], Awaitable[None]],
        rng: np.random.Generator,
        now: Callable[[], datetime.datetime],
        retry: RetryPolicy = RetryPolicy(),
        limits: WireLimits = DEFAULT_WIRE_LIMITS,
        max_channels: int = MAX_CHANNELS,
    ) -> None:
        """Starts without channels.

        Args:
            trust: decides how peers are dialed, and gives the token.
            sleep: waits between attempts.
            rng: draws the pauses.
            now: with a time zone; whether certificates have expired.
            retry: of calls that were not answered.
            limits: sizes of messages.
            max_channels: kept at most, as far as they are free.
        """
        self._trust = trust
        self._sleep = sleep
        self._rng = rng
        self._now = now
        self._retry = retry
        self._limits = limits
        self._max_channels = max_channels
        self._channels: OrderedDict[tuple[str, bytes | None], _Channel] = OrderedDict()

    def __len__(self) -> int:
        return len(self._channels)

    def connect(self, address: str, certificate: bytes | None) -> PeerClient:
        """Returns a client for a peer; nothing is sent before the first call.

        Args:
            address: "host:port".
            certificate: what the peer must show, DER; None: plain text.

        Raises:
            AddressError, TrustError, CertificateError: the peer may not be dialed so; all are ValueErrors.
        """
        self._trust.check_peer(address, certificate, self._now())
        key = (address, certificate)
        entry = self._channels.get(key)
        if entry is None:
            entry = self._channels[key] = _Channel(self._open(address, certificate))
        self._channels.move_to_end(key)
        entry.users += 1

        async def release() -> None:
            entry.users -= 1
            await self._trim()

        return PeerClient(
            entry.channel,
            metadata=self._trust.call_metadata(),
            sleep=self._sleep,
            rng=self._rng,
            retry=self._retry,
            limits=self._limits,
            release=release,
        )

    async def close(self) -> None:
        """Closes all channels; calls in progress end."""
        entries, self._channels = self._channels, OrderedDict()
        for entry in entries.values():
            await entry.channel.close()

    async def _trim(self) -> None:
        for key, entry in list(self._channels.items()):
            if len(self._channels) <= self._max_channels:
                return
            if entry.users <= 0:
                del self._channels[key]
                await entry.channel.close()

    def _open(self, address: str, certificate: bytes | None) -> grpc.aio.Channel:
        host, port = split_address(address)
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        options = _options(self._limits)
        if self._trust.certificate is None or certificate is None:
            return grpc.aio.insecure_channel(target, options=options)
        # The peer's own certificate is the only root, whatever the system believes.
        credentials = grpc.ssl_channel_credentials(root_certificates=pem_of(certificate))
        return grpc.aio.secure_channel(
            target, credentials, options=[*options, ("grpc.ssl_target_name_override", TLS_NAME)]
        )


class PeerClient:
    """The calls to one peer.

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
        release: Callable[[], Awaitable[None]],
    ) -> None:
        """Uses `channel`; made by `ClientPool.connect`."""
        self._metadata = metadata
        self._sleep = sleep
        self._rng = rng
        self._retry = retry
        self._limits = limits
        self._release: Callable[[], Awaitable[None]] | None = release
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
        """Gives the channel back; once more does nothing."""
        release, self._release = self._release, None
        if release is not None:
            await release()

    async def _call(self, name: str, request: Message, timeout_s: float | None, retry: RetryPolicy) -> bytes:
        """Returns the raw response of one RPC after at most `retry.max_attempts` attempts."""
        deadline_s = DEADLINES[name].client_s if timeout_s is None else timeout_s
        body = request.SerializeToString()
        timeouts = 0
        attempt = 0
        while True:
            try:
                async with self._places:
                    return await self._calls[name](body, timeout=deadline_s, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                failed = error
            code = failed.code()
            detail = _detail_of(failed, self._limits)
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


def _options(limits: WireLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.enable_retries", 0),  # ours know which calls may be repeated, and how often
        ("grpc.enable_http_proxy", 0),  # peers are dialed directly, whatever the environment says
        ("grpc.service_config_disable_resolution", 1),  # no name server configures our calls
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_metadata_size", CallLimits().max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", CallLimits().max_metadata_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.initial_reconnect_backoff_ms", FIRST_RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
        ("grpc.use_local_subchannel_pool", 1),  # a closed channel takes its connection along
    ]
