"""Eight training processes, one of which is killed and started again every minute: the others train on, it returns.

All of them are the real command with a tiny model on the cores of this machine, in a closed swarm with
TLS. Each kill is SIGKILL, meets another host, the one that wrote the invite among the first, and the same
command starts at once. From that start count the seconds until a peer gives out a group that the process
made after it, and until the process has trained on a group of somebody else in a round after it took in one
that was made since; what its store held before does not count. `LEAST_ROUND_S` keeps the
hosts from filling the machine: as fast as they can they play fifty rounds a second, which no model that
somebody would train does, and what is measured then is how the system shares two cores among eight.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sapo_jax.metrics import Record
from sapo_jax.seeding import generator
from sapo_jax.swarm.wire.signed_content import OpenedGroup
from sapo_jax.workdir import METRICS_FILE
from scripts.faults.figures import ROOT, Figure, Setting
from scripts.faults.host_process import HostProcess, wait_until
from scripts.faults.peer_watch import PeerWatch
from scripts.faults.process_samples import started_by, still_there

HOSTS = 8
KILLS = 6
WINDOW_S = 60.0  # from one kill to the next
BACK_S = 30.0  # the target: from the start of the new process
LEAST_ROUND_S = 1.0
START_S = 400.0  # for all hosts on a busy machine, compilation included
LOOK_S = 0.25
ORPHANS_S = 10.0  # for scorer processes to notice that their host is gone
OPTIONS = {
    "config": ROOT / "configs" / "tiny.py:2_2",
    "config.nodes": 1,
    "config.rounds": 1_000_000,  # until stopped
    "config.model.init.width": 32,
    "config.model.init.mlp_width": 64,
    "config.model.init.layers": 1,
    "config.model.init.heads": 2,
    "config.model.init.kv_heads": 1,
    "config.tasks.specialties": '("leap_year",)',
    "config.sampling.group_size": 4,
    # Until it answers in the right form and is right now and then: groups without any difference are not drawn.
    "config.cold_start.steps": 30,
    "config.cold_start.batch_rows": 8,
    "config.cold_start.learning_rate": 0.02,
    "config.cold_start.true_frac": 1.0,
    "config.eval.every_rounds": 0,
    "config.eval.questions": 2,
    "config.eval.samples": 4,
    "config.checkpoint.every_rounds": 5,
    "config.learner.learning_rate": 1e-4,
    # A group is drawn in the round after its arrival or never, so none comes from the pool of a checkpoint.
    "config.sharing.max_age_rounds": 0,
}
_RESUMED = re.compile(rb"resumed after round (\d+)")


@dataclass(kw_only=True, slots=True)
class Kill:
    """What became of one kill; seconds count from the start of the new process, infinite if it did not happen.

    Attributes:
        victim: which host.
        resumed_s: it said that it goes on.
        own_s: a peer gave out a group that it made since its start.
        external_s: it had trained on a group of another host, after it had taken in one made since its start.
        rounds: that each other host played until the next kill.
        calm_round_s: median length of a round of the others before the kill.
        busy_round_s: the same between the kill and the return.
    """

    victim: int
    resumed_s: float = math.inf
    own_s: float = math.inf
    external_s: float = math.inf
    rounds: list[int] = field(default_factory=list)
    calm_round_s: float = math.nan
    busy_round_s: float = math.nan

    @property
    def back_s(self) -> float:
        """When both had happened."""
        return max(self.own_s, self.external_s)


def measure(setting: Setting) -> list[Figure]:
    """Returns how fast killed hosts came back and how the others fared."""
    return measure_swarm(setting, hosts=HOSTS, kills=setting.scaled(KILLS), window_s=WINDOW_S)


def measure_swarm(setting: Setting, *, hosts: int, kills: int, window_s: float) -> list[Figure]:
    """Does the same with so many hosts and kills, `window_s` apart."""
    swarm = _hosts(setting, hosts)
    names = [host.workdir.name for host in swarm]
    below: set[tuple[int, str]] = set()
    done: list[Kill] = []
    try:
        _start(swarm, setting)
        with PeerWatch(
            setting.workdir / "watch", {name: host.invite for name, host in zip(names, swarm, strict=True)}
        ) as watch:
            time.sleep(window_s / 4)  # rounds to compare with
            for victim in victims(hosts, kills, setting.seed):
                below |= _processes_below(swarm)
                done.append(_kill(swarm, victim, watch, window_s))
                setting.say(describe(done[-1], names[victim]))
        below |= _processes_below(swarm)
        for host in swarm:
            host.ask_to_stop()
        for host in swarm:
            host.stop()
        wait_until(lambda: not still_there(below), ORPHANS_S)
        orphans = len(still_there(below))
    finally:
        for host in swarm:
            host.end()
    return figures(done, hosts=hosts, failures=sum(host.failures for host in swarm), orphans=orphans, window_s=window_s)


def victims(hosts: int, kills: int, seed: int) -> list[int]:
    """Returns whom to kill, one after the other; host 0, which wrote the invite, is the second one."""
    others = [1 + int(index) for index in generator(seed, "churn").permutation(hosts - 1)]
    order = [others[0], 0, *others[1:]]
    return [order[index % hosts] for index in range(kills)]


def describe(kill: Kill, name: str) -> str:
    """Returns one line on a kill."""
    return (
        f"{name} killed: resumed after {kill.resumed_s:.1f} s, own group at a peer after {kill.own_s:.1f} s, "
        f"external group drawn after {kill.external_s:.1f} s; the others played {min(kill.rounds, default=0)} to "
        f"{max(kill.rounds, default=0)} rounds"
    )


def figures(kills: Sequence[Kill], *, hosts: int, failures: int, orphans: int, window_s: float) -> list[Figure]:
    """Returns the figures of all kills."""
    back = [kill.back_s for kill in kills]
    paced = f"{hosts} hosts, rounds of at least {LEAST_ROUND_S:g} s"
    return [
        Figure(
            name="killed process is back: own group accepted and external group drawn",
            value=max(back, default=math.inf),
            unit="s",
            at_most=BACK_S,
            detail=f"from its start, slowest of {len(kills)} kills, median {statistics.median(back):.1f}; {paced}",
        ),
        Figure(
            name="own group accepted",
            value=max(kill.own_s for kill in kills),
            unit="s",
            at_most=BACK_S,
            detail="from its start until a peer gives out a group made since, slowest",
        ),
        Figure(
            name="external group drawn",
            value=max(kill.external_s for kill in kills),
            unit="s",
            at_most=BACK_S,
            detail="from its start, slowest",
        ),
        Figure(
            name="resumed",
            value=max(kill.resumed_s for kill in kills),
            unit="s",
            detail="from its start until it says so, slowest",
        ),
        Figure(
            name="back after it resumed",
            value=max((kill.back_s - kill.resumed_s for kill in kills if kill.resumed_s < math.inf), default=math.inf),
            unit="s",
            at_most=BACK_S,
            detail="slowest",
        ),
        Figure(
            name="rounds of each other host between two kills",
            value=min((count for kill in kills for count in kill.rounds), default=0),
            at_least=round(window_s / LEAST_ROUND_S / 2),  # at full speed twice as many
            detail=f"fewest in {window_s:g} s, of {sum(len(kill.rounds) for kill in kills)} counts; {paced}",
        ),
        Figure(
            name="round of the others while one comes back",
            value=_median_ms(kill.busy_round_s for kill in kills),
            unit="ms",
            detail=f"median, without the pause; {_median_ms(kill.calm_round_s for kill in kills):.0f} before the kills",
        ),
        Figure(name="processes that ended unasked or not with 0", value=failures, at_most=0, detail=f"of {hosts}"),
        Figure(name="processes left behind", value=orphans, at_most=0, detail="scorers of killed and stopped hosts"),
    ]


def _median_ms(seconds: Iterable[float]) -> float:
    known = [each for each in seconds if each == each]
    return statistics.median(known) * 1000 if known else math.nan


def _hosts(setting: Setting, count: int) -> list[HostProcess]:
    swarm: list[HostProcess] = []
    for index in range(count):
        swarm.append(
            HostProcess(
                setting.workdir / f"host_{index}",
                "sapo_jax.main",
                **OPTIONS,
                **{"config.seed": setting.seed + index, "least_round_s": LEAST_ROUND_S},
                invite=swarm[0].invite if swarm else None,
            )
        )
    return swarm


def _start(swarm: Sequence[HostProcess], setting: Setting) -> None:
    """Starts the first host, then the others, and waits until all train on each other's groups."""
    began_s = time.monotonic()
    swarm[0].start()
    # Only when it plays rounds do the others start: they then find compiled what it has compiled.
    swarm[0].wait(lambda: swarm[0].last_round > 0, "round", START_S)
    for host in swarm[1:]:
        host.start()
    for host in swarm:
        # Two checkpoints, for a process that is killed while it writes one.
        host.wait(
            lambda host=host: _external(host.rounds, 0) and host.last_round > 10,
            "external group",
            START_S,
        )
    setting.say(f"{len(swarm)} hosts train on each other's groups after {time.monotonic() - began_s:.0f} s")


