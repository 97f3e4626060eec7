from __future__ import annotations

import threading
import time

import pytest

from sapo_jax.swarm.mesh import scores as scores_module
from sapo_jax.swarm.mesh.scores import BAN_S, HALF_LIFE_S, REJECTION_WEIGHTS, USEFUL_CAP, Scores
from sapo_jax.types import RejectionReason


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scores(clock) -> Scores:
    return Scores(clock)


def test_a_stranger_has_no_score_and_every_right(scores):
    assert scores.score("a") == 0.0
    assert scores.may_relay("a") and scores.may_sample("a") and not scores.is_banned("a")


def test_points_are_halved_every_ten_minutes(scores, clock):
    scores.useful("a", 8.0)
    scores.invalid("b", 4.0)
    clock.now += HALF_LIFE_S
    assert scores.score("a") == pytest.approx(4.0)
    assert scores.score("b") == pytest.approx(-(2.0**2))
    scores.useful("a")  # 4 + 1, not 8 + 1
    assert scores.score("a") == pytest.approx(5.0)


def test_usefulness_is_capped_and_invalid_items_count_squared(scores):
    for _ in range(1000):
        scores.useful("a")
    assert scores.score("a") == USEFUL_CAP
    values = []
    for _ in range(4):
        scores.invalid("a")
        values.append(scores.score("a"))
    assert values == [10 - 1, 10 - 4, 10 - 9, 10 - 16]


@pytest.mark.parametrize(
    ("items", "relay", "sample", "banned"),
    [
        (3, True, True, False),
        (4, False, True, False),
        (7, False, True, False),
        (8, False, False, False),
        (9, False, False, True),
    ],
)
def test_thresholds(scores, items, relay, sample, banned):
    for _ in range(items):
        scores.invalid("a")
    assert (scores.may_relay("a"), scores.may_sample("a"), scores.is_banned("a")) == (relay, sample, banned)


def test_a_ban_ends_after_an_hour_and_the_score_has_faded_by_then(scores, clock):
    for _ in range(9):
        scores.invalid("a")
    clock.now += BAN_S - 1
    assert scores.is_banned("a") and not scores.may_relay("a")
    clock.now += 1
    assert not scores.is_banned("a") and scores.may_relay("a")


def test_a_person_bans_and_unbans(scores, clock):
    scores.ban("a", 50.0)
    scores.ban("a", 10.0)  # never shortens
    assert scores.banned() == {"a": 50.0}
    assert scores.unban("a") and not scores.is_banned("a")
    assert not scores.unban("a")


def test_what_honest_nodes_cause_is_cheap():
    assert set(REJECTION_WEIGHTS) == set(RejectionReason)
    assert REJECTION_WEIGHTS[RejectionReason.UNKNOWN_TASK] == 0.0  # another catalog
    assert REJECTION_WEIGHTS[RejectionReason.TIMEOUT] <= 0.5  # a busy machine


def test_many_fresh_keys_neither_fill_the_memory_nor_buy_a_pardon(scores, monkeypatch):
    monkeypatch.setattr(scores_module, "MAX_SCORED", 10)
    scores.ban("bad")
    for number in range(50):
        scores.invalid(f"key {number}")
    assert scores.is_banned("bad")
    assert scores.score("key 49") == -1.0 and scores.score("key 0") == 0.0


def test_reading_while_others_write_never_fails():
    scores = Scores(time.monotonic)
    writing = threading.Thread(target=lambda: [scores.invalid(str(number), 100.0) for number in range(20_000)])
    writing.start()
    reads = 0
    while writing.is_alive():
        scores.banned()
        reads += 1
    writing.join()
    assert reads > 10 and len(scores.banned()) > 0
