from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sapo_jax.swarm.store.retention import Entry, EvictionReason, GroupState, Retention, StoreLimits
from sapo_jax.swarm.wire.requests import PublishOutcome
from tests.swarm.store.store_cases import FakeTime, held_ids, ids, make_group, open_store


@pytest.fixture
def time():
    return FakeTime()


def _evicted(store):
    return {reason.value: count for reason, count in store.stats().evicted.items() if count}


@pytest.mark.parametrize(("added", "kept"), [(7, 7), (8, 8), (9, 8)])
def test_count_limit(time, added, kept):
    store = open_store(None, time, max_groups=8)
    groups = [make_group(f"p{i}", i) for i in range(added)]
    store.put(groups)
    assert held_ids(store) == ids(groups[-kept:])
    assert _evicted(store) == ({"oldest": added - kept} if added > kept else {})


@pytest.mark.parametrize(("size", "kept"), [(199, 10), (200, 10), (201, 9)])
def test_byte_limit(time, size, kept):
    store = open_store(None, time, max_bytes=2000)
    groups = [make_group(f"p{i}", i, size_bytes=200 if i else size) for i in range(10)]
    store.put(groups)
    assert held_ids(store) == ids(groups[-kept:])
    assert store.stats().size_bytes == sum(group.size_bytes for group in groups[-kept:])


@pytest.mark.parametrize("age_s", [0.0, 40.0])
def test_age_limit_counts_what_passed_before_the_arrival(time, age_s):
    store = open_store(None, time)
    store.put([make_group(ttl_s=100, age_s=age_s)])
    time.advance(99 - age_s)
    assert len(held_ids(store)) == 1
    time.advance(1)
    assert held_ids(store) == []
    store.expire()
    assert _evicted(store) == {"expired": 1}


def test_a_younger_copy_moves_the_end_of_a_group_and_it_still_expires(time):
    """In the order of expiry too: groups around it leave when they always would."""
    store = open_store(None, time, max_groups=64)
    old, between = make_group("p", 0, ttl_s=1000, age_s=800), make_group("p", 1, ttl_s=1000, age_s=400)
    store.put([old, between])
    time.advance(100)
    store.put([make_group("p", 0, ttl_s=1000, age_s=100)])  # it was made when it came here
    time.advance(500)
    store.expire()
    assert held_ids(store) == [old.group_id] and _evicted(store) == {"expired": 1}
    time.advance(399)
    assert held_ids(store) == [old.group_id]
    time.advance(1)
    store.expire()
    assert held_ids(store) == [] and _evicted(store) == {"expired": 2}


def test_draws_look_names_up_in_a_set(time):
    """A request may exclude hundreds of publishers, and the store may hold thousands."""

    class Listed(tuple):
        def __contains__(self, name):
            raise AssertionError("searched from the front, under the store's lock")

    store = open_store(None, time)
    store.put([make_group(name, 0, dataset=name) for name in "abc"])
    rng = np.random.default_rng(0)
    drawn = store.sample(9, rng=rng, excluded_publishers=Listed("a"), datasets=Listed("ab"))
    assert [item.publisher for item in drawn] == ["b"]
    assert [ref.dataset for ref in store.refs(None, 9, datasets=Listed("ac")).references] == ["a", "c"]


def test_long_lifetimes_are_cut(time):
    store = open_store(None, time, max_ttl_s=100)
    store.put([make_group(ttl_s=86_400)])
    time.advance(99)
    assert len(held_ids(store)) == 1
    time.advance(1)
    assert held_ids(store) == []


@pytest.mark.parametrize(("pool", "cap"), [(16, 2), (15, 1), (4, 1), (4096, 512)])
def test_t9_one_publisher_may_use_its_share_and_no_more(time, pool, cap):
    """T9: a flooder fills its share, pushes out only its own groups, and needs no company to fill it."""
    store = open_store(None, time, max_groups=pool)
    other = make_group("other")
    store.put([other])
    groups = [make_group("flooder", i) for i in range(cap + 5)]
    store.put(groups)
    assert held_ids(store) == ids([other, *groups[-cap:]])
    assert _evicted(store) == {"publisher": 5}


def test_t9_the_share_holds_for_bytes(time):
    store = open_store(None, time, max_bytes=8000)
    groups = [make_group("flooder", i, size_bytes=400) for i in range(4)]
    store.put([make_group("other", size_bytes=1000), *groups])
    assert held_ids(store)[1:] == ids(groups[-2:])


def test_t9_a_publisher_of_most_groups_gets_its_share_of_the_pool(time):
    store = open_store(None, time, max_groups=256)
    rng = np.random.default_rng(0)
    groups = [make_group("greedy" if rng.random() < 0.9 else f"p{rng.integers(20)}", i) for i in range(3000)]
    for i in range(0, len(groups), 30):
        store.put(groups[i : i + 30])
    counts = Counter(item.publisher for item in store.after(0, 1000))
    assert counts["greedy"] == 32
    assert counts.total() == 256  # the others fill the rest
    drawn = [item for _ in range(400) for item in store.sample(5, rng=rng)]
    assert abs(sum(item.publisher == "greedy" for item in drawn) - 2000 / 21) < 4 * (2000 / 21) ** 0.5


