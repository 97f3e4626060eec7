from __future__ import annotations

import threading

import numpy as np
import pytest

from sapo_jax.swarm.store.file import StoreError
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.records import UnknownCursorError
from sapo_jax.swarm.store.retention import GroupState, StoreLimits
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.requests import GroupCursor, PublishOutcome
from tests.swarm.store.store_cases import FakeTime, held_ids, ids, make_group, make_key, open_store

ACCEPTED, DUPLICATE, REJECTED = PublishOutcome.ACCEPTED, PublishOutcome.DUPLICATE, PublishOutcome.REJECTED


@pytest.fixture
def time():
    return FakeTime()


@pytest.fixture(params=["memory", "file"])
def opened(request, tmp_path, time):
    """Opens the store of this test with given limits: in memory, and in a file."""
    stores = []

    def open_(**limits):
        path = None if request.param == "memory" else tmp_path / f"store{len(stores)}.sqlite"
        stores.append(open_store(path, time, **limits))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


def _outcomes(results):
    return [result.outcome for result in results]


def test_put_answers_per_group_and_in_order(opened):
    store = opened(max_bytes=8000)
    groups = [
        make_group(number=0),
        make_group(number=1, ttl_s=60, age_s=60),  # not one moment left
        make_group(number=0),
        make_group(number=2, size_bytes=1001),  # more than an eighth of 8000
        make_group(number=3, size_bytes=700),
    ]
    results = store.put(groups)
    assert _outcomes(results) == [ACCEPTED, REJECTED, DUPLICATE, REJECTED, ACCEPTED]
    assert [result.reason for result in results] == [None, WireReason.EXPIRED, None, WireReason.TOO_LARGE, None]
    assert ids(results) == ids(groups)
    assert held_ids(store) == [groups[0].group_id, groups[4].group_id]
    assert (store.stats().accepted, store.stats().duplicates, store.stats().groups) == (2, 1, 2)


def test_groups_come_back_byte_for_byte_with_their_age(opened, time):
    store = opened()
    group = make_group("somebody", 7, hops=2, age_s=10.0, dataset="gcd", size_bytes=5000)
    store.put([group])
    time.advance(5.5)
    (stored,) = store.get([group.group_id])
    assert stored.signed.envelope == group.envelope
    assert (stored.signed.hops, stored.signed.age_s, stored.signed.algorithm) == (2, 15.5, 1)
    assert (stored.publisher, stored.dataset, stored.size_bytes) == ("somebody", "gcd", 5000)
    assert (stored.seq, stored.state) == (1, GroupState.UNVERIFIED)


def test_empty_calls_change_nothing(opened):
    store = opened()
    assert store.put([]) == store.get([]) == store.after(0, 10) == []
    assert store.sample(5, rng=np.random.default_rng(0)) == store.outbox_pending(5) == []
    assert store.refs(None, 10).next_cursor == GroupCursor(epoch=store.epoch, sequence=0)
    assert store.stats().oldest_age_s == 0.0


def test_get_keeps_the_order_asked_for_and_leaves_out_what_is_not_held(opened):
    store = opened()
    groups = [make_group(number=i, size_bytes=1000) for i in range(4)]
    store.put(groups)
    wanted = [groups[2].group_id, b"x" * 32, groups[0].group_id, groups[3].group_id]
    assert ids(store.get(wanted)) == [wanted[0], wanted[2], wanted[3]]
    assert ids(store.get(wanted, max_bytes=2000)) == [wanted[0], wanted[2]]
    assert store.get(wanted, max_bytes=999) == []
    assert store.held(wanted) == [wanted[0], wanted[2], wanted[3]]
    assert store.unknown(wanted) == [b"x" * 32]


def test_the_tail_continues_after_any_place(opened):
    store = opened()
    groups = [make_group(f"p{i % 3}", i) for i in range(10)]
    store.put(groups[:6])
    first = store.after(0, 4)
    assert ids(first) == ids(groups[:4])
    store.put(groups[6:])
    assert ids(store.after(first[-1].seq, 100)) == ids(groups[4:])
    assert store.after(store.last_seq, 100) == []
    assert [item.seq for item in store.after(0, 100)] == list(range(1, 11))


