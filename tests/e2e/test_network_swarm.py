"""Processes that know of each other by address and invite alone: they share, and one may die at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sapo_jax.metrics import MetricsError, read_metrics
from sapo_jax.swarm.mesh.joining import INVITE_FILE, SWARM_DIRECTORY
from sapo_jax.workdir import METRICS_FILE
from tests.e2e.runs import call, start, tiny

DEADLINE_S = 240.0
OVERRIDES = (
    "--config.nodes=1",
    "--config.rounds=1000000",  # until stopped
    "--config.checkpoint.every_rounds=20",
    "--config.sharing.max_age_rounds=10",  # twenty rounds after a process was killed, nothing of it is left
    "--config.sharing.max_uses=2",
    "--config.learner.learning_rate=0.0001",
)


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"no {what} within {DEADLINE_S:.0f} s"
        time.sleep(0.05)


def _external(workdir: Path, after_round: int = 0) -> float:
    """Returns how many external groups the swarm's rounds after `after_round` trained on."""
    return sum(r.metrics.get("groups/external", 0) for r in _swarm_rounds(workdir) if r.round > after_round)


def _swarm_rounds(workdir: Path) -> list:
    try:
        records = read_metrics(workdir / METRICS_FILE)
    except (OSError, MetricsError):
        return []  # not there yet, or being replaced
    return [record for record in records if record.node is None and "groups/local" in record.metrics]


def _last_round(workdir: Path) -> int:
    return max((record.round for record in _swarm_rounds(workdir)), default=0)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ended whatever happens."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_two_processes_share_and_one_may_be_killed(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    invite = first / SWARM_DIRECTORY / INVITE_FILE
    joining = (*tiny(second, *OVERRIDES, "--config.seed=1"), "--listen=127.0.0.1:0", f"--invite={invite}")
    processes.append(start("main", *tiny(first, *OVERRIDES), "--listen=127.0.0.1:0"))
    _wait(invite.exists, "invite")
    assert invite.stat().st_mode & 0o777 == 0o600
    processes.append(start("main", *joining))
    _wait(lambda: _external(first) > 0 and _external(second) > 0, "external group in both processes")

    status = call("status", f"--workdir={first}")
    assert status.code == 0, status
    assert status.out.startswith("in touch with 1 peer") or "called by 1 peer" in status.out
    assert "external groups came from" in status.out

    _wait(lambda: _last_round(second) > 20, "round after the first checkpoint")
    os.kill(processes[1].pid, signal.SIGKILL)
    processes[1].wait()
    alone, back = _last_round(first), _last_round(second)
    _wait(lambda: _last_round(first) > alone + 20, "round of the process that is left")
    processes.append(start("main", *joining))
    _wait(lambda: _last_round(second) > back, "round of the process that came back")
    reached = _last_round(first)
    _wait(lambda: _external(first, reached) > 0, "external group after the restart")
    for process in (processes[0], processes[2]):
        process.send_signal(signal.SIGTERM)
    for process in (processes[0], processes[2]):
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0 and err == "", (out, err)
    assert "resumed after round" in out
    aliases = {name for r in _swarm_rounds(first) for name in r.metrics if name.startswith("groups/from/")}
    assert len(aliases) == 1, "the killed process came back as the same node"


def test_a_run_that_began_alone_can_join_a_swarm_and_leave_it_again(tmp_path: Path) -> None:
    assert call("main", *tiny(tmp_path)).code == 0
    joined = call("main", *tiny(tmp_path, "--config.rounds=3"), "--listen=127.0.0.1:0", "--insecure-loopback")
    assert joined.code == 0, joined
    assert "goes on with exchange network instead of memory" in joined.out and "alone: no peer known yet" in joined.out
    assert "publisher_uniform gives every publisher the same share" in joined.out
    left = call("main", *tiny(tmp_path, "--config.rounds=4"))
    assert left.code == 0 and "goes on with exchange memory instead of network" in left.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--join=127.0.0.1:1"], "needs the --invite of that host"),
        (["--metrics=127.0.0.1:0"], "--metrics: needs --listen, --join or --invite"),
        (["--listen=nowhere"], "nowhere"),
        (["--listen=127.0.0.1:0", "--invite=/no/such/file"], "/no/such/file"),
        (["--listen=0.0.0.0:0", "--insecure-loopback"], "plain text is refused"),
    ],
)
def test_flags_that_cannot_be_had_end_in_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    outcome = call("main", *tiny(tmp_path / "run"), *flags)
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and message in outcome.err
