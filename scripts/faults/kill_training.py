"""Kills of two hosts that train: the real command with a tiny model, its scorer processes and its checkpoints.

Few cycles, because a start takes long; `kill` has the many. Both hosts die at random moments after each
has gone on training, and the same commands start them again.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sapo_jax.seeding import generator
from scripts.faults.durable import RoundOf, StoreReadings
from scripts.faults.figures import Figure, Setting
from scripts.faults.host_process import HostProcess

MAX_USES = 4
START_S = 300.0  # a cold start on a busy machine included
ROUNDS_BETWEEN = 6  # that each host plays before somebody is killed: at least one checkpoint
LONGEST_WAIT_S = 5.0
OPTIONS = {
    "config": "configs/tiny.py:4_4",
    "config.nodes": 1,
    "config.rounds": 1_000_000,  # until stopped
    "config.model.init.layers": 1,
    "config.tasks.specialties": '("leap_year",)',
    "config.eval.every_rounds": 0,
    "config.eval.questions": 2,
    "config.eval.samples": 4,
    "config.checkpoint.every_rounds": 5,
    "config.sharing.max_age_rounds": 50,
    "config.sharing.max_uses": MAX_USES,
    "config.learner.learning_rate": 1e-4,
}


def measure_training(setting: Setting, cycles: int) -> list[Figure]:
    """Returns what is left after `cycles` kills of both hosts."""
    first = HostProcess(setting.workdir / "training_first", "sapo_jax.main", **OPTIONS)
    second = HostProcess(
        setting.workdir / "training_second",
        "sapo_jax.main",
        **{**OPTIONS, "config.seed": 1, "invite": first.invite},
    )
    hosts = (first, second)
    stores = (StoreReadings(), StoreReadings())
    pooled = twice = 0  # groups in the pools of the checkpoints that are gone on from
    rng = generator(setting.seed, "kill training")
    try:
        first.start()
        first.wait(first.invite.exists, "invite", START_S)
        second.start()
        for cycle in range(cycles):
            _go_on(hosts)
            for victim in rng.permutation(2):
                time.sleep(rng.uniform(0.0, LONGEST_WAIT_S))
                hosts[victim].kill()
            for host, store in zip(hosts, stores, strict=True):
                store.read(host.directory, first.swarm_id)
                entries = _pool_entries(host.workdir)
                pooled += len(entries)
                twice += _twice(entries)
                host.start()
            setting.say(f"training: {cycle + 1} of {cycles} cycles")
        _go_on(hosts)
        for host in hosts:
            host.stop()
        for host, store in zip(hosts, stores, strict=True):
            store.read(host.directory, first.swarm_id)
    finally:
        for host in hosts:
            host.end()
    return [
        *_figures(hosts, stores, cycles),
        Figure(
            name="training: groups that are twice in a pool",
            value=twice,
            at_most=0,
            detail=f"of {pooled} in the checkpoints after each cycle",
        ),
    ]


def _go_on(hosts: Sequence[HostProcess]) -> None:
    """Waits until each host has played some rounds since it was started."""
    before = [host.last_round for host in hosts]
    for host, last in zip(hosts, before, strict=True):
        # A resumed host takes back what it logged after its checkpoint, so the count may fall at first.
        host.wait(lambda host=host, last=last: host.last_round >= last + ROUNDS_BETWEEN, "new rounds", START_S)


def _figures(hosts: Sequence[HostProcess], stores: Sequence[StoreReadings], cycles: int) -> list[Figure]:
    ids: dict[RoundOf, set[bytes]] = defaultdict(set)
    for store in stores:
        for made_of, group_ids in store.ids.items():
            ids[made_of] |= group_ids
    acknowledged = lost = irregular = 0
    external, received = [0.0, 0.0], [0, 0]
    for publisher, receiver in ((0, 1), (1, 0)):
        node_id = hosts[receiver].node_id
        known = stores[receiver].held | stores[receiver].seen
        held_by = {group_id for group_id, peer_id in stores[publisher].acknowledged if peer_id == node_id}
        acknowledged += len(held_by)
        lost += len(held_by - known)
        rounds = hosts[receiver].rounds
        irregular += [record.round for record in rounds] != list(range(1, len(rounds) + 1))
        external[receiver] = sum(record.metrics["groups/external"] for record in rounds)
        own = {each for made_of, each_ids in ids.items() if made_of[0] == node_id for each in each_ids}
        received[receiver] = len(known - own)
    detail = f"{cycles} cycles, both hosts killed in each; {acknowledged} groups acknowledged"
    return [
        Figure(name="training: groups acknowledged", value=acknowledged, at_least=cycles, detail="by the other host"),
        Figure(name="training: acknowledged groups lost", value=lost, at_most=0, detail=detail),
        Figure(
            name="training: ids of one published group",
            value=max((len(each) for each in ids.values()), default=0),
            at_least=1,
            at_most=1,
            detail=f"{len(ids)} groups, replayed rounds included",
        ),
        Figure(
            name="training: metrics whose rounds do not rise by one",
            value=irregular,
            at_most=0,
            detail=f"{' and '.join(str(host.last_round) for host in hosts)} rounds",
        ),
        Figure(
            name="training: uses per external group",
            value=max(drawn / max(1, count) for drawn, count in zip(external, received, strict=True)),
            detail=f"{sum(external):.0f} uses of {sum(received)} groups received; of the host with more",
        ),
        Figure(
            name="training: uses in the pools of the last checkpoints",
            value=max((entry["uses"] for host in hosts for entry in _pool_entries(host.workdir)), default=0),
            at_most=MAX_USES - 1,
            detail=f"a group leaves its pool with use {MAX_USES}",
        ),
        Figure(
            name="training: starts that failed",
            value=sum(host.failures for host in hosts),
            at_most=0,
            detail=f"of {sum(host.starts for host in hosts)}",
        ),
        Figure(name="training: damaged stores", value=sum(store.damaged for store in stores), at_most=0),
    ]


def _pool_entries(workdir: Path) -> list[dict[str, Any]]:
    """Returns what lies in the pools of the last checkpoint: rollouts with their scores, and their uses."""
    latest = max((path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), key=_number)
    state = json.loads((latest / "host" / "metadata").read_text())["state"]
    return [entry for node in state["nodes"] for entry in node["pool"]["entries"]]


def _twice(entries: Sequence[dict[str, Any]]) -> int:
    """Returns how many entries repeat another one."""
    return len(entries) - len({json.dumps(entry["scored"], sort_keys=True) for entry in entries})


def _number(path: Path) -> int:
    return int(path.name)
