from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time

import pytest

from sapo_jax.swarm.calls.grpc_server import ServerAddressError
from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.codec_json import CodecError
from sapo_jax.swarm.mesh.host_status import PeerState, headline
from sapo_jax.swarm.mesh.network_host import STORE_FILE, GivenPeer
from sapo_jax.swarm.store.retention import GroupState
from sapo_jax.swarm.verifying import VerifyLimits
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.types import ScoredRollout
from tests.swarm.network_hubs import FAST, PUSH_ONLY, Collected, Hubs, closed_trust, toy_task, toy_verify, wait_for


@pytest.fixture
def hubs():
    made = Hubs()
    yield made
    made.close_all()


def with_text(item: ScoredRollout, text: str) -> ScoredRollout:
    completions = tuple(dataclasses.replace(each, text=text) for each in item.rollout.completions)
    return dataclasses.replace(item, rollout=dataclasses.replace(item.rollout, completions=completions))


def of_dataset(item: ScoredRollout, dataset: str) -> ScoredRollout:
    ref = dataclasses.replace(item.rollout.task_ref, dataset=dataset)
    return dataclasses.replace(item, rollout=dataclasses.replace(item.rollout, task_ref=ref))


def is_in_touch(hub) -> bool:
    return bool(hub.host.links.ready())


def test_three_hosts_share_what_each_publishes_and_score_it_themselves(hubs, scored):
    a = hubs.make("a")
    b = hubs.make("b", peers=[a])
    c = hubs.make("c", peers=[a], listen=None)  # only dials out
    inboxes = {name: Collected(hub.connect(name)) for name, hub in (("a", a), ("b", b), ("c", c))}
    for index, (name, hub) in enumerate((("a", a), ("b", b), ("c", c))):
        claimed = dataclasses.replace(scored((0, 1), name, index), scores=(1.0, 1.0))  # not what a verifier says
        hub.connect(name).publish([claimed])
    for index, name in enumerate("abc"):
        inboxes[name].wait([other for other in range(3) if other != index])
    for name, inbox in inboxes.items():
        assert all(item.scores == (0.0, 1.0) for item in inbox.rollouts)
        assert len(inbox.rollouts) == 2, f"{name} got its own, or one twice"
    ids = {a.identity("a").node_id, b.identity("b").node_id}
    assert {item.rollout.node_id for item in inboxes["c"].rollouts} == ids
    assert set(c.external_publishers()) == ids


def test_siblings_share_at_once_and_a_foreign_group_reaches_each_of_them(hubs, scored):
    pair = hubs.make("a1", "a2")
    other = hubs.make("b", peers=[pair])
    a1, a2 = pair.connect("a1"), pair.connect("a2")
    a1.publish([scored((0, 1), "a1", 1)])
    assert [item.rollout.node_id for item in a2.pull()] == ["a1"] and a1.pull() == []
    other.connect("b").publish([scored((0, 1), "b", 2)])
    Collected(a1).wait([2])
    Collected(a2).wait([2])
    assert pair.counts()["groups/verified_external"] == 1  # verified once for both
    b = Collected(other.connect("b"))
    b.wait([1])
    assert [item.rollout.node_id for item in b.rollouts] == [pair.identity("a1").node_id]


def test_publish_and_pull_are_instant_with_all_peers_dead_or_silent(hubs, scored):
    with socket.socket() as silent:  # accepts connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            dead = f"127.0.0.1:{probe.getsockname()[1]}"
        trust = closed_trust()
        assert trust.certificate is not None
        certificate = trust.certificate.der
        peers = [
            GivenPeer(addresses=(dead,), certificate=certificate),
            GivenPeer(addresses=(f"127.0.0.1:{silent.getsockname()[1]}",), certificate=certificate),
        ]
        hub = hubs.make("a", peers=peers, trust=trust)
        exchange = hub.connect("a")
        took_s: list[float] = []
        slowest_s = 0.0
        for index in range(50):
            begin_s, cpu_begin_s = time.monotonic(), time.thread_time()
            exchange.publish([scored((0, 1), "a", index, round=index)])
            assert exchange.pull() == []
            took_s.append(time.monotonic() - begin_s)
            slowest_s = max(slowest_s, time.thread_time() - cpu_begin_s)
        assert slowest_s < 0.2  # CPU time, so that a busy machine does not matter
        assert sorted(took_s)[25] < 0.2  # nor do they wait; the median, for the same reason
        wait_for(lambda: "1 tried" in headline(hub.status()) or "2 tried" in headline(hub.status()), "a failed dial")
        assert headline(hub.status()).startswith("alone: no peer reachable")


