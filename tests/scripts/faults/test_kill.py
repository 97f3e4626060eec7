"""What the kill part counts, on records made by hand, and a short run with real hosts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.faults import kill
from scripts.faults.durable import History, StoreReadings, read_history, rounds_rise
from scripts.faults.figures import Figure, Setting
from scripts.faults.light_host import JOURNAL_FILE

GROUPS = [bytes([number]) * 32 for number in range(3)]  # published by "a", acknowledged by "b"


def record(round: int, arrived: tuple[str, ...] = (), drawn: tuple[str, ...] = ()) -> dict:
    return {"event": "round", "round": round, "own": 1, "arrived": arrived, "drawn": drawn}


def judged(**changes) -> dict[str, Figure]:
    """The figures of two hosts where everything went well, but for `changes` of the receiver's records."""
    hosts = [SimpleNamespace(node_id=name, failures=0, starts=4) for name in "ab"]
    publisher, receiver = StoreReadings(), StoreReadings()
    for number, group_id in enumerate(GROUPS):
        publisher.acknowledged.add((group_id, "b"))
        publisher.names[group_id] = f"a text {number}"
        publisher.ids["a", 1, f"task {number}"].add(group_id)
    receiver.held, receiver.seen = set(GROUPS[:2]), set(GROUPS[2:])
    rounds = [record(1, ("a text 0", "a text 1"), ("a text 1",)), record(2, ("a text 2",), ("a text 1",))]
    history = History(rounds=rounds, starts=4)
    for name, value in changes.items():
        setattr(receiver if hasattr(receiver, name) else history, name, value)
    figures = kill.judge(hosts, [publisher, receiver], [History(rounds=[record(1)]), history], 3)
    return {figure.name: figure for figure in figures}


def missed(figures: dict[str, Figure]) -> set[str]:
    return {name for name, figure in figures.items() if not figure.is_met}


def test_records_without_a_fault_meet_every_target():
    assert not missed(judged())


def test_a_group_that_the_receiver_forgot_is_lost():
    assert missed(judged(seen=set())) == {"acknowledged groups lost"}


def test_a_group_must_reach_the_pool_once():
    rounds = [record(1, ("a text 0", "a text 1")), record(2, ("a text 1",))]
    assert missed(judged(rounds=rounds)) == {
        "acknowledged groups that never reached the pool",
        "groups that reached the pool twice",
    }


def test_uses_are_counted_over_all_rounds_and_within_each():
    arrived = ("a text 0", "a text 1", "a text 2")
    often = [record(1, arrived, ("a text 0",)), *(record(round, (), ("a text 0",)) for round in range(2, 6))]
    assert missed(judged(rounds=often)) == {"duplicates trained", "uses of one group"}
    assert missed(judged(rounds=[record(1, arrived, ("a text 0", "a text 0"))])) == {"duplicates trained"}


def test_a_group_under_two_ids_is_one_group():
    second = b"s" * 32
    figures = judged(
        names={second: "a other text"},
        ids={("a", 1, "task 0"): {second}},
        rounds=[record(1, ("a text 0", "a text 1", "a text 2", "a other text"))],
    )
    assert missed(figures) == {"ids of one published group", "groups that reached the pool twice"}


def test_a_resumed_process_takes_back_the_rounds_after_its_checkpoint(tmp_path: Path):
    lines = [
        {"event": "start", "after": 0, "damaged": 0},
        record(1, ("x",)),
        record(2, ("y",)),
        {"event": "start", "after": 1, "damaged": 1},
        record(2, ("y",)),
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / JOURNAL_FILE).write_text(text + '\n{"event": "rou\n' + json.dumps(record(3)) + "\n")
    history = read_history(tmp_path)
    assert [each["round"] for each in history.rounds] == [1, 2, 3] and rounds_rise([1, 2, 3])
    assert history.arrivals() == {"x": 1, "y": 1}
    assert (history.replayed, history.starts, history.damaged) == (1, 2, 1)
    assert not rounds_rise([1, 3]) and not rounds_rise([1, 1])


def test_a_file_that_is_no_store_counts_as_damaged(tmp_path: Path):
    (tmp_path / "groups.sqlite").write_bytes(b"no database " * 1000)
    readings = StoreReadings()
    readings.read(tmp_path, "swarm")
    assert readings.damaged == 1


def test_hosts_that_are_killed_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kill, "LONGEST_LIFE_S", 1.0)
    said: list[str] = []
    figures = kill.measure(Setting(scale=0.01, seed=0, workdir=tmp_path, say=said.append))
    assert {figure.name for figure in figures} == set(judged()) | {
        "kills of publisher and receiver",
        "starts after which a host was not ready",
        "all groups handed over in the end",
    }
    assert not missed({figure.name: figure for figure in figures}), figures
    assert any("hosts that train are not killed" in line for line in said)


@pytest.mark.slow
def test_hosts_that_train_and_are_killed_lose_nothing(tmp_path: Path):
    figures = kill.measure_training(Setting(scale=1.0, seed=0, workdir=tmp_path, say=print), 1)
    assert not missed({figure.name: figure for figure in figures}), figures
