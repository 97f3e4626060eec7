"""What a whole host refuses: groups beyond what its verifier has come to, and whoever is banned."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from sapo_jax.swarm.calls.client_pool import ClientPool
from sapo_jax.swarm.calls.grpc_client import GrpcPeerClient
from sapo_jax.swarm.calls.peer_client import CallError
from sapo_jax.swarm.network_exchange import NetworkHub
from sapo_jax.swarm.wire.errors import STATUS_CODE, WireReason
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.limits import CallLimits
from sapo_jax.swarm.wire.requests import LoadLevel, PeerExchange, PublishRequest, SampleRequest
from scripts.bench_exchange import make_groups
from tests.swarm.calls.hosts import outcomes, peer_record, signed_group
from tests.swarm.network_hubs import SWARM, Hubs, closed_trust, toy_verify, wait_for

BATCH = 32


@pytest.fixture
def hubs() -> Iterator[Hubs]:
    hubs = Hubs()
    yield hubs
    hubs.close_all()


def with_client(hub: NetworkHub, work: Callable[[GrpcPeerClient], Awaitable[Any]]) -> Any:
    """Returns what `work` does with a client of the hub that is no host itself."""

    async def run() -> Any:
        pool = ClientPool(
            closed_trust(),
            sleep=asyncio.sleep,
            rng=np.random.default_rng(0),
            now=lambda: datetime.datetime.now(datetime.UTC),
        )
        try:
            return await work(pool.connect(hub.host.addresses[0], hub.host.invite().certificate))
        finally:
            await pool.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("size_bytes", "accepted"),
    [(300, CallLimits().max_queued_groups + 1), (500_000, CallLimits().max_queued_bytes // 500_000)],
    ids=["groups", "bytes"],
)
def test_a_host_whose_verifier_is_far_behind_says_so_and_takes_more_once_it_is_not(hubs, size_bytes, accepted):
    may_go_on = threading.Event()

    def verify(rollouts):
        may_go_on.wait()
        return toy_verify(rollouts)

    batch = BATCH if size_bytes < 1_000 else 4
    groups = make_groups(accepted + 4 * batch, size_bytes, swarm_id=SWARM)

    async def publish_until_refused(client):
        results = []
        for i in range(0, len(groups), batch):
            results += (await client.publish_groups(PublishRequest(groups=tuple(groups[i : i + batch])))).results
            if results[-1].reason is not None:
                break
        return results, (await client.get_node_info()).load_level

    hub = hubs.make("a", verify=verify)
    try:
        results, load_level = with_client(hub, publish_until_refused)
        said = outcomes(results)
        assert set(said) == {"accepted", "queue_full"}
        assert accepted - batch <= said.count("accepted") <= accepted + batch
        assert all(result.retry_after_s > 0 for result in results if result.reason is WireReason.QUEUE_FULL)
        assert load_level is LoadLevel.BUSY
        again = tuple(group for group, outcome in zip(groups, said, strict=False) if outcome == "queue_full")
    finally:
        may_go_on.set()
    wait_for(lambda: hub.host.store.size_after(hub._inbox.position()[1]) == (0, 0), "the verifier has read all")
    later = with_client(hub, lambda client: client.publish_groups(PublishRequest(groups=again)))
    assert set(outcomes(later.results)) == {"accepted"}


def test_a_banned_identity_hands_over_neither_groups_nor_its_record(hubs):
    hub, bad, good = hubs.make("a"), Identity.generate(), Identity.generate()
    hub.host.scores.ban(bad.node_id)

    async def calls(client):
        groups = (signed_group(bad, index=1), signed_group(good, index=2))
        results = (await client.publish_groups(PublishRequest(groups=groups))).results
        assert outcomes(results) == ["banned", "accepted"]
        with pytest.raises(CallError, match="PERMISSION_DENIED") as caught:
            await client.exchange_peers(PeerExchange(peer_records=(peer_record(bad), peer_record(good))))
        assert caught.value.reason is WireReason.BANNED and STATUS_CODE[WireReason.BANNED] == "PERMISSION_DENIED"
        assert hub.host.book.peers() == []  # what it brought along is not taken either
        # Reads carry no identity but the invite, so nobody is refused them.
        assert len((await client.sample_groups(SampleRequest(count=4))).groups) == 1

    with_client(hub, calls)
