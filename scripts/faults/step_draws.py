"""How long the training thread waits for its foreign groups while a flood of them arrives and is verified.

The host is a member of a closed swarm as `sapo_jax.main` makes one, with real scorers. A process of
its own publishes to it under many identities, as fast as asked. The pool is full from the start, and
a draw is what a round does: `Node.pull`, then `Node.select`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sapo_jax import wiring
from sapo_jax.config import SapoConfig
from sapo_jax.member import Member
from sapo_jax.node import Node
from sapo_jax.prompting import Prompter
from sapo_jax.swarm.codec_json import scored_to_json
from sapo_jax.swarm.mesh.joining import INVITE_FILE, plan_joining
from sapo_jax.swarm.pool import Pool
from sapo_jax.swarm_flags import SwarmRequest
from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.verifier import EXTERNAL_LANE
from sapo_jax.types import ScoredRollout
from scripts.faults.figures import ROOT
from scripts.faults.light_publisher import rollouts

PUBLISHERS = 64
PUBLISH_EVERY = 10  # draws
PAUSE_S = 0.003  # between draws in a row: many, each with little to take in
ROUND_S = 0.25  # between draws at the pace of rounds: what has arrived meanwhile is taken in at once
FLOOD_STARTS_S = 120.0
_UNUSED_UP = 10**9  # rounds and uses after which a group would leave the pool: never, so it stays full


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What was measured, in seconds and groups."""

    draw_s: tuple[float, ...]
    paced_draw_s: tuple[float, ...]
    paced_verified: int  # groups that became ready during these
    publish_s: tuple[float, ...]  # of the own groups of one round
    full_mailbox_s: float  # the one draw that found its mailbox full
    pool: int
    seconds: float
    arrived: int
    verified: int


def with_large_pool(config: SapoConfig, pool: int) -> SapoConfig:
    """Returns the configuration with one node whose pool holds `pool` groups and never lets one go for its age."""
    sharing = dataclasses.replace(config.sharing, pool_rollouts=pool, max_age_rounds=_UNUSED_UP, max_uses=_UNUSED_UP)
    return dataclasses.replace(config, nodes=1, sharing=sharing)


def measure_draws(
    config: SapoConfig,
    prompter: Prompter,
    tasks: wiring.TaskSide,
    workdir: Path,
    *,
    draws: int,
    paced_draws: int,
    groups_per_s: float,
) -> Draws:
    """Returns the times of draws in a row and of draws at the pace of rounds under `groups_per_s` arriving groups."""
    bound = config.sharing.pool_rollouts
    stock = _scored(tasks, 2 * bound + config.sharing.local)
    with contextlib.closing(_join(config, tasks, workdir / "host")) as member:
        (node,) = wiring.build_nodes(config, prompter, tasks, member.hub)
        pool = Pool(max_rollouts=bound, max_age_rounds=_UNUSED_UP, max_uses=_UNUSED_UP)
        pool.add(stock[:bound], 0)
        node.restore_json({"node_id": node.node_id, "position": 0, "pool": pool.to_json()}, tasks.source.task)
        _fill_mailbox(member, node.node_id, stock[bound : 2 * bound], tasks)
        full_mailbox_s = _timed(partial(_draw, node, 1))
        own = stock[2 * bound :]
        member.hub.start_verifying()
        with _flood(member, workdir, groups_per_s):
            before, began_s = member.hub.status(), time.perf_counter()
            draw_s: list[float] = []
            publish_s: list[float] = []
            for round in range(2, draws + 2):
                draw_s.append(_timed(partial(_draw, node, round)))
                if round % PUBLISH_EVERY == 0:
                    publish_s.append(_timed(partial(node.publish, [_of_round(item, node, round) for item in own])))
                time.sleep(PAUSE_S)
            after, seconds = member.hub.status(), time.perf_counter() - began_s
            store = member.hub.host.store.stats()
            paced_draw_s: list[float] = []
            for round in range(draws + 2, draws + paced_draws + 2):
                time.sleep(ROUND_S)
                paced_draw_s.append(_timed(partial(_draw, node, round)))
            at_end = member.hub.status()
        member.hub.close(flush_s=0.0)
    verified = "groups/verified_external"
    return Draws(
        draw_s=tuple(draw_s),
        paced_draw_s=tuple(paced_draw_s),
        paced_verified=at_end.counters[verified] - after.counters[verified],
        publish_s=tuple(publish_s),
        full_mailbox_s=full_mailbox_s,
        pool=int(node.round_metrics([], [])["groups/pool"]),
        seconds=seconds,
        arrived=store.accepted - len(publish_s) * len(own),
        verified=after.counters[verified] - before.counters[verified],
    )


def _draw(node: Node, round: int) -> None:
    node.pull(round)
    node.select([], round)


def _timed(call: partial[None]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def _of_round(item: ScoredRollout, node: Node, round: int) -> ScoredRollout:
    return dataclasses.replace(item, rollout=dataclasses.replace(item.rollout, node_id=node.node_id, round=round))


def _scored(tasks: wiring.TaskSide, count: int) -> list[ScoredRollout]:
    """Returns scored groups of many publishers, in turn."""
    rng = np.random.default_rng(0)
    source = ReasoningGymSource(resolve("easy", ("leap_year",)))
    made = [rollouts(f"publisher-{i}", rng, source) for i in range(PUBLISHERS)]
    unscored = [next(made[i % PUBLISHERS]) for i in range(count)]
    verdicts = tasks.verifier.verify(unscored)
    scored = [verdict for verdict in verdicts if isinstance(verdict, ScoredRollout)]
    if len(scored) < count:
        raise RuntimeError(f"{count - len(scored)} of {count} honest groups were rejected")
    return scored


def _fill_mailbox(member: Member, node_id: str, scored: Sequence[ScoredRollout], tasks: wiring.TaskSide) -> None:
    """Puts groups into a mailbox the way a resumed run does."""
    state = member.hub.to_json()
    state["nodes"][node_id]["siblings"] = [scored_to_json(item) for item in scored]
    member.hub.restore_json(state, tasks.source.task)


def _join(config: SapoConfig, tasks: wiring.TaskSide, directory: Path) -> Member:
    return Member(
        SwarmRequest(
            joining=plan_joining(directory, now=datetime.datetime.now(datetime.UTC)),
            listen="127.0.0.1:0",
            advertise=(),
            metrics=None,
        ),
        config,
        node_ids=wiring.node_ids(config),
        verify=partial(tasks.verifier.verify, lane=EXTERNAL_LANE),
        busy_s=partial(tasks.verifier.busy_s, EXTERNAL_LANE),
        catalog_digests=[specialty.digest for specialty in tasks.specialties],
        drain=lambda: None,
    )


@contextlib.contextmanager
def _flood(member: Member, workdir: Path, groups_per_s: float) -> Iterator[None]:
    """Has a process publish to the host; the block begins once its groups arrive and are verified."""
    command = [sys.executable, "-m", "scripts.faults.light_publisher", f"--workdir={workdir / 'publisher'}"]
    command += [f"--invite={workdir / 'host' / 'swarm' / INVITE_FILE}"]
    command += [f"--publishers={PUBLISHERS}", f"--groups_per_s={groups_per_s}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as publisher:
        try:
            end_s = time.monotonic() + FLOOD_STARTS_S
            while member.hub.counts()["groups/verified_external"] == 0:
                if publisher.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError("the publisher's groups do not arrive")
                time.sleep(0.05)
            yield
        finally:
            publisher.terminate()
            try:
                publisher.wait(30.0)
            except subprocess.TimeoutExpired:
                publisher.kill()
