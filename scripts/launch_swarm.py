"""Starts a swarm of host processes on this machine, shows them in one table, and stops them together.

    python scripts/launch_swarm.py --configs=configs/swarm_example.py --workdir=runs/swarm
    python scripts/launch_swarm.py --configs=configs/tiny.py:4_4,configs/tiny.py:2_6 --workdir=runs/two

`--configs` is a list of `FILE.py[:VARIANT]`; a file that has a tuple `HOSTS` of variants stands for
all of them. Each host is `python -m sapo_jax.main` with a workdir and a log of its own below
`--workdir`; the first one listens on a free port of the loopback interface and the others join it
with its invite. Ctrl-C lets every host finish its round and save; once more ends them at once. The
same command resumes them, each where it stopped. Arguments after `--` go to every host, such as
`-- --config.rounds=50`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sapo_jax.metrics import FROM, MetricsError, Record, parse_line
from sapo_jax.swarm.mesh.joining import INVITE_FILE, SWARM_DIRECTORY
from sapo_jax.swarm.wire.printable import printable
from sapo_jax.workdir import METRICS_FILE, REPORT

ROOT = Path(__file__).resolve().parents[1]
STOP_TIMEOUT_S = 300.0  # a round of a large model takes long on a small machine
REFRESH_S = 1.0
MAX_NAME_CHARS = 40
MAX_LINE_CHARS = 1000  # of a log, and of what is said of one host


@dataclass(kw_only=True, slots=True)
class Standing:
    """What a host's metrics say so far, summed or averaged over its nodes."""

    round: int = 0
    own_reward: float | None = None
    first_pass_at_1: float | None = None
    last_pass_at_1: float | None = None
    gain: tuple[float, float] | None = None  # of strict pass@1, and its error
    publishers: dict[str, int] = field(default_factory=dict)  # external groups trained on, by who made them
    pool: float | None = None

    @property
    def external(self) -> int:
        """External groups trained on."""
        return sum(self.publishers.values())

    def add(self, record: Record) -> None:
        """Takes in the next record that the host logged."""
        if record.node is not None:
            return
        metrics = record.metrics
        if "reward/own_mean" in metrics:
            self.round, self.own_reward = record.round, metrics["reward/own_mean"]
            self.pool = metrics.get("groups/pool")
            for name, count in metrics.items():
                if name.startswith(FROM):
                    publisher = name.removeprefix(FROM)
                    self.publishers[publisher] = self.publishers.get(publisher, 0) + int(count)
        if "eval/strict_pass_at_1" in metrics:
            self.last_pass_at_1 = metrics["eval/strict_pass_at_1"]
            if self.first_pass_at_1 is None:
                self.first_pass_at_1 = self.last_pass_at_1
            else:
                self.gain = metrics["eval/strict_pass_at_1_gain"], metrics["eval/strict_pass_at_1_gain_stderr"]


class MetricsReader:
    """Follows the metrics file of a host, which grows to hundreds of megabytes: it reads every line once."""

    def __init__(self, path: Path) -> None:
        """Reads nothing yet; the file need not be there."""
        self._path = path
        self._inode = self._offset = 0
        self._standing = Standing()

    def standing(self) -> Standing:
        """Returns where the host stands by now."""
        try:
            with self._path.open("rb") as file:
                self._read_on(file)
        except OSError:  # not there yet
            pass
        return self._standing

    def _read_on(self, file: IO[bytes]) -> None:
        state = os.fstat(file.fileno())
        if state.st_ino != self._inode or state.st_size < self._offset:  # a resumed host writes another one
            self._inode, self._offset, self._standing = state.st_ino, 0, Standing()
        file.seek(self._offset)
        for line in file:
            if not line.endswith(b"\n"):  # it is being written
                break
            self._offset += len(line)
            with contextlib.suppress(MetricsError):
                self._standing.add(parse_line(line, str(self._path)))


