from __future__ import annotations

import dataclasses
import json
import math
import socket
import time

import numpy as np
import pytest

from sapo_jax.swarm.mesh.host_status import PeerState
from sapo_jax.swarm.network_exchange import NetworkHub
from scripts.faults import step
from scripts.faults.figures import Figure, Setting
from scripts.faults.step_draws import Draws
from scripts.faults.step_peers import dead_peers, silent_peers
from scripts.faults.step_slowdown import Block, Trainee, play_pairs, slowdown, tiny_config
from scripts.faults.step_start import Start, first_step, has_first_round

LONG_PAUSE_S = 3.0  # longer than a round of a busy machine


class FakeTrainee:
    """Plays rounds of known lengths on a machine that gets slower, with one hiccup in each block."""

    def __init__(self, slower: float, *, loses_peers: bool = False) -> None:
        self.played: list[str] = []
        self._slower = slower
        self._loses_peers = loses_peers

    def play(self, condition, peers, *, rounds, warm_s):
        self.played.append(condition)
        drift = 1.0 + 0.3 * (len(self.played) // 2)
        seconds = drift * (self._slower if peers else 1.0)
        shown = () if self._loses_peers else (PeerState.UNREACHABLE,) * len(peers)
        return Block(round_s=(seconds,) * (rounds - 1) + (100.0,), peers=shown)


def test_the_slowdown_is_that_of_neighbors_and_a_hiccup_counts_in_the_mean_only():
    trainee = FakeTrainee(1.1)
    pairs = play_pairs(trainee, "dead", ["a", "b"], pairs=4, rounds=3, warm_s=0.0)
    assert trainee.played == ["beside dead peers", "with dead peers", "with dead peers", "beside dead peers"] * 2
    percent, low, high = slowdown(pairs, 0, np.median)
    assert low < percent < high  # the order alternates, so the drift widens the interval on both sides
    steady = [(Block(round_s=(1.0, 1.0, 9.0), peers=()), Block(round_s=(1.1, 1.1, 1.1), peers=()))] * 3
    assert slowdown(steady, 0, np.median) == pytest.approx((10.0, 10.0, 10.0))
    assert slowdown(steady, 0, np.mean)[0] == pytest.approx(-70.0)


def test_blocks_whose_peers_are_not_there_measure_nothing():
    with pytest.raises(RuntimeError, match="0 and 0 peers instead of 0 and 2"):
        play_pairs(FakeTrainee(1.0, loses_peers=True), "dead", ["a", "b"], pairs=1, rounds=2, warm_s=0.0)


def test_a_slow_round_misses_its_target_and_an_equal_one_meets_it():
    equal = [(Block(round_s=(1.0,) * 4, peers=()), Block(round_s=(1.0,) * 4, peers=(PeerState.UNREACHABLE,)))] * 2
    slow = [(before, Block(round_s=(1.06,) * 4, peers=after.peers)) for before, after in equal]
    assert all(figure.is_met for figure in step.slowdown_figures("dead", equal, 0))
    usual, total = step.slowdown_figures("dead", slow, 0)
    for figure in (usual, total):
        assert not figure.is_met and figure.value == pytest.approx(6.0)
    assert "2 unreachable" in total.detail and "8 rounds without peers" in usual.detail
    rare = [(before, Block(round_s=(1.0, 1.0, 1.0, 2.0), peers=after.peers)) for before, after in equal]
    usual, total = step.slowdown_figures("dead", rare, 0)
    assert usual.is_met and not total.is_met and total.value == pytest.approx(25.0)


def test_one_draw_in_fifty_that_waits_misses_the_target_and_so_do_draws_that_find_nothing():
    fast = Draws(
        draw_s=(0.01,) * 100,
        paced_draw_s=(0.01,) * 100,
        paced_verified=5_000,
        publish_s=(0.01,) * 10,
        full_mailbox_s=0.3,
        pool=64,
        seconds=2.0,
        arrived=200,
        verified=100,
    )
    assert all(figure.is_met for figure in step.draw_figures(fast))
    waiting = (0.01,) * 98 + (0.2,) * 2
    assert _missed(dataclasses.replace(fast, draw_s=waiting)) == ["draw from the pool, p99"]
    assert _missed(dataclasses.replace(fast, paced_draw_s=waiting)) == ["draw from the pool at the pace of rounds, p99"]
    assert _missed(dataclasses.replace(fast, paced_verified=500)) == ["groups that such a draw finds"]
    assert "100 groups/s arriving, 50 verified" in step.draw_figures(fast)[0].detail


def _missed(draws: Draws) -> list[str]:
    return [figure.name for figure in step.draw_figures(draws) if not figure.is_met]


def test_only_a_start_without_supervised_steps_is_judged():
    start = Start(first_word_s=5.0, first_step_s=25.0, cpu_s=30.0)
    assert not step.start_figure(start, "next start", is_judged=True).is_met
    assert step.start_figure(start, "next start", is_judged=False).is_met


def test_the_first_round_is_told_from_the_evaluation_before_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert not has_first_round(path)
    evaluated = json.dumps({"round": 0, "node": None, "eval/strict_pass_at_1": 0.5}) + "\n"
    path.write_text(evaluated)
    assert not has_first_round(path)
    path.write_text(evaluated + '{"round": 1, "node": 0, "time/rou')  # being written
    assert not has_first_round(path)
    path.write_text(evaluated + json.dumps({"round": 1, "node": 0, "time/round_s": 0.1}) + "\n")
    assert has_first_round(path)


@pytest.mark.slow
def test_a_process_that_ends_early_is_no_start(tmp_path):
    with pytest.raises(RuntimeError, match="without a first round"):
        first_step(tmp_path / "run", cache=tmp_path, absent_address="127.0.0.1:9", overrides=("--no_such_flag",))


def test_dead_peers_refuse_and_silent_ones_say_nothing():
    with dead_peers(2) as addresses:
        for address in addresses:
            with pytest.raises(ConnectionRefusedError):
                _connect(address)
    with silent_peers(2) as (dropping, mute):
        with pytest.raises(TimeoutError):
            _connect(dropping)
        with _connect(mute) as caller, pytest.raises(TimeoutError):
            caller.sendall(b"anybody there?")
            caller.recv(1)


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=0.3)


