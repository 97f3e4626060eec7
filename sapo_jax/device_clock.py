"""How long dispatched programs were pending, measured on the host.

A device program is pending from the call that dispatches it until its results are ready. While one
is, the devices have something to do or wait for each other; while none is, they wait for the host.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


class DeviceClock:
    """Adds up the time in which at least one of the programs it is told of was pending.

    Two moments bound a span. It begins just before the dispatching call, so tracing and compiling
    count as pending when a shape is new. It ends when a thread that waits for the results wakes
    up; while Python is busy elsewhere that may be some milliseconds late (the interpreter's switch
    interval is 5 ms), and waiting for the host is then understated by as much.

    Not measured: whether the devices are busy in a span (a program that waits for memory or for
    another device is pending, too), copies to and from the devices, and programs it is not told of.
    On a CPU host and devices share the cores, so pending says nothing about who uses them.
    """

    def __init__(self) -> None:
        """Starts at zero."""
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="device-clock")  # ends with this object
        self._spans: list[tuple[float, Future[float]]] = []  # beginnings and ends, in order of dispatch
        self._busy_s = 0.0  # in spans that are added up already, and the end of the last of them
        self._until_s = 0.0

    def watch(self, began_s: float, results: Any) -> None:
        """Takes note of a program that was dispatched at `began_s` on `time.perf_counter`; returns at once.

        Args:
            began_s: no earlier than that of the program before.
            results: arrays that the program makes and that no later program is given to overwrite.
        """
        self._spans.append((began_s, self._watcher.submit(_when_ready, results)))

    def busy_s(self) -> float:
        """Returns the seconds in which a program was pending so far; waits for those that still are."""
        for began_s, end in self._spans:
            end_s = end.result()
            # Spans overlap where programs are dispatched ahead; what is common to them counts once.
            self._busy_s += max(0.0, end_s - max(began_s, self._until_s))
            self._until_s = max(self._until_s, end_s)
        self._spans.clear()
        return self._busy_s


def _when_ready(results: Any) -> float:
    """Returns the time when `results` are ready, or when the program has failed: whoever reads them is told."""
    try:
        jax.block_until_ready(results)
    except Exception:  # noqa: BLE001 (jax raises every kind, and this thread only looks at the time)
        pass
    return time.perf_counter()
