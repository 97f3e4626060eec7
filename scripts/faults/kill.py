"""Kills of both ends of an exchange at any moment: nothing acknowledged is lost, nothing is trained twice.

Two hosts publish to each other over TLS. Again and again one of them, or both, dies by SIGKILL after a
random time, the start included, and the same command starts it anew. What counts is what lies on the
disks afterwards. The replayed rounds of a killed host make other texts than the first time, as a model
does, so a group that was signed again would show. `kill_training` does the same with hosts that train.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from sapo_jax.seeding import generator
from scripts.faults.durable import History, RoundOf, StoreReadings, read_history, rounds_rise
from scripts.faults.figures import Figure, Setting
from scripts.faults.host_process import LIGHT_HOST, HostProcess, wait_until
from scripts.faults.kill_training import measure_training
from scripts.faults.light_host import MAX_USES

CYCLES = 100
LONGEST_START_S, STARTING_FRAC = 1.5, 0.2  # this share of the kills comes before the start is over
LONGEST_LIFE_S = 3.0  # of the others, from when both play rounds
READY_S = 180.0
SETTLE_S = 120.0
CALM_ROUNDS = 20  # in a row without anything new, at the end
TRAINING_CYCLES = 3
TRAINING_SCALE = 0.3  # in smaller trials the hosts that train, which take a minute to start, are left out


def measure(setting: Setting) -> list[Figure]:
    """Returns what is left after the kills."""
    figures = measure_light(setting)
    if setting.scale < TRAINING_SCALE:
        setting.say(f"scale {setting.scale:g}: hosts that train are not killed")
        return figures
    return figures + measure_training(setting, setting.scaled(TRAINING_CYCLES))


def measure_light(setting: Setting) -> list[Figure]:
    """Kills hosts that play rounds without a model."""
    cycles = setting.scaled(CYCLES)
    # At ten groups a second a host may be away for most of a minute before its store, which keeps 512 groups of one
    # publisher, drops what came first when it is back, unverified.
    options = {"max_age_rounds": 20, "own": 2, "external": 8, "round_s": 0.2}
    first = HostProcess(setting.workdir / "first", LIGHT_HOST, seed=setting.seed, **options)
    second = HostProcess(setting.workdir / "second", LIGHT_HOST, seed=setting.seed + 1, invite=first.invite, **options)
    hosts = (first, second)
    stores = (StoreReadings(), StoreReadings())
    hung = 0
    try:
        first.start()
        first.wait(first.invite.exists, "invite", READY_S)
        second.start()
        for cycle in range(cycles):
            hung += _kill_some(hosts, stores, generator(setting.seed, "kill", cycle))
            if (cycle + 1) % 10 == 0:
                setting.say(f"{cycle + 1} of {cycles} cycles, {sum(host.kills for host in hosts)} kills")
        settled = _settle(hosts)
        for host, store in zip(hosts, stores, strict=True):
            store.read(host.directory, first.swarm_id)
    finally:
        for host in hosts:
            host.end()
    return [
        Figure(
            name="kills of publisher and receiver",
            value=sum(host.kills for host in hosts),
            at_least=cycles,
            detail="light hosts: all of a host but its model, with a pool and a draw as in training",
        ),
        *judge(hosts, stores, [read_history(host.workdir) for host in hosts], cycles),
        Figure(name="starts after which a host was not ready", value=hung, at_most=0, detail=f"within {READY_S:g} s"),
        Figure(
            name="all groups handed over in the end",
            value=int(settled),
            at_least=1,
            detail=f"nothing under way for {CALM_ROUNDS} rounds, within {SETTLE_S:g} s",
        ),
    ]


def _kill_some(hosts: Sequence[HostProcess], stores: Sequence[StoreReadings], rng: np.random.Generator) -> bool:
    """Kills one host, the other, or both after a random time, looks at what they left, and starts them again.

    Returns whether a host was not ready in time after its last start.
    """
    hung = False
    victims = [[0], [1], [0, 1], [1, 0]][rng.choice(4, p=(0.4, 0.4, 0.1, 0.1))]
    if rng.random() < STARTING_FRAC:
        time.sleep(rng.uniform(0.0, LONGEST_START_S))
    else:
        hung = not wait_until(lambda: all(host.is_ready for host in hosts), READY_S, every_s=0.02)
        time.sleep(rng.uniform(0.0, LONGEST_LIFE_S))
    for victim in victims:
        hosts[victim].kill()
        time.sleep(rng.uniform(0.0, 0.1))
    for victim in victims:
        stores[victim].read(hosts[victim].directory, hosts[0].swarm_id)
        hosts[victim].start(text_seed=hosts[victim].starts)
    return hung


def _settle(hosts: Sequence[HostProcess]) -> bool:
    """Lets the hosts hand over what is left, without new groups, and stops them; returns whether nothing is left."""
    for host in hosts:
        host.kill()
    for host in hosts:
        host.start(publish_until=0)

    def is_calm() -> bool:
        histories = [read_history(host.workdir) for host in hosts]
        last = [history.rounds[-CALM_ROUNDS:] for history in histories]
        return all(
            len(rounds) == CALM_ROUNDS and all(each["waiting"] == 0 and not each["arrived"] for each in rounds)
            for rounds in last
        )

    has_settled = wait_until(is_calm, SETTLE_S, every_s=1.0)
    for host in hosts:
        host.stop()
    return has_settled


def judge(
    hosts: Sequence[HostProcess], stores: Sequence[StoreReadings], histories: Sequence[History], cycles: int
) -> list[Figure]:
    """Returns the figures of two hosts that were killed in `cycles` cycles, from what lies on their disks."""
    names = stores[0].names | stores[1].names
    ids: dict[RoundOf, set[bytes]] = defaultdict(set)
    for store in stores:
        for made_of, group_ids in store.ids.items():
            ids[made_of] |= group_ids
    acknowledged = lost = undelivered = 0
    for publisher, receiver in ((0, 1), (1, 0)):
        node_id = hosts[receiver].node_id
        known = stores[receiver].held | stores[receiver].seen
        arrivals = histories[receiver].arrivals()
        held_by = {group_id for group_id, peer_id in stores[publisher].acknowledged if peer_id == node_id}
        acknowledged += len(held_by)
        lost += len(held_by - known)
        undelivered += sum(names[group_id] not in arrivals for group_id in held_by)
    arrived, uses = Counter[RoundOf](), Counter[RoundOf]()
    for history in histories:
        arrived += by_origin(history.arrivals(), ids, names)
        uses += by_origin(history.uses(), ids, names)
    most_used = max(uses.values(), default=0)
    detail = f"{cycles} cycles, {acknowledged} groups acknowledged"
    return [
        Figure(name="groups acknowledged", value=acknowledged, at_least=cycles, detail="by the other host"),
        Figure(name="acknowledged groups lost", value=lost, at_most=0, detail=detail),
        Figure(name="acknowledged groups that never reached the pool", value=undelivered, at_most=0, detail=detail),
        Figure(
            name="groups that reached the pool twice",
            value=sum(count > 1 for count in arrived.values()),
            at_most=0,
            detail=f"of {len(arrived)} in the surviving rounds",
        ),
        Figure(
            name="duplicates trained",
            value=sum(history.drawn_twice_in_a_round() for history in histories)
            + sum(max(0, count - MAX_USES) for count in uses.values()),
            at_most=0,
            detail=f"draws of one group twice in a round, or beyond {MAX_USES} uses; of {uses.total()} draws",
        ),
        Figure(
            name="uses of one group",
            value=most_used,
            at_most=MAX_USES,
            detail=f"{sum(count == MAX_USES for count in uses.values())} of {len(uses)} groups used {MAX_USES} times",
        ),
        Figure(
            name="ids of one published group",
            value=max((len(each) for each in ids.values()), default=0),
            at_least=1,
            at_most=1,
            detail=f"{len(ids)} groups; {sum(history.replayed for history in histories)} rounds replayed, other texts",
        ),
        Figure(
            name="hosts whose rounds have a gap",
            value=sum(not rounds_rise([each["round"] for each in history.rounds]) for history in histories),
            at_most=0,
        ),
        Figure(
            name="starts that failed",
            value=sum(host.failures for host in hosts),
            at_most=0,
            detail=f"of {sum(host.starts for host in hosts)} in the same directories",
        ),
        Figure(
            name="damaged rows and files",
            value=sum(history.damaged for history in histories) + sum(store.damaged for store in stores),
            at_most=0,
        ),
    ]


def by_origin(counts: Counter[str], ids: dict[RoundOf, set[bytes]], names: dict[bytes, str]) -> Counter[RoundOf]:
    """Returns counts by what a group was made of, so that two ids of one group are counted together."""
    return Counter(
        {
            made_of: total
            for made_of, group_ids in ids.items()
            if (total := sum(counts[name] for name in {names[group_id] for group_id in group_ids}))
        }
    )
