"""Which groups a store keeps, and which of them a draw may return: an index in memory, without bytes.

The order of eviction is: what has expired, then the oldest of a publisher above its share, then the
oldest of all. One publisher never holds more than its share, however much it sends, and a draw
chooses publishers before groups, so flooding the store gains nothing.
"""

from __future__ import annotations

import bisect
import enum
import heapq
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np


class GroupState(enum.Enum):
    """What this host's verifier has said about a group."""

    UNVERIFIED = "unverified"
    INFORMATIVE = "informative"  # verified, and its scores vary
    UNINFORMATIVE = "uninformative"  # verified, and they do not
    REJECTED = "rejected"


class EvictionReason(enum.Enum):
    """Why a group left the store."""

    EXPIRED = "expired"
    PUBLISHER = "publisher"  # its publisher was above its share
    OLDEST = "oldest"
    REJECTED = "rejected"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreLimits:
    """How much a store keeps, and for how long.

    Attributes:
        max_groups: groups in the pool.
        max_bytes: their bytes.
        publisher_frac: the share of both that one publisher may fill.
        max_ttl_s: longer lifetimes are cut to this.
        seen_grace_s: how long, beyond one more lifetime, the id of a group that left is remembered.
        max_seen: ids remembered at most.
        copies: acknowledgements of different peers after which an own group is no longer offered.
        outbox_max_groups: own groups on offer; the oldest are given up beyond that.
        outbox_max_bytes: their bytes.
        disk_reserve_bytes: nothing is added while the file system has less than this left.
        max_file_bytes: size limit of the database file, without its write-ahead log; None for none.
    """

    max_groups: int = 4096
    max_bytes: int = 256 * 2**20
    publisher_frac: float = 1 / 8
    max_ttl_s: float = 86_400.0
    seen_grace_s: float = 600.0
    max_seen: int = 1_000_000
    copies: int = 2
    outbox_max_groups: int = 4096
    outbox_max_bytes: int = 64 * 2**20
    disk_reserve_bytes: int = 64 * 2**20
    max_file_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_groups", "max_bytes", "max_seen", "copies", "outbox_max_groups", "outbox_max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if not 0 < self.publisher_frac <= 1:
            raise ValueError(f"publisher_frac = {self.publisher_frac} must be in (0, 1]")
        if not self.max_ttl_s > 0:
            raise ValueError(f"max_ttl_s = {self.max_ttl_s} must be above 0")
        if not self.seen_grace_s >= 0:
            raise ValueError(f"seen_grace_s = {self.seen_grace_s} must be at least 0")

    @property
    def publisher_max_groups(self) -> int:
        return max(1, int(self.max_groups * self.publisher_frac))

    @property
    def publisher_max_bytes(self) -> int:
        return max(1, int(self.max_bytes * self.publisher_frac))


@dataclass(kw_only=True, slots=True)
class Entry:
    """What the index knows of one group.

    Attributes:
        seq: its place in the order of arrival.
        born_s: when its publisher made it, as far as its carried age tells; in store seconds.
        expires_s: when it expires, in store seconds.
        hops: how often it was handed on before it came here.
        arrived_s: when it came here, in store seconds; before all time if that is not known any more.
    """

    seq: int
    group_id: bytes
    publisher: str
    dataset: str
    size_bytes: int
    born_s: float
    expires_s: float
    hops: int
    state: GroupState = GroupState.UNVERIFIED
    arrived_s: float = -math.inf


@dataclass(slots=True)
class _Shelf:
    """One publisher's groups by seq, oldest first."""

    entries: dict[int, Entry] = field(default_factory=dict[int, Entry])
    size_bytes: int = 0


Eviction = tuple[Entry, EvictionReason]


