"""Groups, clocks and stores for the tests of the store; texts are bytes to it, so none are signed here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sapo_jax.swarm.store.clock import Clock
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.outbox import OutboxKey
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.wire.signed_content import Envelope, GeneratorInfo, OpenedGroup
from sapo_jax.types import Rollout, TaskRef


class FakeTime:
    """Both clocks of a machine, moved by hand."""

    def __init__(self) -> None:
        self.wall_s = 1.7e9
        self.monotonic_s = 1000.0
        self.boot = "first boot"

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds

    def restart_machine(self) -> None:
        self.monotonic_s = 3.0
        self.boot += "+"

    @property
    def clock(self) -> Clock:
        return Clock(wall=lambda: self.wall_s, monotonic=lambda: self.monotonic_s, boot=self.boot)


def make_group(
    publisher: str = "p",
    number: int = 0,
    *,
    size_bytes: int = 300,
    ttl_s: float = 3600.0,
    age_s: float = 0.0,
    hops: int = 0,
    dataset: str = "toy",
) -> OpenedGroup:
    """A group whose bytes follow from publisher and number."""
    word = hashlib.sha256(f"{publisher}/{number}".encode()).digest()
    payload = (word * (size_bytes // 32 + 1))[: max(size_bytes - 96, 1)]
    key = hashlib.sha256(publisher.encode()).digest()
    ref = TaskRef(dataset=dataset, config_digest="ab" * 32, seed=1, index=number)
    return OpenedGroup(
        group_id=hashlib.sha256(payload + word + key).digest(),
        envelope=Envelope(payload=payload, public_key=key, signature=word * 2),
        rollout=Rollout(task_ref=ref, node_id=publisher, round=0, policy_version=0, completions=()),
        sequence=number,
        ttl_s=ttl_s,
        hops=hops,
        age_s=age_s,
        size_bytes=size_bytes,
        created_unix_s=0.0,
        verifier_version="",
        generator=GeneratorInfo(),
        claimed_scores=(),
    )


def make_key(round: int, task: str = "task", node_id: str = "own", repeat: int = 0) -> OutboxKey:
    return OutboxKey(node_id=node_id, round=round, task=task, repeat=repeat)


def open_store(path: Path | None, time: FakeTime, **limits: float | None) -> GroupStore:
    limits.setdefault("disk_reserve_bytes", 0)
    return GroupStore(path, limits=StoreLimits(**limits), clock=time.clock)


def ids(groups) -> list[bytes]:
    """The ids of groups or references, in order."""
    return [group.group_id for group in groups]


def held_ids(store: GroupStore) -> list[bytes]:
    """What the store holds, in order of arrival."""
    return ids(store.after(0, 10_000))