def test_eviction_order(time):
    """Expired, then the publisher's oldest, then the oldest of all."""
    store = open_store(None, time, max_groups=8, publisher_frac=0.25)
    names = ("a", "b", "c", "mortal", "d", "e", "f", "g")
    store.put([make_group(name, 0, ttl_s=50 if name == "mortal" else 3600) for name in names])

    def gone(group):
        before = [(item.publisher, item.group_id) for item in store.after(0, 99)]
        store.put([group])
        after = held_ids(store)
        return [name for name, group_id in before if group_id not in after]

    time.advance(50)
    assert gone(make_group("h", 0)) == []  # "mortal" made room by expiring, though others are older
    assert _evicted(store) == {"expired": 1}
    assert gone(make_group("g", 1)) == ["a"]
    assert gone(make_group("g", 2)) == ["g"]  # its share is two, though others are older
    assert _evicted(store) == {"expired": 1, "publisher": 1, "oldest": 1}
    assert [gone(make_group(name, 0)) for name in "ijk"] == [["b"], ["c"], ["d"]]
    assert _evicted(store) == {"expired": 1, "publisher": 1, "oldest": 4}


def test_narrower_limits_apply_when_a_store_is_opened(tmp_path, time):
    path = tmp_path / "store.sqlite"
    store = open_store(path, time, max_groups=64)
    store.put([make_group(f"p{i % 8}", i) for i in range(64)])
    store.close()
    store = open_store(path, time, max_groups=10, publisher_frac=0.2)
    counts = Counter(item.publisher for item in store.after(0, 99))
    assert (counts.total(), max(counts.values())) == (10, 2)
    assert _evicted(store) == {"publisher": 48, "oldest": 6}
    assert store.stats().seen == 54
    store.close()


def test_draws_are_uniform_over_publishers_then_over_their_groups():
    """Chi-square over 100,000 draws, with publishers of very different sizes, one of them with 90 % of all groups."""
    index = Retention(StoreLimits(max_groups=10_000, publisher_frac=1.0))
    sizes = {f"p{i}": 1 for i in range(14)} | {"p14": 15, "greedy": 261}
    for publisher, size in sizes.items():
        for number in range(size):
            seq = len(index) + 1
            index.admit(
                Entry(
                    seq=seq,
                    group_id=f"{publisher}/{number}".encode(),
                    publisher=publisher,
                    dataset="toy",
                    size_bytes=1,
                    born_s=0.0,
                    expires_s=1.0,
                    hops=0,
                )
            )
    rng = np.random.default_rng(12345)
    draws = 100_000
    publishers, groups = Counter(), Counter()
    for _ in range(draws):
        (entry,) = index.draw(1, now_s=0.0, rng=rng)
        publishers[entry.publisher] += 1
        if entry.publisher == "p14":
            groups[entry.group_id] += 1

    def chi_square(counts, cells):
        expected = sum(counts.values()) / cells
        return sum((count - expected) ** 2 / expected for count in counts.values())

    # The 0.9999 quantiles of chi-square with 15 and 14 degrees of freedom.
    assert len(publishers) == 16 and chi_square(publishers, 16) < 44.3
    assert len(groups) == 15 and chi_square(groups, 15) < 42.6


def test_the_index_does_not_grow_with_what_passed_through():
    index = Retention(StoreLimits(max_groups=10, publisher_frac=1.0))
    for seq in range(1, 5000):
        entry = Entry(
            seq=seq, group_id=b"%d" % seq, publisher="p", dataset="d", size_bytes=1, born_s=0, expires_s=1e9, hops=0
        )
        index.admit(entry)
    lengths = [len(getattr(index, name)) for name in ("_order", "_by_expiry")]
    assert max(lengths) < 300


