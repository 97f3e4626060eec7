from __future__ import annotations

import asyncio
import logging

import pytest

from sapo_jax.swarm.calls.peer_client import CallError
from sapo_jax.swarm.calls.quota import QuotaLimits
from sapo_jax.swarm.mesh.fetch import FetchLimits
from sapo_jax.swarm.mesh.links import MAX_PAUSE_S, STRIKES
from sapo_jax.swarm.mesh.mesh import MeshTimes
from sapo_jax.swarm.mesh.push import PushLimits
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.requests import (
    GetResponse,
    GroupRef,
    GroupRefPage,
    PeerExchange,
    SampleRequest,
    SampleResponse,
)
from tests.swarm.mesh.fake_mesh import Fault, World, address_of


@pytest.fixture
def world() -> World:
    return World()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30.0))


# Pushing.


def test_own_groups_are_pushed_until_two_peers_hold_them(world):
    async def scenario():
        a = world.host("a", "b", "c", "d")
        others = [world.host(name) for name in "bcd"]
        await a.dial()
        ids = a.publish(1, 2)
        await a.pusher.push_once()
        assert all(other.held() == set(ids) for other in others)  # three at a time
        assert a.store.outbox_pending(10) == []
        assert a.pusher.accepted == 6
        world.calls.clear()
        await a.pusher.push_once()
        assert not any("publish" in call for call in world.calls)

    run(scenario())


def test_with_one_peer_a_group_stays_on_offer_for_the_next(world):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        (group_id,) = a.publish(1)
        await a.pusher.push_once()
        assert b.held() == {group_id} and [g.copies for g in a.store.outbox_pending(10)] == [1]
        world.calls.clear()
        await a.pusher.push_once()
        assert not any("publish" in call for call in world.calls)  # b has it
        c = world.host("c")
        a.book.add_given([address_of("c")], None)
        await a.dial()
        await a.pusher.push_once()
        assert c.held() == {group_id} and a.store.outbox_pending(10) == []

    run(scenario())


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.LOSE_ANSWER, Fault.REFUSE, Fault.NONSENSE])
def test_a_group_that_was_not_acknowledged_is_offered_again(world, fault):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        (group_id,) = a.publish(1)
        world.faults[address_of("b")] = fault
        await a.pusher.push_once()
        assert [g.copies for g in a.store.outbox_pending(10)] == [0]
        del world.faults[address_of("b")]
        world.time.now_s += 60.0  # over any pause or back-off
        await a.dial()
        await a.pusher.push_once()
        assert b.held() == {group_id} and [g.copies for g in a.store.outbox_pending(10)] == [1]

    run(scenario())


@pytest.mark.parametrize("fault", [Fault.DUPLICATE, Fault.REORDER])
def test_duplicated_and_reordered_requests_end_in_the_same_state(world, fault):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        ids = a.publish(*range(40))  # more than one request
        world.faults[address_of("b")] = fault
        await a.pusher.push_once()
        assert b.held() == set(ids)
        assert [g.copies for g in a.store.outbox_pending(100)] == [1] * 40

    run(scenario())


def test_t13_a_corrupted_group_is_accepted_by_nobody(world):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        a.publish(1)
        world.faults[address_of("b")] = Fault.CORRUPT
        await a.pusher.push_once()
        assert b.held() == set()

    run(scenario())


def test_a_peer_without_quota_left_is_left_alone_as_long_as_it_asks(world):
    async def scenario():
        slow = QuotaLimits(groups_per_s=0.1, burst_groups=2.0)
        a, b = world.host("a", "b"), world.host("b", quotas=slow)
        await a.dial()
        ids = a.publish(*range(4))
        await a.pusher.push_once()
        assert len(b.held()) == 2 and a.links.ready() == []
        for _ in range(3):  # one group needs 10 s
            world.time.now_s += 20.0
            await a.pusher.push_once()
        assert b.held() == set(ids)

    run(scenario())


def test_a_slow_peer_does_not_keep_groups_from_the_others(world):
    async def scenario():
        a, b, c = world.host("a", "b", "c"), world.host("b"), world.host("c")
        await a.dial()
        (group_id,) = a.publish(1)
        world.gates[address_of("b")] = asyncio.Event()
        push = asyncio.create_task(a.pusher.push_once())
        while not c.held():
            await asyncio.sleep(0)
        assert not push.done() and b.held() == set()
        world.gates[address_of("b")].set()
        await push
        assert b.held() == {group_id}

    run(scenario())


