"""How many calls are in progress, by whom, and who has to give way when all places are taken.

Our handlers answer at once, so whatever occupies a place for long waits for its caller: a body that
trickles in, an answer nobody reads. When places run out, the oldest of those is ended rather than a
newcomer refused; a fast caller is thus never held up by slow ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.limits import CallLimits

RETRY_AFTER_S = 0.25  # a full server is asked again after this; its calls take milliseconds


@dataclass(frozen=True, eq=False, slots=True)
class Slot:
    """A place that one call occupies."""

    connection: str
    prefix: str
    since_s: float
    end: Callable[[], None]


class CallSlots:
    """Owns the places of one server. Not thread-safe: its loop is the only user.

    gRPC does not show us connections, so `max_connections_per_prefix` counts those with a call in
    progress; idle ones are bounded in number and age by the transport.
    """

    def __init__(self, limits: CallLimits, *, patience_s: float, clock: Callable[[], float]) -> None:
        """A call in progress for longer than `patience_s` gives way to a newcomer when places run out."""
        self._limits = limits
        self._patience_s = patience_s
        self._clock = clock
        self._slots: dict[Slot, None] = {}  # in order of entry
        self._per_connection: Counter[str] = Counter()
        self._connections: dict[str, Counter[str]] = {}  # prefix -> connection -> calls

    def __len__(self) -> int:
        return len(self._slots)

    def enter(self, connection: str, prefix: str, end: Callable[[], None]) -> Slot:
        """Takes a place for a call.

        Args:
            connection: names the caller's connection, such as its address with port.
            prefix: the network it counts to.
            end: ends the call, should it have to give way; its place is free from then on.

        Raises:
            ServiceError: CONCURRENCY, with the limit and a retry hint.
        """
        limits = self._limits
        if self._per_connection[connection] >= limits.max_calls_per_peer:
            raise _too_many(f"calls of one connection at a time, {limits.max_calls_per_peer}")
        connections = self._connections.get(prefix)
        if (
            connections is not None
            and connection not in connections
            and len(connections) >= limits.max_connections_per_prefix
        ):
            raise _too_many(f"busy connections of one address prefix, {limits.max_connections_per_prefix}")
        if len(self._slots) >= limits.max_calls:
            oldest = next(iter(self._slots))
            if self._clock() - oldest.since_s < self._patience_s:
                raise _too_many(f"calls at a time, {limits.max_calls}")
            self.leave(oldest)
            oldest.end()
        slot = Slot(connection, prefix, self._clock(), end)
        self._slots[slot] = None
        self._per_connection[connection] += 1
        self._connections.setdefault(prefix, Counter())[connection] += 1
        return slot

    def leave(self, slot: Slot) -> None:
        """Frees the place; once more does nothing."""
        if slot not in self._slots:
            return
        del self._slots[slot]
        _decrease(self._per_connection, slot.connection)
        connections = self._connections[slot.prefix]
        _decrease(connections, slot.connection)
        if not connections:
            del self._connections[slot.prefix]


def _too_many(limit: str) -> ServiceError:
    return ServiceError(WireReason.CONCURRENCY, f"too many {limit}", limit=limit, retry_after_s=RETRY_AFTER_S)


def _decrease(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]
