"""The time a store counts in: seconds that pass for its groups, whatever the wall clock says.

Inside a process it is a clock that never jumps. Across restarts of the process it is the same one,
as long as the machine was not started anew: such a clock counts from the machine's start, and the
start has a name. Only across a start of the machine does the wall clock decide how long the store
was away, and then it can add time but never take any back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """Where a store reads the time from.

    Attributes:
        wall: seconds since 1970; may jump either way.
        monotonic: seconds since the machine's start, time asleep included; never jumps.
        boot: names the machine's start that `monotonic` counts from; empty if that is not known.
    """

    wall: Callable[[], float]
    monotonic: Callable[[], float]
    boot: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """One moment on all clocks, kept in the file so that the next process can go on counting."""

    store_s: float
    wall_s: float
    monotonic_s: float
    boot: str


class StoreClock:
    """Counts the seconds of one store, going on from the anchor its last process left."""

    def __init__(self, clock: Clock, anchor: Anchor | None) -> None:
        """Starts at 0 without an anchor, else at the anchor plus the time that passed since."""
        self._clock = clock
        self._offset_s = -clock.monotonic()
        if anchor is not None:
            self._offset_s += anchor.store_s + _away_s(clock, anchor)

    def now(self) -> float:
        """Returns the seconds that have passed for this store; never less than before."""
        return self._clock.monotonic() + self._offset_s

    def anchor(self) -> Anchor:
        """Returns this moment, to be kept in the file."""
        monotonic_s = self._clock.monotonic()
        return Anchor(
            store_s=monotonic_s + self._offset_s,
            wall_s=self._clock.wall(),
            monotonic_s=monotonic_s,
            boot=self._clock.boot,
        )


def system_clock() -> Clock:
    """Returns the clocks of this machine."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        boot = ""
    # The usual monotonic clock of Linux stands still while the machine sleeps; groups age meanwhile.
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    monotonic = time.monotonic if boottime is None else lambda: time.clock_gettime(boottime)
    return Clock(wall=time.time, monotonic=monotonic, boot=boot)


def _away_s(clock: Clock, anchor: Anchor) -> float:
    """Returns the seconds between the anchor and now, never negative."""
    if clock.boot and clock.boot == anchor.boot:
        return max(0.0, clock.monotonic() - anchor.monotonic_s)
    return max(0.0, clock.wall() - anchor.wall_s)
