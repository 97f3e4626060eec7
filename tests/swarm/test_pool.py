from __future__ import annotations

import dataclasses
import json

import pytest

from sapo_jax.swarm.codec_json import CodecError
from sapo_jax.swarm.pool import MAX_TEXT_BYTES, Pool, text_bytes


def _pool(max_rollouts=8, max_age_rounds=0, max_uses=1, **bounds):
    return Pool(max_rollouts=max_rollouts, max_age_rounds=max_age_rounds, max_uses=max_uses, **bounds)


def _with_text(item, text):
    completions = tuple(dataclasses.replace(completion, text=text) for completion in item.rollout.completions)
    return dataclasses.replace(item, rollout=dataclasses.replace(item.rollout, completions=completions))


def _indices(candidates):
    return [item.task.ref.index for item in candidates]


@pytest.mark.parametrize(("added", "kept", "evicted"), [(2, [0, 1], 0), (3, [0, 1, 2], 0), (4, [1, 2, 3], 1)])
@pytest.mark.parametrize("at_once", [True, False])
def test_count_bound_keeps_the_newest(scored, added, kept, evicted, at_once):
    pool = _pool(max_rollouts=3)
    items = [scored([0, 1], "a", i) for i in range(added)]
    for batch in [items] if at_once else [[item] for item in items]:
        pool.add(batch, round=5)
    assert _indices(pool.candidates(5)) == kept
    assert len(pool) == len(kept)
    assert pool.evicted == {"age": 0, "uses": 0, "capacity": evicted}


@pytest.mark.parametrize("max_age", [0, 1, 3])
def test_age_bound(scored, max_age):
    pool = _pool(max_age_rounds=max_age)
    pool.add([scored([0, 1], "a", 7)], round=10)
    for age, eligible in ((max(max_age - 1, 0), [7]), (max_age, [7]), (max_age + 1, [])):
        assert _indices(pool.candidates(10 + age)) == eligible
    assert len(pool) == 1  # looking changes nothing
    pool.evict(10 + max_age)
    assert (len(pool), pool.evicted["age"]) == (1, 0)
    pool.evict(10 + max_age + 1)
    assert (len(pool), pool.evicted["age"]) == (0, 1)


def test_age_is_that_of_the_arrival_not_of_the_producer(scored):
    pool = _pool(max_age_rounds=0)
    pool.add([scored([0, 1], "a", 1, round=999), scored([0, 1], "a", 2, round=0)], round=4)
    assert _indices(pool.candidates(4)) == [1, 2]


def test_add_clears_the_old_before_it_counts_capacity(scored):
    pool = _pool(max_rollouts=2, max_age_rounds=1)
    pool.add([scored([0, 1], "a", 0)], round=0)
    pool.add([scored([0, 1], "a", 1)], round=1)
    pool.add([scored([0, 1], "a", 2)], round=2)
    assert _indices(pool.candidates(2)) == [1, 2]
    assert pool.evicted == {"age": 1, "uses": 0, "capacity": 0}


@pytest.mark.parametrize("max_uses", [1, 2, 4])
def test_uses_bound(scored, max_uses):
    pool = _pool(max_uses=max_uses)
    pool.add([scored([0, 1], "a", 1), scored([0, 1], "a", 2)], round=0)
    for used in range(1, max_uses + 1):
        pool.mark_used(pool.candidates(0)[:1])
        assert _indices(pool.candidates(0)) == ([1, 2] if used < max_uses else [2])
    assert pool.evicted == {"age": 0, "uses": 1, "capacity": 0}


def test_a_flood_pushes_out_only_itself(scored):
    pool = _pool(max_rollouts=8, max_age_rounds=9)
    pool.add([scored([0, 1], "quiet", i) for i in range(3)], round=0)
    pool.add([scored([0, 1], "greedy", 100 + i) for i in range(50)], round=1)
    assert _indices(pool.candidates(1)) == [0, 1, 2, 145, 146, 147, 148, 149]
    pool.add([scored([0, 1], "third", 200)], round=2)
    assert _indices(pool.candidates(2)) == [0, 1, 2, 146, 147, 148, 149, 200]
    assert pool.evicted == {"age": 0, "uses": 0, "capacity": 46}


