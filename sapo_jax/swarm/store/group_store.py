"""A host's store of the groups that circulate in the swarm, its own included: bounded, durable, checked.

What `put` and `publish` have returned for is committed and survives the death of the process. Every
call takes one lock for a few milliseconds, so the loop thread, the verifying thread and the training
thread share one store. It knows nothing of the network, and of texts only their bytes. What is kept
is `retention`'s decision, rows are `store_groups`', own groups on their way out are `outbox`'s.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from pathlib import Path

import numpy as np

from sapo_jax.swarm.store import file as store_file
from sapo_jax.swarm.store.clock import Clock, StoreClock
from sapo_jax.swarm.store.file import StoreError, StoreFullError
from sapo_jax.swarm.store.groups import GroupRows
from sapo_jax.swarm.store.outbox import OfferedGroup, Outbox, OutboxKey, PublishedGroup
from sapo_jax.swarm.store.records import StoredGroup, StoreStats, UnknownCursorError
from sapo_jax.swarm.store.retention import EvictionReason, GroupState, StoreLimits
from sapo_jax.swarm.wire.requests import GroupCursor, GroupRef, GroupRefPage, PublishOutcome, PublishResult
from sapo_jax.swarm.wire.signed_content import OpenedGroup


def free_disk_bytes(path: Path) -> int:
    """Returns the bytes left on the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


