from __future__ import annotations

import asyncio
import dataclasses

import pytest

from sapo_jax.swarm.mesh.push import PushLimits
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.requests import PublishOutcome, PublishRequest, PublishResponse, PublishResult
from tests.swarm.mesh.fake_mesh import World, address_of

HASTY = PushLimits(patience_s=0.01)


@pytest.fixture
def world() -> World:
    return World()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30.0))


def refuse_all(host, monkeypatch, reason):
    """Makes a host refuse whatever is published to it."""

    def publish(request, *, prefix):
        result = PublishResult(group_id=b"", outcome=PublishOutcome.REJECTED, reason=reason)
        return PublishResponse(results=(result,) * len(request.groups))

    monkeypatch.setattr(host.service, "publish", publish)


# Slow peers.


def test_while_a_slow_peer_takes_its_time_the_others_get_what_is_new(world):
    async def scenario():
        a, b, c = world.host("a", "b", "c", push=HASTY), world.host("b"), world.host("c")
        await a.dial()
        gate = world.gates[address_of("b")] = asyncio.Event()
        ids = []
        for index in range(5):
            ids += a.publish(index)
            await a.pusher.push_once()
            assert c.held() == set(ids) and b.held() == set()
        assert world.calls[f"{address_of('b')} publish"] == 1  # one push at a time
        gate.set()
        while b.held() != set(ids):  # the push that was left behind goes on
            await asyncio.sleep(0)
        await a.pusher.push_once()
        assert a.store.outbox_pending(10) == []
        a.publish(9)
        await a.pusher.push_once()
        assert len(b.held()) == len(c.held()) == 6  # and the peer takes part again

    run(scenario())


def test_a_slow_peer_does_not_keep_the_flush_from_its_end(world):
    async def scenario():
        a, b, c = world.host("a", "b", "c", push=HASTY), world.host("b"), world.host("c")
        await a.dial()
        world.gates[address_of("b")] = asyncio.Event()
        (group_id,) = a.publish(1)
        assert await a.pusher.flush_once()
        assert c.held() == {group_id} and b.held() == set()

    run(scenario())


def test_the_flush_goes_on_while_only_slow_peers_are_there(world):
    async def scenario():
        a, b = world.host("a", "b", push=HASTY), world.host("b")
        await a.dial()
        gate = world.gates[address_of("b")] = asyncio.Event()
        (group_id,) = a.publish(1)
        assert not await a.pusher.flush_once() and not await a.pusher.flush_once()
        gate.set()
        while not await a.pusher.flush_once():
            pass
        assert b.held() == {group_id}
        assert world.calls[f"{address_of('b')} publish"] == 1

    run(scenario())


def test_the_end_of_the_mesh_breaks_off_slow_pushes(world):
    async def scenario():
        a = world.host("a", "b", push=HASTY)
        world.host("b")
        before = asyncio.all_tasks()
        task = asyncio.create_task(a.mesh.run())
        while not a.links.ready():
            await asyncio.sleep(0.01)
        world.gates[address_of("b")] = asyncio.Event()
        a.publish(1)
        a.mesh.nudge_push()
        while not world.calls[f"{address_of('b')} publish"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # beyond the patience
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert asyncio.all_tasks() == before

    run(scenario())


def test_the_failure_of_a_push_that_was_left_behind_is_not_lost(world, monkeypatch):
    async def scenario():
        a = world.host("a", "b", push=HASTY)
        world.host("b")
        await a.dial()
        gate = world.gates[address_of("b")] = asyncio.Event()
        a.publish(1)
        await a.pusher.push_once()

        def broken(*_):
            raise ZeroDivisionError

        monkeypatch.setattr(a.store, "acknowledge", broken)
        gate.set()
        with pytest.raises(ZeroDivisionError):
            for _ in range(100):
                await asyncio.sleep(0)
                await a.pusher.push_once()

    run(scenario())


# Refusals.


def test_peers_that_never_want_a_group_do_not_count_as_its_holders(world, monkeypatch):
    async def scenario():
        a, c = world.host("a", "b0", "b1"), world.host("c")
        for name in ("b0", "b1"):
            refuse_all(world.host(name), monkeypatch, WireReason.FIELD)
        await a.dial()
        (group_id,) = a.publish(1)
        for _ in range(3):
            await a.pusher.push_once()
        assert [world.calls[f"{address_of(name)} publish"] for name in ("b0", "b1")] == [1, 1]  # asked once each
        assert a.pusher.refused == {"field": 2}
        assert [offer.copies for offer in a.store.outbox_pending(10)] == [0]
        assert await a.pusher.flush_once()  # nobody is there who would take it
        a.book.add_given([address_of("c")], None)
        await a.dial()
        await a.pusher.push_once()
        assert c.held() == {group_id} and [offer.copies for offer in a.store.outbox_pending(10)] == [1]

    run(scenario())


@pytest.mark.parametrize("is_own", [True, False])
def test_a_ban_pauses_the_link_of_the_publisher_alone(world, is_own):
    async def scenario():
        a, b, c = world.host("a", "b"), world.host("b", "c"), world.host("c")
        await world.connect_all()
        a.publish(1)
        await a.pusher.push_once()
        c.scores.ban(b.node_id if is_own else a.node_id)
        if is_own:
            b.publish(2)
        else:
            b.pusher.offer_relay(b.store.after(0, 1)[0])
        await b.pusher.push_once()
        assert c.held() == set()
        assert len(b.links.ready()) == (0 if is_own else 1)
        if is_own:
            assert [offer.copies for offer in b.store.outbox_pending(10)] == [0]

    run(scenario())


# Relaying.


def test_proposals_hold_no_bytes_and_end_with_their_groups(world):
    async def scenario():
        a, b, c = world.host("a", "b"), world.host("b", "c"), world.host("c")
        await world.connect_all()
        a.publish(1)
        await a.pusher.push_once()
        b.pusher.offer_relay(b.store.after(0, 1)[0])
        world.time.now_s += 3601.0
        await b.pusher.push_once()
        assert world.calls[f"{address_of('c')} publish"] == 0 and c.held() == set()

    run(scenario())


def test_proposals_wait_while_nobody_is_there_to_take_them(world):
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await world.connect_all()
        (group_id,) = a.publish(1)
        await a.pusher.push_once()
        b.pusher.offer_relay(b.store.after(0, 1)[0])
        await b.pusher.push_once()
        c = world.host("c")
        b.book.add_given([address_of("c")], None)
        await b.dial()
        await b.pusher.push_once()
        assert c.held() == {group_id}

    run(scenario())


def test_a_member_that_publishes_the_group_of_another_as_an_old_one_shortens_no_life():
    world = World()

    async def scenario() -> None:
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        (group_id,) = a.publish(1)
        signed = a.store.outbox_pending(1)[0].signed
        old = dataclasses.replace(signed, age_s=3539.0)  # of a lifetime of an hour
        b.service.publish(PublishRequest(groups=(old,)), prefix="10.0.0.0/24")
        assert b.held() == {group_id}
        world.time.now_s += 30.0
        await a.pusher.push_once()
        world.time.now_s += 3500.0
        b.store.expire()
        assert b.held() == {group_id}

    run(scenario())