class _Model:
    """The rules of retention, written without regard for speed."""

    max_groups, max_bytes, cap_groups, cap_bytes, grace_s = 8, 3200, 4, 1600, 600.0

    def __init__(self):
        self.now = 0.0
        self.held = []  # [seq, group, expires, state]
        self.arrived = {}  # seq -> time, as far as this process knows
        self.seen = {}  # id -> forget time
        self.seq = 0

    def leave(self, item):
        self.held.remove(item)
        self.seen[item[1].group_id] = self.now + item[1].ttl_s + self.grace_s

    def sweep(self):
        for item in [item for item in self.held if item[2] <= self.now]:
            self.leave(item)
        for group_id in [group_id for group_id, forget in self.seen.items() if forget <= self.now]:
            del self.seen[group_id]

    def put(self, group):
        for item in self.held:
            if item[1].group_id == group.group_id:
                born = min(self.now - group.age_s, self.arrived.get(item[0], -1e9))
                item[2] = max(item[2], born + item[1].ttl_s)
                return PublishOutcome.DUPLICATE
        if group.group_id in self.seen:
            return PublishOutcome.DUPLICATE
        if group.ttl_s - group.age_s < min(60.0, group.ttl_s / 10) or group.size_bytes > self.cap_bytes:
            return PublishOutcome.REJECTED
        self.seq += 1
        self.arrived[self.seq] = self.now
        self.held.append([self.seq, group, self.now - group.age_s + group.ttl_s, GroupState.UNVERIFIED])
        while True:
            own = [item for item in self.held if item[1].publisher == group.publisher]
            if len(own) <= self.cap_groups and sum(item[1].size_bytes for item in own) <= self.cap_bytes:
                break
            self.leave(own[0])
        while len(self.held) > self.max_groups or sum(item[1].size_bytes for item in self.held) > self.max_bytes:
            self.leave(self.held[0])
        return PublishOutcome.ACCEPTED


class StoreAgainstModel(RuleBasedStateMachine):
    """Random calls, restarts and clock jumps: the store holds what the model holds."""

    @initialize()
    def start(self):
        self.directory = tempfile.TemporaryDirectory()
        self.time = FakeTime()
        self.model = _Model()
        self.store = self._open()

    def _open(self):
        path = Path(self.directory.name) / "store.sqlite"
        return open_store(path, self.time, max_groups=8, max_bytes=3200, publisher_frac=0.5)

    @rule()
    def reopen(self):
        self.store.close()
        self.store = self._open()
        self.model.arrived.clear()
        self.model.sweep()

    groups = st.builds(
        make_group,
        publisher=st.sampled_from(["a", "b", "c"]),
        number=st.integers(0, 30),
        size_bytes=st.sampled_from([100, 400, 900, 1601]),
        ttl_s=st.sampled_from([60.0, 100.0, 3600.0]),
        age_s=st.sampled_from([0.0, 30.0, 55.0, 60.0]),
    )

    @rule(groups=st.lists(groups, max_size=6))
    def put(self, groups):
        self.model.sweep()
        assert [item.outcome for item in self.store.put(groups)] == [self.model.put(group) for group in groups]

    @rule(seconds=st.sampled_from([1.0, 29.0, 60.0, 400.0, 5000.0]))
    def wait(self, seconds):
        self.time.advance(seconds)
        self.model.now += seconds

    @rule(jump_s=st.sampled_from([-86_400.0, 86_400.0]))
    def jump(self, jump_s):
        self.time.wall_s += jump_s

    @rule(which=st.integers(0, 7), state=st.sampled_from(GroupState))
    def mark(self, which, state):
        self.model.sweep()
        if not self.model.held:
            return
        item = self.model.held[which % len(self.model.held)]
        self.store.mark([item[1].group_id], state)
        item[3] = state
        if state is GroupState.REJECTED:
            self.model.leave(item)

    @rule(count=st.integers(0, 10), seed=st.integers(0, 99), publisher=st.sampled_from(["a", "b", "none"]))
    def sample(self, count, seed, publisher):
        drawn = self.store.sample(count, rng=np.random.default_rng(seed), excluded_publishers=[publisher])
        allowed = [
            item[1].group_id for item in self.model.held if item[1].publisher != publisher and item[2] > self.model.now
        ]
        assert len(set(ids(drawn))) == len(drawn) == min(count, len(allowed))
        assert set(ids(drawn)) <= set(allowed)

    @invariant()
    def same_content(self):
        live = [item for item in self.model.held if item[2] > self.model.now]
        stored = self.store.after(0, 99)
        assert [(item.seq, item.group_id, item.state) for item in stored] == [
            (seq, group.group_id, state) for seq, group, _, state in live
        ]
        assert [item.signed.envelope for item in stored] == [item[1].envelope for item in live]
        assert self.store.last_seq == self.model.seq
        assert all(
            abs(item.signed.age_s - (self.model.now - (x[2] - x[1].ttl_s))) < 1e-3
            for item, x in zip(stored, live, strict=True)
        )

    def teardown(self):
        self.store.close()
        self.directory.cleanup()


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=15, stateful_step_count=30, derandomize=True)


def test_eviction_reasons_add_up(time):
    store = open_store(None, time, max_groups=8)
    for i in range(50):
        time.advance(7)
        store.put([make_group(f"p{i % 3}", i, ttl_s=60)])
    store.mark(held_ids(store)[:1], GroupState.REJECTED)
    stats = store.stats()
    assert sum(stats.evicted.values()) + stats.groups == 50
    assert stats.evicted[EvictionReason.REJECTED] == 1