def test_pages_of_references_reach_everything_once(opened, time):
    store = opened()
    groups = [make_group(f"p{i % 3}", i, dataset="even" if i % 2 == 0 else "odd") for i in range(10)]
    store.put(groups)
    time.advance(2.0)
    seen, cursor = [], None
    while (page := store.refs(cursor, 4)).references:
        seen += page.references
        cursor = page.next_cursor
    assert ids(seen) == ids(groups)
    assert {(ref.size_bytes, ref.age_s) for ref in seen} == {(300, 2.0)}
    even = store.refs(None, 3, datasets=["even"])
    assert ids(even.references) == [groups[0].group_id, groups[2].group_id, groups[4].group_id]
    rest = store.refs(even.next_cursor, 3, datasets=["even"])
    assert ids(rest.references) == [groups[6].group_id, groups[8].group_id]
    assert rest.next_cursor.sequence == 10


def test_cursors_that_mean_nothing_here_are_refused_with_the_oldest_one(opened, time):
    store = opened()
    store.put([make_group(number=i, ttl_s=60 if i < 4 else 3600) for i in range(6)])
    time.advance(100)
    oldest = GroupCursor(epoch=store.epoch, sequence=4)
    for cursor, message in (
        (GroupCursor(epoch="other", sequence=5), "another epoch"),
        (GroupCursor(epoch=store.epoch, sequence=7), "beyond the last sequence 6"),
        (GroupCursor(epoch=store.epoch, sequence=3), "trimmed away, the oldest is 4"),
    ):
        with pytest.raises(UnknownCursorError, match=message) as caught:
            store.refs(cursor, 10)
        assert caught.value.oldest == oldest
    for start in (None, oldest, GroupCursor(epoch=store.epoch, sequence=0)):
        assert len(store.refs(start, 10).references) == 2
    time.advance(3600)
    with pytest.raises(UnknownCursorError) as caught:
        store.refs(oldest, 10)
    assert caught.value.oldest.sequence == 6


def test_every_store_has_its_own_epoch(opened):
    assert len({opened().epoch for _ in range(5)}) == 5


def test_marks_show_and_rejected_groups_leave(opened):
    store = opened()
    groups = [make_group(number=i) for i in range(3)]
    store.put(groups)
    store.mark([groups[0].group_id, b"?" * 32], GroupState.INFORMATIVE)
    store.mark([groups[1].group_id], GroupState.REJECTED)
    store.mark([groups[2].group_id], GroupState.UNINFORMATIVE)
    assert [item.state for item in store.after(0, 9)] == [GroupState.INFORMATIVE, GroupState.UNINFORMATIVE]
    assert groups[1].group_id not in ids(store.sample(9, rng=np.random.default_rng(0)))
    assert groups[1].group_id not in ids(store.refs(None, 9).references)
    assert store.get([groups[1].group_id]) == []
    assert _outcomes(store.put([groups[1]])) == [DUPLICATE]  # nor does it come back


def test_a_group_that_comes_again_after_all_is_forgotten_starts_anew(opened, time):
    """Even if so many are forgotten at one time that the sweep has not reached all of them."""
    store = opened(publisher_frac=1.0)
    groups = [make_group(number=i, ttl_s=60) for i in range(600)]
    store.put(groups)
    time.advance(61)
    store.expire()
    time.advance(661)
    store.put(groups)
    for _ in range(3):
        assert len(held_ids(store)) == 600
        assert store.stats().seen == 0
        store.expire()


def test_the_sample_honors_every_filter(opened, time):
    store = opened()
    rng = np.random.default_rng(1)
    store.put([make_group("old", i, dataset="a") for i in range(4)])
    time.advance(50)
    store.put([make_group("new", i, dataset="a") for i in range(4)])
    store.put([make_group("both", i, dataset="ab"[i % 2], age_s=20 * i) for i in range(4)])

    def drawn(count=100, **filters):
        return sorted(
            (item.publisher, item.dataset, item.signed.age_s) for item in store.sample(count, rng=rng, **filters)
        )

    assert len(drawn()) == 12
    assert {item[0] for item in drawn(excluded_publishers=["new", "nobody"])} == {"old", "both"}
    assert drawn(datasets=["b"]) == [("both", "b", 20.0), ("both", "b", 60.0)]
    assert drawn(datasets=[]) == []
    assert {item[2] for item in drawn(max_age_s=40)} == {0.0, 20.0, 40.0}
    assert drawn(max_age_s=20, datasets=["b"], excluded_publishers=["new"]) == [("both", "b", 20.0)]
    assert drawn(0) == []
    assert len(drawn(5)) == 5
    assert len(drawn(max_bytes=1000)) == 3


def test_a_sample_never_repeats_and_is_a_function_of_its_generator(opened):
    store = opened()
    store.put([make_group(f"p{i % 5}", i) for i in range(60)])
    first = ids(store.sample(40, rng=np.random.default_rng(3)))
    assert len(set(first)) == 40
    assert first == ids(store.sample(40, rng=np.random.default_rng(3)))
    assert first != ids(store.sample(40, rng=np.random.default_rng(4)))


