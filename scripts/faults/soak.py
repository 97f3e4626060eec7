"""A swarm that runs for twenty minutes: what its processes hold at minute 20 beside minute 10.

Four real processes on this machine: a training host, which is measured, with evaluations, reports and
checkpoints as users have them; a relay, which is measured too; another training host; and a light
publisher with many identities, which sends far more groups than anybody uses, so that every store
reaches its limits in the first minutes. Relays come and go all the time, some under a new identity
and some under a known one. Every look at /proc is kept in `samples.csv`.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sapo_jax.metrics import read_metrics
from sapo_jax.swarm.mesh.admin_client import AdminClient
from sapo_jax.swarm.mesh.host_status import HostStatus
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.workdir import METRICS_FILE
from scripts.faults.figures import Figure, Setting
from scripts.faults.host_process import STOP_S, HostProcess, free_port
from scripts.faults.process_samples import Sample, drift, look, quantile, write_samples

LENGTH_S = 20 * 60
WINDOW_S, LOWEST = 120.0, 0.1  # before each of the two moments that are compared, and which quantile
SAMPLE_S = 5.0
GROWTH_MIB = 16.0
START_S = 600.0  # for all processes to be at work, on a machine that does other things too
VISIT_S = 60.0  # from the start of one visitor to that of the next; it stays for two thirds
PUBLISHERS, GROUPS_PER_S = 12, 24.0
HOST, OTHER, RELAY, PUBLISHER, VISITOR = "host", "other-host", "relay", "publisher", "visitor"
MEASURED = (HOST, RELAY)


@dataclass(kw_only=True, slots=True)
class Swarm:
    """The processes by name, each below one directory."""

    workdir: Path
    processes: dict[str, HostProcess] = field(default_factory=dict[str, HostProcess])

    def start(self, name: str, module: str, **options: object) -> None:
        """Starts a process; one of a known name comes back to its directory."""
        if name not in self.processes:
            self.processes[name] = HostProcess(self.workdir / name, module, **options)
        self.processes[name].start()

    def status(self, name: str) -> HostStatus:
        """Asks a host as its operator would."""
        with AdminClient(self.processes[name].directory) as client:
            return client.status()

    def ended(self) -> list[str]:
        """Returns the processes that have ended, without visitors."""
        staying = {name: process for name, process in self.processes.items() if not name.startswith(VISITOR)}
        return [name for name, process in staying.items() if not process.is_running]


def measure(setting: Setting) -> list[Figure]:
    """Runs the swarm and returns how what it holds has changed over the second half."""
    length_s = LENGTH_S * setting.scale
    window_s, sample_s = WINDOW_S * setting.scale, min(SAMPLE_S, max(0.2, SAMPLE_S * setting.scale))
    swarm = Swarm(workdir=setting.workdir)
    samples: list[Sample] = []
    try:
        metrics_port = _start(swarm, setting)
        rounds_before = swarm.processes[HOST].last_round
        watch = _Watch(swarm, samples, sample_s, metrics_port, setting)
        watch.until(length_s / 2)
        stored = {name: swarm.status(name).stored_groups for name in MEASURED}
        watch.until(length_s)
        status = swarm.status(HOST)
        ended_early = swarm.ended()
        for process in swarm.processes.values():
            process.stop()
    finally:
        for process in swarm.processes.values():
            process.end()
        write_samples(setting.workdir / "samples.csv", samples)
    failures = {name: process.failures for name, process in swarm.processes.items() if process.failures}
    setting.say(f"bad ends: {failures or 'none'}, {watch.visits} visitors")
    figures: list[Figure] = []
    for name in MEASURED:
        figures += growth(name, [each for each in samples if each.process == name], length_s, window_s)
    records = [record for record in read_metrics(setting.workdir / HOST / METRICS_FILE) if record.node is None]
    used = sum(record.metrics.get("groups/external", 0.0) for record in records)
    full = StoreLimits().max_groups if setting.scale == 1.0 else None  # a shorter run does not fill the stores
    figures += [
        Figure(name=f"{name}: groups in the store at half time", value=stored[name], at_least=full) for name in MEASURED
    ]
    figures += [
        Figure(
            name="host: rounds trained",
            value=swarm.processes[HOST].last_round - rounds_before,
            at_least=setting.scaled(200),
            detail=f"{swarm.processes[OTHER].last_round} by the other host",
        ),
        Figure(
            name="host: groups of others trained on",
            value=used,
            at_least=setting.scaled(200),
            detail=f"{status.counters.get('groups/verified_external', 0)} verified, "
            f"{status.counters.get('swarm/accepted', 0)} own accepted by peers, {watch.visits} visitors",
        ),
        Figure(
            name="processes that ended by themselves or badly",
            value=len(ended_early) + sum(failures.values()),
            at_most=0,
            detail=f"of {sum(process.starts for process in swarm.processes.values())}, {watch.visits} visits included",
        ),
    ]
    return figures


def growth(name: str, samples: Sequence[Sample], length_s: float, window_s: float) -> list[Figure]:
    """Returns how what one process holds has changed between the middle and the end of a series.

    Both are compared by the lowest tenth of the looks in the two minutes before: rounds, evaluations and
    reports take tens of megabytes for moments, and visitors some connections, which a median sees in one
    window and not in the next, while a leak lifts every quantile. Counts must not drift either, which
    notices two more in the second half.
    """
    middle_s = length_s / 2
    figures: list[Figure] = []
    memory = {"rss_mib": "resident memory", "children_rss_mib": "resident memory of its child processes"}
    counts = {"descriptors": "open descriptors", "threads": "threads", "children": "child processes"}
    if not any(sample.children for sample in samples):
        del memory["children_rss_mib"], counts["children"]
    for what, words in memory.items():
        lowest, median = (
            [quantile(samples, at_s - window_s, at_s, what, share) for at_s in (middle_s, length_s)]
            for share in (LOWEST, 0.5)
        )
        figures.append(
            Figure(
                name=f"{name}: growth of {words}",
                value=lowest[1] - lowest[0],
                unit="MiB",
                at_most=GROWTH_MIB,
                detail=f"{lowest[0]:.0f} to {lowest[1]:.0f}, the lowest tenth in the {window_s:g} s before "
                f"{middle_s:g} and {length_s:g} s; medians {median[0]:.0f} to {median[1]:.0f}",
            )
        )
    for what, words in counts.items():
        values = [getattr(sample, what) for sample in samples if sample.at_s >= middle_s] or [0]
        before, after = (quantile(samples, at_s - window_s, at_s, what, LOWEST) for at_s in (middle_s, length_s))
        slope = drift(samples, middle_s, what)
        rise = max(after - before, slope) if slope == slope else slope
        figures.append(
            Figure(
                name=f"{name}: rise of {words}",
                value=round(rise) if rise == rise else rise,
                at_most=0,
                detail=f"{before:.0f} to {after:.0f}, {slope:.2f} by the median slope over the second half; "
                f"{min(values)} to {max(values)} of them",
            )
        )
    return figures


def _start(swarm: Swarm, setting: Setting) -> int:
    """Starts all processes and waits until the hosts train; returns the port of the host's metrics page."""
    metrics_port = free_port()
    training = {
        "config": "configs/tiny.py",
        "config.nodes": 1,
        "config.rounds": 1_000_000_000,
        "config.host.platform": "cpu",
        "config.sharing.selection": "publisher_uniform",
        "config.eval.every_rounds": 50,
        "config.checkpoint.every_rounds": 50,
    }
    seed = setting.seed
    swarm.start(HOST, "sapo_jax.main", **training, **{"config.seed": seed, "metrics": f"127.0.0.1:{metrics_port}"})
    invite = swarm.processes[HOST].invite
    _wait(swarm, "the host's invite", invite.exists)
    swarm.start(RELAY, "sapo_jax.relay", invite=invite)
    swarm.start(OTHER, "sapo_jax.main", **training, **{"config.seed": seed + 1, "invite": invite})
    publishing = {"publishers": PUBLISHERS, "groups_per_s": GROUPS_PER_S, "seed": seed, "listen": None}
    swarm.start(PUBLISHER, "scripts.faults.light_publisher", invite=invite, **publishing)
    for name in (HOST, OTHER):
        setting.say(f"waiting for the first rounds of {name}")
        _wait(swarm, f"the first rounds of {name}", lambda name=name: swarm.processes[name].last_round > 0)
    return metrics_port


