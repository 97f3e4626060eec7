"""A training loop of a library, taken one step at a time.

Libraries own their loop and call us back. The benchmark times single steps. So the loop runs in a thread of its own
that waits wherever one step ends and the next begins; only one of the two threads ever runs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Steps:
    """Runs `loop(pause)` up to its first `pause()`; each `step()` then lets it run to the next."""

    def __init__(self, loop: Callable[[Callable[[], None]], None]) -> None:
        """Starts the loop and returns when it pauses first; raises what the loop raises before that."""
        self._resume: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._paused: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(loop,), daemon=True).start()
        self._wait()

    def step(self) -> None:
        """Lets the loop run to its next pause; raises what it raises, RuntimeError if it ends instead."""
        self._resume.put(None)
        self._wait()

    def _run(self, loop: Callable[[Callable[[], None]], None]) -> None:
        def pause() -> None:
            self._paused.put(None)
            self._resume.get()

        try:
            loop(pause)
        except BaseException as error:
            self._paused.put(error)
        else:
            self._paused.put(RuntimeError("the training loop ended by itself"))

    def _wait(self) -> None:
        error = self._paused.get()
        if error is not None:
            raise error
