from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat, cast

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from sapo_jax import metrics
from sapo_jax.metrics import CompositeTracker, JsonlTracker, Record, TensorBoardTracker, Tracker


def _log_some(tracker: Tracker, rounds: range) -> None:
    for round in rounds:
        tracker.log(round, None, {"reward/own_mean": round / 10})
        tracker.log(round, 1, {"reward/own_mean": round / 5, "groups/external": np.int64(round)})


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_lines_hold_round_node_and_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(0, None, {"eval/score_mean": np.float32(0.5)})
    assert _rows(path) == [{"round": 0, "node": None, "eval/score_mean": 0.5}]  # readable before it is closed
    tracker.log(3, 1, {"time/round_s": 2})
    tracker.close()
    assert _rows(path)[1] == {"round": 3, "node": 1, "time/round_s": 2.0}
    assert metrics.read_metrics(path) == [
        Record(round=0, node=None, metrics={"eval/score_mean": 0.5}),
        Record(round=3, node=1, metrics={"time/round_s": 2.0}),
    ]


def test_non_finite_numbers_stay_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(1, 0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
    tracker.close()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"round": 1, "node": 0, "a": None, "b": None, "c": None, "d": 1.0}
    (record,) = metrics.read_metrics(path)
    assert math.isnan(record.metrics["b"]) and record.metrics["d"] == 1.0


def test_continuing_drops_the_rounds_that_are_repeated(tmp_path: Path) -> None:
    path, whole = tmp_path / "metrics.jsonl", tmp_path / "whole.jsonl"
    killed = JsonlTracker(path)
    _log_some(killed, range(7))
    killed.close()
    with path.open("a") as file:
        file.write('{"round": 7, "node": null, "reward/ow')  # cut by a kill
    resumed = JsonlTracker(path, first_round=4)
    assert [row["round"] for row in _rows(path)] == [0, 0, 1, 1, 2, 2, 3, 3]
    _log_some(resumed, range(4, 9))
    resumed.close()
    uninterrupted = JsonlTracker(whole)
    _log_some(uninterrupted, range(9))
    uninterrupted.close()
    assert path.read_text() == whole.read_text()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_failed_truncation_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    _log_some(tracker, range(3))
    tracker.close()
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        JsonlTracker(path, first_round=1)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_names_the_file() -> None:
    tracker = JsonlTracker("/dev/full")
    with pytest.raises(OSError, match=r"No space left.*/dev/full"):
        tracker.log(1, None, {"a": 1.0})
    with pytest.raises(OSError, match="No space left"):  # what is left in the buffer
        tracker.close()


@pytest.mark.parametrize(
    "line", ["nonsense", "[1]", '{"node": 0}', '{"round": 1, "node": 0, "a": "x"}', '{"round": null, "node": 0}']
)
def test_damaged_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1, "node": 0}\n' + line + "\n")
    with pytest.raises(metrics.MetricsError, match=r"metrics\.jsonl, line 2"):
        metrics.read_metrics(path)


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    for tracker in (JsonlTracker(tmp_path / "m.jsonl"), TensorBoardTracker(tmp_path)):
        with pytest.raises(ValueError, match="'round'"):
            tracker.log(1, None, {"round": 2.0})
        tracker.close()


def _events(directory: Path) -> list[Any]:
    events = []
    for path in sorted(directory.glob("*tfevents*")):
        data = path.read_bytes()
        while data:  # length (8 bytes), checksum (4), event, checksum (4)
            size = int.from_bytes(data[:8], "little")
            events.append(cast(Any, event_pb2).Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return events


def test_tensorboard_has_a_run_per_node_and_purges_on_continuing(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    _log_some(tracker, range(3))
    tracker.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["node_01", "swarm"]
    points = [(e.step, v.tag, v.simple_value) for e in _events(tmp_path / "swarm") for v in e.summary.value]
    assert points == [(r, "reward/own_mean", pytest.approx(r / 10)) for r in range(3)]
    assert {v.tag for e in _events(tmp_path / "node_01") for v in e.summary.value} == {
        "reward/own_mean",
        "groups/external",
    }

    resumed = TensorBoardTracker(tmp_path / "again", first_round=2)
    resumed.log(2, None, {"a": 1.0})
    resumed.close()
    starts = [e.step for e in _events(tmp_path / "again" / "swarm") if e.HasField("session_log")]
    assert starts == [2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_stops_tensorboard_with_one_error_and_closes_every_file(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    _log_some(tracker, range(2))
    writers: list[Any] = list(tracker._writers.values())
    writers[0]._writer.close()
    writers[0]._writer = open("/dev/full", "wb")  # noqa: SIM115 (closed by the tracker)
    with pytest.raises(OSError, match=rf"No space left.*{tmp_path}"):
        for round in range(100):  # far more than a queue would hold
            _log_some(tracker, range(round, round + 1))
    with pytest.raises(OSError, match="No space left"):  # what is left in the buffer
        tracker.close()
    assert all(writer._writer.closed for writer in writers)


def test_composite_reaches_all_and_closes_all(tmp_path: Path) -> None:
    class Failing:
        def log(self, round: int, node: int | None, metrics: Mapping[str, SupportsFloat]) -> None:
            logged.append(
                Record(round=round, node=node, metrics={name: float(value) for name, value in metrics.items()})
            )

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    logged: list[Record] = []
    last = JsonlTracker(tmp_path / "m.jsonl")
    tracker = CompositeTracker([Failing(), last])
    _log_some(tracker, range(2))
    with pytest.raises(OSError, match="No space left"):
        tracker.close()
    assert logged == metrics.read_metrics(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="closed file"):
        last.log(5, None, {"a": 1.0})
