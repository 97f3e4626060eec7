
import asyncio, dataclasses
from sapo_jax.swarm.wire.requests import PublishRequest
from tests.swarm.mesh.fake_mesh import World
from tests.swarm.mesh.test_push import run

def test_a_member_that_publishes_anothers_group_as_an_old_one_shortens_no_life():
    world = World()
    async def scenario():
        a, b = world.host("a", "b"), world.host("b")
        await a.dial()
        (group_id,) = a.publish(1)
        signed = a.store.outbox_pending(1)[0].signed
        b.service.publish(PublishRequest(groups=(dataclasses.replace(signed, age_s=3539.0),)), prefix="10.0.0.0/24")
        assert b.held() == {group_id}
        world.time.now_s += 30.0
        await a.pusher.push_once()
        world.time.now_s += 3500.0
        b.store.expire()
        assert b.held() == {group_id}
    run(scenario())
