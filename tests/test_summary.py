from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from sapo_jax.summary import describe, python_command


def _workdir(path: Path, *lines: dict[str, object]) -> Path:
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _evaluation(round: int, node: int | None, value: float) -> dict[str, object]:
    names = ("strict_pass_at_1", "score_mean", "format_rate")
    metrics = {f"eval/{name}": value for name in names}
    gain = {"eval/strict_pass_at_1_gain": value - 0.25, "eval/strict_pass_at_1_gain_stderr": 0.0625}
    specialty = {"eval/chain_sum/strict_pass_at_1": value * 2.5 - 0.5, "eval/chain_sum/strict_pass_at_8": 1.0}
    return {"round": round, "node": node, **metrics, **specialty, **gain}


def test_before_and_after_are_those_of_the_swarm(tmp_path: Path) -> None:
    workdir = _workdir(
        tmp_path,
        _evaluation(0, 0, 0.9),
        _evaluation(0, None, 0.25),
        {"round": 1, "node": None, "reward/own_mean": 0.7},
        _evaluation(10, None, 0.3),
        _evaluation(20, 0, 0.9),
        _evaluation(20, None, 0.5),
    )
    text = describe(workdir, 20, 20, [Path("a.png"), Path("b.html")])
    assert text.startswith("20 of 20 rounds done.\n")
    rows = {line[:24].strip(): line.split()[-2:] for line in text.splitlines() if line.startswith("  ")}
    assert rows["strict pass@1"] == rows["mean score"] == rows["format rate"] == ["0.250", "0.500"]
    assert "strict pass@8" not in text  # it was not measured
    assert rows["chain_sum"] == ["0.125", "0.750"]
    assert "gain of strict pass@1: +0.250 +- 0.062" in text
    assert "  a.png\n  b.html\n" in text
    assert "a larger --config.rounds" in text
    for command in ("sample", "evaluate", "export"):
        assert f"python -m sapo_jax.{command} --workdir={workdir}" in text


def test_a_stopped_run_says_how_to_go_on(tmp_path: Path) -> None:
    text = describe(_workdir(tmp_path, _evaluation(0, None, 0.25)), 3, 20, [])
    assert text.startswith("3 of 20 rounds done.\n") and "the same command again" in text
    assert "go on after round 3, which is saved" in text
    assert "gain of" not in text  # one evaluation has nothing to be compared with


def test_a_stopped_run_says_what_its_table_leaves_out(tmp_path: Path) -> None:
    workdir = _workdir(tmp_path, _evaluation(0, None, 0.25), _evaluation(24, None, 0.5))
    assert "rounds after 24: not evaluated yet" in describe(workdir, 36, 100, [])
    assert "not evaluated" not in describe(workdir, 24, 100, [])


def test_commands_name_the_interpreter_where_the_shell_would_find_another(monkeypatch, tmp_path):
    ours = tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(ours))
    monkeypatch.setattr(shutil, "which", lambda name: str(ours))
    assert python_command() == "python"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/python")
    assert python_command() == str(ours)
    monkeypatch.chdir(tmp_path)
    assert python_command() == ".venv/bin/python"
