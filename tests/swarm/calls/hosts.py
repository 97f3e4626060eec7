"""Hosts for tests of the exchange: a real store, service, server and clients on loopback, without sleeping."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from sapo_jax.swarm.calls.certificate import HostCertificate
from sapo_jax.swarm.calls.client_pool import ClientPool
from sapo_jax.swarm.calls.grpc_client import GrpcPeerClient
from sapo_jax.swarm.calls.grpc_server import CLOSED_CALL_LIMITS, SERVICE, GrpcServer
from sapo_jax.swarm.calls.quota import CLOSED_QUOTAS, QuotaLimits, Quotas
from sapo_jax.swarm.calls.server_metrics import ServerMetrics
from sapo_jax.swarm.calls.service import ExchangeService, Phase
from sapo_jax.swarm.calls.status_codes import DETAIL_KEY
from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.store.clock import Clock
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.wire.codec_parts import error_detail_from_message
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.group_calls_codec import publish_request_to_message
from sapo_jax.swarm.wire.group_codec import open_group, pack_group, seal_group
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.limits import CallLimits
from sapo_jax.swarm.wire.peer_record_codec import pack_peer_record, seal_peer_record
from sapo_jax.swarm.wire.requests import ErrorDetail, PeerExchange, PublishRequest
from sapo_jax.swarm.wire.signed_content import GeneratorInfo, OpenedGroup, PeerRecord, SignedGroup, SignedPeerRecord
from sapo_jax.types import Completion, FinishReason, Rollout, TaskRef

SWARM = "test-swarm"
NOW = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
PLAIN = Trust(mode=TrustMode.INSECURE_LOOPBACK)
TOKEN = "planted-secret-token-0123456789"


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def closed_trust() -> Trust:
    return Trust(
        mode=TrustMode.CLOSED,
        certificate=HostCertificate.generate(datetime.datetime.now(datetime.UTC)),
        token=TOKEN,
    )


def signed_group(
    identity: Identity,
    *,
    index: int = 0,
    sequence: int = 1,
    text_bytes: int = 20,
    swarm_id: str = SWARM,
    dataset: str = "toy",
    ttl_s: float = 3600.0,
) -> SignedGroup:
    """Returns a valid group of one completion with `text_bytes` of text."""
    rollout = Rollout(
        task_ref=TaskRef(dataset=dataset, config_digest="ab" * 32, seed=7, index=index),
        node_id=identity.node_id,
        round=0,
        policy_version=0,
        completions=(Completion(text="x" * text_bytes, finish_reason=FinishReason.STOP),),
    )
    payload = pack_group(
        rollout,
        swarm_id=swarm_id,
        sequence=sequence,
        created_unix_s=0.0,
        ttl_s=ttl_s,
        generator=GeneratorInfo(),
    )
    return SignedGroup(envelope=seal_group(payload, identity))


def opened(group: SignedGroup) -> OpenedGroup:
    return open_group(group, swarm_id=SWARM)


def peer_record(identity: Identity) -> SignedPeerRecord:
    payload = pack_peer_record(
        PeerRecord(
            swarm_id=SWARM,
            addresses=("127.0.0.1:1",),
            certificate=b"",
            session_nonce=bytes(16),
            sequence=1,
            software_version="test",
            catalog_digests=(),
            reachable=True,
            created_unix_s=0.0,
        )
    )
    return SignedPeerRecord(envelope=seal_peer_record(payload, identity))


@dataclass(kw_only=True)
class Host:
    """A service with everything behind it; `serve` puts a server in front."""

    path: Path | None = None
    quotas: QuotaLimits = CLOSED_QUOTAS
    call_limits: CallLimits = CLOSED_CALL_LIMITS
    store_limits: StoreLimits = field(default_factory=StoreLimits)
    clock: FakeClock = field(default_factory=FakeClock)
    banned: set[str] = field(default_factory=set)
    backlog: tuple[int, int] = (0, 0)
    free_bytes: int = 2**40
    stored: list[OpenedGroup] = field(default_factory=list)
    swap_peers: Callable[[PeerExchange], PeerExchange] = lambda request: request

    def __post_init__(self) -> None:
        self.identity = Identity.generate()
        self.store = GroupStore(
            self.path,
            limits=self.store_limits,
            clock=Clock(wall=self.clock, monotonic=self.clock, boot="test"),
            free_bytes=lambda path: self.free_bytes,
        )
        self.service = ExchangeService(
            self.store,
            Quotas(self.quotas, clock=self.clock),
            swarm_id=SWARM,
            software_version="test",
            catalog_digests=("ab" * 32,),
            peer_record=lambda: peer_record(self.identity),
            swap_peers=lambda request: self.swap_peers(request),
            is_banned=self.banned.__contains__,
            wall_clock=self.clock,
            clock=self.clock,
            rng=np.random.default_rng(0),
            on_stored=self.stored.extend,
            backlog=lambda: self.backlog,
            call_limits=self.call_limits,
        )

    def ready(self) -> ExchangeService:
        """Returns the service in phase SERVING, for tests without a server."""
        self.service.phase = Phase.SERVING
        return self.service

    @contextlib.asynccontextmanager
    async def serve(
        self, trust: Trust = PLAIN, *, address: str = "127.0.0.1:0", is_ready: bool = True, **options: Any
    ) -> AsyncGenerator[Served]:
        server = GrpcServer(
            self.service,
            trust,
            address=address,
            call_limits=self.call_limits,
            metrics=ServerMetrics(),
            **options,
        )
        await server.start(is_ready=is_ready)
        served = Served(server, trust)
        try:
            yield served
        finally:
            await served.close()
            await server.stop(grace_s=0.0)


class Served:
    """A listening host, and ways to call it."""

    def __init__(self, server: GrpcServer, trust: Trust) -> None:
        self.server = server
        self.trust = trust
        self.address = f"127.0.0.1:{server.port}"
        self.pauses: list[float] = []
        self._channels: list[grpc.aio.Channel] = []
        self.pool = self.make_pool(trust)

    @property
    def certificate(self) -> bytes | None:
        return None if self.trust.certificate is None else self.trust.certificate.der

    def make_pool(self, trust: Trust, **options: Any) -> ClientPool:
        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        return ClientPool(
            trust,
            sleep=sleep,
            rng=np.random.default_rng(0),
            now=lambda: datetime.datetime.now(datetime.UTC),
            **options,
        )

    def client(self) -> GrpcPeerClient:
        return self.pool.connect(self.address, self.certificate)

    def channel(self, **options: int) -> grpc.aio.Channel:
        """Returns a plain channel of its own, for calls that our client would not make."""
        named = [(f"grpc.{name}", value) for name, value in options.items()]
        channel = grpc.aio.insecure_channel(
            self.address, options=[("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), *named]
        )
        self._channels.append(channel)
        return channel

    def raw(self, name: str, channel: grpc.aio.Channel | None = None) -> Callable[..., Awaitable[bytes]]:
        """Returns a call with raw bytes; `name` is an RPC of the exchange or a whole method path."""
        path = name if name.startswith("/") else f"/{SERVICE}/{name}"
        return (channel or self.channel()).unary_unary(path)

    async def close(self) -> None:
        await self.pool.close()
        for channel in self._channels:
            await channel.close()


@dataclass(frozen=True)
class Refused:
    """How a call failed."""

    code: grpc.StatusCode
    text: str
    detail: ErrorDetail | None


async def refusal(call: Awaitable[Any]) -> Refused:
    """Returns how `call` fails; fails itself if it does not."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        raw = dict(error.trailing_metadata() or ()).get(DETAIL_KEY)
        detail = error_detail_from_message(pb.ErrorDetail.FromString(raw)) if isinstance(raw, bytes) else None
        return Refused(error.code(), error.details() or "", detail)
    raise AssertionError(f"the call succeeded with {len(answer)} bytes")


def publish_body(*groups: SignedGroup) -> bytes:
    return publish_request_to_message(PublishRequest(groups=groups)).SerializeToString()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Runs a test in an event loop of its own, for at most half a minute."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


def outcomes(results: Sequence[Any]) -> list[str]:
    return [result.outcome.value if result.reason is None else result.reason.value for result in results]


async def until(condition: Callable[[], bool]) -> None:
    """Waits until something that is under way has happened."""
    while not condition():
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def half_sent(served: Served, channel: grpc.aio.Channel | None = None) -> AsyncGenerator[HalfSent]:
    """A call that has reached the server and whose body does not come."""
    call = HalfSent(served, channel)
    try:
        yield call
    finally:
        call.task.cancel()
        await asyncio.wait([call.task])


class HalfSent:
    def __init__(self, served: Served, channel: grpc.aio.Channel | None = None) -> None:
        self.release = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            await self.release.wait()
            yield publish_body(signed_group(Identity.generate()))

        method = (channel or served.channel()).stream_unary(f"/{SERVICE}/PublishGroups")

        async def make() -> bytes:
            return await method(body(), timeout=14)

        self.task = asyncio.ensure_future(make())


def in_progress(served: Served) -> int:
    return len(served.server._slots)