def test_no_peer_at_all_is_named_as_a_normal_state(hubs):
    hub = hubs.make("a")
    assert headline(hub.status()).startswith("alone: no peer known yet, listening at 127.0.0.1:")
    mute = hubs.make("b", listen=None)
    assert headline(mute.status()).startswith("alone: no peer known and not listening")


def test_a_late_joiner_gets_what_was_there_before(hubs, scored):
    a = hubs.make("a")
    a.connect("a").publish([scored((0, 1), "a", index) for index in range(40)])
    Collected(hubs.make("late", peers=[a]).connect("late")).wait(range(40))


def test_a_partition_heals_without_special_code(hubs, scored, tmp_path):
    trust, keys = closed_trust(), {"b": Identity.generate()}
    a = hubs.make("a")
    b = hubs.make(peers=[a], identities=keys, trust=trust, directory=tmp_path)
    inbox = Collected(a.connect("a"))
    b.connect("b").publish([scored((0, 1), "b", 1, round=1)])
    inbox.wait([1])
    hubs.close(b)
    a.connect("a").publish([scored((0, 1), "a", 2, round=2)])
    wait_for(lambda: not is_in_touch(a), "a notices that b is gone")
    b = hubs.make(peers=[a], identities=keys, trust=trust, directory=tmp_path)
    b.connect("b").publish([scored((0, 1), "b", 3, round=3)])
    Collected(b.connect("b")).wait([2])
    inbox.wait([3])


def test_hosts_find_each_other_through_a_third(hubs, scored):
    hub = hubs.make("hub")
    a, b = hubs.make("a", peers=[hub]), hubs.make("b", peers=[hub])
    wait_for(lambda: a.host.book.find(b.identity("b").node_id) is not None, "a knows b")
    wait_for(lambda: len(a.host.links.ready()) == 2, "a is in touch with both")
    hubs.close(hub)
    b.connect("b").publish([scored((0, 1), "b", 5)])
    Collected(a.connect("a")).wait([5])


def test_a_replayed_round_offers_the_same_group_again(hubs, scored, tmp_path):
    keys = {"a": Identity.generate()}
    b = hubs.make("b")
    inbox = Collected(b.connect("b"))
    to_b = b.identity("b").node_id
    for attempt in range(3):  # killed after publishing, before the checkpoint
        a = hubs.make(peers=[b], identities=keys, directory=tmp_path, seed=attempt)
        a.connect("a").publish([scored((0, 1), "a", 7, round=4), scored((0, 1), "a", 7, round=4)])
        wait_for(lambda a=a: not a.host.store.outbox_pending(10, peer_id=to_b), "b has answered for what is on offer")
        hubs.close(a)
    wait_for(lambda: len(inbox.indices()) >= 2, "both are verified")
    assert len(inbox.indices()) == len(b.host.store.after(0, 100)) == 2  # two of one round on one task are two


def test_what_was_not_taken_before_a_kill_is_delivered_after_it_and_nothing_twice(hubs, scored, tmp_path):
    keys = {"a": Identity.generate(), "a2": Identity.generate()}
    b = hubs.make("b")
    a = hubs.make(peers=[b], identities=keys, directory=tmp_path)
    b.connect("b").publish([scored((0, 1), "b", index) for index in range(4)])
    first, second = Collected(a.connect("a")), Collected(a.connect("a2"))
    first.wait(range(4))
    b.connect("b").publish([scored((0, 1), "b", index, round=1) for index in range(4, 6)])
    wait_for(lambda: a.counts()["groups/verified_external"] == 6, "a has verified all")
    second.wait(range(6))
    a.connect("a2").publish([scored((0, 1), "a2", 50, round=1)])
    state = json.loads(json.dumps(a.to_json()))  # the checkpoint
    first.wait([4, 5, 50])  # taken after it, hence forgotten by the kill
    hubs.close(a)
    b.connect("b").publish([scored((0, 1), "b", 6, round=2)])

    a = hubs.make(peers=[b], identities=keys, directory=tmp_path)
    a.restore_json(state, toy_task)
    first, second = Collected(a.connect("a")), Collected(a.connect("a2"))
    first.wait([4, 5, 6, 50])
    second.wait([6])
    wait_for(lambda: a.host.store.after(0, 100)[-1].state is not GroupState.UNVERIFIED, "all is verified")
    assert sorted(first.indices()) == [4, 5, 6, 50]
    assert second.indices() == [6]


