"""An asyncio loop in a thread of its own, so that the network never runs on the training thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class LoopThread:
    """Owns the loop and its thread."""

    def __init__(self, name: str) -> None:
        """Starts the thread; it does not keep the process alive."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T], timeout_s: float | None = None) -> _T:
        """Runs a coroutine on the loop and returns its result, for another thread to wait for.

        Raises:
            TimeoutError: it took longer than `timeout_s`; it is canceled.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def call_soon(self, function: Callable[[], None]) -> None:
        """Calls a function on the loop soon; does nothing once the loop has stopped."""
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # closed
            return

    def stop(self, timeout_s: float = 5.0) -> None:
        """Cancels what still runs, stops the loop and joins the thread; twice is allowed."""
        if self._loop.is_closed():
            return
        self.call_soon(self._loop.stop)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()
