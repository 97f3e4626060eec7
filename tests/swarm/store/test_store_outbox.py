from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sapo_jax.swarm.wire.group_codec import open_group, pack_group, reopen_group, seal_group
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.signed_content import GeneratorInfo, SignedGroup
from tests.swarm.store.store_cases import FakeTime, held_ids, ids, make_group, make_key, open_store


@pytest.fixture
def time():
    return FakeTime()


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path, time):
    store = open_store(None if request.param == "memory" else tmp_path / "store.sqlite", time)
    yield store
    store.close()


def _publish(store, round, *, node_id="own", text=None, **fields):
    """Publishes a group whose bytes differ at every making, as real ones do."""
    made = []

    def make(sequence):
        number = sequence if text is None else text
        made.append(dataclasses.replace(make_group(node_id, number, **fields), sequence=sequence))
        return made[-1]

    return store.publish(make_key(round, node_id=node_id), make), made


def test_an_own_group_is_offered_and_in_the_pool_at_once(store, time):
    published, (group,) = _publish(store, 3)
    assert (published.group_id, published.sequence, published.is_replay) == (group.group_id, 1, False)
    time.advance(2)
    (offer,) = store.outbox_pending(10)
    assert (offer.group_id, offer.publisher, offer.copies) == (group.group_id, "own", 0)
    assert (offer.signed.envelope, offer.signed.hops, offer.signed.age_s) == (group.envelope, 0, 2.0)
    assert held_ids(store) == ids(store.sample(5, rng=np.random.default_rng(0))) == [group.group_id]
    assert store.put([group])[0].outcome.value == "duplicate"  # when it comes back from a peer


def test_a_replayed_round_offers_the_same_bytes(store):
    first, (group,) = _publish(store, 3, text=100)
    again, made = _publish(store, 3, text=200)
    assert made == []  # nothing was signed again
    assert (again.group_id, again.sequence, again.is_replay) == (first.group_id, first.sequence, True)
    assert [offer.signed.envelope for offer in store.outbox_pending(10)] == [group.envelope]
    assert len(held_ids(store)) == 1


def test_keys_differ_by_node_round_task_and_repeat(store):
    keys = [make_key(1), make_key(2), make_key(1, "other"), make_key(1, node_id="own2"), make_key(1, repeat=1)]
    numbers = [store.publish(key, lambda sequence, key=key: make_group(key.node_id, sequence)).sequence for key in keys]
    assert numbers == [1, 2, 3, 1, 4]
    assert len(store.outbox_pending(10)) == 5


def test_a_group_is_offered_until_two_different_peers_hold_it(store):
    groups = [_publish(store, round)[1][0] for round in range(3)]
    store.acknowledge(ids(groups[:2]), "peer a")
    store.acknowledge([groups[0].group_id], "peer a")  # the same peer again does not count
    assert ids(store.outbox_pending(10)) == ids(groups)
    assert [offer.copies for offer in store.outbox_pending(10)] == [1, 1, 0]
    assert ids(store.outbox_pending(10, peer_id="peer a")) == ids(groups[2:])  # with one peer, nothing is left to do
    assert ids(store.outbox_pending(10, peer_id="peer b")) == ids(groups)
    store.acknowledge([groups[0].group_id, b"?" * 32], "peer b")
    assert ids(store.outbox_pending(10)) == ids(groups[1:])
    assert ids(store.outbox_pending(1)) == [groups[1].group_id]
    assert store.stats().pending == 2
    assert len(held_ids(store)) == 3  # the pool keeps it: others may still draw it


def test_a_peer_that_refuses_a_group_is_no_holder_and_is_not_asked_again(store):
    groups = [_publish(store, round)[1][0] for round in range(2)]
    for peer in ("peer a", "peer b"):
        store.note_refusals([groups[0].group_id, b"?" * 32], peer)
        assert ids(store.outbox_pending(10, peer_id=peer)) == ids(groups[1:])
    offers = store.outbox_pending(10, peer_id="peer c")
    assert [(offer.copies, offer.refused_by) for offer in offers] == [(0, {"peer a", "peer b"}), (0, set())]
    store.acknowledge([groups[0].group_id], "peer c")
    assert [offer.copies for offer in store.outbox_pending(10)] == [1, 0]


def test_a_group_waits_while_nobody_holds_it_and_some_peer_has_not_refused_it(store):
    groups = [_publish(store, round)[1][0] for round in range(3)]
    assert store.outbox_waiting([]) == 0 and store.outbox_waiting(["peer a", "peer b"]) == 3
    store.acknowledge([groups[0].group_id], "peer c")
    store.note_refusals([groups[1].group_id], "peer a")
    assert store.outbox_waiting(["peer a", "peer b"]) == 2
    store.note_refusals([groups[1].group_id], "peer b")
    assert store.outbox_waiting(["peer a", "peer b"]) == 1


