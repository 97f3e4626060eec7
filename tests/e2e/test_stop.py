"""A stop before the first round: polite, exit code 0, and the same command goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from sapo_jax.metrics import read_metrics
from sapo_jax.signals import Stopped, StopRequest
from sapo_jax.workdir import CHECKPOINTS, METRICS_FILE
from tests.e2e.runs import Outcome, call, tiny


def _stopped(workdir: Path, *overrides: str, after: int) -> Outcome:
    """Runs `main`, asking it to stop at the `after`-th occasion to do so."""
    occasions = 0

    def check(self: StopRequest) -> None:
        nonlocal occasions
        occasions += 1
        if occasions == after:
            self._requested = True
        if self._requested:
            raise Stopped

    with mock.patch.object(StopRequest, "check", check):
        return call("main", *tiny(workdir, *overrides))


def _logged(workdir: Path) -> list[tuple[int, int | None, dict[str, float]]]:
    return [
        (r.round, r.node, {k: v for k, v in r.metrics.items() if k[:5] != "time/"})
        for r in read_metrics(workdir / METRICS_FILE)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    assert call("main", *tiny(workdir)).code == 0
    return workdir


def test_in_the_cold_start_nothing_is_kept(tmp_path: Path, whole: Path) -> None:
    outcome = _stopped(tmp_path, after=3)
    assert outcome.code == 0 and outcome.err == ""
    assert "stopped before the first evaluation" in outcome.out
    assert not list((tmp_path / CHECKPOINTS).iterdir()) and not (tmp_path / METRICS_FILE).exists()
    assert call("main", *tiny(tmp_path)).code == 0
    assert _logged(tmp_path) == _logged(whole)


def test_in_the_first_evaluation_the_cold_start_is_kept(tmp_path: Path, whole: Path) -> None:
    outcome = _stopped(tmp_path, after=31)  # the cold start has 30 steps
    assert outcome.code == 0 and outcome.err == ""
    assert "0 of 2 rounds done" in outcome.out
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["0"]
    again = call("main", *tiny(tmp_path))
    assert again.code == 0 and "resumed after round 0" in again.out
    assert _logged(tmp_path) == _logged(whole)


def test_without_a_cold_start_there_is_nothing_to_save_yet(tmp_path: Path) -> None:
    outcome = _stopped(tmp_path, "--config.cold_start.steps=0", after=1)
    assert outcome.code == 0 and "0 of 2 rounds done" in outcome.out
    assert not list((tmp_path / CHECKPOINTS).iterdir())
