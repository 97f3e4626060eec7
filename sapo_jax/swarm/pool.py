"""The node's bounded store of other nodes' scored rollouts, from which a round selects.

The pool decides only what is still eligible: how many rollouts are kept, for how many rounds and
for how many uses. Which of the eligible ones are trained on is `selection`'s decision.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapo_jax.swarm.codec_json import fields_from_json, scored_from_json, scored_to_json, typed
from sapo_jax.types import ScoredRollout, Task, TaskRef

EVICTION_REASONS: tuple[str, ...] = ("age", "uses", "capacity")


@dataclass(kw_only=True, slots=True)
class _Entry:
    scored: ScoredRollout
    arrival_round: int  # the receiver's round, not the producer's
    uses: int = 0


class Pool:
    """Scored external rollouts in order of arrival, bounded by count, age and uses.

    Age counts the receiver's own rounds since arrival, because a producer's round number says
    nothing to anybody else. Equal rollouts are kept side by side: dropping repeats would shrink
    the training set below what was asked.
    """

    def __init__(self, *, max_rollouts: int, max_age_rounds: int, max_uses: int) -> None:
        """Makes an empty pool.

        Args:
            max_rollouts: how many rollouts are kept; the oldest of the publisher with most of them goes first.
            max_age_rounds: rounds after its arrival in which a rollout is still eligible; 0 means
                only in the round it arrived.
            max_uses: how often one rollout may be trained on.

        Raises:
            ValueError: a bound is too small to ever keep a rollout.
        """
        for name, value, least in (
            ("max_rollouts", max_rollouts, 1),
            ("max_age_rounds", max_age_rounds, 0),
            ("max_uses", max_uses, 1),
        ):
            if value < least:
                raise ValueError(f"{name} = {value} must be at least {least}")
        self._max_rollouts = max_rollouts
        self._max_age_rounds = max_age_rounds
        self._max_uses = max_uses
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
        """Returns what fits; publishers with many rollouts make room, so a flood pushes out only itself."""
        excess = len(self._entries) - self._max_rollouts
        if excess <= 0:
            return self._entries
        by_publisher: dict[str, deque[int]] = {}
        for index, entry in enumerate(self._entries):
            by_publisher.setdefault(entry.scored.rollout.node_id, deque()).append(index)
        dropped: set[int] = set()
        for _ in range(excess):
            largest = max(by_publisher.values(), key=lambda places: (len(places), -places[0] if places else 0))
            dropped.add(largest.popleft())
        return [entry for index, entry in enumerate(self._entries) if index not in dropped]

    def _keep(self, kept: list[_Entry], reason: str) -> None:
        self._evicted[reason] += len(self._entries) - len(kept)
        self._entries = kept