def test_expired_groups_are_invisible_before_anything_frees_them(opened, time):
    store = opened()
    store.put([make_group(number=0, ttl_s=60), make_group(number=1, ttl_s=120)])
    time.advance(60)
    kept = [make_group(number=1).group_id]
    assert ids(store.sample(9, rng=np.random.default_rng(0))) == kept
    assert held_ids(store) == ids(store.refs(None, 9).references) == ids(store.get(ids(store.after(0, 9)))) == kept
    assert store.held([make_group(number=0).group_id]) == store.get([make_group(number=0).group_id]) == []
    assert store.stats().groups == 1


def test_t10_replayed_groups_never_enter_again_while_they_are_remembered(opened, time):
    """T10: the seen-set lasts for one lifetime and ten minutes after a group has left."""
    store = opened(max_groups=16, publisher_frac=1.0)
    groups = [make_group(f"p{i % 4}", i, ttl_s=100) for i in range(200)]
    store.put(groups)
    for _ in range(10):
        time.advance(9)
        assert set(_outcomes(store.put(groups))) == {DUPLICATE}
    assert store.stats().accepted == 200
    time.advance(11)  # the last 16 expire now
    assert set(_outcomes(store.put(groups))) == {DUPLICATE}
    time.advance(698)
    assert set(_outcomes(store.put(groups[-16:]))) == {DUPLICATE}
    assert set(_outcomes(store.put(groups[:16]))) == {ACCEPTED}  # these left at time 0
    time.advance(3)
    assert set(_outcomes(store.put(groups[-16:]))) == {ACCEPTED}


def test_the_memory_of_ids_is_bounded_and_loses_the_oldest(opened, time):
    store = opened(max_groups=1, publisher_frac=1.0, max_seen=50)
    groups = [make_group(number=i) for i in range(200)]
    for group in groups:
        time.advance(1)
        store.put([group])
    store.expire()
    assert store.stats().seen == 50
    assert store.unknown(ids(groups)) == ids(groups[:149])


def test_a_closed_store_says_so(opened):
    store = opened()
    store.close()
    store.close()
    for call in (
        lambda: store.put([make_group()]),
        lambda: store.sample(1, rng=np.random.default_rng(0)),
        lambda: store.publish(make_key(1), lambda sequence: make_group("own", sequence)),
        lambda: store.stats(),
    ):
        with pytest.raises(StoreError, match="store.*: is closed"):
            call()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_groups": 0}, "max_groups = 0 must be at least 1"),
        ({"copies": 0}, "copies = 0 must be at least 1"),
        ({"publisher_frac": 0.0}, r"publisher_frac = 0.0 must be in \(0, 1\]"),
        ({"publisher_frac": 1.1}, r"publisher_frac = 1.1 must be in \(0, 1\]"),
        ({"max_ttl_s": 0.0}, "max_ttl_s = 0.0 must be above 0"),
        ({"seen_grace_s": -1.0}, "seen_grace_s = -1.0 must be at least 0"),
    ],
)
def test_limits_that_keep_nothing_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        StoreLimits(**limits)


def test_a_failed_call_changes_nothing_and_the_store_goes_on(opened):
    store = opened()
    store.put([make_group(number=0)])
    before = store.stats()

    def fail(sequence):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.publish(make_key(1), fail)
    with pytest.raises(ValueError, match="group 9 of 'own' was made where group 1 of 'own' was asked for"):
        store.publish(make_key(1), lambda sequence: make_group("own", 9))
    assert store.stats() == before
    assert store.publish(make_key(1), lambda sequence: make_group("own", sequence)).sequence == 1
    assert len(held_ids(store)) == 2


