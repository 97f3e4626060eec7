"""Own groups on their way out: kept until enough peers hold them, and never signed twice.

A group's id covers the moment it was made, so a round that is replayed after a kill would make new
ids for old texts. The outbox therefore knows a group by what made it and gives out the first bytes
again, for as long as receivers remember their id.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from sapo_jax.swarm.store.file import body_check, envelope_of, head_check
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.wire.signed_content import OpenedGroup, SignedGroup

_HEAD = "node_id, round, task, repeat, group_id, sequence, size_bytes, born_s, expires_s, forget_s, body_check"
_SWEPT_ROWS = 256  # per transaction, so that none takes long


@dataclass(frozen=True, kw_only=True, slots=True)
class OutboxKey:
    """What made a group: the same again after a replay.

    Attributes:
        node_id: the publisher.
        round: its round.
        task: digest of the task's reference, or any text that is equal for equal tasks only.
        repeat: counts the rollouts of that round on the same task, from 0.
    """

    node_id: str
    round: int
    task: str
    repeat: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedGroup:
    """What `GroupStore.publish` did; `is_replay` if the key was known and nothing new was made."""

    group_id: bytes
    sequence: int
    is_replay: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class OfferedGroup:
    """An own group that still has to reach peers; `copies` of them hold it already, others have refused it."""

    group_id: bytes
    publisher: str
    size_bytes: int
    copies: int
    refused_by: frozenset[str]
    signed: SignedGroup


@dataclass(kw_only=True, slots=True)
class _Offer:
    seq: int
    group_id: bytes
    publisher: str
    size_bytes: int
    born_s: float
    expires_s: float
    holders: set[str] = field(default_factory=set[str])
    # In memory alone: after a restart, which may be an upgrade, the peer is asked once more.
    refusers: set[str] = field(default_factory=set[str])


class Outbox:
    """Owns the tables of own groups. The store's lock, and for changes its transaction, is around every call."""

    def __init__(self, database: sqlite3.Connection, limits: StoreLimits) -> None:
        """Reads what is on offer from the database."""
        self._database = database
        self._limits = limits
        self._offers: dict[bytes, _Offer] = {}
        self._size_bytes = 0
        self.damaged = 0  # rows whose checksum failed since the start
        self.given_up = 0  # groups that left for want of room since the start
        self.load()

    def __len__(self) -> int:
        return len(self._offers)

    def load(self) -> None:
        """Reads what is on offer again, after a transaction that failed."""
        self._offers, self._size_bytes = {}, 0
        rows = self._database.execute(
            f"SELECT seq, {_HEAD}, head_check FROM outbox WHERE body_check IS NOT NULL ORDER BY seq"
        ).fetchall()
        for seq, *head, check in rows:
            if check != head_check(*head):
                self.damaged += 1
                continue
            node_id, _, _, _, group_id, _, size_bytes, born_s, expires_s, _, _ = head
            self._offers[group_id] = _Offer(
                seq=seq,
                group_id=group_id,
                publisher=node_id,
                size_bytes=size_bytes,
                born_s=born_s,
                expires_s=expires_s,
            )
            self._size_bytes += size_bytes
        for group_id, peer_id in self._database.execute("SELECT group_id, peer_id FROM acknowledgements").fetchall():
            if group_id in self._offers:
                self._offers[group_id].holders.add(peer_id)

    def find(self, key: OutboxKey, now_s: float) -> PublishedGroup | None:
        """Returns what was made for `key`, None if nothing was or if it is too long ago."""
        row = self._database.execute(
            f"SELECT {_HEAD}, head_check FROM outbox WHERE node_id = ? AND round = ? AND task = ? AND repeat = ?",
            (key.node_id, key.round, key.task, key.repeat),
        ).fetchone()
        if row is None or row[-1] != head_check(*row[:-1]):
            return None
        group_id, sequence, forget_s = row[4], row[5], row[9]
        return None if forget_s <= now_s else PublishedGroup(group_id=group_id, sequence=sequence, is_replay=True)

    def add(self, key: OutboxKey, group: OpenedGroup, *, now_s: float) -> None:
        """Puts a new group on offer and gives up the oldest ones that then exceed the limits."""
        rows = self._database.execute(
            "SELECT seq, group_id FROM outbox WHERE node_id = ? AND round = ? AND task = ? AND repeat = ?",
            (key.node_id, key.round, key.task, key.repeat),
        ).fetchall()
        for seq, group_id in rows:
            self._delete(seq, group_id)
        envelope = group.envelope
        born_s, ttl_s = float(now_s - group.age_s), float(min(group.ttl_s, self._limits.max_ttl_s))
        body = (envelope.payload, envelope.public_key, envelope.signature)
        head = (key.node_id, key.round, key.task, key.repeat, group.group_id, group.sequence, group.size_bytes)
        head += (born_s, born_s + ttl_s, now_s + ttl_s + self._limits.seen_grace_s, body_check(*body))
        cursor = self._database.execute(
            f"INSERT INTO outbox ({_HEAD}, head_check, payload, public_key, signature)"
            f" VALUES ({', '.join('?' * (len(head) + 1 + len(body)))})",
            (*head, head_check(*head), *body),
        )
        self._offers[group.group_id] = _Offer(
            seq=cursor.lastrowid or 0,
            group_id=group.group_id,
            publisher=key.node_id,
            size_bytes=group.size_bytes,
            born_s=born_s,
            expires_s=born_s + ttl_s,
        )
        self._size_bytes += group.size_bytes
        while len(self._offers) > self._limits.outbox_max_groups or self._size_bytes > self._limits.outbox_max_bytes:
            self._withdraw(next(iter(self._offers.values())))
            self.given_up += 1

    def pending(self, limit: int, peer_id: str | None, now_s: float) -> list[OfferedGroup]:
        """Returns what is on offer, oldest first, without what `peer_id` holds or refused."""
        found: list[OfferedGroup] = []
        for offer in list(self._offers.values()):
            if len(found) >= limit:
                break
            if offer.expires_s <= now_s or peer_id in offer.holders or peer_id in offer.refusers:
                continue
            envelope = envelope_of("outbox", offer.seq, self._database)
            if envelope is None:
                self._discard(offer)
                self.damaged += 1
                continue
            found.append(
                OfferedGroup(
                    group_id=offer.group_id,
                    publisher=offer.publisher,
                    size_bytes=offer.size_bytes,
                    copies=len(offer.holders),
                    refused_by=frozenset(offer.refusers),
                    signed=SignedGroup(envelope=envelope, age_s=max(0.0, now_s - offer.born_s)),
                )
            )
        return found

    def waiting(self, peer_ids: frozenset[str], now_s: float) -> int:
        """Returns how many offers have no holder, without those that all of these peers refused."""
        return sum(
            not offer.holders and offer.expires_s > now_s and not peer_ids <= offer.refusers
            for offer in self._offers.values()
        )

    def acknowledge(self, group_id: bytes, peer_id: str) -> None:
        """Notes that a peer holds a group; with enough such peers it is no longer offered."""
        offer = self._offers.get(group_id)
        if offer is None or peer_id in offer.holders:
            return
        offer.holders.add(peer_id)
        if len(offer.holders) >= self._limits.copies:
            self._withdraw(offer)
        else:
            self._database.execute("INSERT OR IGNORE INTO acknowledgements VALUES (?, ?)", (group_id, peer_id))

    def note_refusal(self, group_id: bytes, peer_id: str) -> None:
        """Notes that a peer never wants a group, which says nothing about others."""
        offer = self._offers.get(group_id)
        if offer is not None:
            offer.refusers.add(peer_id)

    def sweep(self, now_s: float) -> None:
        """Withdraws what has expired and forgets the keys that are old enough."""
        # Only from the front: nearly all have one lifetime, and `pending` looks at each.
        while self._offers and (offer := next(iter(self._offers.values()))).expires_s <= now_s:
            self._withdraw(offer)
        rows = self._database.execute(
            "SELECT seq, group_id FROM outbox WHERE forget_s <= ? ORDER BY forget_s LIMIT ?", (now_s, _SWEPT_ROWS)
        ).fetchall()
        for seq, group_id in rows:
            self._delete(seq, group_id)

    def _delete(self, seq: int, group_id: bytes) -> None:
        offer = self._offers.get(group_id)
        if offer is not None and offer.seq == seq:
            self._withdraw(offer)
        self._database.execute("DELETE FROM outbox WHERE seq = ?", (seq,))

    def _withdraw(self, offer: _Offer) -> None:
        """Takes a group off the offer and frees its bytes; its key stays known."""
        self._discard(offer)
        head = self._database.execute(f"SELECT {_HEAD} FROM outbox WHERE seq = ?", (offer.seq,)).fetchone()
        if head is not None:
            self._database.execute(
                "UPDATE outbox SET body_check = NULL, payload = NULL, public_key = NULL, signature = NULL,"
                " head_check = ? WHERE seq = ?",
                (head_check(*head[:-1], None), offer.seq),
            )
        self._database.execute("DELETE FROM acknowledgements WHERE group_id = ?", (offer.group_id,))

    def _discard(self, offer: _Offer) -> None:
        del self._offers[offer.group_id]
        self._size_bytes -= offer.size_bytes
