"""Hosts joined by clients in memory, with faults on the way: the mesh without sockets and without sleeping."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from sapo_jax.swarm.calls.peer_client import CallError
from sapo_jax.swarm.calls.quota import CLOSED_QUOTAS, QuotaLimits, Quotas
from sapo_jax.swarm.calls.service import ExchangeService, Phase
from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.mesh.fetch import Fetcher, FetchLimits
from sapo_jax.swarm.mesh.links import Links
from sapo_jax.swarm.mesh.membership import Membership
from sapo_jax.swarm.mesh.mesh import Mesh, MeshTimes
from sapo_jax.swarm.mesh.peers import PeerBook, PeerLimits
from sapo_jax.swarm.mesh.presence import Presence
from sapo_jax.swarm.mesh.push import Pusher, PushLimits
from sapo_jax.swarm.mesh.scores import Scores
from sapo_jax.swarm.sealing import Sealer
from sapo_jax.swarm.store.clock import Clock
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.group_codec import open_group
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS
from sapo_jax.swarm.wire.peer_record_codec import open_peer_record
from sapo_jax.swarm.wire.requests import GroupRefPage, NodeInfo, PublishResponse
from sapo_jax.swarm.wire.signed_content import Envelope, GeneratorInfo, SignedGroup
from tests.swarm.conftest import make_rollout

SWARM = "test-swarm"


class Fault(enum.Enum):
    DROP = "drop"  # the call never arrives
    LOSE_ANSWER = "lose_answer"  # it is done, and nobody learns so
    DUPLICATE = "duplicate"  # it arrives twice
    REORDER = "reorder"  # its groups arrive in another order
    CORRUPT = "corrupt"  # one byte of each group is another one
    REFUSE = "refuse"  # too many calls, says the peer
    NONSENSE = "nonsense"  # an answer that cannot be read
    RAISE = "raise"  # something that no client should raise


class FakeTime:
    """One clock for wall and monotonic time, in seconds."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """All hosts by address, and the faults between them."""

    def __init__(self) -> None:
        self.time = FakeTime()
        self.hosts: dict[str, FakeHost] = {}
        self.faults: dict[str, Fault] = {}  # address of the callee -> what happens to calls
        self.gates: dict[str, asyncio.Event] = {}  # address -> calls wait for it
        self.calls: Counter[str] = Counter()  # "address name" -> calls made

    def host(self, name: str, *peers: str, listens: bool = True, **options: Any) -> FakeHost:
        host = FakeHost(self, name, listens=listens, **options)
        for peer in peers:
            host.book.add_given([address_of(peer)], None)
        if listens:
            self.hosts[address_of(name)] = host
        return host

    async def connect_all(self) -> None:
        for host in list(self.hosts.values()):
            await host.dial()


def address_of(name: str) -> str:
    return f"{name}.example:1"


class FakeHost:
    """One host of the world: real store, service and mesh."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        listens: bool = True,
        identity: Identity | None = None,
        nonce: bytes = b"",
        certificate: bytes = b"",
        quotas: QuotaLimits = CLOSED_QUOTAS,
        fetch: FetchLimits | None = None,
        push: PushLimits | None = None,
        peers: PeerLimits | None = None,
        times: MeshTimes | None = None,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        skew_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        time = world.time
        self.world = world
        self.name = name
        self.identity = identity or Identity.generate()
        self.certificate = certificate  # empty: plain text
        rng = np.random.default_rng(seed)

        def wall() -> float:
            return time() + skew_s

        self.scores = Scores(time)
        self.presence = Presence(
            self.identity,
            swarm_id=SWARM,
            addresses=(address_of(name),) if listens else (),
            certificate=certificate,
            session_nonce=nonce or rng.bytes(16),
            software_version="test",
            catalog_digests=(),
            last_sequence=0,
            wall_clock=wall,
        )
        self.book = PeerBook(
            self.identity.node_id, self.scores, limits=peers or PeerLimits(per_prefix=12), clock=time, rng=rng
        )
        self.membership = Membership(self.book, self.presence, self.scores, open_record=self._open_record, clock=time)
        self.store = GroupStore(None, limits=StoreLimits(), clock=Clock(wall=wall, monotonic=time, boot="test"))
        self.service = ExchangeService(
            self.store,
            Quotas(quotas, clock=time),
            swarm_id=SWARM,
            software_version="test",
            catalog_digests=(),
            peer_record=self.presence.record,
            swap_peers=self.membership.answer,
            is_banned=self.scores.is_banned,
            wall_clock=wall,
            clock=time,
            rng=rng,
        )
        self.service.phase = Phase.SERVING
        self.links = Links(
            self.book,
            self.presence,
            self.scores,
            connect=self._connect,
            swarm_id=SWARM,
            open_record=self._open_record,
            clock=time,
        )
        self.pusher = Pusher(
            self.links,
            self.store,
            self.scores,
            limits=push or PushLimits(),
            clock=time,
            known_peers=lambda: len(self.book.peers()),
        )
        self.fetcher = Fetcher(
            self.links,
            self.store,
            self.scores,
            open_group=lambda signed: open_group(signed, swarm_id=SWARM),
            own_ids={self.identity.node_id},
            wanted_digests=(),
            wire=DEFAULT_WIRE_LIMITS,
            limits=fetch or FetchLimits(),
        )
        self.mesh = Mesh(
            self.book,
            self.links,
            self.membership,
            self.pusher,
            self.fetcher,
            times=times or MeshTimes(),
            sleep=sleep or asyncio.sleep,
            rng=rng,
        )
        self._sealer = Sealer(swarm_id=SWARM, generator=GeneratorInfo(), verifier_version="", wall_clock=wall)

    @property
    def node_id(self) -> str:
        return self.identity.node_id

    async def dial(self) -> None:
        """Dials whoever is due, without the welcome."""
        for peer in self.book.to_dial():
            await self.links.dial(peer)

    def publish(self, *indices: int) -> list[bytes]:
        """Puts groups on these tasks into the outbox; returns their ids."""
        ids = []
        for index in indices:
            rollout = make_rollout(self.node_id, index, round=index)
            key = self._sealer.key(self.identity, rollout)
            ids.append(self.store.publish(key, self._sealer.maker(self.identity, rollout)).group_id)
        return ids

    def seal(self, index: int) -> SignedGroup:
        opened = self._sealer.maker(self.identity, make_rollout(self.node_id, index))(index + 1)
        return opened.to_signed()

    def held(self) -> set[bytes]:
        return {group.group_id for group in self.store.after(0, 10_000)}

    def _connect(self, address: str, certificate: bytes | None) -> FakeClient:
        return FakeClient(self.world, address, certificate if self.certificate else None)

    def _open_record(self, signed):
        return open_peer_record(signed, swarm_id=SWARM)


