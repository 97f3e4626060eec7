"""Stopping politely: the first SIGINT or SIGTERM asks, the second one insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A stop was requested in work that is better discarded than finished."""


class StopRequest:
    """True once a signal has asked the run to stop.

    A context manager for the main thread: it handles SIGINT and SIGTERM inside the block and puts
    the earlier handlers back at its end. The second signal ends the process at once.
    """

    def __init__(self, announce: Callable[[str], None] = print) -> None:
        """`announce` is told, in a thread of its own, that a stop was requested."""
        self._requested = False
        self._announce = announce
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self._requested

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def request(self) -> None:
        """Asks to stop, as a signal would; any thread may call."""
        self._requested = True

    def check(self) -> None:
        """Raises Stopped if a stop was requested."""
        if self._requested:
            raise Stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._requested = True
        for again in _SIGNALS:
            signal.signal(again, signal.SIG_DFL)
        message = f"{signal.Signals(number).name}: finishing the round, then saving; once more ends without saving"
        # The handler interrupts the main thread anywhere, also where that holds the display's locks.
        threading.Thread(target=self._announce, args=(message,), daemon=True).start()
