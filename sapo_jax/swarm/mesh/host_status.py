"""What a host is doing, for its operator: one line that says what is normal and what is not, and figures.

Names in it come from strangers only as node ids and addresses, which have checked forms; texts of
errors are made printable where they are caught.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sapo_jax.swarm.calls.service import Phase
from sapo_jax.swarm.mesh.network_host import NetworkHost
from sapo_jax.swarm.mesh.peers import Peer
from sapo_jax.swarm.store.retention import GroupState
from sapo_jax.swarm.wire.identity import alias_of
from sapo_jax.swarm.wire.printable import printable

MAX_TEXT_CHARS = 200
MAX_PEERS = 128  # shown
MAX_SHOWN_PUBLISHERS = 256


class PeerState(enum.Enum):
    """Whether calls to a peer go through."""

    CONNECTED = "connected"
    CALLING = "calls us"  # it only dials out
    KNOWN = "known"
    UNREACHABLE = "unreachable"
    BANNED = "banned"


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerFigures:
    """One peer as this host sees it; ages and waits in seconds, None where there is none."""

    node_id: str
    address: str
    state: PeerState
    score: float
    contact_age_s: float | None
    retry_s: float | None
    ban_s: float | None
    last_error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFigures:
    """What a node has done on the network since the start of the process, and what waits for it."""

    node_id: str  # of its identity
    alias: str
    round: int
    published: int
    pulled: int
    waiting: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HostStatus:
    """All of it. `publishers` counts verified external groups by the node id they came from."""

    swarm_id: str
    phase: Phase
    software_version: str
    started_unix_s: float
    read_unix_s: float
    addresses: tuple[str, ...]
    epoch: str
    stored_groups: int
    stored_bytes: int
    stored_publishers: int
    unverified_groups: int
    outbox_groups: int
    nodes: tuple[NodeFigures, ...]
    peers: tuple[PeerFigures, ...]
    counters: Mapping[str, int]
    publishers: Mapping[str, int] = field(default_factory=dict[str, int])
    warnings: tuple[str, ...] = ()


def status_of(
    host: NetworkHost,
    *,
    software_version: str,
    nodes: Sequence[NodeFigures] = (),
    counters: Mapping[str, int] | None = None,
    publishers: Mapping[str, int] | None = None,
    warnings: Sequence[str] = (),
) -> HostStatus:
    """Returns the status of a host; nodes, counters and publishers are its hub's."""
    stats = host.store.stats()
    now_s = host.monotonic()
    banned = host.scores.banned()
    shown = [_figures(peer, host, now_s, banned) for peer in host.book.peers()]
    in_book = {peer.node_id for peer in host.book.peers()}
    shown += [
        PeerFigures(
            node_id=node_id,
            address="",
            state=PeerState.BANNED if node_id in banned else PeerState.CALLING,
            score=host.scores.score(node_id),
            contact_age_s=age_s,
            retry_s=None,
            ban_s=banned.get(node_id),
            last_error="",
        )
        for node_id, age_s in host.membership.recent_callers(now_s).items()
        if node_id not in in_book
    ]
    listed = {peer.node_id for peer in shown}
    shown += [
        PeerFigures(
            node_id=node_id,
            address="",
            state=PeerState.BANNED,
            score=host.scores.score(node_id),
            contact_age_s=None,
            retry_s=None,
            ban_s=left_s,
            last_error="",
        )
        for node_id, left_s in banned.items()
        if node_id not in listed
    ]
    order = list(PeerState)
    shown.sort(key=lambda peer: (order.index(peer.state), peer.node_id, peer.address))
    return HostStatus(
        swarm_id=host.swarm_id,
        phase=host.phase,
        software_version=software_version,
        started_unix_s=host.started_unix_s,
        read_unix_s=host.wall_clock(),
        addresses=host.addresses,
        epoch=host.store.epoch,
        stored_groups=stats.groups,
        stored_bytes=stats.size_bytes,
        stored_publishers=stats.publishers,
        unverified_groups=stats.by_state.get(GroupState.UNVERIFIED, 0),
        outbox_groups=stats.pending,
        nodes=tuple(nodes),
        peers=tuple(shown[:MAX_PEERS]),
        counters=dict(counters or {}),
        publishers=dict(Counter(publishers or {}).most_common(MAX_SHOWN_PUBLISHERS)),
        warnings=tuple(printable(text, MAX_TEXT_CHARS) for text in (*_warnings(host, stats.damaged), *warnings)),
    )


def headline(status: HostStatus) -> str:
    """Returns the state of a host in one line; being alone is a normal state and is called so."""
    if status.phase is Phase.STARTING:
        return "starting: not serving yet"
    by_state = {state: sum(peer.state is state for peer in status.peers) for state in PeerState}
    connected, calling = by_state[PeerState.CONNECTED], by_state[PeerState.CALLING]
    tried = by_state[PeerState.UNREACHABLE]
    if connected or calling:
        parts = [f"in touch with {_count(connected, 'peer')}"] if connected else []
        parts += [f"called by {_count(calling, 'peer')}"] if calling else []
        line = ", ".join(parts)
        if tried:
            line += f", {tried} unreachable"
    elif tried:
        line = f"alone: no peer reachable, {tried} tried"
    elif by_state[PeerState.KNOWN]:
        line = f"alone: {_count(by_state[PeerState.KNOWN], 'peer')} known, none tried yet"
    elif status.addresses:
        line = f"alone: no peer known yet, listening at {', '.join(status.addresses)}"
    else:
        line = "alone: no peer known and not listening; give it a peer to join"
    if status.phase is Phase.DRAINING:
        line = f"stopping: {line}"
    groups = f"{_count(status.stored_groups, 'group')} of {_count(status.stored_publishers, 'publisher')}"
    line += f"; the store holds {groups}"
    if status.outbox_groups:
        line += f", {status.outbox_groups} own to hand to more peers"
    return line


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _warnings(host: NetworkHost, damaged: int) -> list[str]:
    found: list[str] = []
    if host.presence.copies_seen:
        found.append(
            f"another process uses the identity of this node ({alias_of(host.presence.node_id)}); stop one of the two"
        )
    found += [
        f"two processes use the identity of peer {node_id}" for node_id in sorted(list(host.membership.copied))[:4]
    ]
    if damaged:
        found.append(f"{_count(damaged, 'stored group')} were damaged on disk and left out")
    return found


def _figures(peer: Peer, host: NetworkHost, now_s: float, banned: Mapping[str, float]) -> PeerFigures:
    if peer.node_id in banned:
        state = PeerState.BANNED
    elif peer.is_active:
        state = PeerState.CONNECTED
    else:
        state = PeerState.UNREACHABLE if peer.failures else PeerState.KNOWN
    return PeerFigures(
        node_id=peer.node_id,
        address=peer.addresses[0] if peer.addresses else "",
        state=state,
        score=host.scores.score(peer.node_id) if peer.node_id else 0.0,
        contact_age_s=None if peer.last_contact_s is None else max(0.0, now_s - peer.last_contact_s),
        retry_s=None if peer.is_active else max(0.0, peer.next_dial_s - now_s),
        ban_s=banned.get(peer.node_id),
        last_error=printable(peer.trouble, MAX_TEXT_CHARS),
    )
