"""Publishing to one host: how fast with all checks, and what ten times more than it takes does to it.

Speed is measured as by `scripts/bench_exchange.py`, over TLS. Overload is a relay as anybody starts it, in
a closed swarm with its own limits, and processes that hold its invite: hundreds of callers with small and
with the largest groups, and then as many callers as there are places, each of which keeps back the end
of the largest request. The crowd gives way to the relay when both want a core, because elsewhere it would
have machines of its own. The most memory that the relay's process held is what the system says of it.

Its cap: what the process held before; for every call that may be in progress the largest request of the
crowd, twice, because the transport keeps what it has received until the whole is handed to us in one piece;
and the queue of what is not yet verified. A store on disk is not memory. How long an admitted call takes is
seen by a few callers beside the crowd, in a process of their own, each of which offers a small group now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np

from sapo_jax.swarm.calls.certificate import HostCertificate
from sapo_jax.swarm.calls.invite import Invite
from sapo_jax.swarm.calls.peer_client import CallError
from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.wire.limits import DEADLINES, MIB, CallLimits
from scripts.bench_exchange import (
    TARGET_GROUPS_PER_S,
    TARGET_P99_MS,
    calls_of,
    make_groups,
    publish,
)
from scripts.bench_exchange import measure as measure_case
from scripts.faults.figures import ROOT, Figure, Setting
from scripts.faults.host_process import HostProcess
from scripts.faults.process_samples import peak_mib, rss_mib
from scripts.faults.publish_caller import PAUSE_S, Caller, Seen, bodies_of, connect, merged, seen_from_json

CASE_GROUPS = 12_000
GROUP_BYTES = 8_192
LARGEST_BYTES = 512 * 1024 + 400  # the most text of a group, and what surrounds it
IN_FLIGHT = 32
OVERLOAD_S = 30.0
SMALL_BODIES = 1_000  # of one process; more groups than the relay takes in that time
HOLD_S = 3.0  # the host waits for a body for 5 s
AFTER_GROUPS = 1_000
RECOVERY_S = 5.0  # for the connections of the crowd to be closed
START_S = 60.0
PROBES, PROBE_S = 8, 0.02  # callers beside the crowd; time between two groups of one
SMALL_CALLERS, LARGE_CALLERS = 112, 16  # of each of three processes; of one
MAX_CALLS = CallLimits().max_calls
QUEUE_MIB = CallLimits().max_queued_bytes / MIB


def measure(setting: Setting) -> list[Figure]:
    """Measures both."""
    return [*measure_speed(setting), *measure_overload(setting)]


def measure_speed(setting: Setting) -> list[Figure]:
    """Returns groups a second and the 99th percentile of a call, for one and for sixteen groups a call."""
    groups = make_groups(setting.scaled(CASE_GROUPS, least=64), GROUP_BYTES)
    figures: list[Figure] = []
    for batch in (1, 16):
        case = measure_case(TrustMode.CLOSED, groups, batch, calls_of(IN_FLIGHT, batch))
        setting.say(f"{batch} a call: {case.groups_per_s:.0f} groups/s, p99 {case.p99_ms:.1f} ms")
        how = f"{case.groups} groups of {GROUP_BYTES // 1024} KiB, TLS, {case.calls} calls at a time, store on disk"
        figures += [
            Figure(
                name=f"published with all checks, {batch} a call",
                value=case.groups_per_s,
                unit="groups/s",
                at_least=TARGET_GROUPS_PER_S,
                detail=f"{how}; {case.server_cpu_ms_per_group:.2f} ms of the host's CPU a group",
            ),
            Figure(name=f"p99 of a call with {batch}", value=case.p99_ms, unit="ms", at_most=TARGET_P99_MS, detail=how),
        ]
    return figures


def measure_overload(setting: Setting) -> list[Figure]:
    """Returns memory, refusals and times of a relay that is offered ten times what it takes."""
    relay = HostProcess(setting.workdir / "relay", "sapo_jax.relay")
    try:
        relay.start()
        relay.wait(relay.invite.exists, "invite", START_S)
        invite = Invite.load(relay.invite, datetime.datetime.now(datetime.UTC))
        _publish_after(invite, setting.scaled(AFTER_GROUPS, least=20))  # has loaded all that a call needs
        seconds = max(2.0, OVERLOAD_S * setting.scale)
        assert relay.pid is not None
        before_mib = rss_mib(relay.pid)
        setting.say(f"the relay holds {before_mib:.0f} MiB; overload for {seconds:.0f} s")
        bodies = setting.scaled(SMALL_BODIES, least=20)
        small = ["--batch=32", f"--bodies={bodies}", f"--callers={SMALL_CALLERS}", f"--seconds={seconds}"]
        large = ["--batch=7", f"--size_bytes={LARGEST_BYTES}", "--bodies=8", f"--callers={LARGE_CALLERS}"]
        with Probe(invite, groups=round(PROBES * seconds / PROBE_S)) as probe:
            flood = _run_callers(relay.invite, [small, small, small, [*large, f"--seconds={seconds}"]], probe.start)
        setting.say(f"offered {flood.offered}, accepted {flood.accepted}, refused {dict(flood.refused)}")
        flood_mib = peak_mib(relay.pid)
        held_options = ["--batch=7", f"--size_bytes={LARGEST_BYTES}", "--bodies=16", f"--callers={MAX_CALLS}"]
        held = _run_callers(relay.invite, [[*held_options, f"--hold_s={HOLD_S}"]])
        setting.say(f"held bodies: accepted {held.accepted}, late {held.late}, refused {dict(held.refused)}")
        held_mib = peak_mib(relay.pid)
        recovered_s = _wait_until_taken(invite)
        after_s, after = _publish_after(invite, setting.scaled(AFTER_GROUPS, least=20))
        after_mib = rss_mib(relay.pid)
        setting.say(f"peak {flood_mib:.0f} MiB, with held bodies {held_mib:.0f} MiB, afterwards {after_mib:.0f} MiB")
        relay.stop()
    finally:
        relay.end()
    all_seen = merged([flood, held, probe.seen])
    late = flood.late + probe.seen.late  # of the held ones some must be: their bodies are kept back too long
    # Every call in progress with the largest request that its caller has, and the groups that wait for a verdict.
    flood_cap_mib = before_mib + 2 * _requests_mib(LARGE_CALLERS, MAX_CALLS - LARGE_CALLERS) + QUEUE_MIB
    held_cap_mib = before_mib + 2 * _requests_mib(MAX_CALLS, 0) + QUEUE_MIB
    return [
        Figure(
            name="overload: offered beside answered",
            value=flood.offered / max(1, flood.accepted + flood.known),
            unit="times",
            at_least=10.0,
            detail=f"{flood.offered} groups offered in {seconds:.0f} s, {flood.accepted} accepted, "
            f"{flood.known} already there",
        ),
        Figure(
            name="overload: memory beside its cap",
            value=flood_mib / flood_cap_mib,
            unit="times",
            at_most=1.2,
            detail=f"peak {flood_mib:.0f} MiB; cap {flood_cap_mib:.0f} MiB: {before_mib:.0f} before, "
            f"{LARGE_CALLERS} requests of 3.5 MiB and {MAX_CALLS - LARGE_CALLERS} of 256 KiB, both twice, and "
            f"{QUEUE_MIB:.0f} MiB not yet verified",
        ),
        Figure(
            name="as many of the largest requests as there are places: memory beside its cap",
            value=held_mib / held_cap_mib,
            unit="times",
            at_most=1.2,
            detail=f"peak {held_mib:.0f} MiB; cap {held_cap_mib:.0f} MiB: {MAX_CALLS} requests of 3.5 MiB, twice",
        ),
        Figure(
            name="after overload: memory",
            value=after_mib - before_mib,
            unit="MiB",
            detail=f"more than before, {flood.accepted + held.accepted} groups later; of {after_mib:.0f}",
        ),
        Figure(
            name="overload: refusals that are not RESOURCE_EXHAUSTED with a hint",
            value=sum(all_seen.wrong.values()) + late,
            at_most=0,
            detail=f"groups; {all_seen.wrong.most_common(3)}, {late} too late"
            if all_seen.wrong or late
            else f"of {sum(all_seen.refused.values())} groups: "
            + ", ".join(f"{name} {count}" for name, count in all_seen.refused.most_common()),
        ),
        Figure(
            name="overload: p99 of admitted calls",
            value=_percentile_ms(probe.seen.admitted_s, 99),
            unit="ms",
            at_most=250.0,
            detail=f"{len(probe.seen.admitted_s)} groups of {PROBES} callers beside the crowd, "
            f"{sum(probe.seen.refused.values())} refused; "
            f"the crowd itself, whose processes fill the machine: {_percentile_ms(flood.admitted_s, 99):.0f} ms",
        ),
        Figure(
            name="after overload: a group is taken again after",
            value=recovered_s,
            unit="s",
            at_most=RECOVERY_S,
            detail="from the end of the last caller of the crowd; its 128 connections have to be closed first",
        ),
        Figure(
            name="after overload: p99 of a call",
            value=_percentile_ms(after, 99),
            unit="ms",
            at_most=TARGET_P99_MS,
            detail=f"{len(after)} groups, one a call, all accepted, {len(after) / after_s:.0f}/s",
        ),
        Figure(
            name="after overload: failures of the relay", value=relay.failures, at_most=0, detail="crash or bad stop"
        ),
    ]


class Probe:
    """The callers beside the crowd: each offers one small group after the other, in one thread of this process."""

    def __init__(self, invite: Invite, *, groups: int) -> None:
        self.seen = Seen()
        self._invite = invite
        self._bodies = bodies_of(make_groups(max(10, groups), GROUP_BYTES, swarm_id=invite.swarm_id), 1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Probe:
        return self

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    async def _run(self) -> None:
        channel = connect(self._invite, self._invite.addresses[0])
        bodies = iter(self._bodies)
        await asyncio.gather(*(self._offer(channel, bodies) for _ in range(PROBES)))
        await channel.close()

    async def _offer(self, channel: grpc.aio.Channel, bodies: Iterator[bytes]) -> None:
        caller = Caller(channel, self._invite.token, self.seen, timeout_s=DEADLINES["PublishGroups"].client_s)
        for body in bodies:
            while not self._stopping.is_set() and not await caller.offer(body, 1):
                await asyncio.sleep(PAUSE_S)
            if self._stopping.is_set():
                return
            await asyncio.sleep(PROBE_S)


def _requests_mib(large: int, small: int) -> float:
    """Returns the size of so many requests of the crowd."""
    return (7 * large * LARGEST_BYTES + 32 * small * GROUP_BYTES) / MIB


def _percentile_ms(seconds: Sequence[float], percent: float) -> float:
    return float(np.percentile(np.array(seconds) * 1e3, percent)) if seconds else float("nan")


def _run_callers(invite: Path, commands: Sequence[Sequence[str]], begin: Callable[[], None] = lambda: None) -> Seen:
    """Runs processes of callers that begin together; returns what they saw."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_caller(invite, command)) for command in commands]
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("a process of callers did not start")
        begin()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return merged([seen_from_json(process.stdout.readline()) for process in processes if process.stdout])


@contextlib.contextmanager
def _caller(invite: Path, options: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "scripts.faults.publish_caller", f"--invite={invite}", *options]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_until_taken(invite: Invite) -> float:
    """Returns the seconds until the relay takes a group, infinite if it does not in a minute."""
    start_s = time.monotonic()
    while time.monotonic() - start_s < 60.0:
        with contextlib.suppress(CallError):
            _publish_after(invite, 1)
            return time.monotonic() - start_s
        time.sleep(0.1)
    return math.inf


def _publish_after(invite: Invite, count: int) -> tuple[float, list[float]]:
    """Publishes as an honest host does, one group a call; raises if one is not accepted."""
    certificate = HostCertificate.generate(datetime.datetime.now(datetime.UTC))  # never shown: it only calls
    trust = Trust(mode=TrustMode.CLOSED, certificate=certificate, token=invite.token)
    groups = make_groups(count, GROUP_BYTES, swarm_id=invite.swarm_id)
    return asyncio.run(publish(invite.addresses[0], trust, invite.certificate, groups, 1, 4))
