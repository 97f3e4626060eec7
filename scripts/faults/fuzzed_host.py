"""One host as fuzzing sees it: everything between the bytes of a request and those of its answer, in one process.

Store (on disk), quotas, bans, peer book and the handlers of the server are the real ones; only the
sockets are missing, and the clock is moved by hand, so that budgets and lifetimes are exact. The host
can be put into every condition in which it refuses for a reason of its own.
"""

from __future__ import annotations

import contextlib
import enum
import random
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sapo_jax.swarm.calls.grpc_server import SERVICE, GrpcServer
from sapo_jax.swarm.calls.pipeline import Rpc
from sapo_jax.swarm.calls.quota import OPEN_QUOTAS, Quotas
from sapo_jax.swarm.calls.service import ExchangeService, Phase
from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.mesh.membership import Membership
from sapo_jax.swarm.mesh.peers import PeerBook, PeerLimits
from sapo_jax.swarm.mesh.presence import Presence
from sapo_jax.swarm.mesh.scores import Scores
from sapo_jax.swarm.store.clock import Clock
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.group_codec import open_group, seal_group
from sapo_jax.swarm.wire.peer_record_codec import open_peer_record
from sapo_jax.swarm.wire.signed_content import SignedGroup
from scripts.faults.request_fuzz import ANY, DUPLICATE, OPEN, Expected, Request
from scripts.faults.wire_fuzz import SWARM_ID, make_identities, valid_group

PLENTY_BYTES = 2**40
FLOOD_PREFIX = "192.0.2.0/24"
_TIGHT = StoreLimits(max_groups=16)


class Condition(enum.Enum):
    """What ails the host."""

    WELL = "well"
    STARTING = "starting"
    DRAINING = "draining"
    DISK_FULL = "disk full"
    QUEUE_FULL = "queue full"
    STORE_CLOSED = "store closed"
    STORE_DAMAGED = "store damaged"


# The reason that stands for each condition.
REASONS: Mapping[Condition, WireReason] = {
    Condition.STARTING: WireReason.STARTING,
    Condition.DRAINING: WireReason.DRAINING,
    Condition.DISK_FULL: WireReason.STORE_FULL,
    Condition.QUEUE_FULL: WireReason.QUEUE_FULL,
    Condition.STORE_CLOSED: WireReason.STORE_BUSY,
    Condition.STORE_DAMAGED: WireReason.DATA_LOSS,
}


