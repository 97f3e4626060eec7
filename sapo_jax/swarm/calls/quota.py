"""Budgets: how fast one publisher, and one part of the network, may make us work.

Buckets refill steadily and hold a burst. A caller's address prefix pays for every group before
anything is checked, so that nonsense is not free; the publisher pays once its signature holds and
the group is new, so that nobody can spend another's budget by replaying old groups. All tables are
bounded, whatever the number of keys that strangers make up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sapo_jax.swarm.wire.limits import KIB, MIB

MAX_KEYS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaLimits:
    """Rates and bursts of one publisher, and what an address prefix may do of it.

    Rates are per second and positive. A prefix gets `prefix_factor` times the budget of one
    publisher: several honest nodes share a network, a thousand keys of one machine do too.
    """

    groups_per_s: float = 4.0
    burst_groups: float = 64.0
    bytes_per_s: float = 1.0 * MIB
    burst_bytes: float = 8.0 * MIB
    prefix_factor: float = 4.0
    calls_per_s: float = 64.0  # of one prefix, of any kind
    burst_calls: float = 256.0
    soft_group_bytes: int = 256 * KIB  # a larger group counts twice

    def __post_init__(self) -> None:
        for name in (
            "groups_per_s",
            "burst_groups",
            "bytes_per_s",
            "burst_bytes",
            "prefix_factor",
            "calls_per_s",
            "burst_calls",
            "soft_group_bytes",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"quota {name} = {getattr(self, name)} must be positive")


OPEN_QUOTAS = QuotaLimits()

# Members hold the invite, a fast host makes 25 groups a second and node, and the processes of one
# machine share a prefix: these only stop a process that has gone mad.
CLOSED_QUOTAS = QuotaLimits(
    groups_per_s=200.0,
    burst_groups=2_048.0,
    bytes_per_s=16.0 * MIB,
    burst_bytes=128.0 * MIB,
    prefix_factor=64.0,
    calls_per_s=20_000.0,
    burst_calls=40_000.0,
)


class BucketTable:
    """Owns one token bucket per key, all with the same rate and burst.

    A key that is not in the table has a full bucket. When the table is full, the key that was used
    longest ago is forgotten, which can only refill its bucket.
    """

    def __init__(self, *, per_s: float, burst: float, clock: Callable[[], float], max_keys: int = MAX_KEYS) -> None:
        """Takes the refill rate per second, what a bucket holds, and a clock in seconds that never goes back."""
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._max_keys = max_keys
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> level, time of it

    def __len__(self) -> int:
        return len(self._levels)

    def wait_s(self, key: str, amount: float) -> float:
        """Returns in how many seconds `amount` can be taken; 0.0: now. Takes nothing.

        More than a burst is granted to a full bucket, which then has to recover from below zero.
        """
        missing = min(amount, self._burst) - self._level(key)
        return max(0.0, missing / self._per_s)

    def take(self, key: str, amount: float) -> None:
        """Takes `amount`; ask `wait_s` first."""
        self._levels[key] = (self._level(key) - amount, self._clock())
        self._levels.move_to_end(key)
        if len(self._levels) > self._max_keys:
            self._levels.popitem(last=False)

    def _level(self, key: str) -> float:
        known = self._levels.get(key)
        if known is None:
            return self._burst
        level, since_s = known
        return min(self._burst, level + (self._clock() - since_s) * self._per_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaRefusal:
    """A budget that is spent.

    Attributes:
        limit: which one, with its value.
        retry_after_s: when it will do.
    """

    limit: str
    retry_after_s: float


class Quotas:
    """Owns the buckets of callers and publishers. Not thread-safe: the server's loop is the only user."""

    def __init__(self, limits: QuotaLimits, *, clock: Callable[[], float]) -> None:
        """Starts with full buckets; `clock` gives seconds and never goes back."""
        self._limits = limits
        scale = limits.prefix_factor

        def table(per_s: float, burst: float) -> BucketTable:
            return BucketTable(per_s=per_s, burst=burst, clock=clock)

        self._calls = table(limits.calls_per_s, limits.burst_calls)
        self._groups = table(limits.groups_per_s, limits.burst_groups)
        self._bytes = table(limits.bytes_per_s, limits.burst_bytes)
        self._prefix_groups = table(limits.groups_per_s * scale, limits.burst_groups * scale)
        self._prefix_bytes = table(limits.bytes_per_s * scale, limits.burst_bytes * scale)

    def admit_call(self, prefix: str) -> QuotaRefusal | None:
        """Charges one call to an address prefix, or says why not."""
        wait_s = self._calls.wait_s(prefix, 1.0)
        if wait_s > 0:
            return QuotaRefusal(
                limit=f"calls of one address prefix, {self._limits.calls_per_s:.10g}/s", retry_after_s=wait_s
            )
        self._calls.take(prefix, 1.0)
        return None

    def admit_sent(self, prefix: str, size_bytes: int) -> QuotaRefusal | None:
        """Charges one group that has arrived, whatever it holds, to the caller's prefix, or says why not."""
        scale = self._limits.prefix_factor
        return self._charge(prefix, size_bytes, self._prefix_groups, self._prefix_bytes, "of one address prefix", scale)

    def admit_group(self, publisher: str, size_bytes: int) -> QuotaRefusal | None:
        """Charges one new group to the node that signed it, or says why not."""
        return self._charge(publisher, size_bytes, self._groups, self._bytes, "of one publisher", 1.0)

    def _charge(
        self, key: str, size_bytes: int, groups: BucketTable, amounts: BucketTable, whose: str, scale: float
    ) -> QuotaRefusal | None:
        weight = 2.0 if size_bytes > self._limits.soft_group_bytes else 1.0
        groups_wait_s = groups.wait_s(key, weight)
        bytes_wait_s = amounts.wait_s(key, weight * size_bytes)
        if groups_wait_s == 0.0 and bytes_wait_s == 0.0:
            groups.take(key, weight)
            amounts.take(key, weight * size_bytes)
            return None
        if groups_wait_s >= bytes_wait_s:
            return QuotaRefusal(
                limit=f"groups {whose}, {self._limits.groups_per_s * scale:.10g}/s", retry_after_s=groups_wait_s
            )
        return QuotaRefusal(
            limit=f"bytes {whose}, {self._limits.bytes_per_s * scale:.10g}/s", retry_after_s=bytes_wait_s
        )
