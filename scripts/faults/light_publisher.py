"""A light process that keeps publishing to a swarm, under several identities, and trains nothing.

    python -m scripts.faults.light_publisher --workdir=DIR --invite=FILE --publishers=12 --groups_per_s=24

It dials out like any host and hands over real, signed groups: tasks that every receiver can rebuild,
answered right by chance. It ends at SIGTERM and says how many groups it published.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sapo_jax.signals import StopRequest
from sapo_jax.swarm.mesh.fetch import FetchLimits
from sapo_jax.swarm.mesh.joining import plan_joining
from sapo_jax.swarm.mesh.network_host import HostLimits, NetworkHost
from sapo_jax.swarm.sealing import Sealer
from sapo_jax.swarm.wire.signed_content import GeneratorInfo
from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.held_out import is_held_out
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.specialty import library_version
from sapo_jax.types import Completion, FinishReason, Rollout

COMPLETIONS = 8
MAX_FILLER_WORDS = 200  # texts of all lengths, as from a real model


def rollouts(node_id: str, rng: np.random.Generator, source: ReasoningGymSource) -> Iterator[Rollout]:
    """Yields rollouts on random tasks of yes-or-no specialties, each completion right by chance."""
    for round in itertools.count(1):
        specialty = source.specialties[round % len(source.specialties)]
        ref = source.ref(specialty, int(rng.integers(2**32)), 0)
        if is_held_out(source.task(ref).question):  # whoever sends many of these is banned
            continue
        yield Rollout(
            task_ref=ref,
            node_id=node_id,
            round=round,
            policy_version=round,
            completions=tuple(
                Completion(
                    text="well " * int(rng.integers(MAX_FILLER_WORDS)) + f"<answer>{answer}</answer>",
                    finish_reason=FinishReason.STOP,
                )
                for answer in rng.choice(["Yes", "No"], COMPLETIONS)
            ),
        )


def main() -> None:
    """Publishes until a signal asks to stop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--invite", required=True, type=Path)
    parser.add_argument("--publishers", type=int, default=12)
    parser.add_argument("--groups_per_s", type=float, default=24.0)
    parser.add_argument("--catalog", default="easy")
    parser.add_argument("--specialty", default="leap_year")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    joining = plan_joining(
        options.workdir.absolute(), invite_path=options.invite, now=datetime.datetime.now(datetime.UTC)
    )
    identities = [joining.identity(f"publisher-{i}") for i in range(options.publishers)]
    rng = np.random.default_rng(options.seed)
    source = ReasoningGymSource(resolve(options.catalog, (options.specialty,)))
    made = [rollouts(each.node_id, rng, source) for each in identities]
    host = NetworkHost(
        identities[0],
        swarm_id=joining.swarm_id,
        trust=joining.trust,
        listen=None,
        peers=joining.peers,
        directory=joining.directory,
        own_ids=[each.node_id for each in identities],
        limits=HostLimits(fetch=FetchLimits(sample_groups=0, repair_pages=0)),
    )
    sealer = Sealer(
        swarm_id=joining.swarm_id,
        generator=GeneratorInfo(model_name="light publisher"),
        verifier_version=library_version(),
        wall_clock=time.time,
    )
    published, due_s = 0, time.monotonic()
    try:
        with StopRequest(lambda _: None) as stop:
            while not stop:
                i = published % len(identities)
                rollout = next(made[i])
                host.store.publish(sealer.key(identities[i], rollout), sealer.maker(identities[i], rollout))
                host.nudge_push()
                published += 1
                # A machine that was busy for a while is not made to catch up.
                due_s = max(due_s + 1.0 / options.groups_per_s, time.monotonic() - 1.0)
                time.sleep(max(0.0, due_s - time.monotonic()))
    finally:
        host.close(flush_s=5.0)
    print(f"published {published} groups, {host.pusher.accepted} accepted by peers", flush=True)


if __name__ == "__main__":
    main()
