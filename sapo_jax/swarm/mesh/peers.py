"""Which other hosts this one knows, which it is in touch with, and when to try one again.

The book holds addresses given by the operator, which are never forgotten, and peer records learned
from others, which are bounded and exchangeable. Nothing here opens a connection: the mesh asks what
to dial, tells how it went, and the book decides with an injected clock and generator. Address
prefixes are limited among learned peers, because somebody with many keys rarely has many networks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from sapo_jax.swarm.mesh.scores import Scores
from sapo_jax.swarm.wire.addresses import address_prefix
from sapo_jax.swarm.wire.signed_content import Envelope, OpenedPeerRecord, SignedPeerRecord

_T = TypeVar("_T")

_ENVELOPE_FIELDS = ("payload", "public_key", "signature")
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
MAX_BACKOFF_OF_FRIENDS_S = 10.0  # of peers that answered before: they are likely to come back
FORGOTTEN_FAILURES = 8  # in a row, of a learned peer that never answered


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerLimits:
    """Bounds of the book; `per_prefix` counts learned peers only, the operator's own choice is free."""

    active: int = 6  # peers this host keeps in touch with by its own choice
    per_prefix: int = 2  # of the active ones, per /24 (IPv4), /48 (IPv6) or domain
    known: int = 64  # learned peers remembered
    known_per_prefix: int = 8


@dataclass(kw_only=True, slots=True)
class Peer:
    """Another host. `node_id` is empty until it has answered or its signed record is known."""

    addresses: tuple[str, ...]
    certificate: bytes | None  # the only root to accept it with; None: plain text on loopback
    node_id: str = ""
    record: OpenedPeerRecord | None = None
    is_given: bool = False  # named by the operator
    is_active: bool = False
    has_answered: bool = False  # since the start of this process
    failures: int = 0  # in a row
    next_dial_s: float = 0.0  # on the book's clock
    last_contact_s: float | None = None  # when it last answered, on the book's clock
    trouble: str = ""  # why the last attempt failed, for people

    @property
    def name(self) -> str:
        """How logs and tables call the peer."""
        return self.node_id[:12] or (self.addresses[0] if self.addresses else "?")


