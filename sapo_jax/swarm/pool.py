"""The node's bounded store of other nodes' scored rollouts, from which a round selects.

The pool decides only what is still eligible: how many rollouts are kept, for how many rounds and
for how many uses. Which of the eligible ones are trained on is `selection`'s decision. `Shares`
decides who makes room when too much is kept, here and in a mailbox.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sapo_jax.swarm.codec_json import fields_from_json, scored_from_json, scored_to_json, typed
from sapo_jax.types import Rollout, ScoredRollout, Task, TaskRef

EVICTION_REASONS: tuple[str, ...] = ("age", "uses", "capacity")
# Of all texts in one mailbox or one pool, as UTF-8: 32 KiB for each of the default's 1024 rollouts. A count alone
# would let peers, whose groups may hold 512 KiB each, decide how much memory a node takes and how long training
# stands still while a checkpoint is written.
MAX_TEXT_BYTES = 32 * 2**20


def text_bytes(rollout: Rollout) -> int:
    """Returns the bytes of a rollout's texts as UTF-8."""
    # Any text of a policy can be measured, broken characters too.
    return sum(len(completion.text.encode("utf-8", "surrogatepass")) for completion in rollout.completions)


class Shares:
    """Who has how much of a bounded collection, and what gives way when it is too full.

    The oldest item of the publisher with most goes first, by count where there are too many and by
    bytes where they are too large, so a flood pushes out only itself. What is added costs no look at
    the others; what gives way costs one at each publisher.
    """

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        """Makes the shares of an empty collection, which may hold `max_items` of `max_bytes` in all."""
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: dict[str, deque[tuple[int, int]]] = {}  # of each publisher: number and bytes, in order
        self._bytes: dict[str, int] = {}
        self._count = 0
        self._size_bytes = 0

    def add(self, publisher: str, number: int, size_bytes: int) -> None:
        """Notes an item of a publisher; numbers tell items apart and rise with their arrival."""
        self._items.setdefault(publisher, deque()).append((number, size_bytes))
        self._bytes[publisher] = self._bytes.get(publisher, 0) + size_bytes
        self._count += 1
        self._size_bytes += size_bytes

    def give_way(self) -> set[int]:
        """Forgets what exceeds the bounds and returns the numbers of those items."""
        dropped: set[int] = set()
        while self._count > self._max_items:
            dropped.add(self._pop(self._largest(lambda name: len(self._items[name]))))
        while self._size_bytes > self._max_bytes:
            dropped.add(self._pop(self._largest(lambda name: self._bytes[name])))
        return dropped

    def _largest(self, share: Callable[[str], int]) -> str:
        """Returns the publisher with the largest share; of equal ones, that of the oldest item."""
        return max(self._items, key=lambda name: (share(name), -self._items[name][0][0]))

    def _pop(self, publisher: str) -> int:
        number, size_bytes = self._items[publisher].popleft()
        self._bytes[publisher] -= size_bytes
        if not self._items[publisher]:
            del self._items[publisher], self._bytes[publisher]
        self._count -= 1
        self._size_bytes -= size_bytes
        return number


@dataclass(kw_only=True, slots=True)
class _Entry:
    scored: ScoredRollout
    arrival_round: int  # the receiver's round, not the producer's
    uses: int = 0
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = text_bytes(self.scored.rollout)