@dataclass(kw_only=True, slots=True)
class Host:
    """One host process: its name, configuration file with variant, directory, log, metrics and process."""

    name: str
    config: str
    workdir: Path
    process: subprocess.Popen[bytes] | None = None
    metrics: MetricsReader = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = MetricsReader(self.workdir / METRICS_FILE)

    @property
    def log_path(self) -> Path:
        return self.workdir / "log.txt"

    @property
    def state(self) -> str:
        """What the table says: waiting, running, done, or the exit code."""
        if self.process is None:
            return "waiting"
        code = self.process.poll()
        return "running" if code is None else "done" if code == 0 else f"failed ({code})"


def main(arguments: Sequence[str]) -> int:
    """Runs the swarm until all hosts are done or a signal stops them; returns the exit code."""
    own, rest = _split(arguments)
    parser = _Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--configs", required=True, help="comma-separated FILE.py[:VARIANT]")
    parser.add_argument("--workdir", required=True, type=Path, help="directory of the swarm")
    options = parser.parse_args(own)
    try:
        hosts = plan(options.configs, options.workdir)
    except ValueError as error:
        parser.error(str(error))
    console = Console()
    stop = _Stop(hosts)
    try:
        start(hosts, rest, stop)
        _watch(hosts, console, stop)
    finally:
        stop.finish()
    console.print(table(hosts))
    for host in hosts:
        now = host.metrics.standing()
        by = ", ".join(
            f"{count} of {name}" for name, count in sorted(now.publishers.items(), key=lambda pair: -pair[1])
        )
        line = f"{host.name} trained on {now.external} external groups{f': {by}' if by else ''}"
        console.print(printable(line, MAX_LINE_CHARS), highlight=False, markup=False)
        console.print(
            f"  report: {host.workdir / REPORT / 'index.html'}", highlight=False, markup=False, soft_wrap=True
        )
    failed = [host for host in hosts if _has_failed(host, stop)]
    for host in failed:
        console.print(f"{host.name}: {host.state}; the end of {host.log_path}:", style="red", markup=False)
        console.print(_tail(host.log_path), markup=False, highlight=False)
    return 1 if failed else 0


def plan(configs: str, workdir: Path) -> list[Host]:
    """Returns the hosts that `--configs` names, with distinct names.

    Raises:
        ValueError: a file that is not there, or nothing named.
    """
    hosts: list[Host] = []
    for spec in filter(None, configs.split(",")):
        path, colon, variant = spec.partition(":")
        if not Path(path).is_file():
            raise ValueError(f"--configs: no such file: {path}")
        try:
            variants = [variant] if colon else declared_hosts(Path(path)) or [""]
        except (SyntaxError, ValueError, TypeError, OSError) as error:
            raise ValueError(f"--configs: {path}: its HOSTS cannot be read: {' '.join(str(error).split())}") from error
        for one in variants:
            stem = one or Path(path).stem
            taken = sum(host.name == stem or host.name.startswith(f"{stem}-") for host in hosts)
            name = f"{stem}-{taken + 1}" if taken else stem
            hosts.append(Host(name=name, config=f"{path}:{one}" if one else path, workdir=workdir / name))
    if not hosts:
        raise ValueError("--configs: names no configuration")
    return hosts