class PeerBook:
    """Owns all peers; made for one host and used by its loop thread alone, apart from reading."""

    def __init__(
        self,
        own_id: str,
        scores: Scores,
        *,
        limits: PeerLimits,
        clock: Callable[[], float],
        rng: np.random.Generator,
    ) -> None:
        """Makes an empty book of the host whose records `own_id` signs; `clock` is monotonic, in seconds."""
        self._own_id = own_id
        self._scores = scores
        self._limits = limits
        self._clock = clock
        self._rng = rng
        self._peers: list[Peer] = []

    def peers(self) -> list[Peer]:
        """Returns all known peers."""
        return list(self._peers)

    def active(self) -> list[Peer]:
        """Returns the peers in touch that are worth asking, in random order."""
        peers = [peer for peer in self._peers if peer.is_active and self._scores.may_sample(peer.node_id)]
        return self._shuffled(peers)

    def find(self, node_id: str) -> Peer | None:
        """Returns the peer with this id."""
        return next((peer for peer in self._peers if peer.node_id == node_id), None)

    def add_given(self, addresses: Sequence[str], certificate: bytes | None) -> None:
        """Adds a peer that the operator named; its first address is tried first."""
        known = next((peer for peer in self._peers if set(peer.addresses) & set(addresses)), None)
        if known is not None:
            known.is_given = True
            known.certificate = certificate or known.certificate
            return
        self._peers.append(Peer(addresses=tuple(addresses), certificate=certificate, is_given=True))

    def learn(self, opened: OpenedPeerRecord, *, from_itself: bool = False) -> bool:
        """Takes in a peer record whose signature was checked; returns whether it was news.

        Args:
            opened: the record.
            from_itself: the peer seems to have sent it itself, so it is worth another try now, if it is news:
                an old record can be sent again by anybody.
        """
        if opened.node_id == self._own_id or self._scores.is_banned(opened.node_id):
            return False
        peer = self.find(opened.node_id)
        if peer is not None:
            is_news = self._update(peer, opened)
            if from_itself and is_news:
                peer.next_dial_s = min(peer.next_dial_s, self._clock())
            return is_news
        if not opened.record.reachable or not opened.record.addresses:
            return False  # it will call us; there is nothing to dial
        if not self._make_room(address_prefix(opened.record.addresses[0])):
            return False
        peer = Peer(addresses=(), certificate=None, node_id=opened.node_id)
        self._peers.append(peer)
        return self._update(peer, opened)

    def _make_room(self, prefix: str) -> bool:
        """Returns whether one more learned peer of `prefix` fits, after another one left if need be."""
        learned = [peer for peer in self._peers if not peer.is_given]
        same = [peer for peer in learned if _prefix_of(peer) == prefix]
        if len(same) >= self._limits.known_per_prefix:
            crowd = same
        elif len(learned) >= self._limits.known:
            crowd = learned
        else:
            return True
        # By chance, and never one that has answered: whoever sends many records must not push out all others.
        victims = [peer for peer in crowd if not peer.is_active and not peer.has_answered]
        if not victims or self._rng.random() < 0.5:
            return False
        self._forget(victims[int(self._rng.integers(len(victims)))])
        return True

    def _forget(self, peer: Peer) -> None:
        """Drops an entry; one that is gone already is no error, because dials take time."""
        self._peers = [known for known in self._peers if known is not peer]

    def _update(self, peer: Peer, opened: OpenedPeerRecord) -> bool:
        """Takes over a record if it is newer than the one known; returns whether it is."""
        record = opened.record
        if peer.record is not None and record.sequence <= peer.record.record.sequence:
            return False
        peer.record = opened
        if record.reachable and record.addresses:
            # An address that the operator gave stays first: it is known to work from here.
            given = peer.addresses[:1] if peer.is_given else ()
            peer.addresses = tuple(dict.fromkeys((*given, *record.addresses)))
            peer.certificate = record.certificate or peer.certificate
        return True

    def to_dial(self) -> list[Peer]:
        """Returns the peers to try now, as many as the active view has room for.

        Given peers come first and are not limited by prefix; the others follow in random order, spread
        over networks.
        """
        active = [peer for peer in self._peers if peer.is_active]
        room = self._limits.active - len(active)
        used = [_prefix_of(peer) for peer in active]
        waiting = self._shuffled(self._due())
        chosen: list[Peer] = []
        while waiting and len(chosen) < room:
            # The network with the fewest links so far goes next: many addresses in few networks win little.
            peer = min(waiting, key=lambda peer: (not peer.is_given, used.count(_prefix_of(peer))))
            waiting.remove(peer)
            prefix = _prefix_of(peer)
            if peer.is_given or used.count(prefix) < self._limits.per_prefix:
                used.append(prefix)
                chosen.append(peer)
        return chosen

    def answered(self, peer: Peer, opened: OpenedPeerRecord) -> Peer | None:
        """Notes that a dialed peer answered with this record of its own; returns the active peer.

        None means that the peer is this host itself, is active under another address already, is
        banned, or had to make room during the dial; its entry is then folded into the other one or dropped.
        """
        node_id = opened.node_id
        if node_id == self._own_id:
            self._forget(peer)
            return None
        other = self.find(node_id)
        if other is not None and other is not peer:
            other.is_given = other.is_given or peer.is_given
            other.addresses = tuple(dict.fromkeys((*peer.addresses, *other.addresses)))
            other.certificate = peer.certificate or other.certificate
            self._forget(peer)
            if other.is_active:
                return None
            peer = other
        elif not any(known is peer for known in self._peers):
            return None
        if peer.node_id not in ("", node_id):
            peer.record = None  # that of somebody who gave out the address and the certificate of this one as its own
        peer.node_id = node_id
        self._update(peer, opened)
        if self._scores.is_banned(node_id):
            self.failed(peer, "banned here")
            return None
        peer.is_active, peer.has_answered = True, True
        peer.failures, peer.trouble = 0, ""
        peer.last_contact_s = self._clock()
        return peer

    def failed(self, peer: Peer, trouble: str) -> None:
        """Notes that a peer did not answer, or badly; it is tried again after a back-off.

        A learned peer that never answers is forgotten after a while.
        """
        peer.is_active = False
        peer.failures += 1
        peer.trouble = trouble
        longest = MAX_BACKOFF_OF_FRIENDS_S if peer.has_answered else MAX_BACKOFF_S
        peer.next_dial_s = self._clock() + backoff_s(peer.failures, longest, self._rng)
        if peer.failures >= FORGOTTEN_FAILURES and not (peer.is_given or peer.has_answered):
            self._forget(peer)

    def replace_one(self) -> Peer | None:
        """Lets go of one random learned peer if another could take its place; returns who was let go.

        Done now and then, so that nobody who once filled the view stays in it for ever.
        """
        replaceable = [peer for peer in self._peers if peer.is_active and not peer.is_given]
        if not replaceable or not self._due() or len(self.active()) < self._limits.active:
            return None
        # From the most crowded network, useful ones last; among equals chance decides.
        prefixes = [_prefix_of(peer) for peer in replaceable]
        peer = min(
            self._shuffled(replaceable),
            key=lambda peer: (-prefixes.count(_prefix_of(peer)), self._scores.score(peer.node_id) > 0),
        )
        peer.is_active = False
        peer.next_dial_s = self._clock() + MAX_BACKOFF_S
        return peer

    def drop_unwanted(self) -> list[Peer]:
        """Ends the activity of peers whose score has fallen too low; returns them."""
        dropped = [peer for peer in self._peers if peer.is_active and not self._scores.may_sample(peer.node_id)]
        for peer in dropped:
            self.failed(peer, "score too low")
        return dropped

    def records_to_share(self, count: int, *, without: Collection[str] = ()) -> list[OpenedPeerRecord]:
        """Returns up to `count` random records of reachable peers this host itself has reached."""
        shareable = [
            peer.record
            for peer in self._peers
            if peer.record is not None
            and peer.record.record.reachable
            and peer.has_answered
            and peer.failures == 0
            and peer.node_id not in without
            and self._scores.may_sample(peer.node_id)
        ]
        return self._shuffled(shareable)[:count]

    def to_json(self) -> dict[str, Any]:
        """Returns the learned peers' signed records, JSON-ready; given ones are given again at each start."""
        return {
            "peer_records": [
                {name: getattr(peer.record.envelope, name).hex() for name in _ENVELOPE_FIELDS}
                for peer in self._peers
                if peer.record is not None and peer.record.record.reachable
            ]
        }

    def restore_json(self, state: Any, open_record: Callable[[SignedPeerRecord], OpenedPeerRecord]) -> int:
        """Learns the peers that `to_json` wrote again; returns how many.

        The file is only a cache, so what does not hold in it is left out.

        Args:
            state: what was read.
            open_record: checks a record and its signature, and raises ValueError if it does not hold.
        """
        learned = 0
        items: Any = cast(dict[str, Any], state).get("peer_records") if isinstance(state, dict) else None
        for item in cast(list[Any], items)[: self._limits.known] if isinstance(items, list) else []:
            try:
                envelope = Envelope(**{name: bytes.fromhex(item[name]) for name in _ENVELOPE_FIELDS})
                learned += self.learn(open_record(SignedPeerRecord(envelope=envelope)))
            except (ValueError, KeyError, TypeError):
                continue
        return learned

    def _shuffled(self, items: Sequence[_T]) -> list[_T]:
        order: list[int] = self._rng.permutation(len(items)).tolist()
        return [items[index] for index in order]

    def _due(self) -> list[Peer]:
        """Returns the peers that could be dialed now."""
        now = self._clock()
        return [
            peer
            for peer in self._peers
            if not peer.is_active
            and peer.addresses
            and peer.next_dial_s <= now
            and (not peer.node_id or self._scores.may_sample(peer.node_id))
        ]


def backoff_s(failures: int, longest_s: float, rng: np.random.Generator) -> float:
    """Returns the wait after `failures` failures in a row: doubling from 1 s up to `longest_s`, half of it random."""
    full = min(longest_s, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 30))
    return full * (0.5 + 0.5 * float(rng.random()))


def _prefix_of(peer: Peer) -> str:
    return address_prefix(peer.addresses[0]) if peer.addresses else ""
