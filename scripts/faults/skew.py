"""Wall clocks that are a day ahead or behind on half of the hosts: nothing changes.

The same swarm of light hosts plays the same rounds four times: with right clocks, twice with skewed
ones, and with right clocks again, so that a machine that becomes slower in the meantime counts for both
kinds alike. The host that invites is ahead, so those behind join with an invite and a certificate that
by their clock are made the day after tomorrow. Monotonic time is left alone, as where a clock is set
wrong. TLS itself reads the machine's clock, so what a handshake makes of such a certificate is measured
apart, with one that was made two days ahead of it.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sapo_jax.swarm.calls.certificate import CertificateError
from sapo_jax.swarm.calls.invite import InviteError
from sapo_jax.swarm.mesh.host_status import PeerState, status_of
from sapo_jax.swarm.mesh.joining import INVITE_FILE, SWARM_DIRECTORY, plan_joining
from sapo_jax.swarm.mesh.network_host import NetworkHost
from scripts.faults.durable import History, read_history
from scripts.faults.figures import Figure, Setting
from scripts.faults.host_process import LIGHT_HOST, HostProcess, wait_until

DAY_S = 86_400.0
OFFSETS_S = (DAY_S, 0.0, -DAY_S, 0.0, DAY_S, 0.0)  # of the hosts; the first one invites
PASSES = (False, True, True, False)  # whether clocks are skewed
ROUNDS, ROUND_S, OWN = 90, 0.25, 2
EVERYTHING = 256  # groups a round may draw: all that have arrived, so that each one that is missing shows
CALM_ROUNDS = 12  # in a row without anything new
READY_S, SETTLE_S, DIAL_S = 180.0, 60.0, 20.0
# A group is pushed to three of the five others, and relayed if its scores differ; the few that miss somebody come
# with the next repair, which may be after the end. Groups that clocks kept out would be half of all.
RATIO_SLACK = 0.05
LEAST_SHARE = 0.9


@dataclass(kw_only=True)
class Outcome:
    """What one host of one pass came to."""

    history: History
    failures: int

    @property
    def own(self) -> int:
        return sum(record["own"] for record in self.history.rounds)

    @property
    def arrived(self) -> int:
        return self.history.arrivals().total()

    @property
    def drawn(self) -> int:
        return self.history.uses().total()

    @property
    def refused(self) -> int:
        """Groups refused on the way in or out, for whatever reason, or rejected by the verifier."""
        end = self.history.end
        counts = end.get("counts", {})
        rejected = sum(count for name, count in counts.items() if name.startswith("groups/rejected_"))
        return sum(end.get("refused", {}).values()) + rejected


def measure(setting: Setting) -> list[Figure]:
    """Returns how a swarm with skewed clocks compares with one without."""
    rounds = setting.scaled(ROUNDS, least=8)
    outcomes: dict[bool, list[Outcome]] = {False: [], True: []}
    for number, is_skewed in enumerate(PASSES):
        found = _play(setting, setting.workdir / f"pass_{number}", rounds, is_skewed)
        outcomes[is_skewed] += found
        kind = "skewed" if is_skewed else "right"
        setting.say(f"{kind} clocks: {[each.drawn for each in found]} external groups drawn")
    refused = sum(not handshake(setting.workdir / f"tls_{hours}", hours) for hours in (48, -48))
    return judge(outcomes, rounds) + [
        Figure(
            name="TLS handshakes refused at 48 h between the clocks",
            value=refused,
            at_most=0,
            detail="of 2: certificate made 48 h ahead of the caller's clock, and 48 h behind",
        )
    ]


def handshake(workdir: Path, hours: float) -> bool:
    """Returns whether a host can be reached by invite and TLS whose certificate was made `hours` from now."""
    now = datetime.datetime.now(datetime.UTC)
    made = plan_joining(workdir / "first", now=now + datetime.timedelta(hours=hours))
    first = NetworkHost(
        made.identity("host"), swarm_id=made.swarm_id, trust=made.trust, listen="127.0.0.1:0", directory=None
    )
    try:
        invite = made.write_invite(first.addresses)
        try:
            joining = plan_joining(workdir / "second", invite_path=invite, now=now)
        except (InviteError, CertificateError):
            return False
        second = NetworkHost(
            joining.identity("host"),
            swarm_id=joining.swarm_id,
            trust=joining.trust,
            listen=None,
            peers=joining.peers,
            directory=None,
        )
        try:
            return wait_until(lambda: _connected(second) == 1, DIAL_S)
        finally:
            second.close(flush_s=0.0, grace_s=1.0)
    finally:
        first.close(flush_s=0.0, grace_s=1.0)


def _connected(host: NetworkHost) -> int:
    return sum(peer.state is PeerState.CONNECTED for peer in status_of(host, software_version="").peers)


def _play(setting: Setting, workdir: Path, rounds: int, is_skewed: bool) -> list[Outcome]:
    """Plays `rounds` publishing rounds on all hosts and waits until everything has arrived or nothing more does."""
    hosts = [
        HostProcess(
            workdir / f"host_{index}",
            LIGHT_HOST,
            seed=setting.seed * 100 + index,
            text_seed=setting.seed * 100 + index,
            own=OWN,
            external=EVERYTHING,
            round_s=ROUND_S,
            publish_until=rounds,
            wall_offset_s=offset_s if is_skewed else 0.0,
            invite=workdir / "host_0" / SWARM_DIRECTORY / INVITE_FILE if index else None,
        )
        for index, offset_s in enumerate(OFFSETS_S)
    ]
    try:
        hosts[0].start()
        hosts[0].wait(hosts[0].invite.exists, "invite", READY_S)
        for host in hosts[1:]:
            host.start()
        wait_until(
            lambda: all(_is_calm(host, rounds) for host in hosts), READY_S + rounds * ROUND_S + SETTLE_S, every_s=1.0
        )
        for host in hosts:
            host.ask_to_stop()
        for host in hosts:
            host.stop()
    finally:
        for host in hosts:
            host.end()
    return [Outcome(history=read_history(host.workdir), failures=host.failures) for host in hosts]


def _is_calm(host: HostProcess, rounds: int) -> bool:
    if not host.is_running:
        return True  # refused to join, say: there is nothing to wait for
    last = read_history(host.workdir).rounds[-CALM_ROUNDS:]
    return len(last) == CALM_ROUNDS and all(
        each["round"] > rounds and each["waiting"] == 0 and not each["arrived"] for each in last
    )


def judge(outcomes: Mapping[bool, Sequence[Outcome]], rounds: int) -> list[Figure]:
    """Returns the figures of hosts with right and with skewed clocks that published in `rounds` rounds."""
    skewed = outcomes[True]
    hosts = len(OFFSETS_S)
    drawn = {kind: statistics.median(each.drawn for each in found) for kind, found in outcomes.items()}
    arrived = {kind: statistics.median(each.arrived for each in found) for kind, found in outcomes.items()}
    expected = (hosts - 1) * rounds * OWN
    pairs = len(skewed) * (hosts - 1)
    touched = sum(min(hosts - 1, each.history.end.get("connected", 0)) for each in skewed)
    detail = f"{hosts} hosts, half of them 24 h ahead or behind, {rounds} rounds, {sum(PASSES)} passes of each kind"
    troubles = sorted({trouble for each in skewed for trouble in each.history.end.get("troubles", [])})
    return [
        Figure(
            name="external groups drawn per host, skewed over right clocks",
            value=drawn[True] / max(1.0, drawn[False]),
            at_least=1.0 - RATIO_SLACK,
            at_most=1.0 + RATIO_SLACK,
            detail=f"medians {drawn[True]:.0f} and {drawn[False]:.0f}; {detail}",
        ),
        Figure(
            name="groups accepted per host, skewed over right clocks",
            value=arrived[True] / max(1.0, arrived[False]),
            at_least=1.0 - RATIO_SLACK,
            at_most=1.0 + RATIO_SLACK,
            detail=f"medians {arrived[True]:.0f} and {arrived[False]:.0f} of {expected}",
        ),
        Figure(
            name="least share of the others' groups that a host with skewed peers got",
            value=min(each.arrived for each in skewed) / expected,
            at_least=LEAST_SHARE,
            detail=f"{expected} groups by {hosts - 1} others",
        ),
        Figure(
            name="groups refused with skewed clocks",
            value=sum(each.refused for each in skewed),
            at_most=0,
            detail="expired, stale or anything else, by hosts and verifiers",
        ),
        Figure(
            name="hosts that did not join, or ended badly, with skewed clocks",
            value=sum(each.failures > 0 or not each.history.end for each in skewed),
            at_most=0,
            detail=f"of {len(skewed)}; invite and certificate made 48 h ahead for those behind",
        ),
        Figure(
            name="pairs of hosts out of touch with skewed clocks",
            value=pairs - touched,
            at_most=0,
            detail=f"of {pairs}" + (f": {'; '.join(troubles)[:200]}" if troubles else ""),
        ),
    ]
