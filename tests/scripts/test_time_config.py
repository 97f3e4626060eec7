"""Times rounds that learn."""

from __future__ import annotations

import json
import sys

import pytest

from sapo_jax.command import run_command
from scripts import time_config

# ml_collections 1.1 loads config files through a deprecated call of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["time_config.py", *arguments])
    time_config._OPTIONS.unparse_flags()
    with pytest.raises(SystemExit) as caught:
        run_command(time_config.main, time_config._OPTIONS)
    return caught.value.code


def test_times_the_rounds_of_a_config(monkeypatch, tmp_path, capsys):
    out = tmp_path / "bench.json"
    sizes = ("--config.sampling.max_new_tokens=4", "--config.sharing.local=2", "--config.sharing.external=1")
    sizes += ("--config.sampling.prompt_buckets=(20,128,500)",)
    assert run(monkeypatch, "--config=configs/tiny.py", *sizes, "--rounds=2", "--device=cpu", f"--json={out}") == 0
    record = json.loads(out.read_text())
    assert record["config"]["sampling"]["max_new_tokens"] == 4
    assert record["config"]["host"]["platform"] == "cpu"
    result = record["result"]
    parts = result["parts"]
    assert set(parts) == {"sampling", "host", "update", "round"}
    for part in parts.values():
        assert 0 < part["least_s"] <= part["median_s"] <= part["most_s"]
    assert parts["sampling"]["median_s"] + parts["update"]["median_s"] <= 1.01 * parts["round"]["most_s"]
    # Two nodes: two own questions sampled, three groups trained on at three times the price.
    assert parts["update"]["flops"] == 3 * 3 / 2 * parts["sampling"]["flops"]
    assert parts["round"]["flops"] == parts["update"]["flops"] + parts["sampling"]["flops"]
    # The update ran: sampled tokens became trained tokens, own ones alone at least 2 * 2 * 8 rows.
    assert parts["update"]["tokens_per_s"] * parts["update"]["median_s"] > 32
    assert result["peak_memory_bytes"] > 1e8
    assert 0 < result["device_idle_frac"] < 1
    assert result["prompt_tokens"] == 128  # 20 would hold none, 500 is not needed
    printed = capsys.readouterr().out
    assert "2 own + 1 external groups of 8" in printed and "x floor" in printed
    assert f"devices idle: {result['device_idle_frac']:.1%} of a round" in printed


@pytest.mark.parametrize(("flag", "code", "message"), [("--rounds=0", 2, "rounds"), ("--device=abacus", 2, "device")])
def test_bad_flags_are_one_clear_error(monkeypatch, capsys, flag, code, message):
    assert run(monkeypatch, "--config=configs/tiny.py", flag) == code
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed
