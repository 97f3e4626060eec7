"""When an answer is made: one after the other, and now and then the loop takes in what else has come.

Answering keeps the loop busy, and a busy loop takes in one new call for each that it answers. Whoever
offers more than a host can do would then wait unseen in the transport, ever longer, instead of being
told to come back. So after some milliseconds of work the calls that wait outside are let in, to wait
here or to be refused, and nobody who waits here for long is answered late: it is refused in time. So
are requests that are too large for so many to wait.

Time is the loop's CPU time: what makes a call late is the work before it, not a machine that does
something else for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.limits import MIB

WAIT_S = 0.08  # the longest that a call waits for its turn
WORK_S = 0.01  # between two times of letting calls in
LET_IN_S = 0.03  # at most, however many come
QUIET_S = 0.001  # without a new call, after which nobody waits outside; a thread of the transport hands them over
RETRY_AFTER_S = 0.25
MAX_WAITING_BYTES = 16 * MIB  # of the requests that wait


class Turns:
    """Owns the order of the answers of one server. Not thread-safe: its loop is the only user."""

    def __init__(self, *, clock: Callable[[], float] = time.thread_time) -> None:
        """Starts with nobody waiting; `clock` gives CPU seconds of the loop's thread."""
        self._clock = clock
        self._lock = asyncio.Lock()  # lets waiters in in their order
        self._waiting: dict[object, float] = {}  # since when, oldest first
        self._waiting_bytes = 0
        self._arrived = 0
        self._worked_s = 0.0  # since calls were let in

    def arrive(self) -> None:
        """Notes a call that has come in; raises ServiceError(CONCURRENCY) if the wait is long already."""
        self._arrived += 1
        oldest_s = next(iter(self._waiting.values()), None)
        if oldest_s is not None and self._clock() - oldest_s > WAIT_S / 2:
            raise _busy()

    async def take(self, answer: Callable[[], bytes], size_bytes: int) -> bytes:
        """Returns what `answer` does to a request of that size when it is its turn.

        Raises:
            ServiceError: CONCURRENCY with a retry hint, if the turn comes too late, or too much waits.
        """
        if self._waiting and self._waiting_bytes + size_bytes > MAX_WAITING_BYTES:
            raise _busy()
        since_s, key = self._clock(), object()
        self._waiting[key] = since_s
        self._waiting_bytes += size_bytes
        try:
            async with self._lock:
                if self._worked_s >= WORK_S:
                    await self._let_in()
                    self._worked_s = 0.0
                begin_s = self._clock()
                if begin_s - since_s > WAIT_S:
                    raise _busy()
                try:
                    return answer()
                finally:
                    self._worked_s += self._clock() - begin_s
        finally:
            del self._waiting[key]
            self._waiting_bytes -= size_bytes

    async def _let_in(self) -> None:
        """Leaves the loop to calls that come, until none has come for a moment."""
        now_s = quiet_since_s = self._clock()
        end_s = now_s + LET_IN_S
        while now_s < min(end_s, quiet_since_s + QUIET_S):
            arrived = self._arrived
            await asyncio.sleep(0)
            now_s = self._clock()
            if self._arrived != arrived:
                quiet_since_s = now_s


def _busy() -> ServiceError:
    limit = f"requests that wait, {WAIT_S:g} s of work or {MAX_WAITING_BYTES // MIB} MiB"
    return ServiceError(WireReason.CONCURRENCY, "this host is busy", limit=limit, retry_after_s=RETRY_AFTER_S)
