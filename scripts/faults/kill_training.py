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

from sapo_jax.metrics import MetricsError, Record, read_metrics
from sapo_jax.seeding import generator
from sapo_jax.workdir import METRICS_FILE
from scripts.faults.durable import RoundOf, StoreReadings
from scripts.faults.figures import Figure, Setting
from scripts.faults.host_process import HostProcess, wait_until

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
    rng = generator(setting.seed, "kill training")
    try:
        first.start()
        _require(wait_until(first.invite.exists, START_S), first, "no invite")
        second.start()
        for cycle in range(cycles):
            _go_on(hosts)
            for victim in rng.permutation(2):
                time.sleep(rng.uniform(0.0, LONGEST_WAIT_S))
                hosts[victim].kill()
            for host, store in zip(hosts, stores, strict=True):
                store.read(host.directory, first.swarm_id)
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
    return _figures(hosts, stores, cycles)


def _go_on(hosts: Sequence[HostProcess]) -> None:
    """Waits until each host has played some rounds since it was started."""
    before = [_last_round(host) for host in hosts]
    for host, last in zip(hosts, before, strict=True):
        # A resumed host takes back what it logged after its checkpoint, so the count may fall at first.
        gone_on = wait_until(
            lambda host=host, last=last: not host.is_running or _last_round(host) >= last + ROUNDS_BETWEEN, START_S
        )
        _require(gone_on and host.is_running, host, "no new rounds")


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
        rounds = _rounds(hosts[receiver])
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
            detail=f"{' and '.join(str(_last_round(host)) for host in hosts)} rounds",
        ),
        Figure(
            name="training: uses per external group",
            value=max(drawn / max(1, count) for drawn, count in zip(external, received, strict=True)),
            at_most=MAX_USES,
            detail=f"{sum(external):.0f} uses of {sum(received)} groups received; of the host with more",
        ),
        Figure(
            name="training: uses in the pools of the last checkpoints",
            value=max(_most_used(host.workdir) for host in hosts),
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


def _rounds(host: HostProcess) -> list[Record]:
    """Returns what the host's node logged of its rounds, in the order of the file."""
    try:
        records = read_metrics(host.workdir / METRICS_FILE)
    except (OSError, MetricsError):
        return []  # not there yet, or being replaced
    return [record for record in records if record.node == 0 and "groups/external" in record.metrics]


def _last_round(host: HostProcess) -> int:
    return max((record.round for record in _rounds(host)), default=0)


def _most_used(workdir: Path) -> int:
    """Returns the uses of the most used group in the pool of the last checkpoint."""
    latest = max((path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), key=_number)
    state = json.loads((latest / "host" / "metadata").read_text())["state"]
    return max((entry["uses"] for node in state["nodes"] for entry in node["pool"]["entries"]), default=0)


def _number(path: Path) -> int:
    return int(path.name)


def _require(condition: bool, host: HostProcess, what: str) -> None:
    if not condition:
        raise RuntimeError(f"{host.workdir}: {what}; see output.txt there")