def declared_hosts(path: Path) -> list[str]:
    """Returns the variants in a file's tuple `HOSTS`, which is read and not run; empty if it has none."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "HOSTS" for t in statement.targets
        ):
            return [str(name) for name in ast.literal_eval(statement.value)]
    return []


def start(hosts: Sequence[Host], arguments: Sequence[str], stop: _Stop) -> None:
    """Starts the first host, waits for its invite, then starts the others.

    Raises:
        RuntimeError: the first host ended before it listened.
    """
    first, *others = hosts
    invite = first.workdir / SWARM_DIRECTORY / INVITE_FILE
    invite.unlink(missing_ok=True)  # of an earlier start, with another port
    _spawn(first, ["--listen=127.0.0.1:0", *arguments])
    # It may have to fetch weights first, so this takes as long as the process lives.
    while not invite.exists() and not stop.requested:
        if first.process is not None and first.process.poll() is not None:
            said = _tail(first.log_path, 1).removeprefix("error: ") or "it said nothing"
            raise RuntimeError(f"{first.name} ended before it listened: {said} (all of it: {first.log_path})")
        time.sleep(0.1)
    for host in others:
        if not stop.requested:
            _spawn(host, ["--listen=127.0.0.1:0", f"--invite={invite}", *arguments])
    if stop.requested:  # a signal that came while a process was being started missed it
        stop.repeat()


def table(hosts: Sequence[Host]) -> Table:
    """Returns the table of all hosts."""
    shown = Table(*("host", "state", "round", "reward", "pass@1", "gain", "pool", "external"))
    for host in hosts:
        now = host.metrics.standing()
        moved = "" if now.first_pass_at_1 is None else f"{now.first_pass_at_1:.2f} to {now.last_pass_at_1:.2f}"
        shown.add_row(
            Text(printable(host.name, MAX_NAME_CHARS)),
            host.state,
            str(now.round),
            "" if now.own_reward is None else f"{now.own_reward:.3f}",
            moved,
            "" if now.gain is None else f"{now.gain[0]:+.2f} +- {now.gain[1]:.2f}",
            "" if now.pool is None else f"{now.pool:.0f}",
            str(now.external),
        )
    return shown


class _Stop:
    """Passes SIGINT and SIGTERM on to all hosts, each of which runs in a session of its own."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.requested = False
        self._hosts = hosts
        self._asked: set[int] = set()  # process ids that have had a signal
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def repeat(self) -> None:
        """Asks those hosts to stop that were not asked yet."""
        for host in self._hosts:
            if host.process is not None and host.process.poll() is None and host.process.pid not in self._asked:
                self._ask(host.process, signal.SIGTERM)

    def finish(self) -> None:
        """Stops what still runs, waits for it and gives the signals back."""
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        if any(_is_running(host) for host in self._hosts) and not self.requested:
            self._send(signal.SIGTERM)
        for host in self._hosts:
            if host.process is not None:
                try:
                    host.process.wait(max(0.0, deadline_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    host.process.kill()
                    host.process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        del number, frame
        self._send(signal.SIGKILL if self.requested else signal.SIGTERM)
        self.requested = True

    def _send(self, number: signal.Signals) -> None:
        for host in self._hosts:
            if host.process is not None and host.process.poll() is None:
                self._ask(host.process, number)

    def _ask(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        self._asked.add(process.pid)
        process.send_signal(number)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns what stands before and after `--`."""
    if "--" not in arguments:
        return list(arguments), []
    at = list(arguments).index("--")
    return list(arguments[:at]), list(arguments[at + 1 :])


def _spawn(host: Host, arguments: Sequence[str]) -> None:
    host.workdir.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "sapo_jax.main",
        f"--config={host.config}",
        f"--workdir={host.workdir}",
        *arguments,
    ]
    with host.log_path.open("ab") as log:
        host.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the hosts once, through this process
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 (no threads here)
        )


def _die_with_parent() -> None:
    """Asks Linux to end this process politely when the launcher is killed, so that none is left behind."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _watch(hosts: Sequence[Host], console: Console, stop: _Stop) -> None:
    with Live(table(hosts), console=console, auto_refresh=False) as live:
        while any(_is_running(host) for host in hosts):
            time.sleep(REFRESH_S)
            shown = table(hosts)
            if stop.requested:
                shown.caption = "stopping: every host finishes its round and saves; Ctrl-C again ends them at once"
            live.update(shown, refresh=True)


def _has_failed(host: Host, stop: _Stop) -> bool:
    return not stop.requested if host.process is None else host.process.returncode != 0


def _is_running(host: Host) -> bool:
    return host.process is not None and host.process.poll() is None


def _tail(path: Path, lines: int = 15) -> str:
    """Returns the last lines of a log; whatever a host has printed, it steers no terminal from here."""
    if not path.exists():
        return ""
    return "\n".join(printable(line, MAX_LINE_CHARS) for line in path.read_text(errors="replace").splitlines()[-lines:])


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())}; --help explains\n")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