class Pool:
    """Scored external rollouts in order of arrival, bounded by count, bytes of text, age and uses.

    Age counts the receiver's own rounds since arrival, because a producer's round number says
    nothing to anybody else. Equal rollouts are kept side by side: dropping repeats would shrink
    the training set below what was asked.
    """

    def __init__(
        self, *, max_rollouts: int, max_age_rounds: int, max_uses: int, max_text_bytes: int = MAX_TEXT_BYTES
    ) -> None:
        """Makes an empty pool.

        Args:
            max_rollouts: how many rollouts are kept; the oldest of the publisher with most of them goes first.
            max_age_rounds: rounds after its arrival in which a rollout is still eligible; 0 means
                only in the round it arrived.
            max_uses: how often one rollout may be trained on.
            max_text_bytes: of all that is kept; beyond, the oldest of the publisher with most bytes goes first.

        Raises:
            ValueError: a bound is too small to ever keep a rollout.
        """
        for name, value, least in (
            ("max_rollouts", max_rollouts, 1),
            ("max_age_rounds", max_age_rounds, 0),
            ("max_uses", max_uses, 1),
            ("max_text_bytes", max_text_bytes, 1),
        ):
            if value < least:
                raise ValueError(f"{name} = {value} must be at least {least}")
        self._max_rollouts = max_rollouts
        self._max_age_rounds = max_age_rounds
        self._max_uses = max_uses
        self._max_text_bytes = max_text_bytes
        self._entries: list[_Entry] = []
        self._evicted = dict.fromkeys(EVICTION_REASONS, 0)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def evicted(self) -> Mapping[str, int]:
        """How many rollouts have left so far, by reason: age, uses, capacity."""
        return dict(self._evicted)

    def add(self, scored: Sequence[ScoredRollout], round: int) -> None:
        """Takes in rollouts that arrived in this node's `round`, evicting what that leaves no room for."""
        self.evict(round)  # first, so that what nobody may use any more never pushes out anything fresh
        # A copy per arrival: mark_used tells rollouts apart by identity.
        self._entries.extend(_Entry(scored=dataclasses.replace(item), arrival_round=round) for item in scored)
        self._keep(self._within_capacity(), "capacity")

    def evict(self, round: int) -> None:
        """Drops what is too old to be eligible in `round`."""
        self._keep([entry for entry in self._entries if self._is_young(entry, round)], "age")

    def candidates(self, round: int) -> list[ScoredRollout]:
        """Returns the rollouts eligible in `round`, in order of arrival; changes nothing."""
        return [entry.scored for entry in self._entries if self._is_young(entry, round)]

    def mark_used(self, used: Sequence[ScoredRollout]) -> None:
        """Counts one use of each of `used`, which must be objects that `candidates` returned.

        They are told apart by identity, since equal rollouts may lie side by side. A rollout that
        reaches its last use leaves the pool.

        Raises:
            ValueError: one of them is not in the pool; nothing is counted then.
        """
        by_identity = {id(entry.scored): entry for entry in self._entries}
        for item in used:
            if id(item) not in by_identity:
                raise ValueError(f"the rollout of node {item.rollout.node_id!r} on {item.task.ref} is not in the pool")
        for item in used:
            by_identity[id(item)].uses += 1
        self._keep([entry for entry in self._entries if entry.uses < self._max_uses], "uses")

    def to_json(self) -> dict[str, Any]:
        """Returns content and counts as JSON-ready data; tasks are left out, their references suffice."""
        return {
            "entries": [
                {
                    "scored": scored_to_json(entry.scored),
                    "arrival_round": entry.arrival_round,
                    "uses": entry.uses,
                }
                for entry in self._entries
            ],
            "evicted": dict(self._evicted),
        }

    def restore_json(self, state: Mapping[str, Any], rebuild_task: Callable[[TaskRef], Task]) -> None:
        """Replaces content and counts with those that `to_json` wrote; the bounds stay this pool's own.

        Scores are restored, not computed again, so a resumed run selects what it would have selected.

        Args:
            state: what `to_json` returned, straight or by way of a JSON file.
            rebuild_task: makes the task of a reference again.

        Raises:
            CodecError: the state is damaged; the pool is then unchanged.
        """
        top = fields_from_json(state, "pool", ("entries", "evicted"))
        entries: list[_Entry] = []
        for i, item in enumerate(typed(top["entries"], list, "pool.entries")):
            path = f"pool.entries[{i}]"
            fields = fields_from_json(item, path, ("scored", "arrival_round", "uses"))
            entries.append(
                _Entry(
                    scored=scored_from_json(fields["scored"], f"{path}.scored", rebuild_task),
                    arrival_round=typed(fields["arrival_round"], int, f"{path}.arrival_round"),
                    uses=typed(fields["uses"], int, f"{path}.uses"),
                )
            )
        counts = fields_from_json(top["evicted"], "pool.evicted", EVICTION_REASONS)
        evicted = {reason: typed(counts[reason], int, f"pool.evicted.{reason}") for reason in EVICTION_REASONS}
        self._entries, self._evicted = entries, evicted

    def _is_young(self, entry: _Entry, round: int) -> bool:
        return round - entry.arrival_round <= self._max_age_rounds

    def _within_capacity(self) -> list[_Entry]:
        """Returns what fits by `Shares`."""
        size_bytes = sum(entry.size_bytes for entry in self._entries)
        if len(self._entries) <= self._max_rollouts and size_bytes <= self._max_text_bytes:
            return self._entries  # as nearly always, and every round asks
        shares = Shares(max_items=self._max_rollouts, max_bytes=self._max_text_bytes)
        for index, entry in enumerate(self._entries):
            shares.add(entry.scored.rollout.node_id, index, entry.size_bytes)
        dropped = shares.give_way()
        return [entry for index, entry in enumerate(self._entries) if index not in dropped]

    def _keep(self, kept: list[_Entry], reason: str) -> None:
        self._evicted[reason] += len(self._entries) - len(kept)
        self._entries = kept
