"""A host that verifies foreign groups in real scorer processes, and strangers who publish to it over gRPC.

The whole way of a foreign group is the product's: server, `open_group`, store, verifying thread,
scoring pool, inbox. Only training is missing: what a node would train on is read from its exchange.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sapo_jax.swarm.calls.client_pool import ClientPool
from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.mesh.network_host import HostLimits
from sapo_jax.swarm.network_exchange import NetworkHub
from sapo_jax.swarm.verifying import VerifyLimits
from sapo_jax.swarm.wire.group_codec import pack_group, seal_group
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.requests import PublishOutcome, PublishRequest
from sapo_jax.swarm.wire.signed_content import GeneratorInfo, SignedGroup
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scoring_pool import ScoringPool
from sapo_jax.tasks.specialty import Specialty
from sapo_jax.tasks.verifier import EXTERNAL_LANE
from sapo_jax.types import Completion, FinishReason, RejectionReason, Rollout, ScoredRollout, Task, TaskRef

SWARM = "verified"
NODE = "node"
BATCH = 16  # groups per call
CHUNK = 400  # groups that are sent before their verdicts are waited for; fewer than may wait
_DRAWS = 20  # at tasks of one specialty; some fail to be made, some are held out
_STALLED_S = 60.0  # without any verdict

_sequences = itertools.count(1)


def signed_group(
    identity: Identity,
    ref: TaskRef,
    texts: Sequence[str],
    *,
    claimed_scores: Sequence[float] | None = None,
    unknown_fields: bytes = b"",
) -> SignedGroup:
    """Returns a group of `texts` for a task; `unknown_fields` are signed with it."""
    payload = pack_group(
        _rollout(identity.node_id, ref, texts),
        swarm_id=SWARM,
        sequence=next(_sequences),
        created_unix_s=time.time(),
        ttl_s=3600.0,
        generator=GeneratorInfo(),
        claimed_scores=claimed_scores,
    )
    return SignedGroup(envelope=seal_group(payload + unknown_fields, identity))


def _rollout(node_id: str, ref: TaskRef, texts: Sequence[str]) -> Rollout:
    return Rollout(
        task_ref=ref,
        node_id=node_id,
        round=0,
        policy_version=0,
        completions=tuple(Completion(text=text, finish_reason=FinishReason.STOP) for text in texts),
    )


class VerifiedHost:
    """Owns the host and its scorer processes; a context manager."""

    def __init__(self, folder: Path, specialties: Sequence[Specialty], *, core_share: float | None = None) -> None:
        """Starts everything and waits for the first scorer process.

        Args:
            folder: for the store.
            specialties: what it verifies.
            core_share: of one core for verification; None: the product's default.
        """
        folder.mkdir(parents=True)
        self.pool = ScoringPool(specialties, lanes=(EXTERNAL_LANE,))
        self.published: Counter[str] = Counter()  # answers of the server, by outcome or reason
        self.held_out: list[TaskRef] = []  # met by `tasks`
        self._address = ""
        try:
            self.pool.warm_up()
            self.hub = NetworkHub(
                {NODE: Identity.generate()},
                swarm_id=SWARM,
                trust=Trust(mode=TrustMode.INSECURE_LOOPBACK),
                verify=partial(self.pool.verify, lane=EXTERNAL_LANE),
                mailbox_rollouts=100_000,
                listen="127.0.0.1:0",
                directory=folder,
                catalog_digests=[specialty.digest for specialty in specialties],
                limits=HostLimits(),
                verify_limits=VerifyLimits() if core_share is None else VerifyLimits(core_share=core_share),
                busy_s=partial(self.pool.busy_s, EXTERNAL_LANE),
            )
        except BaseException:
            self.pool.close()
            raise
        self._address = self.hub.host.addresses[0]
        self._exchange = self.hub.connect(NODE)
        self._sent = 0  # groups that were accepted

    def __enter__(self) -> VerifiedHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.hub.close(flush_s=0.0)
        self.pool.close()

    def tasks(self, specialty: Specialty, count: int, rng: random.Random) -> list[Task]:
        """Returns tasks that strangers may publish for, as the scorers rebuild them; notes those that are held out."""
        source = ReasoningGymSource((specialty,))
        found: list[Task] = []
        for _ in range(_DRAWS):
            refs = [source.ref(specialty, rng.randrange(2**32), rng.randrange(500)) for _ in range(count - len(found))]
            for verdict in self.pool.verify([_rollout("", ref, ["x"]) for ref in refs], lane=EXTERNAL_LANE):
                if isinstance(verdict, ScoredRollout):
                    found.append(verdict.task)
                elif verdict.reason is RejectionReason.HELD_OUT:
                    self.held_out.append(verdict.rollout.task_ref)
            if len(found) == count:
                break
        return found

    def publish(self, groups: Sequence[SignedGroup]) -> int:
        """Publishes groups as a stranger; returns how many were accepted."""
        results = asyncio.run(self._publish(groups))
        accepted = results[PublishOutcome.ACCEPTED.value]
        self.published.update(results)
        self._sent += accepted
        return accepted

    def pull(self) -> list[ScoredRollout]:
        """Returns what has come through since the last time, as a learner would."""
        return self._exchange.pull()

    def verdicts(self) -> dict[str, int]:
        """Returns how many groups were verified, missed, or rejected for which reason."""
        counts = {name.removeprefix("groups/"): count for name, count in self.hub.counts().items()}
        wanted = {
            name: count for name, count in counts.items() if name.startswith(("verified_", "rejected_", "missed"))
        }
        return {name.replace("_external", ""): count for name, count in wanted.items() if count}

    def settle(self, patience_s: float = _STALLED_S) -> bool:
        """Waits until every accepted group has its verdict; returns False if none came for `patience_s`.

        Groups of a publisher that is banned meanwhile never get one.
        """
        last, since_s = -1, time.monotonic()
        while (done := sum(self.verdicts().values())) < self._sent:
            if done != last:
                last, since_s = done, time.monotonic()
            elif time.monotonic() - since_s > patience_s:
                self._sent = done  # nobody waits for the others any more
                return False
            time.sleep(0.02)
        return True

    def through(self, groups: Sequence[SignedGroup], patience_s: float = _STALLED_S) -> list[ScoredRollout]:
        """Publishes groups, waits for their verdicts and returns what a learner gets of them."""
        pulled: list[ScoredRollout] = []
        for start in range(0, len(groups), CHUNK):
            self.publish(groups[start : start + CHUNK])
            self.settle(patience_s)
            pulled += self.pull()
        return pulled

    async def _publish(self, groups: Sequence[SignedGroup]) -> Counter[str]:
        pool = ClientPool(
            Trust(mode=TrustMode.INSECURE_LOOPBACK),
            sleep=asyncio.sleep,
            rng=np.random.default_rng(),
            now=lambda: datetime.datetime.now(datetime.UTC),
        )
        client = pool.connect(self._address, None)
        results: Counter[str] = Counter()
        size = 0
        batch: list[SignedGroup] = []
        try:
            for i, group in enumerate(groups):
                batch.append(group)
                size += len(group.envelope.payload)
                if len(batch) == BATCH or size > 2 * 2**20 or i + 1 == len(groups):
                    response = await client.publish_groups(PublishRequest(groups=tuple(batch)), timeout_s=15.0)
                    results.update((each.reason or each.outcome).value for each in response.results)
                    batch, size = [], 0
        finally:
            await pool.close()
        return results