class Retention:
    """Owns the index of one store. Not thread-safe: the store's lock is around every call."""

    def __init__(self, limits: StoreLimits, entries: Iterable[Entry] = ()) -> None:
        """Indexes `entries`, in order of arrival, without applying any limit yet."""
        self._limits = limits
        self._by_id: dict[bytes, Entry] = {}
        self._by_seq: dict[int, Entry] = {}
        self._shelves: dict[str, _Shelf] = {}
        self._size_bytes = 0
        # What leaves is not taken out of these two at once; they are made anew when mostly stale.
        self._order: list[int] = []
        self._by_expiry: list[tuple[float, int]] = []
        for entry in entries:
            self._add(entry)

    def __len__(self) -> int:
        return len(self._by_seq)

    def __iter__(self) -> Iterator[Entry]:
        """Yields all entries in order of arrival."""
        return iter(self._by_seq.values())

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def publishers(self) -> Collection[str]:
        return self._shelves.keys()

    def get(self, group_id: bytes) -> Entry | None:
        return self._by_id.get(group_id)

    def expire(self, now_s: float) -> list[Eviction]:
        """Takes out and returns what has expired."""
        evicted: list[Eviction] = []
        while self._by_expiry and self._by_expiry[0][0] <= now_s:
            entry = self._by_seq.get(heapq.heappop(self._by_expiry)[1])
            if entry is None:
                continue
            if entry.expires_s > now_s:  # it turned out to be younger since its place was noted
                heapq.heappush(self._by_expiry, (entry.expires_s, entry.seq))
                continue
            self.remove(entry)
            evicted.append((entry, EvictionReason.EXPIRED))
        return evicted

    def make_younger(self, entry: Entry, born_s: float) -> None:
        """Moves birth and expiry of an entry to later; `expire` then finds its place in the order of expiry again."""
        entry.expires_s += born_s - entry.born_s
        entry.born_s = born_s

    def admit(self, entry: Entry) -> list[Eviction]:
        """Adds a newly arrived group and returns what had to leave for it.

        Expired groups are expected to be gone: see `expire`.
        """
        self._add(entry)
        return self._trim(entry.publisher) + self._trim_total()

    def trim(self) -> list[Eviction]:
        """Takes out and returns what exceeds the limits, for an index that was filled under wider ones."""
        evicted = [eviction for publisher in list(self._shelves) for eviction in self._trim(publisher)]
        return evicted + self._trim_total()

    def remove(self, entry: Entry) -> None:
        """Takes out one entry."""
        del self._by_id[entry.group_id], self._by_seq[entry.seq]
        shelf = self._shelves[entry.publisher]
        del shelf.entries[entry.seq]
        shelf.size_bytes -= entry.size_bytes
        if not shelf.entries:
            del self._shelves[entry.publisher]
        self._size_bytes -= entry.size_bytes
        if len(self._order) > 2 * len(self._by_seq) + 64:
            self._order = list(self._by_seq)
            self._by_expiry = [(item.expires_s, item.seq) for item in self]
            heapq.heapify(self._by_expiry)

    def following(self, seq: int, now_s: float) -> Iterator[Entry]:
        """Yields what arrived after `seq` and has not expired, in order of arrival."""
        for i in range(bisect.bisect_right(self._order, seq), len(self._order)):
            entry = self._by_seq.get(self._order[i])
            if entry is not None and entry.expires_s > now_s:
                yield entry

    def draw(
        self,
        count: int,
        *,
        now_s: float,
        rng: np.random.Generator,
        datasets: Collection[str] | None = None,
        max_age_s: float | None = None,
        excluded_publishers: Collection[str] = (),
    ) -> Iterator[Entry]:
        """Yields at most `count` different groups: a publisher uniformly, then one of its groups uniformly.

        A publisher takes part as long as it has a group that passes the filters and was not drawn yet.
        """
        # Both come from a request, where they are as long as it likes.
        excluded = frozenset(excluded_publishers)
        wanted = None if datasets is None else frozenset(datasets)
        names = [name for name in self._shelves if name not in excluded]
        eligible: dict[str, list[Entry]] = {}
        while count > 0 and names:
            i = int(rng.integers(len(names)))
            entries = eligible.get(names[i])
            if entries is None:
                shelf = self._shelves.get(names[i], _Shelf())  # the caller may take out what was drawn
                entries = eligible[names[i]] = [
                    entry
                    for entry in shelf.entries.values()
                    if entry.expires_s > now_s
                    and (wanted is None or entry.dataset in wanted)
                    and (max_age_s is None or now_s - entry.born_s <= max_age_s)
                ]
            if not entries:
                names[i] = names[-1]
                names.pop()
                continue
            k = int(rng.integers(len(entries)))
            entries[k], entries[-1] = entries[-1], entries[k]
            yield entries.pop()
            count -= 1

    def _add(self, entry: Entry) -> None:
        self._by_id[entry.group_id] = self._by_seq[entry.seq] = entry
        shelf = self._shelves.setdefault(entry.publisher, _Shelf())
        shelf.entries[entry.seq] = entry
        shelf.size_bytes += entry.size_bytes
        self._size_bytes += entry.size_bytes
        self._order.append(entry.seq)
        heapq.heappush(self._by_expiry, (entry.expires_s, entry.seq))

    def _trim(self, publisher: str) -> list[Eviction]:
        evicted: list[Eviction] = []
        shelf = self._shelves[publisher]
        limits = self._limits
        while len(shelf.entries) > limits.publisher_max_groups or shelf.size_bytes > limits.publisher_max_bytes:
            entry = next(iter(shelf.entries.values()))
            self.remove(entry)
            evicted.append((entry, EvictionReason.PUBLISHER))
        return evicted

    def _trim_total(self) -> list[Eviction]:
        oldest: list[Entry] = []
        groups, size_bytes = len(self), self._size_bytes
        for entry in self:
            if groups <= self._limits.max_groups and size_bytes <= self._limits.max_bytes:
                break
            oldest.append(entry)
            groups -= 1
            size_bytes -= entry.size_bytes
        for entry in oldest:
            self.remove(entry)
        return [(entry, EvictionReason.OLDEST) for entry in oldest]