class _Watch:
    """Looks at the processes at a steady pace; visitors come and go meanwhile."""

    def __init__(
        self, swarm: Swarm, samples: list[Sample], sample_s: float, metrics_port: int, setting: Setting
    ) -> None:
        self._swarm = swarm
        self._samples = samples
        self._sample_s = sample_s
        self._metrics_page = f"http://127.0.0.1:{metrics_port}/metrics"
        self._say = setting.say
        self._start_s = time.monotonic()
        self._next_s = 0.0
        self._next_words_s = 0.0
        self.visits = 0
        self._coming_and_going = self._visit_for_ever()

    def until(self, end_s: float) -> None:
        """Goes on until `end_s` after the beginning; raises RuntimeError if a measured process ends."""
        while self._next_s <= end_s:
            time.sleep(max(0.0, self._start_s + self._next_s - time.monotonic()))
            now_s = time.monotonic() - self._start_s
            next(self._coming_and_going)
            for name in MEASURED:
                pid = self._swarm.processes[name].pid
                assert pid is not None  # it was started, and is stopped after the last look
                try:
                    self._samples.append(look(name, pid, now_s))
                except ProcessLookupError as error:
                    raise RuntimeError(f"{error}; its last words:\n{_last_words(self._swarm, name)}") from error
            if now_s >= self._next_words_s:
                self._next_words_s = now_s + 60.0
                self._tell(now_s)
            self._next_s = max(self._next_s + self._sample_s, now_s)  # a late look is not made up for

    def _tell(self, now_s: float) -> None:
        """Says how things stand, having asked as operators and monitoring do."""
        with urllib.request.urlopen(self._metrics_page, timeout=30.0) as page:
            page.read()
        words: list[str] = []
        for name, sample in zip(MEASURED, self._samples[-len(MEASURED) :], strict=True):
            words.append(
                f"{name} {sample.rss_mib:.0f} + {sample.children_rss_mib:.0f} MiB, {sample.descriptors} descriptors, "
                f"{sample.threads} threads, {self._swarm.status(name).stored_groups} groups"
            )
        self._say(f"minute {now_s / 60:.1f}, round {self._swarm.processes[HOST].last_round}: {'; '.join(words)}")

    def _visit_for_ever(self) -> Iterator[None]:
        """Lets one relay after the other come and go, whenever it is asked to."""
        swarm, begun_s = self._swarm, time.monotonic()
        while True:
            # Every second one is the same host come back.
            name = f"{VISITOR}-{'again' if self.visits % 2 else self.visits}"
            swarm.start(name, "sapo_jax.relay", invite=swarm.processes[HOST].invite)
            self.visits += 1
            visitor = swarm.processes[name]
            while time.monotonic() < begun_s + VISIT_S * 2 / 3:
                yield
            visitor.ask_to_stop()
            while visitor.is_running and time.monotonic() < begun_s + VISIT_S + STOP_S:
                yield
            visitor.stop()
            while time.monotonic() < begun_s + VISIT_S:
                yield
            begun_s = time.monotonic()


def _wait(swarm: Swarm, what: str, is_there: Callable[[], bool]) -> None:
    end_s = time.monotonic() + START_S
    while not is_there():
        if ended := swarm.ended():
            raise RuntimeError(f"{ended[0]} ended before {what}:\n{_last_words(swarm, ended[0])}")
        if time.monotonic() > end_s:
            raise RuntimeError(f"no sign of {what} within {START_S:g} s")
        time.sleep(0.2)


def _last_words(swarm: Swarm, name: str) -> str:
    return "\n".join(swarm.processes[name].output().splitlines()[-15:])