@pytest.mark.slow
def test_a_training_thread_that_waits_for_its_peers_is_noticed(tmp_path, monkeypatch):
    publish = NetworkHub.publish

    def publish_and_wait(self: NetworkHub, node_id, scored):
        publish(self, node_id, scored)
        if self.host.book.peers():  # as if it waited for an answer
            time.sleep(LONG_PAUSE_S)

    monkeypatch.setattr(NetworkHub, "publish", publish_and_wait)
    trainee = Trainee(tiny_config(0), tmp_path)
    try:
        with dead_peers(2) as addresses:
            pairs = play_pairs(trainee, "dead", addresses, pairs=2, rounds=2, warm_s=0.0)
    finally:
        trainee.close()
    assert not step.slowdown_figures("dead", pairs, 0)[0].is_met


@pytest.mark.slow
def test_the_whole_part_in_small(tmp_path):
    said: list[str] = []
    figures: list[Figure] = step.measure(Setting(scale=0.01, seed=0, workdir=tmp_path, say=said.append))
    assert [figure.name for figure in figures] == [
        "training round slowed by dead peers",
        "training slowed by dead peers, all rounds together",
        "training round slowed by slow peers",
        "training slowed by slow peers, all rounds together",
        "training round slowed by silent peers",
        "training slowed by silent peers, all rounds together",
        "start to first step without network, first start ever",
        "draw from the pool, p99",
        "draw from the pool at the pace of rounds, p99",
        "groups that such a draw finds",
        "draw that finds the mailbox full",
        "own groups of a round into the outbox, p99",
    ]
    assert all(math.isfinite(figure.value) for figure in figures)
    assert all(figure.detail for figure in figures) and said