def test_pushing_has_a_budget_of_bytes(world):
    async def scenario():
        a, b = world.host("a", "b", push=PushLimits(own_bytes_per_s=300.0)), world.host("b")
        await a.dial()
        ids = a.publish(*range(40))
        size_bytes = a.store.outbox_pending(1)[0].size_bytes
        for _ in range(100):
            await a.pusher.push_once()
        # A batch above the burst is granted once; then the budget has to recover.
        assert len(b.held()) == 32
        world.time.now_s += 32 * size_bytes / 300.0 + 10.0
        await a.pusher.push_once()
        assert b.held() == set(ids)

    run(scenario())


# Relaying.


def test_a_foreign_group_is_relayed_once_and_not_to_its_publisher(world):
    async def scenario():
        a, b, c = world.host("a", "b"), world.host("b", "a", "c"), world.host("c")
        await world.connect_all()
        (group_id,) = a.publish(1)
        await a.pusher.push_once()
        (stored,) = b.store.get([group_id])
        b.pusher.offer_relay(stored)
        world.calls.clear()
        await b.pusher.push_once()
        assert c.held() == {group_id} and b.pusher.relayed == 1
        assert world.calls[f"{address_of('a')} publish"] == 0
        (arrived,) = c.store.get([group_id])
        assert arrived.signed.hops == 1 and arrived.signed.envelope == stored.signed.envelope
        c.book.add_given([address_of("b")], None)
        c.pusher.offer_relay(arrived)  # it has had its hop in a mesh this small
        world.calls.clear()
        await c.dial()
        await c.pusher.push_once()
        assert world.calls[f"{address_of('b')} publish"] == 0

    run(scenario())


def test_groups_of_publishers_with_a_bad_name_are_not_relayed(world):
    async def scenario():
        a, b, c = world.host("a", "b"), world.host("b", "c"), world.host("c")
        await world.connect_all()
        (group_id,) = a.publish(1)
        await a.pusher.push_once()
        for _ in range(4):
            b.scores.invalid(a.node_id)
        b.pusher.offer_relay(b.store.get([group_id])[0])
        await b.pusher.push_once()
        assert c.held() == set()

    run(scenario())


def test_relaying_has_a_budget_of_bytes(world):
    async def scenario():
        a = world.host("a", "b")
        b, c = world.host("b", "c", push=PushLimits(relay_bytes_per_s=100.0)), world.host("c")
        await world.connect_all()
        a.publish(*range(64))
        await a.pusher.push_once()
        for _ in range(2):
            for stored in b.store.after(0, 100)[:32]:
                b.pusher.offer_relay(stored)
            await b.pusher.push_once()
        assert len(c.held()) == 32  # the second lot found no budget

    run(scenario())


# Pulling and repairing.


def test_a_pull_brings_groups_of_others_and_never_our_own(world):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        ids = b.publish(1, 2, 3)
        a.publish(9)
        await a.pusher.push_once()
        assert await a.fetcher.pull_once() == 3
        assert set(ids) <= a.held() and len(a.held()) == 4
        assert await a.fetcher.pull_once() == 0  # all known

    run(scenario())


def test_repair_fetches_all_that_is_missing_and_remembers_where_it_was(world):
    async def scenario():
        a, b = world.host("a", "b", listens=False), world.host("b")
        await a.dial()
        ids = b.publish(*range(150))  # more than one request holds
        assert await a.fetcher.repair_once() == 150
        assert a.held() == set(ids)
        assert world.calls[f"{address_of('b')} get"] == 3
        assert await a.fetcher.repair_once() == 0
        assert world.calls[f"{address_of('b')} get"] == 3
        more = b.publish(1000)
        assert await a.fetcher.repair_once() == 1 and set(more) <= a.held()

    run(scenario())


def test_repair_has_a_budget_and_goes_on_where_it_ended(world):
    async def scenario():
        b = world.host("b")
        b.publish(*range(150))
        size_bytes = b.store.outbox_pending(1)[0].size_bytes
        a = world.host("a", "b", fetch=FetchLimits(repair_bytes=70 * (size_bytes + 8)))
        await a.dial()
        gained = [await a.fetcher.repair_once() for _ in range(4)]
        assert gained == [64, 64, 22, 0]

    run(scenario())


