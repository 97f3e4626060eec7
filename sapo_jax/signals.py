"""Stopping politely: the first SIGINT or SIGTERM asks, the second one insists."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType


class Stopped(Exception):
    """A stop was requested in work that is better discarded than finished."""


class StopRequest:
    """True once a signal has asked the run to stop. Install it once, in the main thread."""

    def __init__(self, announce: Callable[[str], None] = print) -> None:
        self._requested = False
        self._announce = announce

    def __bool__(self) -> bool:
        return self._requested

    def install(self) -> None:
        """Handles SIGINT and SIGTERM from now on; a second signal ends the process at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def check(self) -> None:
        """Raises Stopped if a stop was requested."""
        if self._requested:
            raise Stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._requested = True
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_DFL)
        name = signal.Signals(number).name
        self._announce(f"{name}: finishing the round, then saving; once more ends at once without saving")
