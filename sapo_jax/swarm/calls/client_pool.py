"""The channels of a host to its peers: opened when one is first dialed, kept for the next call, and bounded."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# grpc is partly typed.

from __future__ import annotations

import datetime
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import numpy as np

from sapo_jax.swarm.calls.certificate import TLS_NAME, pem_of
from sapo_jax.swarm.calls.grpc_client import USUAL_RETRY, GrpcPeerClient, RetryPolicy
from sapo_jax.swarm.calls.trust import Trust
from sapo_jax.swarm.wire.addresses import join_address, split_address
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, CallLimits, WireLimits

MAX_CHANNELS = 64
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 10_000
CONNECT_MS = 5_000  # for one attempt to connect
FIRST_RECONNECT_MS, MAX_RECONNECT_MS = 200, 10_000


@dataclass(eq=False, slots=True)
class _Channel:
    channel: grpc.aio.Channel
    users: int = 0


class ClientPool:
    """Owns the channels of a host, one per peer and certificate; used in one loop.

    A channel whose users have all closed stays for the next one; beyond `max_channels` the one that
    was free longest is closed. One whose last call found nobody does not stay: its connection may be
    dead without a sign, or it may wait long before it connects again, and who dials next wants to know now.
    """

    def __init__(
        self,
        trust: Trust,
        *,
        sleep: Callable[[float], Awaitable[None]],
        rng: np.random.Generator,
        now: Callable[[], datetime.datetime],
        retry: RetryPolicy = USUAL_RETRY,
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

    def connect(self, address: str, certificate: bytes | None) -> GrpcPeerClient:
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

        async def release(is_answering: bool) -> None:
            entry.users -= 1
            if not is_answering and self._channels.get(key) is entry:
                del self._channels[key]
            if entry.users <= 0 and self._channels.get(key) is not entry:
                await entry.channel.close()
            await self._trim()

        return GrpcPeerClient(
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
        target = join_address(*split_address(address))
        options = _options(self._limits)
        if self._trust.certificate is None or certificate is None:
            return grpc.aio.insecure_channel(target, options=options)
        # The peer's own certificate is the only root, whatever the system believes.
        credentials = grpc.ssl_channel_credentials(root_certificates=pem_of(certificate))
        return grpc.aio.secure_channel(
            target, credentials, options=[*options, ("grpc.ssl_target_name_override", TLS_NAME)]
        )


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