def test_repair_starts_over_when_the_other_store_is_a_new_one(world):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        b.publish(1)
        assert await a.fetcher.repair_once() == 1
        reborn = world.host("b", identity=b.identity, nonce=b"new session here")  # same key, empty store
        ids = reborn.publish(5, 6)
        assert await a.fetcher.repair_once() == 0  # the cursor is unknown there
        world.time.now_s += 60.0
        assert await a.fetcher.repair_once() == 2 and set(ids) <= a.held()

    run(scenario())


def test_our_own_groups_of_an_earlier_store_do_not_come_back(world):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        a.publish(1)
        await a.pusher.push_once()
        assert len(b.held()) == 1
        reborn = world.host("a", "b", identity=a.identity, nonce=b"new session here")
        await reborn.dial()
        assert await reborn.fetcher.repair_once() == 0 and reborn.held() == set()

    run(scenario())


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.LOSE_ANSWER, Fault.REFUSE, Fault.NONSENSE])
def test_a_fault_while_fetching_costs_nothing_but_time(world, fault):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        ids = b.publish(1, 2)
        world.faults[address_of("b")] = fault
        for _ in range(3):
            assert await a.fetcher.pull_once() == 0 and await a.fetcher.repair_once() == 0
        del world.faults[address_of("b")]
        world.time.now_s += 60.0
        await a.dial()
        assert await a.fetcher.repair_once() == 2 and a.held() == set(ids)

    run(scenario())


def test_a_peer_that_sends_broken_bytes_loses_points_until_it_is_dropped(world):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        b.publish(*range(3))
        world.faults[address_of("b")] = Fault.CORRUPT
        await a.fetcher.pull_once()
        assert a.scores.score(b.node_id) == -9.0 and a.held() == set()
        await a.fetcher.pull_once()
        assert a.scores.score(b.node_id) == -36.0
        await a.fetcher.pull_once()
        assert a.scores.is_banned(b.node_id)
        await a.mesh.dial_once()
        assert a.links.ready() == [] and a.book.active() == []

    run(scenario())


def test_groups_nobody_asked_for_are_not_taken(world, monkeypatch):
    async def scenario():
        a, b, evil = world.host("a", "b"), world.host("b"), world.host("evil")
        await a.dial()
        ids = b.publish(1)
        other = evil.seal(7)
        real = b.service.get_groups
        monkeypatch.setattr(b.service, "get_groups", lambda request: GetResponse(groups=(*real(request).groups, other)))
        await a.fetcher.repair_once()
        assert a.held() == set(ids)
        monkeypatch.setattr(b.service, "get_groups", lambda request: GetResponse(groups=(other,)))
        b.publish(2)
        assert await a.fetcher.repair_once() == 0
        assert a.scores.score(b.node_id) < 0

    run(scenario())


def test_a_peer_that_lists_for_ever_ends_the_repair_only(world, monkeypatch):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        pages = 0

        def endless(request):
            nonlocal pages
            pages += 1
            cursor = b.store.refs(None, 1).next_cursor
            refs = [GroupRef(group_id=bytes([pages]) * 32, size_bytes=1, dataset="toy", age_s=0.0)] * 1000
            return GroupRefPage(references=tuple(refs), next_cursor=type(cursor)(epoch="e", sequence=pages))

        monkeypatch.setattr(b.service, "list_groups", endless)
        assert await a.fetcher.repair_once() == 0
        assert pages == FetchLimits().repair_pages

    run(scenario())


def test_t10_old_groups_sent_again_stay_out_of_the_pool(world, monkeypatch):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        b.publish(1, 2)
        recorded = b.service.sample(SampleRequest(count=64))
        await a.fetcher.pull_once()
        world.time.now_s += 3600.0 + 1.0  # the lifetime is over
        a.store.expire()
        assert a.held() == set()
        again = SampleResponse(groups=recorded.groups, stored_groups=2)
        monkeypatch.setattr(b.service, "sample", lambda request: again)
        for _ in range(50):
            assert await a.fetcher.pull_once() == 0
        assert a.held() == set()

    run(scenario())


@pytest.mark.parametrize("skew_s", [-86_400.0, 86_400.0])
def test_t14_a_day_of_clock_skew_changes_nothing(world, skew_s):
    async def scenario():
        a, b = world.host("a", "b", skew_s=skew_s), world.host("b", "a")
        await world.connect_all()
        mine, theirs = a.publish(1), b.publish(2)
        await a.pusher.push_once()
        await a.fetcher.pull_once()
        assert a.held() == b.held() == {*mine, *theirs}
        world.time.now_s += 3599.0
        assert a.held() == b.held() == {*mine, *theirs}
        world.time.now_s += 2.0
        assert a.held() == b.held() == set()

    run(scenario())


