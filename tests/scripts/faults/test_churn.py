"""What is said of kills, from records; the processes themselves in a slow test."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.faults import churn
from scripts.faults.churn import Kill, figures, victims
from scripts.faults.figures import Figure, Setting
from scripts.faults.process_samples import began, still_there


def _kill(**changes: object) -> Kill:
    fields = {
        "victim": 1,
        "resumed_s": 9.0,
        "own_s": 14.0,
        "external_s": 12.0,
        "rounds": [50, 60],
        "calm_round_s": 0.02,
        "busy_round_s": 0.05,
    }
    return Kill(**{**fields, **changes})  # pyright: ignore[reportArgumentType]


def _figures(*kills: Kill, failures: int = 0, orphans: int = 0) -> dict[str, Figure]:
    found = figures(kills, hosts=8, failures=failures, orphans=orphans, window_s=60.0)
    return {each.name: each for each in found}


BACK = "killed process is back: own group accepted and external group drawn"


def test_the_slowest_kill_decides() -> None:
    found = _figures(_kill(), _kill(victim=0, own_s=8.0, external_s=21.0))
    assert found[BACK].value == 21.0 and found[BACK].is_met
    assert found["back after it resumed"].value == 12.0
    assert found["rounds of each other host between two kills"].value == 50
    assert all(each.is_met for each in found.values())


@pytest.mark.parametrize("missing", ["own_s", "external_s"])
def test_a_process_that_does_not_come_back_is_noticed(missing: str) -> None:
    found = _figures(_kill(), _kill(**{missing: math.inf}))
    assert not found[BACK].is_met and not found["back after it resumed"].is_met


def test_a_host_that_stands_still_is_noticed() -> None:
    assert not _figures(_kill(rounds=[50, 0]))["rounds of each other host between two kills"].is_met


def test_bad_ends_are_noticed() -> None:
    found = _figures(_kill(), failures=1, orphans=2)
    assert not found["processes that ended unasked or not with 0"].is_met
    assert not found["processes left behind"].is_met


def test_every_kill_meets_another_host_and_the_first_one_soon() -> None:
    order = victims(8, 6, seed=3)
    assert len(set(order)) == 6 and order[1] == 0
    assert victims(8, 1, seed=3) == order[:1]
    assert set(victims(2, 4, seed=0)) == {0, 1}


def test_a_process_that_is_left_behind_is_counted_and_a_dead_one_is_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        processes = {(child.pid, began(child.pid) or ""), (child.pid, "earlier, with the same id")}
        assert still_there(processes) == {(child.pid, began(child.pid))}
    finally:
        child.kill()
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
    assert still_there(processes) == set()


@pytest.mark.slow
def test_a_killed_process_comes_back(tmp_path: Path) -> None:
    said: list[str] = []
    setting = Setting(scale=0.01, seed=0, workdir=tmp_path, say=said.append)
    found = {each.name: each for each in churn.measure_swarm(setting, hosts=3, kills=1, window_s=120.0)}
    assert found[BACK].value < math.inf, said
    assert found["rounds of each other host between two kills"].value >= 1
    assert found["processes that ended unasked or not with 0"].value == 0
    assert found["processes left behind"].value == 0
