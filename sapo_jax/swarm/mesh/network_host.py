"""One host on the network: its store, its server, its peers and their tasks, on a loop of their own.

It stores, gives and spreads groups, and knows neither nodes nor verifiers: those are the hub's. A
host without a listening address only dials out; a host without peers is a swarm of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import os
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

import sapo_jax
from sapo_jax.swarm.calls.client_pool import ClientPool
from sapo_jax.swarm.calls.grpc_server import GrpcServer
from sapo_jax.swarm.calls.invite import Invite
from sapo_jax.swarm.calls.quota import CLOSED_QUOTAS, QuotaLimits, Quotas
from sapo_jax.swarm.calls.server_metrics import ServerMetrics
from sapo_jax.swarm.calls.service import ExchangeService, Phase
from sapo_jax.swarm.calls.trust import Trust
from sapo_jax.swarm.mesh.fetch import Fetcher, FetchLimits
from sapo_jax.swarm.mesh.links import Links
from sapo_jax.swarm.mesh.loop_thread import LoopThread
from sapo_jax.swarm.mesh.membership import Membership
from sapo_jax.swarm.mesh.mesh import Mesh, MeshTimes
from sapo_jax.swarm.mesh.peers import PeerBook, PeerLimits
from sapo_jax.swarm.mesh.presence import Presence
from sapo_jax.swarm.mesh.push import Pusher, PushLimits
from sapo_jax.swarm.mesh.scores import Scores
from sapo_jax.swarm.store.clock import Clock, system_clock
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.wire.addresses import join_address, split_address
from sapo_jax.swarm.wire.group_codec import open_group
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, WireLimits
from sapo_jax.swarm.wire.peer_record_codec import open_peer_record
from sapo_jax.swarm.wire.signed_content import OpenedGroup, OpenedPeerRecord, SignedGroup, SignedPeerRecord

logger = logging.getLogger(__name__)

STORE_FILE = "groups.sqlite"
PEERS_FILE = "peers.json"
SAVE_PEERS_S = 60.0
FLUSH_POLL_S = 0.05
STOP_S = 15.0
GRACE_S = 5.0  # for calls in progress; connections that died without a sign use up all of it

# Members hold the invite, and all processes of one machine share a prefix.
CLOSED_PEER_LIMITS = PeerLimits(per_prefix=12, known_per_prefix=64)


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenPeer:
    """A peer that the operator names: where it listens and, with TLS, its certificate (DER)."""

    addresses: tuple[str, ...]
    certificate: bytes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HostLimits:
    """All bounds of a host in one place; the defaults are those of a closed swarm."""

    store: StoreLimits = field(default_factory=StoreLimits)
    quotas: QuotaLimits = CLOSED_QUOTAS
    peers: PeerLimits = CLOSED_PEER_LIMITS
    push: PushLimits = field(default_factory=PushLimits)
    fetch: FetchLimits = field(default_factory=FetchLimits)
    wire: WireLimits = DEFAULT_WIRE_LIMITS
    times: MeshTimes = field(default_factory=MeshTimes)


class NetworkHost:
    """Owns the loop thread and everything on it. Made running; `close` ends it."""

    def __init__(
        self,
        identity: Identity,
        *,
        swarm_id: str,
        trust: Trust,
        listen: str | None,
        advertise: Sequence[str] = (),
        peers: Sequence[GivenPeer] = (),
        directory: Path | None,
        own_ids: Collection[str] = (),
        catalog_digests: Sequence[str] = (),
        on_stored: Callable[[], None] = lambda: None,
        backlog: Callable[[], tuple[int, int]] = lambda: (0, 0),
        limits: HostLimits | None = None,
        relays_unverified: bool = False,
        with_reflection: bool = False,
        clock: Clock | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Opens the store and, if asked, the port, and starts to look for peers.

        Args:
            identity: signs the host's peer record.
            swarm_id: the swarm to take part in.
            trust: how hosts prove themselves to each other.
            listen: "host:port", port 0 for a free one; None: only dial out.
            advertise: what others should dial, if that is not `listen`.
            peers: whom to dial first.
            directory: where the store and the peer book are kept; None: in memory.
            own_ids: node ids whose groups are made here.
            catalog_digests: config digests (hex) of the tasks that this host verifies; empty: any.
            on_stored: told on the loop that new foreign groups are in the store.
            backlog: tells on the loop how many groups, and bytes, wait to be verified here.
            limits: bounds.
            relays_unverified: passes on what others push although nobody here verifies it.
            with_reflection: lets tools list the services; for debugging.
            clock: wall and monotonic time.
            rng: decides every random choice on the network.

        Raises:
            StoreError: the store cannot be used.
            ServerAddressError: the address cannot be listened on.
            TrustError, AddressError: the address is not allowed, or none.
        """
        limits = limits or HostLimits()
        clock = clock or system_clock()
        rng = rng or np.random.default_rng()
        self._directory = directory
        self._listen = listen
        self._advertise = tuple(advertise)
        self._trust = trust
        self._on_stored = on_stored
        self._relays_unverified = relays_unverified
        self.swarm_id = swarm_id
        self.catalog_digests = tuple(catalog_digests)
        self.started_unix_s = clock.wall()
        self.wall_clock = clock.wall
        self.monotonic = clock.monotonic
        self._wire = limits.wire
        self.scores = Scores(clock.monotonic)
        saved = self._read_peers()
        self.presence = Presence(
            identity,
            swarm_id=swarm_id,
            addresses=(),
            certificate=b"" if trust.certificate is None else trust.certificate.der,
            session_nonce=os.urandom(16),
            software_version=sapo_jax.__version__,
            catalog_digests=self.catalog_digests[: limits.wire.max_catalog_digests],
            last_sequence=_last_sequence(saved),
            wall_clock=clock.wall,
        )
        self.book = PeerBook(identity.node_id, self.scores, limits=limits.peers, clock=clock.monotonic, rng=_spawn(rng))
        for peer in peers:
            self.book.add_given(peer.addresses, peer.certificate)
        self.book.restore_json(saved, self._open_record)
        self.membership = Membership(
            self.book, self.presence, self.scores, open_record=self._open_record, clock=clock.monotonic
        )
        self.store = GroupStore(None if directory is None else directory / STORE_FILE, limits=limits.store, clock=clock)
        self.metrics = ServerMetrics()
        self.metrics.watch_store(self.store.stats)
        self._service = ExchangeService(
            self.store,
            Quotas(limits.quotas, clock=clock.monotonic),
            swarm_id=swarm_id,
            software_version=sapo_jax.__version__,
            catalog_digests=self.catalog_digests[: limits.wire.max_catalog_digests],
            peer_record=self.presence.record,
            swap_peers=self.membership.answer,
            is_banned=self.scores.is_banned,
            wall_clock=clock.wall,
            clock=clock.monotonic,
            rng=_spawn(rng),
            on_stored=self._stored,
            backlog=backlog,
            wire_limits=limits.wire,
        )
        self._loop: LoopThread | None = None
        try:
            server = None
            if listen is not None:
                server = GrpcServer(
                    self._service, trust, address=listen, metrics=self.metrics, with_reflection=with_reflection
                )
            self._server = server
            self._clients = ClientPool(trust, sleep=asyncio.sleep, rng=_spawn(rng), now=self._now, limits=limits.wire)
            self.links = Links(
                self.book,
                self.presence,
                self.scores,
                connect=self._clients.connect,
                swarm_id=swarm_id,
                open_record=self._open_record,
                clock=clock.monotonic,
            )
            self.pusher = Pusher(
                self.links,
                self.store,
                self.scores,
                limits=limits.push,
                clock=clock.monotonic,
                known_peers=lambda: len(self.book.peers()),
            )
            self.fetcher = Fetcher(
                self.links,
                self.store,
                self.scores,
                open_group=self.open_group,
                own_ids={identity.node_id, *own_ids},
                wanted_digests=self.catalog_digests,
                wire=limits.wire,
                limits=limits.fetch,
                on_stored=on_stored,
            )
            self._mesh = Mesh(
                self.book,
                self.links,
                self.membership,
                self.pusher,
                self.fetcher,
                times=limits.times,
                sleep=asyncio.sleep,
                rng=_spawn(rng),
            )
            self._loop = LoopThread("sapo-network")
            self._loop.run(self._start())
        except BaseException:
            if self._loop is not None:
                self._loop.stop()
            self.store.close()
            raise

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can dial this host; empty if it only dials out."""
        if self._server is None or self._listen is None:
            return ()
        if self._advertise:
            return self._advertise
        host, _ = split_address(self._listen)
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return (join_address(host, self._server.port),)

    @property
    def phase(self) -> Phase:
        """Where in its life the host is."""
        return self._service.phase

    def invite(self) -> Invite:
        """Returns an invite to this host; raises TrustError in a mode without invites."""
        return self._trust.invite(self.swarm_id, self.addresses)

    def loop(self) -> LoopThread:
        """Returns the loop, for what else belongs on it."""
        assert self._loop is not None
        return self._loop

    def nudge_push(self) -> None:
        """Has what is in the outbox pushed now; any thread may call, nothing waits."""
        if self._loop is not None:
            self._loop.call_soon(self._mesh.nudge_push)

    def flush(self, timeout_s: float) -> bool:
        """Hands over own groups; returns whether each has a holder, or nobody is in touch, within `timeout_s`."""
        return self.loop().run(self._flush(timeout_s), timeout_s + STOP_S)

    def drain(self) -> None:
        """Takes nothing new from now on."""
        if self._loop is not None:
            self._loop.run(self._drain(), STOP_S)

    def close(self, *, flush_s: float = 10.0, grace_s: float = GRACE_S) -> None:
        """Drains, hands over own groups for at most `flush_s`, stops and saves the peers; twice is allowed."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            loop.run(self._stop(flush_s, grace_s), flush_s + grace_s + STOP_S)
        except TimeoutError:
            logger.warning("the network did not stop in %g s; it is cut off", flush_s + grace_s + STOP_S)
        finally:
            loop.stop()
            self._save_peers()
            self.store.close()

    async def _start(self) -> None:
        if self._server is not None:
            await self._server.start()
            self.presence.set_addresses(self.addresses)
        else:
            self._service.phase = Phase.SERVING
        self._tasks = [
            asyncio.create_task(self._mesh.run(), name="mesh"),
            asyncio.create_task(self._keep_peers(), name="peers file"),
        ]

    async def _stop(self, flush_s: float, grace_s: float) -> None:
        await self._drain()
        await self._flush(flush_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.links.close()
        await self._clients.close()
        if self._server is not None:
            await self._server.stop(grace_s)

    async def _drain(self) -> None:
        if self._server is not None:
            await self._server.drain()
        self._service.phase = Phase.DRAINING

    async def _flush(self, timeout_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not await self.pusher.flush_once():
                    await asyncio.sleep(FLUSH_POLL_S)
                return True
        return False

    def _stored(self, groups: Sequence[OpenedGroup]) -> None:
        if self._relays_unverified:
            for group in self.store.get([group.group_id for group in groups]):
                self.pusher.offer_relay(group)
            self._mesh.nudge_push()
        self._on_stored()

    def open_group(self, signed: SignedGroup) -> OpenedGroup:
        """Returns a stranger's group once it is checked; raises WireError."""
        return open_group(signed, swarm_id=self.swarm_id, limits=self._wire)

    def _open_record(self, signed: SignedPeerRecord) -> OpenedPeerRecord:
        return open_peer_record(signed, swarm_id=self.swarm_id, limits=self._wire)

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.wall_clock(), datetime.UTC)

    # The peer book on disk: a cache, so what is wrong with it is never an error.

    async def _keep_peers(self) -> None:
        while True:
            await asyncio.sleep(SAVE_PEERS_S)
            self._save_peers()

    def _read_peers(self) -> Any:
        if self._directory is None:
            return None
        try:
            return json.loads((self._directory / PEERS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def _save_peers(self) -> None:
        if self._directory is None:
            return
        state = {**self.book.to_json(), "sequence": self.presence.sequence}
        path = self._directory / PEERS_FILE
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.write_text(json.dumps(state) + "\n", encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            logger.warning("%s: cannot be written: %s", path, error.strerror or error)


def _last_sequence(saved: Any) -> int:
    sequence = cast(dict[str, Any], saved).get("sequence") if isinstance(saved, dict) else None
    return sequence if type(sequence) is int and 0 <= sequence < 2**62 else 0


def _spawn(rng: np.random.Generator) -> np.random.Generator:
    return rng.spawn(1)[0]