def test_many_threads_share_one_store(opened):
    """What loop, verifying and training thread do at one time, without losing or repeating anything."""
    store: GroupStore = opened(publisher_frac=1.0)
    rounds, workers = 40, 3
    errors, tailed, start = [], [], threading.Barrier(3 * workers + 1)
    done = threading.Event()

    def run(work):
        def guarded():
            try:
                start.wait()
                work()
            except BaseException as error:
                errors.append(error)

        return threading.Thread(target=guarded)

    def put(worker):
        for i in range(rounds):
            store.put([make_group(f"p{worker}", 2 * i + j) for j in range(2)])
            store.put([make_group("common", i)])  # every worker offers the same one

    def publish(worker):
        for i in range(rounds):
            store.publish(make_key(i, node_id=f"own{worker}"), lambda sequence: make_group(f"own{worker}", sequence))
            store.acknowledge([make_group(f"own{worker}", i).group_id], "peer")

    def serve(worker):
        rng = np.random.default_rng(worker)
        for _ in range(rounds):
            drawn = store.sample(4, rng=rng)
            assert all(item.signed.envelope.signature == item.signed.envelope.payload[:32] * 2 for item in drawn)
            store.refs(None, 20)

    def tail():
        cursor = 0
        while not done.is_set() or store.last_seq > cursor:
            batch = store.after(cursor, 16)
            store.mark(ids(batch), GroupState.INFORMATIVE)
            tailed.extend(ids(batch))
            cursor = batch[-1].seq if batch else cursor

    threads = [run(lambda w=w, work=work: work(w)) for work in (put, publish, serve) for w in range(workers)]
    tailer = run(tail)
    for thread in (*threads, tailer):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    tailer.join()
    assert errors == []
    expected = rounds * (2 * workers + 1 + workers)
    assert len(tailed) == len(set(tailed)) == expected
    assert store.stats().by_state == {GroupState.INFORMATIVE: expected}
    assert store.stats().duplicates == rounds * (workers - 1)
    for worker in range(workers):
        key = make_key(rounds, node_id=f"own{worker}")
        made = store.publish(key, lambda sequence, worker=worker: make_group(f"own{worker}", sequence))
        assert made.sequence == rounds + 1


@pytest.mark.parametrize(("ttl_s", "least_s"), [(60.0, 6.0), (300.0, 30.0), (3600.0, 60.0)])
def test_a_group_with_hardly_any_life_left_is_refused_and_may_come_again(opened, ttl_s, least_s):
    """Its age is not signed: remembered, it would be refused from its publisher as well."""
    store = opened()
    claimed = make_group(ttl_s=ttl_s, age_s=ttl_s - least_s + 0.1)
    (result,) = store.put([claimed])
    assert (result.outcome, result.reason) == (REJECTED, WireReason.EXPIRED)
    assert store.unknown([claimed.group_id]) == [claimed.group_id]
    assert _outcomes(store.put([make_group(ttl_s=ttl_s, age_s=ttl_s - least_s)])) == [ACCEPTED]


@pytest.mark.parametrize("way", ["put", "note_ages"])
def test_of_a_groups_ages_the_youngest_wins(opened, time, way):
    """A member that publishes another's group as an old one shortens no life."""
    store = opened()
    store.put([make_group(age_s=3500.0)])
    time.advance(10.0)
    true = make_group(age_s=12.0)  # made 2 s before it came here
    store.put([true]) if way == "put" else store.note_ages([(b"?" * 32, 0.0), (true.group_id, 12.0)])
    assert store.after(0, 1)[0].signed.age_s == 12.0
    store.put([make_group(age_s=3000.0)])
    time.advance(3587.0)
    assert held_ids(store) == [true.group_id]
    time.advance(1.0)
    assert held_ids(store) == []


@pytest.mark.parametrize("age_s", [0.0, -5.0, float("nan"), float("inf")])
def test_no_claim_makes_a_group_younger_than_it_is_here(opened, time, age_s):
    store = opened()
    group = make_group(age_s=0.0, ttl_s=100.0)
    store.put([group])
    for _ in range(4):
        time.advance(20.0)
        store.note_ages([(group.group_id, age_s)])
    assert store.after(0, 1)[0].signed.age_s == 80.0
    time.advance(20.0)
    assert held_ids(store) == []


def test_a_write_that_is_taken_back_forgets_no_arrival(opened, time):
    store = opened()
    store.put([make_group(age_s=3500.0)])
    with pytest.raises(ValueError, match="was made where"):
        store.publish(make_key(1), lambda sequence: make_group())  # of another node
    time.advance(10.0)
    store.note_ages([(make_group().group_id, 10.0)])
    assert store.after(0, 1)[0].signed.age_s == 10.0


def test_a_younger_age_survives_a_restart_and_damages_nothing(tmp_path, time):
    store = open_store(tmp_path / "store.sqlite", time)
    store.put([make_group(age_s=3500.0)])
    time.advance(10.0)
    store.note_ages([(make_group().group_id, 10.0)])
    store.close()
    store = open_store(tmp_path / "store.sqlite", time)
    assert (store.stats().damaged, store.after(0, 1)[0].signed.age_s) == (0, 10.0)
    time.advance(30.0)
    store.note_ages([(make_group().group_id, 0.0)])  # when it came is not known any more
    assert store.after(0, 1)[0].signed.age_s == 40.0
    store.close()
