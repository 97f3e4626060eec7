"""One command starts a swarm of processes, one signal stops it, and none is left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sapo_jax.metrics import Record
from scripts.faults.host_process import wait_until
from scripts.faults.process_samples import started_by, still_there
from tests.e2e.runs import ROOT, SMALL

SCRIPT = ROOT / "scripts" / "launch_swarm.py"


@pytest.fixture(scope="module")
def launch_swarm():
    spec = importlib.util.spec_from_file_location("launch_swarm", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["launch_swarm"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_file_with_hosts_stands_for_all_of_them(launch_swarm, tmp_path: Path) -> None:
    example, tiny = f"{ROOT}/configs/swarm_example.py", f"{ROOT}/configs/tiny.py"
    hosts = launch_swarm.plan(f"{example},{tiny}:4_4,{tiny}:4_4,{tiny}", tmp_path)
    assert [(host.name, host.config) for host in hosts] == [
        ("smollm2", f"{example}:smollm2"),
        ("llama_tiny", f"{example}:llama_tiny"),
        ("qwen_small", f"{example}:qwen_small"),
        ("4_4", f"{tiny}:4_4"),
        ("4_4-2", f"{tiny}:4_4"),
        ("tiny", tiny),
    ]
    assert len({host.workdir for host in hosts}) == 6


@pytest.mark.parametrize(("configs", "message"), [("nope.py", "no such file: nope.py"), ("", "names no configuration")])
def test_a_plan_without_files_is_refused(launch_swarm, tmp_path: Path, configs: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch_swarm.plan(configs, tmp_path)


def test_a_standing_adds_up_what_was_logged(launch_swarm) -> None:
    records = [
        Record(round=0, node=None, metrics={"eval/strict_pass_at_1": 0.25}),
        Record(round=1, node=None, metrics={"reward/own_mean": 0.5, "groups/from/calm-otter": 2.0, "groups/pool": 3.0}),
        Record(round=1, node=0, metrics={"reward/own_mean": 0.5, "groups/from/calm-otter": 2.0}),
        Record(round=2, node=None, metrics={"reward/own_mean": 0.75, "groups/from/bold-elk": 1.0, "groups/pool": 5.0}),
        Record(
            round=2,
            node=None,
            metrics={
                "eval/strict_pass_at_1": 0.5,
                "eval/strict_pass_at_1_gain": 0.25,
                "eval/strict_pass_at_1_gain_stderr": 0.1,
            },
        ),
    ]
    now = launch_swarm.Standing()
    assert (now.round, now.external, now.gain) == (0, 0, None)
    for record in records:
        now.add(record)
    assert (now.round, now.own_reward, now.external, now.pool) == (2, 0.75, 3, 5.0)
    assert (now.first_pass_at_1, now.last_pass_at_1, now.gain) == (0.25, 0.5, (0.25, 0.1))
    assert now.publishers == {"calm-otter": 2, "bold-elk": 1}


def logged(*rounds: int) -> str:
    lines = [{"round": n, "node": None, "reward/own_mean": n / 8, "groups/from/elk": n, "loss": None} for n in rounds]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def test_every_line_of_metrics_is_read_once(launch_swarm, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = launch_swarm.MetricsReader(path)
    assert reader.standing().round == 0
    path.write_text(logged(1, 2) + "no metrics\n" + logged(3)[:9])
    assert (reader.standing().round, reader.standing().external) == (2, 3)
    with path.open("r+") as file:  # what was read is gone, and nobody looks
        file.write(" " * (len(logged(1, 2)) - 1))
    with path.open("a") as file:
        file.write(logged(3)[9:])
    assert (reader.standing().round, reader.standing().own_reward, reader.standing().external) == (3, 3 / 8, 6)


@pytest.mark.parametrize("left", [1, 5])
def test_the_metrics_of_a_resumed_host_are_read_anew(launch_swarm, tmp_path: Path, left: int) -> None:
    path, part = tmp_path / "metrics.jsonl", tmp_path / "part"
    path.write_text(logged(7, 8, 9))
    reader = launch_swarm.MetricsReader(path)
    assert reader.standing().external == 24
    part.write_text(logged(*range(1, left + 1)))
    os.replace(part, path)
    assert (reader.standing().round, reader.standing().external) == (left, sum(range(left + 1)))
    os.truncate(path, len(logged(1)))
    assert (reader.standing().round, reader.standing().external) == (1, 1)


def test_ctrl_c_stops_all_hosts_and_the_same_command_resumes_them(tmp_path: Path) -> None:
    tiny = f"{ROOT}/configs/tiny.py:2_2"
    rounds = "--config.rounds=1000000"
    command = [sys.executable, str(SCRIPT), f"--configs={tiny},{tiny}", f"--workdir={tmp_path}", "--", *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    logs = [tmp_path / "2_2" / "log.txt", tmp_path / "2_2-2" / "log.txt"]

    def run(until: str, *overrides: str) -> str:
        process = subprocess.Popen(
            [*command, "--config.nodes=1", *overrides], env=environment, text=True, stdout=subprocess.PIPE
        )
        try:
            deadline_s = time.monotonic() + 240
            while not all(path.exists() and until in path.read_text() for path in logs):
                assert time.monotonic() < deadline_s and process.poll() is None, [p.read_text() for p in logs]
                time.sleep(0.1)
            below = started_by(process.pid)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=240)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 0, out
        assert len(below) >= 2 * 2, "hosts and their scorers"
        assert wait_until(lambda: not still_there(below), 10.0), below
        return out

    out = run("held-out after 0 rounds", rounds)
    assert "2_2-2" in out and "trained on" in out
    assert all("rounds done" in path.read_text() for path in logs)  # each host had the time to finish
    run("resumed after round", rounds)
