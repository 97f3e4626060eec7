"""A run that was stopped, killed or continued ends where an uninterrupted one ends, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from sapo_jax.metrics import Record, read_metrics
from sapo_jax.node import play_round
from sapo_jax.trained import load_trained
from sapo_jax.workdir import CHECKPOINTS, CONFIG_FILE, METRICS_FILE
from tests.e2e.runs import OVERRIDES, ROUNDS, SAVED_EVERY, call, start, tiny, train

TIMEOUT_S = 120  # of one process
STOP_AFTER = 12  # rounds seen when the process is stopped: after a checkpoint, before the next one


def _comparable(workdir: Path) -> list[tuple[int, int | None, dict[str, float]]]:
    """Returns what was logged, in order, without times."""
    return [_without_times(record) for record in read_metrics(workdir / METRICS_FILE)]


def _without_times(record: Record) -> tuple[int, int | None, dict[str, float]]:
    metrics = {name: value for name, value in record.metrics.items() if not name.startswith("time/")}
    return record.round, record.node, metrics


def _params(workdir: Path, round: int = ROUNDS) -> Any:
    trained = load_trained(str(workdir), str(round))
    return jax.device_get([trained.host.params_of(node) for node in range(trained.config.nodes)])


def _assert_same_end(workdir: Path, whole: Path) -> None:
    assert _comparable(workdir) == _comparable(whole)
    jax.tree.map(np.testing.assert_array_equal, _params(workdir), _params(whole))
    for name in ("round_000000.npz", "round_000020.npz", f"round_{ROUNDS:06d}.npz"):
        with np.load(workdir / "evaluations" / name) as one, np.load(whole / "evaluations" / name) as two:
            for key in two:
                np.testing.assert_array_equal(one[key], two[key])


def _interrupt(workdir: Path, number: signal.Signals, is_time: Callable[[], bool]) -> tuple[int, str, str]:
    """Starts the run, sends it a signal once `is_time`, and returns exit code and output."""
    process = start("main", *tiny(workdir, *OVERRIDES))
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        while not is_time():
            assert time.monotonic() < deadline_s, f"not within {TIMEOUT_S} s"
            with pytest.raises(subprocess.TimeoutExpired):  # else it ended by itself
                process.wait(timeout=0.005)
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    return process.returncode, out, err


def _logged_rounds(workdir: Path) -> int:
    path = workdir / METRICS_FILE
    return max((record.round for record in read_metrics(path)), default=0) if path.exists() else 0


def _last_saved(workdir: Path) -> int:
    return max(int(path.name) for path in (workdir / CHECKPOINTS).iterdir() if path.name.isdecimal())


def test_what_is_compared_says_something(whole: Path) -> None:
    lines = _comparable(whole)
    rounds = [line for line in lines if "reward/own_mean" in line[2]]
    assert len(rounds) == 3 * ROUNDS  # two nodes and the swarm
    assert max(metrics["reward/own_mean"] for *_, metrics in rounds) > 0
    assert sum(metrics["groups/external"] for *_, metrics in rounds) > 0
    assert len([line for line in lines if "eval/strict_pass_at_1" in line[2]]) == 3 * 3
    first, last = _params(whole)
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True))


def test_a_run_stopped_by_sigterm_goes_on_as_if_nothing_had_happened(tmp_path: Path, whole: Path) -> None:
    code, out, err = _interrupt(tmp_path, signal.SIGTERM, lambda: _logged_rounds(tmp_path) >= STOP_AFTER)
    assert code == 0, err
    assert "SIGTERM: finishing the round, then saving" in out and "Traceback" not in err
    stopped = _logged_rounds(tmp_path)
    assert STOP_AFTER <= stopped < ROUNDS, "it has to stop in mid-run, else this test shows nothing"
    assert f"{stopped} of {ROUNDS} rounds done." in out
    assert (tmp_path / CHECKPOINTS / str(stopped)).is_dir()  # the round was finished and saved
    outcome = call("main", *tiny(tmp_path, *OVERRIDES))
    assert outcome.code == 0, outcome.err
    assert f"resumed after round {stopped}" in outcome.out
    _assert_same_end(tmp_path, whole)


def test_a_run_that_broke_goes_on_from_its_last_checkpoint(tmp_path: Path, whole: Path) -> None:
    """Rounds after the checkpoint were logged already; they are played and logged again."""

    def play_some(nodes: Any, host: Any, round: int) -> Any:
        if round > STOP_AFTER:
            raise RuntimeError("the machine is gone")
        return play_round(nodes, host, round)

    with mock.patch("sapo_jax.training.play_round", play_some), pytest.raises(RuntimeError, match="machine is gone"):
        train(tiny(tmp_path, *OVERRIDES))
    assert _logged_rounds(tmp_path) == STOP_AFTER
    assert _last_saved(tmp_path) == SAVED_EVERY < STOP_AFTER
    assert f"resumed after round {SAVED_EVERY}" in train(tiny(tmp_path, *OVERRIDES))
    _assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path, whole: Path) -> None:
    code, _, _ = _interrupt(tmp_path, signal.SIGKILL, lambda: _logged_rounds(tmp_path) >= STOP_AFTER)
    assert code == -signal.SIGKILL
    assert STOP_AFTER <= _logged_rounds(tmp_path) < ROUNDS
    saved = _last_saved(tmp_path)
    assert saved < _logged_rounds(tmp_path)
    assert f"resumed after round {saved}" in train(tiny(tmp_path, *OVERRIDES))
    _assert_same_end(tmp_path, whole)


def test_more_rounds_continue_a_finished_run(tmp_path: Path, whole: Path) -> None:
    """The shorter run ends where the longer one evaluates, so that nothing differs at all."""
    train(tiny(tmp_path, *OVERRIDES, "--config.rounds=20"))
    assert "resumed after round 20" in train(tiny(tmp_path, *OVERRIDES))
    _assert_same_end(tmp_path, whole)


def test_any_other_difference_is_refused(whole: Path) -> None:
    before = {path: path.read_bytes() for path in (whole / CONFIG_FILE, whole / METRICS_FILE)}
    saved = sorted(path.name for path in (whole / CHECKPOINTS).iterdir())
    outcome = call("main", *tiny(whole, *OVERRIDES, "--config.learner.learning_rate=0.001", "--config.rounds=70"))
    assert outcome.code == 2 and outcome.err.count("\n") == 2
    assert f"workdir {whole}" in outcome.err
    assert "config.learner.learning_rate: 0.003 there, 0.001 here" in outcome.err
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in (whole / CHECKPOINTS).iterdir()) == saved


def test_fewer_rounds_are_refused(whole: Path) -> None:
    outcome = call("main", *tiny(whole, *OVERRIDES, f"--config.rounds={ROUNDS - 1}"))
    assert outcome.code == 2 and f"config.rounds: {ROUNDS} there, {ROUNDS - 1} here" in outcome.err


def test_the_same_command_on_a_finished_run_changes_nothing(whole: Path) -> None:
    """It only notes that the machine is another one, for whoever compares its numbers."""
    path = whole / CONFIG_FILE
    original = path.read_text()
    record = json.loads(original)
    record["environment"]["cores"] = 999
    path.write_text(json.dumps(record))
    before = (whole / METRICS_FILE).read_bytes()
    try:
        out = train(tiny(whole, *OVERRIDES))
    finally:
        path.write_text(original)
    assert f"resumed after round {ROUNDS}" in out and "cores: 999 at the start" in out
    assert (whole / METRICS_FILE).read_bytes() == before