def test_places_that_a_store_lost_with_the_power_are_not_skipped_when_others_get_them(hubs, scored, tmp_path):
    keys, file = {"a": Identity.generate()}, tmp_path / STORE_FILE
    b = hubs.make("b")

    def run_a(indices, state=None):
        a = hubs.make(peers=[b], identities=keys, directory=tmp_path, is_resuming=True)
        if state is not None:
            a.restore_json(state, toy_task)
        a.start_verifying()
        b.connect("b").publish([scored((0, 1), "b", index, round=index) for index in indices[-3:]])
        Collected(a.connect("a")).wait(indices)
        hubs.close(a)
        return json.loads(json.dumps(a.to_json()))

    run_a([0, 1, 2])
    on_disk = file.read_bytes()
    state = run_a([3, 4, 5])
    file.write_bytes(on_disk)  # the last transactions never reached the disk, the checkpoint did
    # What was lost comes again from the peer, in the places that the checkpoint calls read.
    run_a([3, 4, 5, 6, 7, 8], state)


def test_a_checkpoint_of_another_store_delivers_all_that_this_one_holds(hubs, scored):
    b = hubs.make("b")
    old = hubs.make("a", peers=[b])
    b.connect("b").publish([scored((0, 1), "b", 1)])
    Collected(old.connect("a")).wait([1])
    state = old.to_json()
    new = hubs.make("a", peers=[b])  # its store file is gone
    new.restore_json(state, toy_task)
    Collected(new.connect("a")).wait([1])


@pytest.mark.parametrize(
    ("break_state", "message"),
    [
        (lambda s: s.pop("epoch"), "exchange has the keys"),
        (lambda s: s.update(read_seq="1"), r"exchange\.read_seq is a str, expected int"),
        (lambda s: s["nodes"].update(c={}), r"exchange\.nodes has the keys"),
        (lambda s: s["nodes"]["a"].update(owed=[1.5]), r"exchange\.nodes\.a\.owed is a float"),
        (lambda s: s["nodes"]["a"]["siblings"].append({}), r"exchange\.nodes\.a\.siblings\[1\] has the keys"),
        (
            lambda s: s["nodes"]["a"].update(siblings=s["nodes"]["a"]["siblings"] * 9),
            "holds 9 rollouts, the limit is 8",
        ),
    ],
)
def test_damaged_state_is_refused_and_changes_nothing(hubs, scored, break_state, message):
    hub = hubs.make("a", "b", mailbox_rollouts=8)
    hub.connect("b").publish([scored((0, 1), "b", 1)])
    before = hub.to_json()
    state = json.loads(json.dumps(before))
    break_state(state)
    with pytest.raises(CodecError, match=message):
        hub.restore_json(state, toy_task)
    assert hub.to_json() == before
    assert len(hub.connect("a").pull()) == 1


def test_a_full_mailbox_drops_its_oldest_and_counts(hubs, scored):
    hub = hubs.make("a", "b", mailbox_rollouts=3)
    hub.connect("a").publish([scored((0, 1), "a", index) for index in range(5)])
    assert [item.rollout.task_ref.index for item in hub.connect("b").pull()] == [2, 3, 4]
    assert hub.counts()["groups/missed"] == 2


def test_rejected_groups_are_marked_counted_and_never_delivered(hubs, scored):
    a = hubs.make("a", catalog_digests=["ab" * 32])
    b = hubs.make("b", peers=[a])
    bad = [with_text(scored((0, 1), "b", index), "reject this") for index in range(3)]
    b.connect("b").publish([*bad, scored((0, 1), "b", 9)])
    inbox = Collected(a.connect("a"))
    inbox.wait([9])
    wait_for(lambda: a.counts().get("groups/rejected_external_scorer_failed") == 3, "three rejections")
    assert inbox.indices() == [9]
    wait_for(lambda: a.host.store.stats().groups == 1, "rejected ones are not handed on either")
    assert a.host.scores.score(b.identity("b").node_id) < 0


