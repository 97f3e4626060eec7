"""Real hubs on loopback for tests: port 0, TLS and invites, a toy verifier, and waits on conditions."""

from __future__ import annotations

import dataclasses
import datetime
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sapo_jax.swarm.calls.certificate import HostCertificate
from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.exchange import Exchange
from sapo_jax.swarm.mesh.fetch import FetchLimits
from sapo_jax.swarm.mesh.mesh import MeshTimes
from sapo_jax.swarm.mesh.network_host import GivenPeer, HostLimits
from sapo_jax.swarm.network_exchange import NetworkHub
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.types import Rejection, RejectionReason, Rollout, ScoredRollout, Task, TaskRef

SWARM = "test-swarm"
TOKEN = "a-token-that-all-test-hosts-share"
DEADLINE_S = 30.0

# Everything a mesh does by and by, it does at once here.
FAST = HostLimits(times=MeshTimes(dial_s=0.05, push_s=0.05, pull_s=0.1, repair_s=0.3, exchange_s=0.2, replace_s=60.0))

# The same with pushes alone, so that what is published together arrives in its order.
PUSH_ONLY = HostLimits(
    times=MeshTimes(dial_s=0.02, push_s=0.05, exchange_s=3600.0),
    fetch=FetchLimits(sample_groups=0, repair_pages=0),
)

_SCORES = {"0": 0.0, "1": 1.0, "2": 0.5}  # by the last digit of an answer


def toy_task(ref: TaskRef) -> Task:
    return Task(
        ref=ref, specialty="toy", question=f"question {ref.index:03d}", ground_truth=str(ref.index), metadata={}
    )


def toy_verify(rollouts: Sequence[Rollout]) -> list[ScoredRollout | Rejection]:
    """Scores by the last digit of a text; rejects tasks of other datasets, and texts that ask for it."""
    verdicts: list[ScoredRollout | Rejection] = []
    for rollout in rollouts:
        texts = [completion.text for completion in rollout.completions]
        if rollout.task_ref.dataset != "toy":
            reason = RejectionReason.UNKNOWN_TASK
        elif any("reject" in text for text in texts):
            reason = RejectionReason.SCORER_FAILED
        elif any("too long" in text for text in texts):
            reason = RejectionReason.TIMEOUT
        else:
            scores = tuple(_SCORES.get(text.removesuffix("</answer>")[-1:], 0.25) for text in texts)
            verdicts.append(ScoredRollout(rollout=rollout, task=toy_task(rollout.task_ref), scores=scores))
            continue
        verdicts.append(Rejection(rollout=rollout, reason=reason, detail="toy"))
    return verdicts


def closed_trust() -> Trust:
    now = datetime.datetime.now(datetime.UTC)
    return Trust(mode=TrustMode.CLOSED, certificate=HostCertificate.generate(now), token=TOKEN)


def given(hub: NetworkHub) -> GivenPeer:
    """Returns a hub as its invite shows it to others."""
    invite = hub.host.invite()
    return GivenPeer(addresses=invite.addresses, certificate=invite.certificate)


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)


class Hubs:
    """Makes hubs that know how to reach each other, and closes them."""

    def __init__(self) -> None:
        self._open: list[NetworkHub] = []

    def make(
        self,
        *names: str,
        peers: Sequence[NetworkHub | GivenPeer] = (),
        directory: Path | None = None,
        identities: Mapping[str, Identity] | None = None,
        trust: Trust | None = None,
        listen: str | None = "127.0.0.1:0",
        seed: int = 0,
        mailbox_rollouts: int = 64,
        limits: HostLimits = FAST,
        **options,
    ) -> NetworkHub:
        hub = NetworkHub(
            identities or {name: Identity.generate() for name in names},
            swarm_id=SWARM,
            trust=trust or closed_trust(),
            verify=options.pop("verify", toy_verify),
            mailbox_rollouts=mailbox_rollouts,
            listen=listen,
            peers=[peer if isinstance(peer, GivenPeer) else given(peer) for peer in peers],
            directory=directory,
            limits=limits,
            rng=np.random.default_rng(seed),
            **options,
        )
        self._open.append(hub)
        return hub

    def settled(self, names: Sequence[str]) -> list[SettledExchange]:
        """Returns the exchanges of as many hubs as there are names, all in touch with each other."""
        hubs: dict[str, NetworkHub] = {}
        for name in names:
            hubs[name] = self.make(name, peers=list(hubs.values()), limits=PUSH_ONLY)
        for hub in hubs.values():
            for other in hubs.values():
                if other is not hub:
                    hub.host.loop().run(_give(hub, given(other)))
        for name, hub in hubs.items():
            wait_for(lambda hub=hub: len(hub.host.links.ready()) == len(names) - 1, f"{name} is in touch with all")
        ids = {hub.identity(name).node_id: name for name, hub in hubs.items()}
        return [
            SettledExchange(name, hub, {other: hubs[other] for other in names if other != name}, ids)
            for name, hub in hubs.items()
        ]

    def close(self, hub: NetworkHub) -> None:
        self._open.remove(hub)
        hub.close(flush_s=0.0)

    def close_all(self) -> None:
        threads = [threading.Thread(target=hub.close, kwargs={"flush_s": 0.0}) for hub in self._open]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._open.clear()


async def _give(hub: NetworkHub, peer: GivenPeer) -> None:
    hub.host.book.add_given(peer.addresses, peer.certificate)


class Collected:
    """Pulls an exchange until what is waited for has come; keeps all of it."""

    def __init__(self, exchange) -> None:
        self._exchange = exchange
        self.rollouts: list[ScoredRollout] = []

    def indices(self) -> list[int]:
        self.rollouts += self._exchange.pull()
        return [item.rollout.task_ref.index for item in self.rollouts]

    def wait(self, indices: Sequence[int], timeout_s: float = DEADLINE_S) -> None:
        wait_for(lambda: set(indices) <= set(self.indices()), f"rollouts {list(indices)}", timeout_s)


class SettledExchange(Exchange):
    """An exchange of one hub among several, as the contract of `Exchange` sees it.

    The network takes its time; here a publication returns once every other host has it, and foreign
    nodes go by their names.
    """

    def __init__(self, name: str, hub: NetworkHub, others: Mapping[str, NetworkHub], names: Mapping[str, str]) -> None:
        super().__init__(hub, name)
        self._others = others
        self._names = names

    def publish(self, scored: Sequence[ScoredRollout]) -> None:
        before = {name: hub.counts()["groups/verified_external"] for name, hub in self._others.items()}
        super().publish(scored)
        for name, hub in self._others.items():
            wait_for(
                lambda hub=hub, name=name: hub.counts()["groups/verified_external"] >= before[name] + len(scored),
                f"{name} has verified what was published",
            )

    def pull(self) -> list[ScoredRollout]:
        return [
            dataclasses.replace(
                item, rollout=dataclasses.replace(item.rollout, node_id=self._names[item.rollout.node_id])
            )
            for item in super().pull()
        ]