def _kill(swarm: Sequence[HostProcess], victim: int, watch: PeerWatch, window_s: float) -> Kill:
    """Kills a host, starts it again and looks on until the next kill is due."""
    host, kill = swarm[victim], Kill(victim=victim)
    others = [each for index, each in enumerate(swarm) if index != victim]
    names = [each.workdir.name for each in others]
    watch.skip([*names, host.workdir.name])
    before = _lasts(others)
    log = host.workdir / "output.txt"
    host.kill()
    told, metrics_file = log.stat().st_size, (host.workdir / METRICS_FILE).stat().st_ino
    started_s, started_unix_s = time.monotonic(), time.time()
    host.start()
    resumed_at, fresh_at = -1, -1  # rounds
    while (now_s := time.monotonic() - started_s) < window_s:
        if resumed_at < 0:
            with log.open("rb") as file:
                file.seek(told)
                if match := _RESUMED.search(file.read()):
                    resumed_at, kill.resumed_s = int(match[1]), now_s
        # What the killed process logged after its checkpoint goes when the file is written anew.
        elif (host.workdir / METRICS_FILE).stat().st_ino != metrics_file:
            if fresh_at < 0 and _has_new(watch.look([host.workdir.name]), started_unix_s, without=host.node_id):
                fresh_at = max(resumed_at, host.last_round)
            if kill.external_s == math.inf and fresh_at >= 0 and _external(host.rounds, fresh_at):
                kill.external_s = time.monotonic() - started_s
        if kill.own_s == math.inf and _has_new(watch.look(names), started_unix_s, of=host.node_id):
            kill.own_s = time.monotonic() - started_s
        if kill.back_s < math.inf:
            break
        time.sleep(LOOK_S)
    at_return = _lasts(others)
    time.sleep(max(0.0, window_s - (time.monotonic() - started_s)))
    # One that resumed meanwhile has taken back what it logged after its checkpoint.
    kill.rounds = [max(0, now - then) for now, then in zip(_lasts(others), before, strict=True)]
    kill.calm_round_s = _median_round_s(others, [max(0, last - 15) for last in before], before)
    kill.busy_round_s = _median_round_s(others, before, at_return)
    return kill