# Dialing and membership.


def test_a_peer_without_answers_is_given_up_after_two_calls_and_found_again(world):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        world.faults[address_of("b")] = Fault.DROP
        for _ in range(STRIKES):
            assert a.links.ready()
            await a.fetcher.pull_once()
        assert a.links.ready() == [] and "connection refused" in a.book.peers()[0].trouble
        assert world.calls[f"{address_of('b')} close"] == 1
        await a.dial()  # too early
        world.time.now_s += 60.0
        await a.dial()
        assert a.links.ready() == []
        del world.faults[address_of("b")]
        world.time.now_s += 60.0
        await a.dial()
        assert [peer.node_id for peer in a.links.ready()] == [b.node_id]

    run(scenario())


def test_one_call_without_answer_is_forgiven(world):
    async def scenario():
        a = world.host("a", "b")
        world.host("b")
        await a.dial()
        for _ in range(3):
            world.faults[address_of("b")] = Fault.DROP
            await a.fetcher.pull_once()
            del world.faults[address_of("b")]
            await a.fetcher.pull_once()
        assert a.links.ready()

    run(scenario())


def test_a_call_that_fails_after_its_connection_was_replaced_leaves_the_new_one_alone(world):
    async def scenario():
        a = world.host("a", "b")
        world.host("b")
        await a.dial()
        (peer,) = a.links.ready()
        dead = asyncio.Event()

        async def wait_long(client):
            await dead.wait()
            raise CallError("get: DEADLINE_EXCEEDED")

        slow = [asyncio.create_task(a.links.call(peer, wait_long)) for _ in range(STRIKES)]
        await asyncio.sleep(0)
        world.faults[address_of("b")] = Fault.DROP
        for _ in range(STRIKES):
            await a.fetcher.pull_once()
        assert a.links.ready() == []
        del world.faults[address_of("b")]
        world.time.now_s += 60.0
        await a.dial()
        dead.set()
        assert await asyncio.gather(*slow) == [None] * STRIKES
        assert a.links.ready() == [peer] and peer.failures == 0
        assert world.calls[f"{address_of('b')} close"] == 1

    run(scenario())


def test_calls_that_fail_together_count_as_one_failure(world):
    async def scenario():
        a = world.host("a", "b")
        world.host("b")
        await a.dial()
        (peer,) = a.links.ready()
        begun = asyncio.Event()

        async def fail(client):
            await begun.wait()
            raise CallError("get: UNAVAILABLE")

        calls = [asyncio.create_task(a.links.call(peer, fail)) for _ in range(4 * STRIKES)]
        await asyncio.sleep(0)
        begun.set()
        await asyncio.gather(*calls)
        assert a.links.ready() == [] and peer.failures == 1

    run(scenario())


def test_a_host_that_is_banned_pauses_and_does_not_dial_again_and_again(world):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        (group_id,) = b.publish(1)
        b.scores.ban(a.node_id)
        await a.dial()
        (peer,) = a.links.ready()
        await a.mesh.exchange_once()
        assert a.links.ready() == [] and peer.failures == 0
        for _ in range(5):
            world.time.now_s += (MAX_PAUSE_S - 1.0) / 5
            await a.dial()
        assert world.calls[f"{address_of('b')} info"] == 1 and a.links.ready() == []
        world.time.now_s += 2.0
        await a.fetcher.pull_once()  # reading stays allowed
        assert a.held() == {group_id}

    run(scenario())


def test_a_host_of_another_swarm_is_left_alone(world, monkeypatch):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        monkeypatch.setattr(b.service, "_swarm_id", "other")
        await a.dial()
        assert a.links.ready() == [] and a.book.peers()[0].trouble == "belongs to another swarm"

    run(scenario())


def test_peers_of_peers_become_known(world):
    async def scenario():
        c = world.host("c")
        b = world.host("b", "c")
        a = world.host("a", "b")
        await world.connect_all()
        await a.mesh.exchange_once()
        await a.dial()
        assert {peer.node_id for peer in a.links.ready()} == {b.node_id, c.node_id}

    run(scenario())