class GroupStore:
    """Owns one store: its file or memory, and its lock. Thread-safe; any method may raise StoreError."""

    def __init__(
        self,
        path: Path | None,
        *,
        limits: StoreLimits,
        clock: Clock,
        free_bytes: Callable[[Path], int] = free_disk_bytes,
    ) -> None:
        """Opens the store, making it if it is not there.

        Args:
            path: its file; None for a store in memory that ends with this object.
            limits: what it keeps; groups above them leave at once.
            clock: where it reads the time from.
            free_bytes: tells how many bytes are left on the file system of a path.

        Raises:
            StoreError: the file is no store, one of another schema version, damaged, in use or not accessible.
        """
        self._path = path
        self._name = store_file.name_of(path)
        self._limits = limits
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        start = StoreClock(clock, None).anchor()
        database = store_file.open_database(path, anchor=start, max_file_bytes=limits.max_file_bytes)
        self._database: sqlite3.Connection | None = database
        try:
            self._epoch, anchor = store_file.read_store_row(database, self._name)
            self._clock = StoreClock(clock, anchor)
            self._outbox = Outbox(database, limits)
            self._groups = GroupRows(database, limits)
            self._opened_seq = self._groups.last_seq
            # Some time may have passed, and the limits may have become narrower.
            with contextlib.suppress(StoreFullError), self._writing() as now_s:
                self._groups.trim(now_s)
        except store_file.DATABASE_ERRORS as error:
            database.close()
            raise store_file.store_error(self._name, error) from error
        except StoreError:
            database.close()
            raise

    @property
    def epoch(self) -> str:
        """Names this store's file: drawn at random when it was made, so a cursor of another one is noticed."""
        return self._epoch

    @property
    def last_seq(self) -> int:
        """The place of the latest arrival, whether or not it is still held; 0 before the first."""
        return self._groups.last_seq

    @property
    def opened_seq(self) -> int:
        """The place of the latest arrival when the store was opened: what earlier processes can know of."""
        return self._opened_seq

    def close(self) -> None:
        """Frees the file; closing twice is allowed, any other call is then a StoreError."""
        with self._lock:
            if self._database is None:
                return
            with contextlib.suppress(*store_file.DATABASE_ERRORS):
                store_file.save_anchor(self._database, self._clock.anchor())
            self._database.close()
            self._database = None

    # What arrives.

    def put(self, groups: Sequence[OpenedGroup]) -> list[PublishResult]:
        """Takes in groups in one transaction; returns one result per group, in order.

        A group that is held, or was held within one lifetime and a grace, is a duplicate. Rejected are
        groups at the end of their lifetime or past it, and those larger than one publisher's whole share.

        Raises:
            StoreFullError: no room on the disk; none of `groups` was stored, all that was there still is.
        """
        with self._writing(adds=True) as now_s:
            return [self._groups.take_in(group, now_s=now_s) for group in groups]

    def note_ages(self, ages: Iterable[tuple[bytes, float]]) -> None:
        """Takes over what copies of held groups claim as their ages (id, seconds), where that is younger.

        `put` does it as well; this is for duplicates that were recognized before anything in them was read.
        """
        ages = list(ages)
        with self._reading() as now_s:
            if not any(self._groups.is_younger(group_id, age_s, now_s) for group_id, age_s in ages):
                return  # as nearly always, and then nothing is written
        with contextlib.suppress(StoreFullError), self._writing() as now_s:
            for group_id, age_s in ages:
                self._groups.note_age(group_id, age_s, now_s=now_s)

    def publish(self, key: OutboxKey, make: Callable[[int], OpenedGroup]) -> PublishedGroup:
        """Puts an own group into pool and outbox in one transaction, unless `key` was published before.

        Args:
            key: what made the group; a key that is known stands for the first group again.
            make: signs the group with the sequence it is given; must not call the store.

        Raises:
            ValueError: `make` returned another publisher's group or another sequence; nothing was stored.
            StoreFullError: no room on the disk; nothing was stored and the sequence is not used up.
        """
        with self._reading() as now_s:
            known = self._outbox.find(key, now_s)
        if known is not None:
            return known
        with self._writing(adds=True) as now_s:
            known = self._outbox.find(key, now_s)
            if known is not None:  # another thread was faster
                return known
            sequence = self._take_sequence(key.node_id)
            group = make(sequence)
            if (group.publisher, group.sequence) != (key.node_id, sequence):
                raise ValueError(
                    f"group {group.sequence} of {group.publisher!r} was made where group {sequence} "
                    f"of {key.node_id!r} was asked for"
                )
            self._outbox.add(key, group, now_s=now_s)
            self._groups.take_in(group, now_s=now_s)
            return PublishedGroup(group_id=group.group_id, sequence=sequence, is_replay=False)

    # What others are offered.

    def sample(
        self,
        count: int,
        *,
        rng: np.random.Generator,
        datasets: Collection[str] | None = None,
        max_age_s: float | None = None,
        excluded_publishers: Collection[str] = (),
        max_bytes: int | None = None,
    ) -> list[StoredGroup]:
        """Returns at most `count` different groups: publishers drawn uniformly, then one of their groups.

        Args:
            count: how many are wanted; fewer come back if fewer pass.
            rng: decides the draw.
            datasets: only these; None for all.
            max_age_s: only groups at most this old; None for any age.
            excluded_publishers: node ids whose groups are not wanted.
            max_bytes: the draw ends before the group that would exceed this; None for no limit.
        """
        with self._reading() as now_s:
            drawn = self._groups.index.draw(
                count,
                now_s=now_s,
                rng=rng,
                datasets=datasets,
                max_age_s=max_age_s,
                excluded_publishers=excluded_publishers,
            )
            return self._groups.read(drawn, now_s=now_s, max_bytes=max_bytes)

    def get(self, group_ids: Iterable[bytes], *, max_bytes: int | None = None) -> list[StoredGroup]:
        """Returns those of the groups that are held, in order, ending before one that would exceed `max_bytes`."""
        with self._reading() as now_s:
            return self._groups.read(self._groups.live(group_ids, now_s), now_s=now_s, max_bytes=max_bytes)

    def held(self, group_ids: Iterable[bytes]) -> list[bytes]:
        """Returns those of the ids that are in the pool, in order."""
        with self._reading() as now_s:
            return [entry.group_id for entry in self._groups.live(group_ids, now_s)]

    def unknown(self, group_ids: Iterable[bytes]) -> list[bytes]:
        """Returns those of the ids that are neither in the pool nor remembered: what is worth fetching."""
        with self._reading() as now_s:
            return [group_id for group_id in group_ids if not self._groups.is_known(group_id, now_s)]

    def refs(self, cursor: GroupCursor | None, limit: int, *, datasets: Collection[str] | None = None) -> GroupRefPage:
        """Returns references to at most `limit` groups that arrived after `cursor`, in order of arrival.

        Raises:
            UnknownCursorError: the cursor is of another epoch, from the future, or older than all that is held.
        """
        with self._reading() as now_s:
            start = 0 if cursor is None else self._checked(cursor, now_s)
            following = self._groups.index.following(start, now_s)
            wanted = None if datasets is None else frozenset(datasets)
            passing = (entry for entry in following if wanted is None or entry.dataset in wanted)
            page = list(itertools.islice(passing, limit))
            end = page[-1].seq if len(page) == limit and page else self.last_seq
            return GroupRefPage(
                references=tuple(
                    GroupRef(
                        group_id=entry.group_id,
                        size_bytes=entry.size_bytes,
                        dataset=entry.dataset,
                        age_s=max(0.0, now_s - entry.born_s),
                    )
                    for entry in page
                ),
                next_cursor=GroupCursor(epoch=self._epoch, sequence=end),
            )

    def outbox_pending(self, limit: int, *, peer_id: str | None = None) -> list[OfferedGroup]:
        """Returns own groups that still need holders, oldest first, without those that `peer_id` holds or refused."""
        with self._reading() as now_s:
            return self._outbox.pending(limit, peer_id, now_s)

    def outbox_waiting(self, peer_ids: Collection[str]) -> int:
        """Returns how many own groups nobody holds yet, without those that all of these peers refused."""
        with self._reading() as now_s:
            return self._outbox.waiting(frozenset(peer_ids), now_s)

    def acknowledge(self, group_ids: Iterable[bytes], peer_id: str) -> None:
        """Notes that a peer holds own groups; those with enough holders are no longer offered."""
        with self._writing():
            for group_id in group_ids:
                self._outbox.acknowledge(group_id, peer_id)

    def note_refusals(self, group_ids: Iterable[bytes], peer_id: str) -> None:
        """Notes that a peer never wants these own groups; they are not offered to it again while this store is open."""
        with self._reading():
            for group_id in group_ids:
                self._outbox.note_refusal(group_id, peer_id)

    # What the host itself does with them.

    def after(self, seq: int, limit: int, *, max_bytes: int | None = None) -> list[StoredGroup]:
        """Returns at most `limit` groups that arrived after `seq` and are still held, in order of arrival."""
        with self._reading() as now_s:
            following = list(itertools.islice(self._groups.index.following(seq, now_s), limit))
            return self._groups.read(following, now_s=now_s, max_bytes=max_bytes)

    def size_after(self, seq: int) -> tuple[int, int]:
        """Returns how many groups arrived after `seq` and are still held, and their bytes."""
        with self._reading() as now_s:
            sizes = [entry.size_bytes for entry in self._groups.index.following(seq, now_s)]
            return len(sizes), sum(sizes)

    def mark(self, group_ids: Iterable[bytes], state: GroupState) -> None:
        """Notes what the verifier said. Rejected groups leave the pool; ids that are not held are ignored."""
        with self._writing() as now_s:
            for group_id in group_ids:
                self._groups.mark(group_id, state, now_s=now_s)

    def expire(self) -> None:
        """Frees what has expired. `put` does it as well; this is for a store where nothing arrives."""
        with self._writing():
            pass

    def stats(self) -> StoreStats:
        """Returns what the store holds and what happened so far."""
        with self._reading() as now_s:
            live = list(self._groups.index.following(0, now_s))
            counts = self._groups.counts
            return StoreStats(
                groups=len(live),
                size_bytes=sum(entry.size_bytes for entry in live),
                publishers=len({entry.publisher for entry in live}),
                by_state=Counter(entry.state for entry in live),
                by_dataset=Counter(entry.dataset for entry in live),
                oldest_age_s=max((now_s - entry.born_s for entry in live), default=0.0),
                seen=self._groups.seen,
                pending=len(self._outbox),
                accepted=counts[PublishOutcome.ACCEPTED],
                duplicates=counts[PublishOutcome.DUPLICATE],
                evicted={reason: counts[reason] for reason in EvictionReason},
                given_up=self._outbox.given_up,
                damaged=self._groups.damaged + self._outbox.damaged,
            )

    # Inside one call.

    @contextlib.contextmanager
    def _reading(self) -> Generator[float]:
        """Holds the lock; yields the store's time."""
        with self._lock:
            if self._database is None:
                raise StoreError(f"{self._name}: is closed")
            try:
                yield self._clock.now()
            except store_file.DATABASE_ERRORS as error:
                raise store_file.store_error(self._name, error) from error

    @contextlib.contextmanager
    def _writing(self, *, adds: bool = False) -> Generator[float]:
        """As `_reading`, inside one transaction; if it fails, index and counts go back with it."""
        with self._reading() as now_s:
            database = self._open_database()
            if adds:
                self._check_reserve()
            counts = self._groups.counts.copy()
            try:
                database.execute("BEGIN IMMEDIATE")
                self._groups.sweep(now_s)
                self._outbox.sweep(now_s)
                yield now_s
                store_file.save_anchor(database, self._clock.anchor())
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                self._groups.counts = counts
                self._groups.load()
                self._outbox.load()
                raise

    def _open_database(self) -> sqlite3.Connection:
        if self._database is None:
            raise StoreError(f"{self._name}: is closed")
        return self._database

    def _take_sequence(self, node_id: str) -> int:
        database = self._open_database()
        row = database.execute("SELECT last FROM sequences WHERE node_id = ?", (node_id,)).fetchone()
        last = 0 if row is None else row[0]
        if not isinstance(last, int):
            raise StoreError(f"{self._name}: is damaged (no valid sequence of node {node_id!r})")
        sequence = last + 1
        database.execute("INSERT OR REPLACE INTO sequences VALUES (?, ?)", (node_id, sequence))
        return sequence

    def _checked(self, cursor: GroupCursor, now_s: float) -> int:
        """Returns the place a cursor stands for."""
        first = next(self._groups.index.following(0, now_s), None)
        start = self.last_seq if first is None else first.seq - 1
        oldest = GroupCursor(epoch=self._epoch, sequence=start)
        if cursor.epoch != self._epoch:
            raise UnknownCursorError("the cursor is of another epoch", oldest)
        if cursor.sequence > self.last_seq:
            raise UnknownCursorError(f"the cursor is beyond the last sequence {self.last_seq}", oldest)
        if 0 < cursor.sequence < start:
            raise UnknownCursorError(f"the cursor is trimmed away, the oldest is {start}", oldest)
        return cursor.sequence

    def _check_reserve(self) -> None:
        reserve = self._limits.disk_reserve_bytes
        if self._path is None or reserve <= 0:
            return
        try:
            free = self._free_bytes(self._path)
        except OSError as error:
            raise StoreError(f"{self._name}: {error.strerror or error}") from error
        if free < reserve:
            raise StoreFullError(f"{self._name}: {free} bytes are left on the disk, disk_reserve_bytes = {reserve}")
