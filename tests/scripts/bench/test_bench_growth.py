"""Costs of growing rounds are in proportion to the first size, and come as tables."""

from __future__ import annotations

import json
import sys

import pytest

from scripts import bench_growth


def test_grows_one_thing_at_a_time(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_growth, "SWEEPS", {"nodes": (1, 2), "model": ("tiny", "1m"), "rounds": (20,)})
    out = tmp_path / "growth.json"
    monkeypatch.setattr(sys, "argv", ["bench_growth.py", "--model=tiny", "--runs=2", f"--json={out}"])
    bench_growth.main()
    result = json.loads(out.read_text())
    one, two = result["nodes"]
    assert one["cost"] == 1.0 and two["cost"] == pytest.approx(two["seconds"] / 2 / one["seconds"])
    assert result["model"][1]["units"] > 5 * result["model"][0]["units"]
    assert [row["size"] for row in result["rounds"]] == ["first 2", "last 2 of 20"]
    printed = capsys.readouterr().out
    assert "| nodes | median s |" in printed and "| last 2 of 20 |" in printed


def test_an_unknown_sweep_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_growth.py", "--sweeps=heads"])
    with pytest.raises(SystemExit) as caught:
        bench_growth.main()
    assert caught.value.code == 2 and "'heads' is none of nodes" in capsys.readouterr().err