def _has_new(
    looked: Mapping[str, Sequence[OpenedGroup]], since_unix_s: float, *, of: str | None = None, without: str = ""
) -> bool:
    """Returns whether a host gave out a group made since then, by node `of`, or by any but `without`."""
    return any(
        group.created_unix_s >= since_unix_s and (group.publisher == of if of else group.publisher != without)
        for groups in looked.values()
        for group in groups
    )


def _lasts(hosts: Sequence[HostProcess]) -> list[int]:
    return [host.last_round for host in hosts]


def _median_round_s(hosts: Sequence[HostProcess], after: Sequence[int], up_to: Sequence[int]) -> float:
    """Returns the median length of the rounds in a range of each host's own."""
    times = [
        record.metrics["time/round_s"]
        for host, first, last in zip(hosts, after, up_to, strict=True)
        for record in host.rounds
        if first < record.round <= last
    ]
    return statistics.median(times) if times else math.nan


def _external(rounds: Sequence[Record], after_round: int) -> bool:
    """Returns whether a round after `after_round` trained on a group of another host."""
    return any(record.metrics["groups/external"] > 0 for record in rounds if record.round > after_round)


def _processes_below(hosts: Sequence[HostProcess]) -> set[tuple[int, str]]:
    """Returns the processes that hosts have started."""
    return set().union(*(started_by(host.pid) for host in hosts if host.pid is not None))