def test_a_host_that_only_dials_out_takes_part_fully(world):
    async def scenario():
        relay = world.host("relay")
        a = world.host("a", "relay", listens=False)
        b = world.host("b", "relay", listens=False)
        for host in (a, b):
            await host.dial()
            await host.mesh.exchange_once()
        assert relay.book.peers() == [] and set(relay.membership.recent_callers(world.time())) == {a.node_id, b.node_id}
        (group_id,) = a.publish(1)
        await a.pusher.push_once()
        await b.fetcher.pull_once()
        assert b.held() == {group_id}

    run(scenario())


def test_a_welcome_brings_everything_in_both_directions(world):
    async def scenario():
        a, b = world.host("a", "b", listens=False), world.host("b")
        ids = b.publish(*range(30))
        a.publish(100)
        await a.mesh.dial_once()
        while len(a.held()) < 31:
            await asyncio.sleep(0)
        assert set(ids) <= a.held()

    run(scenario())


# A forged sender.


def test_t13_a_host_that_shows_the_record_of_another_is_refused(world, monkeypatch):
    async def scenario():
        a, v, m = (world.host(name, certificate=name.encode()) for name in "avm")
        monkeypatch.setattr(m.service, "_peer_record", v.presence.record)
        a.book.add_given([address_of("m")], b"m")
        await a.dial()
        assert a.links.ready() == [] and a.book.peers()[0].trouble == "shows the record of another host"
        a.book.add_given([address_of("v")], b"v")
        await a.dial()
        world.time.now_s += 60.0
        await a.dial()  # m once more, now that v is known
        (peer,) = a.links.ready()
        assert (peer.node_id, peer.addresses, peer.certificate) == (v.node_id, (address_of("v"),), b"v")
        assert world.calls[f"{address_of('m')} info"] == 2 and len(a.book.peers()) == 2

    run(scenario())


def test_t13_a_record_of_ours_that_another_host_shows_is_no_copied_key(world, monkeypatch):
    async def scenario():
        key = Identity.generate()
        past = world.host("a", identity=key, certificate=b"a", seed=1)
        a, m = world.host("a", identity=key, certificate=b"a", seed=2), world.host("m", certificate=b"m")
        monkeypatch.setattr(m.service, "_peer_record", past.presence.record)
        a.book.add_given([address_of("m")], b"m")
        await a.dial()
        assert not _is_copied(a) and a.book.peers()[0].trouble == "shows the record of another host"

    run(scenario())


def test_a_host_with_a_new_certificate_is_found_again(world):
    async def scenario():
        a, b = world.host("a", certificate=b"a"), world.host("b", certificate=b"old")
        a.book.add_given([address_of("b")], b"old")
        await a.dial()
        assert a.links.ready()
        world.time.now_s += 1.0
        reborn = world.host("b", identity=b.identity, certificate=b"new", seed=1)
        for _ in range(STRIKES):
            await a.fetcher.pull_once()
        assert a.links.ready() == []
        reborn.book.add_given([address_of("a")], b"a")
        await reborn.dial()
        await reborn.mesh.exchange_once()
        await a.dial()
        (peer,) = a.links.ready()
        assert (peer.node_id, peer.certificate) == (b.node_id, b"new")

    run(scenario())


def test_in_plain_text_a_certificate_of_earlier_days_does_not_matter(world):
    async def scenario():
        a, b = world.host("a"), world.host("b")
        a.book.add_given([address_of("b")], b"of the time with TLS")
        await a.dial()
        assert [peer.node_id for peer in a.links.ready()] == [b.node_id]

    run(scenario())


def test_t13_old_records_sent_by_another_are_no_copied_key(world):
    async def scenario():
        hub = world.host("hub")
        key = Identity.generate()
        recorded = []
        for session in range(3):
            v = world.host("v", "hub", identity=key, seed=session)
            await v.dial()
            for _ in range(3):
                world.time.now_s += 30.0
                await v.mesh.exchange_once()
                recorded.append(v.presence.record())
            for record in (*recorded, *reversed(recorded)):
                hub.membership.answer(PeerExchange(peer_records=(record,)))
            assert hub.membership.copied == set() and not _is_copied(v)
            v.presence.refresh()
            recorded.append(v.presence.record())  # one that the hub does not know
        (before_s,) = hub.membership.recent_callers(world.time()).values()
        world.time.now_s += 30.0
        for record in recorded[:-1]:
            hub.membership.answer(PeerExchange(peer_records=(record,)))
        assert hub.membership.recent_callers(world.time()) == {v.node_id: before_s + 30.0}

    run(scenario())


