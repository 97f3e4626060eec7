"""Times starts of the tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scripts import time_start


def test_times_a_cold_and_a_warm_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "start.json"
    changes = [f"--set={change}" for change in ("cold_start.steps=0", "eval.questions=2", "tasks.scorer_workers=1")]
    arguments = ["--config=configs/tiny.py", "--warm=1", f"--json={out}", *changes]
    monkeypatch.setattr(sys, "argv", ["time_start.py", *arguments])
    time_start.main()
    result = json.loads(out.read_text())
    assert 0 < result["warm_s"][0] < result["cold_s"]  # what was compiled is found
    assert f"nothing compiled before: {result['cold_s']:.1f} s" in capsys.readouterr().out


def test_a_run_that_fails_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["time_start.py", "--config=configs/tiny.py", "--set=rounds=-1"])
    with pytest.raises(SystemExit, match=r"^error: the run ended with 2: .*config.rounds = -1"):
        time_start.main()
