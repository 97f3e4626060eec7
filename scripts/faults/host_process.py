"""Starts, kills and stops hosts as processes, each in its own directory on a port of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sapo_jax.metrics import MetricsError, Record, read_metrics
from sapo_jax.swarm.mesh.joining import INVITE_FILE, SWARM_DIRECTORY, SWARM_ID_FILE
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.workdir import METRICS_FILE
from scripts.faults.figures import ROOT

LIGHT_HOST = "scripts.faults.light_host"
NODE = "node-0"  # the only node of each host
READY_FILE = "ready"  # in which a light host writes its process id before its first round
STOP_S = 60.0


class HostProcess:
    """One host that may be started many times."""

    def __init__(self, workdir: Path, module: str, **options: object) -> None:
        """Makes the directory and picks a port; nothing runs yet.

        Args:
            workdir: of the host; must not be there yet.
            module: what Python is to run.
            options: flags of the command, besides its work directory and its address; None: not given.
        """
        self.workdir = workdir
        self.failures = 0  # processes that ended although nobody asked them to
        self.kills = 0
        self.starts = 0
        self._module = module
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._is_asked = False
        workdir.mkdir(parents=True)
        self.address = f"127.0.0.1:{free_port()}"  # where it listens

    @property
    def directory(self) -> Path:
        """Where its swarm files lie."""
        return self.workdir / SWARM_DIRECTORY

    @property
    def invite(self) -> Path:
        """The invite it writes."""
        return self.directory / INVITE_FILE

    @property
    def swarm_id(self) -> str:
        """The swarm it belongs to, once it has started."""
        return (self.directory / SWARM_ID_FILE).read_text().strip()

    @property
    def node_id(self) -> str:
        """The id of its node, once it has started."""
        return Identity.load_or_create(self.directory / f"{NODE}.key").node_id

    @property
    def pid(self) -> int | None:
        """The id of its process, None if there is none."""
        return None if self._process is None else self._process.pid

    @property
    def rounds(self) -> list[Record]:
        """What its first node logged of its rounds, in the order of the file; empty while there is no file."""
        try:
            records = read_metrics(self.workdir / METRICS_FILE)
        except (OSError, MetricsError):
            return []  # not there yet, or being replaced
        return [record for record in records if record.node == 0 and "groups/external" in record.metrics]

    @property
    def last_round(self) -> int:
        """The highest round it has logged, 0 before the first."""
        return max((record.round for record in self.rounds), default=0)

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Waits for something; raises RuntimeError that names it if it does not come, or the process ends first."""
        wait_until(lambda: condition() or not self.is_running, timeout_s)
        if not condition():
            raise RuntimeError(f"{self.workdir}: no {what}; see output.txt there")

    def output(self) -> str:
        """Returns what its processes have said so far."""
        return (self.workdir / "output.txt").read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether a light host plays rounds since its last start, or has ended instead."""
        process, path = self._process, self.workdir / READY_FILE
        if process is None or process.poll() is not None:
            return True
        return path.exists() and path.read_text() == str(process.pid)

    def start(self, **options: object) -> None:
        """Starts a process in the same directory; `options` change those given before, for this process."""
        given = {"workdir": self.workdir, "listen": self.address, **self._options, **options}
        flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
        self.starts += 1
        self._is_asked = False
        with (self.workdir / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, *flags], cwd=ROOT, stdout=output, stderr=output
            )

    def kill(self) -> None:
        """Kills the process with SIGKILL; one that has ended by itself counts as a failure."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self.kills += 1
        else:
            self.failures += 1
        self._process = None

    def ask_to_stop(self) -> None:
        """Asks the process to stop politely, without waiting; `stop` waits."""
        if self._process is not None and not self._is_asked:
            self._is_asked = True  # a second signal would end it at once
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Stops the process politely; a bad exit code, or none in a minute, counts as a failure."""
        if self._process is None:
            return
        self.ask_to_stop()
        try:
            self.failures += self._process.wait(STOP_S) != 0
        except subprocess.TimeoutExpired:
            self.failures += 1
            self._process.kill()
            self._process.wait()
        self._process = None

    def end(self) -> None:
        """Ends what still runs, uncounted."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def free_port() -> int:
    """Returns a port that nobody listens on now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def wait_until(condition: Callable[[], bool], timeout_s: float, *, every_s: float = 0.1) -> bool:
    """Returns whether the condition came true within `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(every_s)
    return True
