"""Times starts of the tiny model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from scripts import time_start


def options_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["time_start.py", "--config=configs/tiny.py", *arguments])
    return time_start._options()


def test_a_later_start_compiles_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changes = [f"--set={change}" for change in ("cold_start.steps=0", "eval.questions=2", "tasks.scorer_workers=1")]
    options = options_of(monkeypatch, *changes)
    compiled = []
    for run in range(2):
        assert time_start.start_s(options, tmp_path, run) > 0
        compiled.append({path.name for path in (tmp_path / "xla").iterdir() if path.name.endswith("-cache")})
    assert compiled[0] and compiled[0] == compiled[1]


def test_the_first_start_and_the_median_of_the_others_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "start.json"
    options_of(monkeypatch, "--warm=3", f"--json={out}")
    monkeypatch.setattr(time_start, "start_s", lambda options, folder, run: [9.0, 3.0, 1.0, 2.0][run])
    time_start.main()
    assert json.loads(out.read_text())["warm_s"] == [3.0, 1.0, 2.0]
    printed = capsys.readouterr().out
    assert "nothing compiled before: 9.0 s" in printed and "before: 2.0 s (1.0 to 3.0)" in printed


def test_a_run_that_fails_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["time_start.py", "--config=configs/tiny.py", "--set=rounds=-1"])
    with pytest.raises(SystemExit, match=r"^error: the run ended with 2: .*config.rounds = -1"):
        time_start.main()
