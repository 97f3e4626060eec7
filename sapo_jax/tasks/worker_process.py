"""The parent's side of one scorer process: start, frames both ways, CPU time, end.

Started as a program of its own, never forked and never through multiprocessing, which would load
the main module, and with it jax, once more.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sapo_jax.tasks.confinement import EXIT_FORBIDDEN
from sapo_jax.tasks.frames import FrameDecoder, FrameError, encode
from sapo_jax.tasks.specialty import Specialty

# The library's import takes seconds, minutes on a loaded machine with cold caches.
START_LIMIT_S = 120.0

_PROGRAM = ("-m", "sapo_jax.tasks.worker")

# What an interpreter and its libraries need to find their files; nothing else is passed on.
_PASSED_ON = (
    "DYLD_LIBRARY_PATH",
    "HOME",
    "LD_LIBRARY_PATH",
    "MPLCONFIGDIR",
    "PYTHONHOME",
    "TMPDIR",
    "XDG_CACHE_HOME",
)
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # some questions depend on it
    # A worker's work has one thread; those of the libraries would only take address space.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class WorkerDiedError(RuntimeError):
    """The process ended or sent what no worker sends; the message says which."""


class WorkerProcess:
    """One scorer process; not thread-safe. On Linux it dies with the thread that made it."""

    def __init__(self, specialties: Sequence[Specialty], completion_budget_s: float, group_budget_s: float):
        """Starts the process, which is of use once `wait_ready` has returned.

        Raises:
            OSError: the system starts no process.
        """
        self._unsent = memoryview(
            encode(
                {
                    "specialties": [{"name": s.name, "dataset": s.dataset, "config": s.config} for s in specialties],
                    "completion_budget_s": completion_budget_s,
                    "group_budget_s": group_budget_s,
                }
            )
        )
        self._decoder = FrameDecoder()
        self._log = tempfile.TemporaryFile()  # not a pipe, which could fill and stop the worker
        self._socket, theirs = socket.socketpair()
        self._began_s = time.monotonic()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", *_PROGRAM, str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                env=_environment(),
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the parent, which may finish its round
            )
        except BaseException:
            self._socket.close()
            self._log.close()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Returns the descriptor to poll."""
        return self._socket.fileno()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def wants_to_send(self) -> bool:
        """Whether bytes wait until the process reads."""
        return bool(self._unsent)

    def cpu_s(self) -> float:
        """Returns the CPU time the process has used; where the system does not tell, the time since its start."""
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                # The kernel's number of the CPU clock of another process (clock_getcpuclockid).
                return time.clock_gettime(~self._process.pid << 3 | 2)
        return time.monotonic() - self._began_s

    def wait_ready(self, limit_s: float = START_LIMIT_S) -> None:
        """Returns when the process can judge.

        Raises:
            WorkerDiedError: it ended, or took longer than `limit_s`; with the last line it printed.
        """
        poll = select.poll()
        end_s = time.monotonic() + limit_s
        while (rest_s := end_s - time.monotonic()) > 0:
            self.send()
            poll.register(self, select.POLLIN | (select.POLLOUT if self.wants_to_send else 0))
            poll.poll(rest_s * 1000)
            for message in self.receive():
                if message == {"ready": True}:
                    self._log.close()
                    return
                raise WorkerDiedError("it sent something else than that it is ready")
        raise WorkerDiedError(f"it was not ready within {limit_s:g} s")

    def send(self, data: bytes = b"") -> None:
        """Sends what the process takes now of `data`; give more only when `wants_to_send` is False.

        Raises:
            WorkerDiedError: the process ended.
        """
        if data:
            self._unsent = memoryview(data)
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            raise WorkerDiedError(self._last_words()) from error

    def receive(self) -> Iterator[Any]:
        """Yields the messages that have arrived, without waiting.

        Raises:
            WorkerDiedError: the process ended, or sent what is no frame.
        """
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                raise WorkerDiedError(self._last_words()) from error
            if not data:
                raise WorkerDiedError(self._last_words())
            try:
                yield from self._decoder.feed(data)
            except FrameError as error:
                raise WorkerDiedError(f"it sent nonsense: {error}") from error

    def end(self) -> None:
        """Ends the process, whatever it does; any thread may call it."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its own session, hence its own group

    def kill(self) -> None:
        """Ends the process and frees what belongs to it; calling it again is allowed."""
        self.end()
        self._process.wait()
        self._socket.close()
        self._log.close()

    def _last_words(self) -> str:
        """Returns how the process ended, with the last line that it printed while it started."""
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        how = f"it ended with signal {-code}" if code < 0 else f"it ended with exit code {code}"
        if code == EXIT_FORBIDDEN:
            how = "it tried to write a file, open a socket or start a process"
        lines: list[str] = []
        if not self._log.closed:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").split("\n")
        line = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}: {line:.300}" if line else how


def _environment() -> Mapping[str, str]:
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _ENVIRONMENT | {"PYTHONPATH": path}