def test_t3_a_peer_whose_every_group_is_false_is_banned_and_reaches_no_pool(hubs, scored):
    # Truth does not travel: a lie is a reference that our own catalog cannot rebuild.
    a = hubs.make("a", catalog_digests=["ab" * 32])
    # The liar only pushes: another call that is refused first makes it pause before the push that is to be refused.
    liar, honest = hubs.make("liar", peers=[a], limits=PUSH_ONLY), hubs.make("b", peers=[a])
    inbox = Collected(a.connect("a"))
    liar.connect("liar").publish([of_dataset(scored((0, 1), "liar", index), "other") for index in range(20)])
    wait_for(lambda: a.host.scores.is_banned(liar.identity("liar").node_id), "the liar is banned")
    honest.connect("b").publish([scored((0, 1), "b", 100)])
    inbox.wait([100])
    assert inbox.indices() == [100]
    held = {group.publisher for group in a.host.store.after(0, 100)}
    liar.connect("liar").publish([scored((0, 1), "liar", 200, round=1)])
    refused = {"outcome": "rejected", "reason": "banned"}
    published = "sapo_exchange_published_groups_total"
    wait_for(lambda: a.host.metrics.registry.get_sample_value(published, refused), "the liar's push is refused")
    assert inbox.indices() == [100]
    assert honest.identity("b").node_id in held


def test_another_catalog_is_no_lie(hubs, scored):
    a = hubs.make("a", catalog_digests=["cd" * 32])
    b = hubs.make("b", peers=[a])
    b.connect("b").publish([of_dataset(scored((0, 1), "b", index), "other") for index in range(20)])
    wait_for(lambda: a.counts().get("groups/rejected_external_unknown_task") == 20, "all rejections")
    assert a.host.scores.score(b.identity("b").node_id) >= 0


def test_t9_a_flood_fills_its_share_only_and_others_are_still_taken(hubs, scored):
    store = dataclasses.replace(FAST.store, max_groups=80)
    a = hubs.make("a", limits=dataclasses.replace(FAST, store=store))
    flooder, honest = hubs.make("f", peers=[a]), hubs.make("b", peers=[a])
    flooder.connect("f").publish([scored((0, 1), "f", index) for index in range(100)])
    honest.connect("b").publish([scored((0, 1), "b", 1000 + index) for index in range(5)])
    Collected(a.connect("a")).wait(range(1000, 1005))
    wait_for(lambda: all(g.copies for g in flooder.host.store.outbox_pending(1000)), "the flood has arrived")
    by_publisher = [group.publisher for group in a.host.store.after(0, 1000)]
    assert by_publisher.count(flooder.identity("f").node_id) <= 80 // 8
    assert by_publisher.count(honest.identity("b").node_id) == 5


def test_a_verifier_that_fails_stops_nothing(hubs, scored, caplog):
    failing = threading.Event()
    failing.set()

    def verify(rollouts):
        if failing.is_set():
            raise ZeroDivisionError("the scorer is gone")
        return toy_verify(rollouts)

    a = hubs.make("a", "a2", verify=verify)
    b = hubs.make("b", peers=[a])
    b.connect("b").publish([scored((0, 1), "b", 1)])
    wait_for(lambda: "cannot be verified" in caplog.text, "the failure is logged")
    a.connect("a2").publish([scored((0, 1), "a2", 5)])
    assert [item.rollout.task_ref.index for item in a.connect("a").pull()] == [5]
    failing.clear()
    b.connect("b").publish([scored((0, 1), "b", 2, round=1)])
    Collected(a.connect("a")).wait([2])


def test_t18_a_full_disk_costs_publications_only(hubs, scored, tmp_path, caplog):
    limits = dataclasses.replace(FAST, store=dataclasses.replace(FAST.store, disk_reserve_bytes=2**62))
    hub = hubs.make("a", "b", directory=tmp_path, limits=limits)
    for index in range(3):
        hub.connect("a").publish([scored((0, 1), "a", index, round=index)])
    assert len(hub.connect("b").pull()) == 3
    assert hub.counts()["groups/unpublished"] == 3
    assert sum("own groups are not published" in record.getMessage() for record in caplog.records) == 1
    assert any("not published" in text for text in hub.status().warnings)