class FakeClient:
    """Calls a host's service directly, if nothing is in the way."""

    def __init__(self, world: World, address: str, certificate: bytes | None = None) -> None:
        self._world = world
        self._address = address
        self._certificate = certificate  # what the host must have; None: plain text

    async def publish_groups(self, request) -> PublishResponse:
        fault = self._world.faults.get(self._address)
        if fault is Fault.CORRUPT:
            request = dataclasses.replace(request, groups=tuple(corrupted(group) for group in request.groups))
        if fault is Fault.REORDER:
            # As a network might: the answer is in the order of arrival, which the caller does not know.
            request = dataclasses.replace(request, groups=request.groups[::-1])
        return await self._call("publish", lambda host: host.service.publish(request, prefix="10.0.0.0/24"))

    async def sample_groups(self, request):
        return self._spoiled(await self._call("sample", lambda host: host.service.sample(request)))

    async def list_groups(self, request) -> GroupRefPage:
        return await self._call("list", lambda host: host.service.list_groups(request))

    async def get_groups(self, request):
        return self._spoiled(await self._call("get", lambda host: host.service.get_groups(request)))

    async def get_node_info(self) -> NodeInfo:
        return await self._call("info", lambda host: host.service.node_info(is_busy=False))

    async def exchange_peers(self, request):
        return await self._call("exchange", lambda host: host.service.exchange_peers(request))

    async def close(self) -> None:
        self._world.calls[f"{self._address} close"] += 1

    def _spoiled(self, response):
        if self._world.faults.get(self._address) is Fault.CORRUPT:
            return dataclasses.replace(response, groups=tuple(corrupted(group) for group in response.groups))
        if self._world.faults.get(self._address) is Fault.REORDER:
            return dataclasses.replace(response, groups=response.groups[::-1])
        return response

    async def _call(self, name: str, answer: Callable[[FakeHost], Any]) -> Any:
        world, address = self._world, self._address
        world.calls[f"{address} {name}"] += 1
        gate = world.gates.get(address)
        if gate is not None:
            await gate.wait()
        fault = world.faults.get(address)
        host = world.hosts.get(address)
        if host is None or fault is Fault.DROP:
            raise CallError(f"{name}: UNAVAILABLE: connection refused")
        if self._certificate not in (None, host.certificate):
            raise CallError(f"{name}: UNAVAILABLE: the handshake failed")
        if fault is Fault.REFUSE:
            raise CallError(f"{name}: RESOURCE_EXHAUSTED", reason=WireReason.CONCURRENCY, retry_after_s=7.0)
        if fault is Fault.NONSENSE:
            raise WireError(WireReason.MALFORMED, "is no answer")
        if fault is Fault.RAISE:
            raise ZeroDivisionError("a defect")
        try:
            response = answer(host)
            if fault is Fault.DUPLICATE:
                response = answer(host)
        except ServiceError as error:
            raise CallError(str(error), reason=error.reason, retry_after_s=error.retry_after_s) from error
        except WireError as error:  # the host's refusal of our request
            raise CallError(str(error), reason=error.reason) from error
        if fault is Fault.LOSE_ANSWER:
            raise CallError(f"{name}: DEADLINE_EXCEEDED", reason=WireReason.TIMEOUT)
        return response


def corrupted(signed: SignedGroup) -> SignedGroup:
    payload = bytearray(signed.envelope.payload)
    payload[len(payload) // 2] ^= 1
    envelope = Envelope(
        payload=bytes(payload), public_key=signed.envelope.public_key, signature=signed.envelope.signature
    )
    return dataclasses.replace(signed, envelope=envelope)
