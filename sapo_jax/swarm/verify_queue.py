"""Which foreign group is verified next: publishers take turns by the time their groups cost.

A publisher whose groups are dear to score waits until the others have had as much time, so a few
hostile groups delay their own publisher only. The queue holds references, no texts, and is bounded in
groups and in their bytes: when it is full, the oldest groups of whoever has most waiting give way.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

MAX_REMEMBERED = 1024  # publishers without waiting groups whose cost is still remembered


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingGroup:
    """A stored group that is to be verified; `seq` is its place in the store."""

    seq: int
    group_id: bytes
    publisher: str
    size_bytes: int


class VerifyQueue:
    """Owns the waiting groups and what each publisher has cost. Not thread-safe."""

    def __init__(self, *, max_groups: int, max_bytes: int, clock: Callable[[], float]) -> None:
        """Makes an empty queue for at most `max_groups` of `max_bytes`; `clock` is monotonic, in seconds."""
        self._max_groups = max_groups
        self._max_bytes = max_bytes
        self._clock = clock
        self._waiting: dict[str, deque[WaitingGroup]] = {}
        self._waiting_bytes: Counter[str] = Counter()
        # Seconds that each publisher has cost, raised to the others' when it comes back after a rest.
        self._cost_s: OrderedDict[str, float] = OrderedDict()
        self._paused_until_s: dict[str, float] = {}
        self._groups = 0
        self._size_bytes = 0

    def __len__(self) -> int:
        return self._groups

    @property
    def size_bytes(self) -> int:
        """Bytes of the waiting groups as stored."""
        return self._size_bytes

    def add(self, group: WaitingGroup) -> list[WaitingGroup]:
        """Appends a group; returns those that had to give way."""
        if group.publisher not in self._waiting:
            floor_s = min((self._cost_s[name] for name in self._waiting), default=0.0)
            self._cost_s[group.publisher] = max(floor_s, self._cost_s.get(group.publisher, 0.0))
            self._waiting[group.publisher] = deque()
            self._cost_s.move_to_end(group.publisher)
            self._forget_idle()
        self._waiting[group.publisher].append(group)
        self._groups += 1
        self._size_bytes += group.size_bytes
        self._waiting_bytes[group.publisher] += group.size_bytes
        dropped: list[WaitingGroup] = []
        while self._groups > self._max_groups:
            dropped.append(self._pop(max(self._waiting, key=lambda name: len(self._waiting[name]))))
        while self._size_bytes > self._max_bytes:
            dropped.append(self._pop(max(self._waiting_bytes, key=lambda name: self._waiting_bytes[name])))
        return dropped

    def next(self, is_affordable: Callable[[str], bool] = lambda publisher: True) -> WaitingGroup | None:
        """Takes the oldest group of the publisher that has cost least.

        None if nothing waits, or only of publishers that are paused or not affordable now.
        """
        now = self._clock()
        names = [name for name in self._waiting if self._paused_until_s.get(name, now) <= now and is_affordable(name)]
        if not names:
            return None
        return self._pop(min(names, key=lambda name: self._cost_s[name]))

    def charge(self, publisher: str, busy_s: float) -> None:
        """Notes what the verification of one group cost."""
        self._cost_s[publisher] = self._cost_s.get(publisher, 0.0) + busy_s
        self._cost_s.move_to_end(publisher)
        self._forget_idle()

    def pause(self, publisher: str, seconds: float) -> None:
        """Verifies nothing more of a publisher for a while."""
        now = self._clock()
        self._paused_until_s = {name: until for name, until in self._paused_until_s.items() if until > now}
        self._paused_until_s[publisher] = now + seconds

    def clear(self) -> None:
        """Forgets all waiting groups; costs and pauses stay."""
        self._waiting.clear()
        self._waiting_bytes.clear()
        self._groups = self._size_bytes = 0

    def _forget_idle(self) -> None:
        while len(self._cost_s) - len(self._waiting) > MAX_REMEMBERED:
            del self._cost_s[next(name for name in self._cost_s if name not in self._waiting)]

    def _pop(self, publisher: str) -> WaitingGroup:
        queue = self._waiting[publisher]
        group = queue.popleft()
        self._waiting_bytes[publisher] -= group.size_bytes
        if not queue:
            del self._waiting[publisher], self._waiting_bytes[publisher]
        self._groups -= 1
        self._size_bytes -= group.size_bytes
        return group