def test_a_round_replayed_after_its_groups_arrived_makes_nothing_new(store):
    first, _ = _publish(store, 1)
    store.acknowledge([first.group_id], "peer a")
    store.acknowledge([first.group_id], "peer b")
    again, made = _publish(store, 1, text=77)
    assert (again.group_id, again.is_replay, made) == (first.group_id, True, [])
    assert store.outbox_pending(10) == []


def test_offers_end_with_the_lifetime_and_keys_ten_minutes_later(store, time):
    first, _ = _publish(store, 1, ttl_s=100)
    time.advance(99)
    assert len(store.outbox_pending(10)) == 1
    time.advance(1)
    assert store.outbox_pending(10) == []
    store.expire()
    assert store.stats().pending == 0
    time.advance(599)
    assert _publish(store, 1, text=5)[0].group_id == first.group_id
    time.advance(1)
    again, made = _publish(store, 1, text=6)
    assert (again.is_replay, len(made), again.sequence) == (False, 1, 2)
    assert ids(store.outbox_pending(10)) == ids(made)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({"outbox_max_groups": 3}, 3), ({"outbox_max_bytes": 1000}, 2), ({"outbox_max_bytes": 10**6}, 6)],
)
def test_without_peers_the_outbox_keeps_the_newest_within_its_limits(time, limits, kept):
    store = open_store(None, time, **limits)
    groups = [_publish(store, round, size_bytes=400)[1][0] for round in range(6)]
    assert ids(store.outbox_pending(10)) == ids(groups[-kept:])
    assert store.stats().given_up == 6 - kept
    assert _publish(store, 0, text=9)[0].group_id == groups[0].group_id  # its key stays known


def test_sequences_rise_strictly_over_restarts(tmp_path, time):
    numbers = []
    for _ in range(4):
        store = open_store(tmp_path / "store.sqlite", time)
        numbers += [_publish(store, len(numbers))[0].sequence, _publish(store, len(numbers) + 1)[0].sequence]
        store.close()
    assert numbers == list(range(1, 9))


def test_everything_about_the_outbox_survives_a_restart(tmp_path, time):
    store = open_store(tmp_path / "store.sqlite", time)
    groups = [_publish(store, round, size_bytes=2000)[1][0] for round in range(4)]
    store.acknowledge([groups[0].group_id], "a")
    store.acknowledge([groups[0].group_id, groups[1].group_id], "b")
    before = store.outbox_pending(10)
    store.close()
    store = open_store(tmp_path / "store.sqlite", time)
    assert store.outbox_pending(10) == before
    assert ids(store.outbox_pending(10, peer_id="b")) == ids(groups[2:])
    for round, group in enumerate(groups):
        published, made = _publish(store, round, text=50 + round)
        assert (published.group_id, made) == (group.group_id, [])
    store.acknowledge([groups[1].group_id], "a")
    assert ids(store.outbox_pending(10)) == ids(groups[2:])
    store.close()


def test_a_full_pool_does_not_push_own_groups_off_the_offer(time):
    store = open_store(None, time, max_groups=8)
    groups = [_publish(store, round)[1][0] for round in range(5)]
    assert held_ids(store) == ids(groups[-1:])  # one publisher's share of the pool
    assert ids(store.outbox_pending(10)) == ids(groups)


def test_a_signed_group_passes_from_one_store_to_another_and_opens_after_a_restart(tmp_path, time, rollout):
    identity = Identity.generate()
    made = rollout(identity.node_id, 5)

    def make(sequence):
        payload = pack_group(
            made,
            swarm_id="test",
            sequence=sequence,
            created_unix_s=1.7e9,
            ttl_s=600.0,
            generator=GeneratorInfo(),
        )
        return open_group(SignedGroup(envelope=seal_group(payload, identity)), swarm_id="test")

    sender, receiver = (open_store(tmp_path / f"{name}.sqlite", time) for name in ("sender", "receiver"))
    sender.publish(make_key(1, node_id=identity.node_id), make)
    time.advance(3)
    (offer,) = sender.outbox_pending(10)
    receiver.put([open_group(offer.signed, swarm_id="test")])
    receiver.close()
    time.advance(4)
    receiver = open_store(tmp_path / "receiver.sqlite", time)
    (stored,) = receiver.after(0, 10)
    opened = reopen_group(stored.signed, swarm_id="test")
    assert opened.rollout.task_ref == made.task_ref
    assert [item.text for item in opened.rollout.completions] == [item.text for item in made.completions]
    assert (opened.group_id, opened.publisher, opened.age_s) == (offer.group_id, identity.node_id, 7.0)
    assert opened.size_bytes == stored.size_bytes
    sender.close()
    receiver.close()
