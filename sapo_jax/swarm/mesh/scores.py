"""What this host thinks of others, by node id: points that fade, and bans.

A score is this host's own opinion. It is never sent to anybody, never believed from anybody, and
half forgotten every ten minutes, so that nobody is judged for ever by one bad hour. The idea is
that of gossipsub 1.1: useful deliveries raise a score slowly and up to a cap, invalid items lower
it by the square of their number.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sapo_jax.types import RejectionReason

HALF_LIFE_S = 600.0
USEFUL_CAP = 10.0  # a long good record buys no more than three bad items
RELAY_BELOW = -10.0  # groups of lower scores are not relayed
SAMPLE_BELOW = -50.0  # lower scores are neither asked nor told about
BAN_BELOW = -80.0
BAN_S = 3600.0
MAX_SCORED = 4096  # ids remembered; a stranger with many keys must not fill the memory

# How much of an invalid item a rejection is. What an honest node may cause is nothing or little: its
# catalog may be another one, and a budget may be exceeded because this machine is busy.
REJECTION_WEIGHTS: dict[RejectionReason, float] = {
    RejectionReason.REFUSED_DATASET: 0.0,
    RejectionReason.UNKNOWN_TASK: 0.0,
    RejectionReason.GENERATION_FAILED: 0.25,
    RejectionReason.HELD_OUT: 0.25,
    RejectionReason.GROUP_SIZE: 1.0,
    RejectionReason.COMPLETION_SIZE: 1.0,
    RejectionReason.BAD_SCORE: 0.5,
    RejectionReason.SCORER_FAILED: 0.5,
    RejectionReason.TIMEOUT: 0.5,
    RejectionReason.WORKER_DIED: 0.5,
}


@dataclass(kw_only=True, slots=True)
class _Entry:
    useful: float = 0.0
    invalid: float = 0.0
    updated_s: float = 0.0
    banned_until_s: float = -math.inf


class Scores:
    """Owns the scores and bans of all ids this host has an opinion on; thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Starts without opinions; `clock` is monotonic, in seconds."""
        self._clock = clock
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}

    def useful(self, node_id: str, points: float = 1.0) -> None:
        """Credits a useful delivery."""
        with self._lock:
            entry = self._faded(node_id)
            entry.useful = min(USEFUL_CAP, entry.useful + points)

    def invalid(self, node_id: str, weight: float = 1.0) -> None:
        """Debits an invalid item; bans the id once its score is below `BAN_BELOW`."""
        if weight <= 0:
            return
        with self._lock:
            entry = self._faded(node_id)
            entry.invalid += weight
            if _value(entry) < BAN_BELOW:
                entry.banned_until_s = max(entry.banned_until_s, self._clock() + BAN_S)

    def score(self, node_id: str) -> float:
        """Returns the score of an id as of now; 0 for a stranger."""
        entry = self._entries.get(node_id)
        if entry is None:
            return 0.0
        share = 0.5 ** (max(0.0, self._clock() - entry.updated_s) / HALF_LIFE_S)
        return _value(_Entry(useful=entry.useful * share, invalid=entry.invalid * share))

    def may_relay(self, node_id: str) -> bool:
        """Returns whether groups of this publisher are worth passing on."""
        return not self.is_banned(node_id) and self.score(node_id) >= RELAY_BELOW

    def may_sample(self, node_id: str) -> bool:
        """Returns whether this peer is worth asking and telling others about."""
        return not self.is_banned(node_id) and self.score(node_id) >= SAMPLE_BELOW

    def is_banned(self, node_id: str) -> bool:
        """Returns whether nothing of this id is accepted now."""
        entry = self._entries.get(node_id)
        return entry is not None and self._clock() < entry.banned_until_s

    def ban(self, node_id: str, duration_s: float = BAN_S) -> None:
        """Bans an id for `duration_s` seconds from now, or longer if it is banned for longer already."""
        with self._lock:
            entry = self._faded(node_id)
            entry.banned_until_s = max(entry.banned_until_s, self._clock() + duration_s)

    def unban(self, node_id: str) -> bool:
        """Lifts a ban and forgets the score that led to it; returns whether the id was banned."""
        with self._lock:
            was_banned = self.is_banned(node_id)
            self._entries.pop(node_id, None)
            return was_banned

    def banned(self) -> dict[str, float]:
        """Returns the banned ids with the seconds that remain."""
        now = self._clock()
        with self._lock:
            entries = list(self._entries.items())
        return {key: entry.banned_until_s - now for key, entry in entries if now < entry.banned_until_s}

    def _faded(self, node_id: str) -> _Entry:
        """Returns the entry of an id with its points faded to now, made if it is new."""
        now = self._clock()
        entry = self._entries.get(node_id)
        if entry is None:
            if len(self._entries) >= MAX_SCORED:
                self._forget_one(now)
            entry = self._entries[node_id] = _Entry(updated_s=now)
        share = 0.5 ** (max(0.0, now - entry.updated_s) / HALF_LIFE_S)
        entry.useful *= share
        entry.invalid *= share
        entry.updated_s = now
        return entry

    def _forget_one(self, now: float) -> None:
        # Banned ids stay while any other can go, else an attacker would buy a pardon with fresh keys.
        oldest = min(
            self._entries, key=lambda key: (now < self._entries[key].banned_until_s, self._entries[key].updated_s)
        )
        del self._entries[oldest]


def _value(entry: _Entry) -> float:
    return entry.useful - entry.invalid**2
