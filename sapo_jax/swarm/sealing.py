"""Own groups on their way into the store: packed, signed, and known by what made them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from sapo_jax.swarm.store.outbox import OutboxKey
from sapo_jax.swarm.wire.group_codec import pack_group, reopen_group, seal_group
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, WireLimits
from sapo_jax.swarm.wire.signed_content import GeneratorInfo, OpenedGroup, SignedGroup
from sapo_jax.types import Rollout


class Sealer:
    """Owns what is the same in all groups of a host; `key` and `maker` are what `GroupStore.publish` takes."""

    def __init__(
        self,
        *,
        swarm_id: str,
        generator: GeneratorInfo,
        verifier_version: str,
        wall_clock: Callable[[], float],
        limits: WireLimits = DEFAULT_WIRE_LIMITS,
    ) -> None:
        """Takes the swarm, what to say about the policy, the task library's version, and Unix time in seconds."""
        self._swarm_id = swarm_id
        self._generator = generator
        self._verifier_version = verifier_version
        self._wall_clock = wall_clock
        self._limits = limits

    def key(self, identity: Identity, rollout: Rollout, repeat: int = 0) -> OutboxKey:
        """Returns what makes a group: node, round and task; `repeat` counts equal ones of a round."""
        ref = rollout.task_ref
        text = "\x1f".join((ref.dataset, ref.config_digest, str(ref.seed), str(ref.index)))
        task = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return OutboxKey(node_id=identity.node_id, round=rollout.round, task=task, repeat=repeat)

    def maker(
        self, identity: Identity, rollout: Rollout, claimed_scores: Sequence[float] | None = None
    ) -> Callable[[int], OpenedGroup]:
        """Returns what signs a group with the sequence it is given; it raises WireError for what others refuse."""

        def make(sequence: int) -> OpenedGroup:
            payload = pack_group(
                rollout,
                swarm_id=self._swarm_id,
                sequence=sequence,
                created_unix_s=self._wall_clock(),
                ttl_s=self._limits.default_ttl_s,
                generator=self._generator,
                verifier_version=self._verifier_version,
                claimed_scores=claimed_scores,
                limits=self._limits,
            )
            return self.reopen(SignedGroup(envelope=seal_group(payload, identity)))

        return make

    def reopen(self, signed: SignedGroup) -> OpenedGroup:
        """Returns a group that this host keeps; raises WireError if its bytes do not hold."""
        return reopen_group(signed, swarm_id=self._swarm_id, limits=self._limits)