def test_t13_an_old_record_sent_by_another_is_no_sign_of_life(world):
    async def scenario():
        hub, v = world.host("hub"), world.host("v", "hub")
        await v.dial()
        await v.mesh.exchange_once()
        old = v.presence.record()
        (peer,) = hub.book.to_dial()
        hub.book.failed(peer, "gone")
        hub.membership.answer(PeerExchange(peer_records=(old,)))
        assert hub.book.to_dial() == []
        await v.mesh.exchange_once()
        assert hub.book.to_dial() == [peer]

    run(scenario())


# A copied key.


def _is_copied(host) -> bool:
    return host.presence.copies_seen > 0


@pytest.mark.parametrize("skew_s", [0.0, -86_400.0, 86_400.0])
def test_t13_two_processes_with_one_key_both_notice_through_a_third(world, skew_s, caplog):
    async def scenario():
        hub = world.host("hub")
        key = Identity.generate()
        first = world.host("first", "hub", identity=key, listens=False, seed=1)
        second = world.host("second", "hub", identity=key, listens=False, skew_s=skew_s, seed=2)
        for host in (first, second):
            await host.dial()
        for _ in range(3):  # heartbeats
            world.time.now_s += 30.0
            await first.mesh.exchange_once()
            await second.mesh.exchange_once()
        assert _is_copied(first) and _is_copied(second) and hub.membership.copied == {key.node_id}
        texts = [record.getMessage() for record in caplog.records]
        assert sum(f"identity of this node, {key.node_id}" in text for text in texts) == 2  # each once

    with caplog.at_level(logging.WARNING):
        run(scenario())


@pytest.mark.parametrize("skew_s", [0.0, -86_400.0, 86_400.0])
def test_t13_two_processes_with_one_key_notice_when_they_meet(world, skew_s):
    async def scenario():
        key = Identity.generate()
        first = world.host("first", identity=key, seed=1)
        world.time.now_s += 5.0
        second = world.host("second", "first", identity=key, seed=2, skew_s=skew_s)
        await second.dial()
        assert _is_copied(first) and _is_copied(second)
        assert "uses the identity" in second.book.peers()[0].trouble

    run(scenario())


def test_a_restart_is_no_copy(world):
    async def scenario():
        hub = world.host("hub")
        key = Identity.generate()
        for session in range(4):
            host = world.host("host", "hub", identity=key, seed=session)
            await host.dial()
            for _ in range(3):
                world.time.now_s += 30.0
                await host.mesh.exchange_once()
            assert not _is_copied(host)
        assert hub.membership.copied == set()

    run(scenario())


# Supervision.


class Ticks:
    """A sleep that passes no time; the caller of `go_on` decides how many pauses are slept through."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)
        if len(self.slept) > 400:
            await asyncio.Event().wait()


@pytest.mark.parametrize("fault", list(Fault))
def test_no_fault_ends_the_mesh_and_a_defect_is_logged_once(world, fault, caplog):
    async def scenario():
        ticks = Ticks()
        a = world.host("a", "b", sleep=ticks, times=MeshTimes())
        b = world.host("b")
        b.publish(1, 2, 3)
        task = asyncio.create_task(a.mesh.run())
        while not a.links.ready():
            await asyncio.sleep(0)
        world.faults[address_of("b")] = fault
        a.publish(5)
        while len(ticks.slept) < 300:
            world.time.now_s += 1.0
            await asyncio.sleep(0)
        assert not task.done()
        del world.faults[address_of("b")]
        ids = a.publish(6)
        ticks.slept.clear()
        while len(ticks.slept) < 350 and not set(ids) <= b.held():
            world.time.now_s += 1.0
            if a.scores.is_banned(b.node_id):
                a.scores.unban(b.node_id)
            await asyncio.sleep(0)
        assert set(ids) <= b.held()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.ERROR):
        run(scenario())
    errors = [record.getMessage() for record in caplog.records]
    if fault is Fault.RAISE:
        assert errors and len(errors) == len(set(errors))  # each step once
    else:
        assert errors == []


def test_no_peer_at_all_is_a_normal_state(world, caplog):
    async def scenario():
        ticks = Ticks()
        a = world.host("a", "nobody", sleep=ticks)
        (group_id,) = a.publish(1)
        task = asyncio.create_task(a.mesh.run())
        while len(ticks.slept) < 200:
            world.time.now_s += 1.0
            await asyncio.sleep(0)
        assert not task.done() and a.held() == {group_id}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.INFO):
        run(scenario())
    assert caplog.records == []
