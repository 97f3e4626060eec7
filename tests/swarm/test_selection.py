from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapo_jax.swarm.selection import RULES, is_informative, select, select_local


def _rng(seed=0):
    return np.random.default_rng(seed)


def _indices(selected):
    return [item.task.ref.index for item in selected]


@pytest.mark.parametrize(
    ("scores", "informative"),
    [
        ([0, 0], False),
        ([1, 1, 1], False),
        ([0, 1], True),
        ([0.1, 0.1, 0.1], False),
        ([0.05, 0.01], True),
        ([0.5], False),
        ([0.5, 0.5005], False),
    ],
)
def test_is_informative(scores, informative):
    assert is_informative(scores) is informative


def test_zero_adv_uniform_never_takes_a_group_without_advantage(scored):
    candidates = [scored([1, 1], "a", 0), scored([0, 1], "a", 1), scored([0, 0], "a", 2), scored([0.5, 0.2], "a", 3)]
    for seed in range(50):
        assert sorted(_indices(select(candidates, 4, "zero_adv_uniform", _rng(seed)))) == [1, 3]


def test_zero_adv_uniform_of_nothing_informative_is_empty(scored):
    assert select([scored([1, 1]), scored([0, 0])], 2, "zero_adv_uniform", _rng()) == []


def test_uniform_does_not_look_at_scores(scored):
    candidates = [scored([0, 0], "a", 0), scored([1, 1], "a", 1), scored([0, 1], "a", 2)]
    assert sorted(_indices(select(candidates, 3, "uniform", _rng()))) == [0, 1, 2]


@pytest.mark.parametrize("rule", ["uniform", "zero_adv_uniform"])
def test_random_rules_draw_every_pair_equally_often(scored, rule):
    informative = [scored([0, 1], "a", i) for i in range(5)]
    noise = [scored([0, 0], "b", 90)] if rule == "zero_adv_uniform" else []
    rng = _rng(20_260)
    counts: dict[tuple[int, ...], int] = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    draws = 4_000
    for _ in range(draws):
        counts[tuple(sorted(_indices(select(informative + noise, 2, rule, rng))))] += 1
    expected = draws / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 27.88  # 0.999 quantile at 9 degrees of freedom


def test_publisher_uniform_is_uniform_over_publishers_whatever_they_send(scored):
    """One publisher has 90 % of the groups, the other nine share the rest."""
    greedy = [scored([0, 1], "greedy", i) for i in range(90)]
    others = [scored([0, 1], f"p{i}", 100 + i) for i in range(9)]
    rng = _rng(5)
    draws = 100_000
    counts = dict.fromkeys(["greedy", *(f"p{i}" for i in range(9))], 0)
    for _ in range(draws):
        (drawn,) = select(greedy + others, 1, "publisher_uniform", rng)
        counts[drawn.rollout.node_id] += 1
    expected = draws / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 27.88  # 0.999 quantile at 9 degrees of freedom


def test_publisher_uniform_takes_what_is_left_when_publishers_run_out(scored):
    candidates = [scored([0, 1], "a", i) for i in range(3)] + [scored([0, 1], "b", 9), scored([1, 1], "c", 10)]
    assert sorted(_indices(select(candidates, 8, "publisher_uniform", _rng()))) == [0, 1, 2, 9]
    within = [frozenset(_indices(select(candidates[:3], 1, "publisher_uniform", _rng(seed)))) for seed in range(100)]
    assert set(within) == {frozenset({0}), frozenset({1}), frozenset({2})}


def test_random_rules_return_every_order(scored):
    candidates = [scored([0, 1], "a", i) for i in range(3)]
    rng = _rng(3)
    orders = {tuple(_indices(select(candidates, 3, "uniform", rng))) for _ in range(200)}
    assert len(orders) == 6


def test_top_reward_by_hand(scored):
    candidates = [
        scored([0, 0, 0], "a", 0),  # 0, never taken
        scored([1, 0, 0], "c", 1),  # 1
        scored([1, 1, 1], "b", 2),  # 3: solved by all, no advantage, taken all the same
        scored([0, 1, 0], "a", 4),  # 1
        scored([0.5, 0.5, 0], "a", 3),  # 1
        scored([1, 1, 0], "z", 5),  # 2
    ]
    # 3, 2, then the three with 1: node a before c, and within a question 003 before 004.
    assert _indices(select(candidates, 9, "top_reward", _rng())) == [2, 5, 3, 4, 1]
    assert _indices(select(candidates, 3, "top_reward", _rng())) == [2, 5, 3]
    assert select([scored([0, 0]), scored([0, 0])], 1, "top_reward", _rng()) == []


def test_top_reward_totals_do_not_depend_on_the_order_of_scores(scored):
    # Plain float sums differ: 0.1 + 0.2 + 0.3 > 0.3 + 0.2 + 0.1, so node b would overtake node a.
    assert 0.1 + 0.2 + 0.3 > 0.3 + 0.2 + 0.1
    candidates = [scored([0.1, 0.2, 0.3], "b", 0), scored([0.3, 0.2, 0.1], "a", 1)]
    assert _indices(select(candidates, 1, "top_reward", _rng())) == [1]


def test_top_reward_equal_to_the_last_key_goes_by_arrival(scored):
    early, late = scored([0, 1], "a", 0), scored([1, 0], "a", 0)
    assert select([early, late], 1, "top_reward", _rng())[0] is early
    assert select([late, early], 1, "top_reward", _rng())[0] is late


def test_first_takes_the_earliest_whatever_they_scored(scored):
    candidates = [scored([0, 0], "b", 0), scored([1, 1], "a", 1), scored([0, 1], "a", 2)]
    assert _indices(select(candidates, 2, "first", _rng())) == [0, 1]


def test_select_local_takes_all_in_order(scored):
    own = [scored([0, 0], "a", 3), scored([1, 1], "a", 1), scored([0, 1], "a", 2)]
    assert _indices(select_local(own, 3)) == [3, 1, 2]
    assert _indices(select_local(own, 2)) == [3, 1]
    assert _indices(select_local(own[:1], 3)) == [3]
    assert select_local(own, 0) == []


@given(
    groups=st.lists(st.lists(st.sampled_from([0.0, 0.05, 1.0]), min_size=1, max_size=3), max_size=8),
    count=st.integers(0, 10),
    rule=st.sampled_from(sorted(RULES)),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_rule_is_bounded_repeatable_and_takes_nothing_twice(scored, groups, count, rule, seed):
    candidates = [scored(scores, "a", i) for i, scores in enumerate(groups)]
    selected = select(candidates, count, rule, _rng(seed))
    assert len(selected) <= count
    assert len({id(item) for item in selected}) == len(selected)
    assert {id(item) for item in selected} <= {id(item) for item in candidates}
    assert _indices(selected) == _indices(select(candidates, count, rule, _rng(seed)))


def test_unknown_rule_and_negative_count(scored):
    with pytest.raises(
        ValueError,
        match="selection rule 'best' is not one of zero_adv_uniform, publisher_uniform, uniform, top_reward, first",
    ):
        select([], 1, "best", _rng())
    with pytest.raises(ValueError, match="count = -1 must be at least 0"):
        select([], -1, "uniform", _rng())
    with pytest.raises(ValueError, match="count = -1 must be at least 0"):
        select_local([], -1)