def test_t8_texts_fill_the_pool_up_to_its_bytes_and_whoever_has_most_gives_way(scored):
    pool = _pool(max_rollouts=1024, max_age_rounds=9)
    pool.add([scored([0, 1], "quiet", i) for i in range(10)], round=0)
    for round in range(1, 5):
        large = [_with_text(scored([0] * 8, "greedy", 100 * round + i), "x" * 65_536) for i in range(25)]
        pool.add(large, round)
    kept = pool.candidates(4)
    assert sum(text_bytes(item.rollout) for item in kept) <= MAX_TEXT_BYTES
    assert _indices(kept)[:10] == list(range(10))
    assert len(kept) == 10 + 63 and kept[-1] == large[-1]  # whole, and the newest
    assert pool.evicted == {"age": 0, "uses": 0, "capacity": 100 - 63}


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"max_rollouts": 5}, [1, 2, 3, 4, 10]),  # "many" has most rollouts
        ({"max_text_bytes": 300}, [0, 1, 2, 3, 4]),  # "large" has most bytes, though in one rollout
        ({"max_rollouts": 4, "max_text_bytes": 300}, [2, 3, 4]),
        ({"max_text_bytes": 10}, [4]),
    ],
)
def test_each_bound_has_its_own_largest(scored, bounds, kept):
    pool = _pool(**bounds)
    small = [_with_text(scored([0, 1], "many", i), "x" * 5) for i in range(5)]
    pool.add([*small[:2], _with_text(scored([0, 1], "large", 10), "x" * 200), *small[2:]], round=0)
    assert sorted(_indices(pool.candidates(0))) == kept


def test_a_restored_pool_keeps_its_bytes_too(scored, rebuild_task):
    wide, narrow = _pool(), _pool(max_text_bytes=40)
    wide.add([_with_text(scored([0, 1], "a", i), "x" * 10) for i in range(4)], round=0)
    narrow.restore_json(wide.to_json(), rebuild_task)
    narrow.add([], round=0)
    assert _indices(narrow.candidates(0)) == [2, 3]


def test_equal_rollouts_stay_apart(scored):
    pool = _pool(max_uses=1)
    twin = scored([0, 1], "a", 1)
    pool.add([twin, twin, scored([0, 1], "a", 1)], round=0)
    first = pool.candidates(0)[0]
    pool.mark_used([first])
    assert len(pool) == 2
    assert all(item is not first for item in pool.candidates(0))


def test_marking_something_else_is_an_error_and_counts_nothing(scored):
    pool = _pool(max_uses=1)
    pool.add([scored([0, 1], "a", 1)], round=0)
    (inside,) = pool.candidates(0)
    with pytest.raises(ValueError, match="node 'a' on TaskRef.*is not in the pool"):
        pool.mark_used([inside, dataclasses.replace(inside)])
    assert _indices(pool.candidates(0)) == [1]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"max_rollouts": 0}, "max_rollouts = 0 must be at least 1"),
        ({"max_age_rounds": -1}, "max_age_rounds = -1 must be at least 0"),
        ({"max_uses": 0}, "max_uses = 0 must be at least 1"),
        ({"max_text_bytes": 0}, "max_text_bytes = 0 must be at least 1"),
    ],
)
def test_bounds_that_keep_nothing_are_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        _pool(**bounds)


def _worn_pool(scored):
    pool = _pool(max_rollouts=3, max_age_rounds=2, max_uses=2)
    pool.add([scored([0, 0.1, 1 / 3], "a", i) for i in range(4)], round=0)
    pool.add([scored([1, 0], "b", 9)], round=1)
    pool.mark_used(pool.candidates(1)[1:])
    return pool


def test_state_round_trip_continues_exactly(scored, rebuild_task):
    pool = _worn_pool(scored)
    state = json.loads(json.dumps(pool.to_json(), sort_keys=True))
    restored = _pool(max_rollouts=3, max_age_rounds=2, max_uses=2)
    restored.add([scored([0, 1], "z", 50)], round=0)  # must vanish
    restored.restore_json(state, rebuild_task)
    assert restored.to_json() == pool.to_json()
    for each in (pool, restored):
        each.mark_used(each.candidates(2)[:2])
        each.add([scored([0, 1], "c", 20)], round=3)
    assert restored.candidates(3) == pool.candidates(3)
    assert restored.evicted == pool.evicted == {"age": 1, "uses": 1, "capacity": 2}


@pytest.mark.parametrize(
    ("break_state", "message"),
    [
        (lambda s: s.pop("evicted"), "pool has the keys"),
        (lambda s: s["evicted"].pop("age"), r"pool\.evicted has the keys"),
        (lambda s: s["entries"][1].pop("uses"), r"pool\.entries\[1\] has the keys"),
        (lambda s: s["entries"][0].update(uses=0.5), r"pool\.entries\[0\]\.uses is a float, expected int"),
        (
            lambda s: s["entries"][0]["scored"]["scores"].pop(),
            r"pool\.entries\[0\]\.scored has 2 scores for 3 completions",
        ),
        (lambda s: s["entries"][0]["scored"].update(scores=["1"] * 3), r"pool\.entries\[0\]\.scored\.scores holds '1'"),
    ],
)
def test_damaged_state_is_refused_and_changes_nothing(scored, rebuild_task, break_state, message):
    pool = _worn_pool(scored)
    state = pool.to_json()
    break_state(state)
    with pytest.raises(CodecError, match=message):
        pool.restore_json(state, rebuild_task)
    assert pool.to_json() == _worn_pool(scored).to_json()
