"""The groups inside a store: rows with checksums, the index over them, and the memory of those that left.

All methods run under the store's lock, and those that change something inside its transaction; if
that fails, `load` makes the index anew from the file.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator

from sapo_jax.swarm.store.file import DATABASE_ERRORS, body_check, envelope_of, head_check
from sapo_jax.swarm.store.records import StoredGroup
from sapo_jax.swarm.store.retention import Entry, EvictionReason, GroupState, Retention, StoreLimits
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.requests import PublishOutcome, PublishResult
from sapo_jax.swarm.wire.signed_content import OpenedGroup, SignedGroup

_HEAD = "seq, group_id, publisher, dataset, size_bytes, hops, born_s, expires_s, body_check"
_FORGOTTEN_IDS = 512  # per transaction, so that none takes long
# What has less life left, or less than a tenth of its lifetime, would leave before it is verified.
_LEAST_LIFE_S = 60.0
# Time on the way is not counted in ages, so that those of copies differ by moments: not worth a write.
_AGE_STEP_S = 1.0


class GroupRows:
    """Owns the tables `groups` and `seen` and the index."""

    def __init__(self, database: sqlite3.Connection, limits: StoreLimits) -> None:
        """Reads the index from the database."""
        self._database = database
        self._limits = limits
        self.index = Retention(limits)
        self.last_seq = 0  # of the latest arrival, whether or not it is still held
        self.seen = 0  # ids remembered of groups that left
        self.damaged = 0  # rows lost to a failed checksum since the start
        self.counts: Counter[PublishOutcome | EvictionReason] = Counter()  # since the start
        self.load()

    def load(self) -> None:
        """Makes the index anew, without the rows whose checksum fails."""
        execute = self._database.execute
        self.seen = execute("SELECT COUNT(*) FROM seen").fetchone()[0]
        # SQLite's own record keeps a place from being given twice even if all rows are gone.
        query = "SELECT seq FROM sqlite_sequence WHERE name = 'groups' UNION SELECT MAX(seq) FROM groups"
        self.last_seq = max((seq for (seq,) in execute(query).fetchall() if isinstance(seq, int)), default=0)
        states = {state.value: state for state in GroupState}
        entries: dict[bytes, Entry] = {}
        damaged: list[int] = []
        # The latest first: beside a row too damaged to be deleted, the group may have come again.
        query = f"SELECT {_HEAD}, head_check, state FROM groups ORDER BY seq DESC"
        for *head, check, state in execute(query).fetchall():
            if check != head_check(*head) or state not in states or head[1] in entries:
                damaged.append(head[0])
                continue
            seq, group_id, publisher, dataset, size_bytes, hops, born_s, expires_s, _ = head
            known = self.index.get(group_id)  # when a failed write is taken back
            entries[group_id] = Entry(
                seq=seq,
                group_id=group_id,
                publisher=publisher,
                dataset=dataset,
                size_bytes=size_bytes,
                hops=hops,
                born_s=born_s,
                expires_s=expires_s,
                state=states[state],
                arrived_s=known.arrived_s if known is not None and known.seq == seq else -math.inf,
            )
        self.index = Retention(self._limits, reversed(entries.values()))
        for seq in damaged:
            self._quarantine(seq)

    def take_in(self, group: OpenedGroup, *, now_s: float) -> PublishResult:
        """Stores one group unless it is known or not acceptable, and evicts what has to leave for it.

        What is refused is not remembered: by its age, which is not signed, anybody could have it refused for good.
        """
        reason = None
        ttl_s = min(group.ttl_s, self._limits.max_ttl_s)
        if self.is_known(group.group_id, now_s):
            self.note_age(group.group_id, group.age_s, now_s=now_s)
            outcome = PublishOutcome.DUPLICATE
        elif ttl_s - group.age_s < min(_LEAST_LIFE_S, ttl_s / 10):
            outcome, reason = PublishOutcome.REJECTED, WireReason.EXPIRED
        elif group.size_bytes > self._limits.publisher_max_bytes:
            outcome, reason = PublishOutcome.REJECTED, WireReason.TOO_LARGE
        else:
            outcome = PublishOutcome.ACCEPTED
            self._insert(group, born_s=float(now_s - group.age_s), ttl_s=float(ttl_s), now_s=now_s)
        self.counts[outcome] += 1
        return PublishResult(group_id=group.group_id, outcome=outcome, reason=reason)

    def is_younger(self, group_id: bytes, age_s: float, now_s: float) -> bool:
        """Returns whether a copy of a group that is held claims to be clearly younger than the group does here."""
        entry = self.index.get(group_id)
        return entry is not None and _later_birth_s(entry, age_s, now_s) - entry.born_s >= _AGE_STEP_S

    def note_age(self, group_id: bytes, age_s: float, *, now_s: float) -> None:
        """Takes over the age of a copy that claims to be younger; a group that is not held is ignored."""
        entry = self.index.get(group_id)
        if entry is None or not self.is_younger(group_id, age_s, now_s):
            return
        # Ages are not signed. Whoever makes a group older takes it from all, whoever makes it younger
        # delays its end by the time it was under way at most: so the youngest claim wins.
        self.index.make_younger(entry, _later_birth_s(entry, age_s, now_s))
        row = self._database.execute("SELECT body_check FROM groups WHERE seq = ?", (entry.seq,)).fetchone()
        if row is not None:
            head = _head_of(entry, row[0])
            self._database.execute(
                "UPDATE groups SET born_s = ?, expires_s = ?, head_check = ? WHERE seq = ?",
                (entry.born_s, entry.expires_s, head_check(*head), entry.seq),
            )

    def is_known(self, group_id: bytes, now_s: float) -> bool:
        """Returns whether the group is held, or its id remembered."""
        if self.index.get(group_id) is not None:
            return True
        query = "SELECT 1 FROM seen WHERE group_id = ? AND forget_s > ?"
        return self._database.execute(query, (group_id, now_s)).fetchone() is not None

    def live(self, group_ids: Iterable[bytes], now_s: float) -> Iterator[Entry]:
        """Yields the entries of those ids that are held and have not expired."""
        for group_id in group_ids:
            entry = self.index.get(group_id)
            if entry is not None and entry.expires_s > now_s:
                yield entry

    def read(self, entries: Iterable[Entry], *, now_s: float, max_bytes: int | None) -> list[StoredGroup]:
        """Reads groups, ending before `max_bytes` are exceeded; damaged ones are left out and leave the store."""
        found: list[StoredGroup] = []
        size_bytes = 0
        for entry in entries:
            size_bytes += entry.size_bytes
            if max_bytes is not None and size_bytes > max_bytes:
                break
            envelope = envelope_of("groups", entry.seq, self._database)
            if envelope is None:
                self.index.remove(entry)
                self._quarantine(entry.seq)
                continue
            found.append(
                StoredGroup(
                    seq=entry.seq,
                    group_id=entry.group_id,
                    publisher=entry.publisher,
                    dataset=entry.dataset,
                    size_bytes=entry.size_bytes,
                    state=entry.state,
                    signed=SignedGroup(envelope=envelope, hops=entry.hops, age_s=max(0.0, now_s - entry.born_s)),
                )
            )
        return found

    def mark(self, group_id: bytes, state: GroupState, *, now_s: float) -> None:
        """Notes what the verifier said; a rejected group leaves, an unknown one is ignored."""
        entry = self.index.get(group_id)
        if entry is None:
            return
        if state is GroupState.REJECTED:
            self.index.remove(entry)
            self._delete(entry, EvictionReason.REJECTED, now_s)
        elif entry.state is not state:
            entry.state = state
            self._database.execute("UPDATE groups SET state = ? WHERE seq = ?", (state.value, entry.seq))

    def sweep(self, now_s: float) -> None:
        """Frees what has expired and forgets ids that were remembered for long enough."""
        for entry, reason in self.index.expire(now_s):
            self._delete(entry, reason, now_s)
        execute = self._database.execute
        query = "SELECT group_id FROM seen WHERE forget_s <= ? ORDER BY forget_s LIMIT ?"
        forgotten = execute(query, (now_s, _FORGOTTEN_IDS)).fetchall()
        excess = min(self.seen - len(forgotten) - self._limits.max_seen, _FORGOTTEN_IDS)
        if excess > 0:
            query = "SELECT group_id FROM seen ORDER BY forget_s LIMIT ?"
            forgotten = execute(query, (len(forgotten) + excess,)).fetchall()
        for row in forgotten:
            execute("DELETE FROM seen WHERE group_id = ?", row)
        self.seen -= len(forgotten)

    def trim(self, now_s: float) -> None:
        """Evicts what exceeds the limits, which may have been wider when the file was written."""
        for entry, reason in self.index.trim():
            self._delete(entry, reason, now_s)

    def _insert(self, group: OpenedGroup, *, born_s: float, ttl_s: float, now_s: float) -> None:
        self.last_seq += 1
        entry = Entry(
            seq=self.last_seq,
            group_id=group.group_id,
            publisher=group.publisher,
            dataset=group.dataset,
            size_bytes=group.size_bytes,
            hops=group.hops,
            born_s=born_s,
            expires_s=born_s + ttl_s,
            arrived_s=float(now_s),
        )
        body = (group.envelope.payload, group.envelope.public_key, group.envelope.signature)
        head = _head_of(entry, body_check(*body))
        self._database.execute(
            f"INSERT INTO groups ({_HEAD}, head_check, state, payload, public_key, signature)"
            f" VALUES ({', '.join('?' * (len(head) + 2 + len(body)))})",
            (*head, head_check(*head), entry.state.value, *body),
        )
        # An id that was remembered for long enough but not yet swept is held again.
        if self._database.execute("DELETE FROM seen WHERE group_id = ?", (entry.group_id,)).rowcount:
            self.seen -= 1
        for evicted, reason in self.index.admit(entry):
            self._delete(evicted, reason, now_s)

    def _delete(self, entry: Entry, reason: EvictionReason, now_s: float) -> None:
        """Deletes the row of a group that has left the index and remembers its id."""
        self._database.execute("DELETE FROM groups WHERE seq = ?", (entry.seq,))
        self._remember(entry.group_id, now_s + (entry.expires_s - entry.born_s) + self._limits.seen_grace_s)
        self.counts[reason] += 1

    def _remember(self, group_id: bytes, forget_s: float) -> None:
        query = "UPDATE seen SET forget_s = ? WHERE group_id = ?"
        if self._database.execute(query, (forget_s, group_id)).rowcount == 0:
            self._database.execute("INSERT INTO seen VALUES (?, ?)", (group_id, forget_s))
            self.seen += 1

    def _quarantine(self, seq: int) -> None:
        """Counts a damaged row and deletes it if the file still allows that; its id may come again from a peer."""
        self.damaged += 1
        with contextlib.suppress(*DATABASE_ERRORS):
            self._database.execute("DELETE FROM groups WHERE seq = ?", (seq,))


def _later_birth_s(entry: Entry, age_s: float, now_s: float) -> float:
    """Returns when a group was born by what a copy claims, but never after it came here; nonsense changes nothing."""
    if not age_s >= 0:
        return entry.born_s
    return max(entry.born_s, min(float(now_s - age_s), entry.arrived_s))


def _head_of(entry: Entry, body_checksum: object) -> tuple[object, ...]:
    """Returns the columns of `_HEAD`."""
    place = (entry.seq, entry.group_id, entry.publisher, entry.dataset, entry.size_bytes, entry.hops)
    return (*place, entry.born_s, entry.expires_s, body_checksum)
