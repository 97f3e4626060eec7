from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import pytest

from sapo_jax.swarm.calls.quota import QuotaLimits
from sapo_jax.swarm.wire.limits import CallLimits
from scripts.bench_exchange import make_groups
from scripts.faults import publish
from scripts.faults.figures import Setting
from scripts.faults.publish_caller import Caller, Holding, Seen, bodies_of, flood, merged, seen_from_json
from tests.swarm.calls.hosts import SWARM, Host, run


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    setting = Setting(scale=0.005, seed=0, workdir=tmp_path_factory.mktemp("publish"), say=print)
    return {figure.name: figure for figure in publish.measure_overload(setting)}


@pytest.mark.slow
def test_overload_of_a_real_relay_gives_every_figure(figures):
    assert list(figures) == [
        "overload: offered beside answered",
        "overload: memory beside its cap",
        "as many of the largest requests as there are places: memory beside its cap",
        "after overload: memory",
        "overload: refusals that are not RESOURCE_EXHAUSTED with a hint",
        "overload: p99 of admitted calls",
        "after overload: a group is taken again after",
        "after overload: p99 of a call",
        "after overload: failures of the relay",
    ]
    assert figures["overload: memory beside its cap"].is_met
    assert figures["overload: refusals that are not RESOURCE_EXHAUSTED with a hint"].is_met
    assert figures["after overload: failures of the relay"].is_met


def test_speed_gives_two_figures_a_case_and_says_the_batch(tmp_path):
    setting = Setting(scale=0.005, seed=0, workdir=tmp_path, say=print)
    figures = publish.measure_speed(setting)
    assert [figure.name for figure in figures] == [
        "published with all checks, 1 a call",
        "p99 of a call with 1",
        "published with all checks, 16 a call",
        "p99 of a call with 16",
    ]
    assert all(figure.value > 0 for figure in figures)


def test_callers_tell_refusals_with_a_hint_from_others():
    async def test() -> None:
        host = Host(
            quotas=QuotaLimits(groups_per_s=1.0, burst_groups=4.0, prefix_factor=100.0),
            call_limits=CallLimits(max_calls=2),
        )
        bodies = bodies_of(make_groups(8, 500, swarm_id=SWARM, publishers=1), 4)
        async with host.serve() as served:
            seen = await flood([served.channel()], "", bodies, 4, 0.3)
            assert seen.accepted == 4 and seen.known % 4 == 0
            assert set(seen.refused) <= {"quota", "concurrency"} and seen.refused["quota"] and seen.wrong == Counter()
            assert len(seen.admitted_s) == 1 and seen.offered > 8
            # Anything else is wrong: nonsense is no refusal for want of room.
            nonsense = Seen()
            await Caller(served.channel(), "", nonsense, timeout_s=2.0).offer(b"\xff", 1)
            assert list(nonsense.wrong) == ["INVALID_ARGUMENT malformed, retry after 0 s"]
        gone = Seen()
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            await Caller(channel, "", gone, timeout_s=1.0).offer(bodies[0], 4)
        assert sum(gone.wrong.values()) == 4

    run(test)


def test_a_door_keeps_back_the_end_of_a_body():
    async def test() -> None:
        body = bodies_of(make_groups(1, 200_000, swarm_id=SWARM), 1)[0]
        async with Host().serve() as served:
            door = Holding(served.address, len(body) - 65_536)
            seen = Seen()
            async with grpc.aio.insecure_channel(await door.start()) as channel:
                task = asyncio.ensure_future(Caller(channel, "", seen, timeout_s=10.0).offer(body, 1))
                await asyncio.sleep(0.3)
                assert not task.done()
                door.opened.set()
                await task
            await door.closed()
            assert seen.accepted == 1

    run(test)


def test_what_processes_saw_is_added_up():
    one = Seen(offered=3, accepted=1, refused=Counter(quota=2), admitted_s=[0.5])
    two = seen_from_json('{"offered": 2, "wrong": {"INTERNAL": 2}, "refused": {"quota": 1}}')
    total = merged([one, two])
    assert (total.offered, total.accepted, total.admitted_s) == (5, 1, [0.5])
    assert total.refused == Counter(quota=3) and total.wrong == Counter(INTERNAL=2)