class FuzzedHost:
    """Owns the host and its clock."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        """Makes the host with its files in `folder`."""
        self.now_s = 1e6
        self.condition = Condition.WELL
        self._clock = Clock(wall=lambda: self.now_s, monotonic=lambda: self.now_s, boot="fuzz")
        self._free_bytes = PLENTY_BYTES
        self._backlog = (0, 0)
        identity, other = make_identities(rng, 2)
        # Draws only decide which valid groups a sample returns.
        self._rng = np.random.default_rng(rng.randrange(2**32))
        self.scores = Scores(self._now)
        book = PeerBook(identity.node_id, self.scores, limits=PeerLimits(), clock=self._now, rng=self._rng)
        presence = Presence(
            identity,
            swarm_id=SWARM_ID,
            addresses=(),
            certificate=b"",
            session_nonce=bytes(16),
            software_version="fuzz",
            catalog_digests=(),
            last_sequence=0,
            wall_clock=self._now,
        )
        self._membership = Membership(
            book,
            presence,
            self.scores,
            open_record=lambda signed: open_peer_record(signed, swarm_id=SWARM_ID),
            clock=self._now,
        )
        self._presence = presence
        self.store = self._open_store(folder / "store.sqlite")
        closed = self._open_store(folder / "closed.sqlite")
        closed.close()
        damaged = self._damage(folder / "damaged.sqlite", rng)
        self._service = self._make_service(self.store)
        self._handlers = self._handlers_of(self._service)
        self._closed = self._handlers_of(self._make_service(closed))
        self._damaged = self._handlers_of(self._make_service(damaged))

    def _now(self) -> float:
        return self.now_s

    def become(self, condition: Condition) -> None:
        """Puts the host into a condition."""
        self.condition = condition
        self._service.phase = {Condition.STARTING: Phase.STARTING, Condition.DRAINING: Phase.DRAINING}.get(
            condition, Phase.SERVING
        )
        self._free_bytes = 0 if condition is Condition.DISK_FULL else PLENTY_BYTES
        self._backlog = (10**6, 0) if condition is Condition.QUEUE_FULL else (0, 0)

    def answer(self, request: Request, prefix: str) -> bytes:
        """Charges and answers a call as the server does; raises whatever it raises."""
        handlers = {Condition.STORE_CLOSED: self._closed, Condition.STORE_DAMAGED: self._damaged}.get(
            self.condition, self._handlers
        )
        self._service.charge_call(prefix)
        return handlers[f"/{SERVICE}/{request.rpc}"].answer(request.body, prefix)

    def expectation(self, request: Request) -> Request:
        """Returns the request with what must come of it in the present condition."""
        if self.condition is Condition.WELL or (request.expected != OPEN and not request.is_late):
            return request
        reason = REASONS[self.condition]
        publishes, swaps = request.rpc == "PublishGroups", request.rpc == "ExchangePeers"
        match self.condition:
            case Condition.STARTING:
                refused = True
            case Condition.DRAINING:
                refused = publishes or swaps
            case Condition.STORE_CLOSED:
                refused = not swaps
            case Condition.STORE_DAMAGED:  # a group that is replayed elsewhere is new to this store
                refused = any(each in (OPEN, DUPLICATE) for each in request.groups)
                if not refused and (ANY in request.groups or request.rpc == "ListGroups"):  # its epoch is another one
                    return replace(request, expected=ANY)
            case Condition.DISK_FULL:
                return replace(request, groups=tuple(_instead(each, OPEN, reason) for each in request.groups))
            case _:
                return replace(request, groups=tuple(reason for _ in request.groups))
        return replace(request, expected=reason) if refused else request

    def close(self) -> None:
        """Closes the store."""
        self.store.close()

    def _open_store(self, path: Path, limits: StoreLimits | None = None) -> GroupStore:
        return GroupStore(
            path, limits=limits or StoreLimits(), clock=self._clock, free_bytes=lambda _: self._free_bytes
        )

    def _damage(self, path: Path, rng: random.Random) -> GroupStore:
        """Returns a store in which nothing can be noted of a group that has to leave for a new one."""
        store = self._open_store(path, _TIGHT)
        (identity,) = make_identities(rng, 1)
        for _ in range(400):
            message = valid_group(rng)
            message.ttl.seconds = 60  # all ids are remembered for equally long, those of later groups for longer
            signed = SignedGroup(envelope=seal_group(message.SerializeToString(), identity))
            store.put([open_group(signed, swarm_id=SWARM_ID)])
        store.close()
        with contextlib.closing(sqlite3.connect(path)) as database:
            query = "SELECT pageno FROM dbstat WHERE name = 'seen_by_forget' AND pagetype = 'leaf' ORDER BY path"
            leaves = [page for (page,) in database.execute(query)][1:]  # the first is read when the store is opened
            (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
        with path.open("r+b") as file:
            for page in leaves:
                file.seek((page - 1) * page_bytes)
                file.write(bytes(page_bytes))
        return self._open_store(path, _TIGHT)

    def _make_service(self, store: GroupStore) -> ExchangeService:
        service = ExchangeService(
            store,
            Quotas(OPEN_QUOTAS, clock=self._now),
            swarm_id=SWARM_ID,
            software_version="fuzz",
            catalog_digests=("ab" * 32,),
            peer_record=self._presence.record,
            swap_peers=self._membership.answer,
            is_banned=self.scores.is_banned,
            wall_clock=self._now,
            clock=self._now,
            rng=self._rng,
            backlog=lambda: self._backlog,
        )
        service.phase = Phase.SERVING
        return service

    def _handlers_of(self, service: ExchangeService) -> Mapping[str, Rpc]:
        trust = Trust(mode=TrustMode.INSECURE_LOOPBACK)
        return GrpcServer(service, trust, address="127.0.0.1:0", clock=self._now).rpcs()


def _instead(each: Expected, old: Expected, new: Expected) -> Expected:
    return new if each == old else each