def test_a_text_that_others_would_refuse_stays_at_home(hubs, scored):
    hub = hubs.make("a", "b")
    hub.connect("a").publish([with_text(scored((0, 1), "a", 1), "x" * 70_000), scored((0, 1), "a", 2)])
    assert len(hub.connect("b").pull()) == 2
    assert hub.counts()["groups/unpublished"] == 1 and hub.host.store.stats().groups == 1


def test_t13_a_copied_key_is_noticed_on_both_sides(hubs, caplog):
    key = {"a": Identity.generate()}
    hub = hubs.make("hub")
    first = hubs.make(identities=key, peers=[hub], listen=None)
    second = hubs.make(identities=key, peers=[hub], listen=None, seed=1)
    wait_for(lambda: first.host.presence.copies_seen and second.host.presence.copies_seen, "both notice")
    for copy in (first, second):
        assert any("another process uses the identity" in text for text in copy.status().warnings)
    wait_for(lambda: hub.host.membership.copied, "the host between them notices too")


def test_t22_plain_text_and_tls_do_not_meet(hubs):
    a = hubs.make("a")
    plain = Trust(mode=TrustMode.INSECURE_LOOPBACK)
    b = hubs.make("b", trust=plain, peers=[GivenPeer(addresses=a.host.addresses)])
    wait_for(lambda: b.host.book.peers()[0].failures > 0, "the dial fails")
    assert not is_in_touch(b)


def test_another_token_is_not_let_in(hubs):
    a = hubs.make("a")
    stranger = dataclasses.replace(closed_trust(), token="another-token-of-some-other-swarm")
    b = hubs.make("b", trust=stranger, peers=[a])
    wait_for(lambda: b.host.book.peers()[0].failures > 0, "the dial fails")
    assert "token" in b.host.book.peers()[0].trouble
    (shown,) = b.status().peers
    assert shown.state is PeerState.UNREACHABLE and "token" in shown.last_error


def test_an_address_in_use_is_one_clear_error_and_leaves_nothing_behind(hubs, tmp_path):
    a = hubs.make("a")
    before = threading.active_count()
    with pytest.raises(ServerAddressError, match="cannot listen on 127.0.0.1"):
        hubs.make("b", listen=a.host.addresses[0], directory=tmp_path)
    assert threading.active_count() == before
    hubs.make("b", directory=tmp_path)  # the store is free again


def test_closing_hands_over_what_is_on_offer(hubs, scored):
    a = hubs.make("a")
    b = hubs.make("b", peers=[a])
    wait_for(lambda: is_in_touch(b), "b is in touch")
    b.connect("b").publish([scored((0, 1), "b", index) for index in range(64)])
    hubs._open.remove(b)
    b.close(flush_s=10.0)
    b.close()
    Collected(a.connect("a")).wait(range(64))


def test_closing_leaves_no_thread(hubs, scored):
    before = {thread.name for thread in threading.enumerate()}
    a = hubs.make("a")
    b = hubs.make("b", peers=[a])
    wait_for(lambda: is_in_touch(b), "b is in touch")
    hubs.close_all()
    left = {thread.name for thread in threading.enumerate()} - before
    assert not any(name.startswith("sapo") for name in left)


def test_verification_keeps_to_its_share_of_a_core(hubs, scored):
    busy = [0.0]  # a second of work for every group

    def verify(rollouts):
        busy[0] += 1.0
        return toy_verify(rollouts)

    a = hubs.make("a", verify=verify, busy_s=lambda: busy[0], verify_limits=VerifyLimits(core_share=0.25))
    b = hubs.make("b", peers=[a])
    b.connect("b").publish([scored((0, 1), "b", index) for index in range(30)])
    wait_for(lambda: a.host.store.stats().groups == 30, "all has arrived")
    wait_for(lambda: a.counts()["groups/verified_external"] >= 8, "the burst is used up")
    time.sleep(1.0)  # without a share, all would be done by now
    # 8 s of work may be done at once, then one group every four seconds.
    assert a.counts()["groups/verified_external"] < 20


def test_unknown_node_and_foreign_rollout_are_refused(hubs, scored):
    hub = hubs.make("a")
    with pytest.raises(ValueError, match="'c' is not one of"):
        hub.connect("c")
    with pytest.raises(ValueError, match="cannot publish a rollout of node 'b'"):
        hub.connect("a").publish([scored((0, 1), "b")])
