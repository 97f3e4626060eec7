"""Half of a swarm is cut off from the other half for a minute, silently; how soon is it one swarm again?

Eight hosts make and verify a group a second each, in a closed swarm with TLS; only models are left out.
Every connection goes through a proxy, which on a cut swallows whatever crosses from one half to the other
and lets connections of that time stay dead afterwards. A host is healed when groups of the other half
have come through its verifier, one made during the cut and one made after it, and when both it and
somebody of the other half have a connection that the other one answers.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapo_jax.swarm.mesh.admin_client import AdminClient
from sapo_jax.swarm.mesh.admin_socket import AdminError
from sapo_jax.swarm.mesh.host_status import PeerState
from scripts.faults.cut_proxy import CutProxy
from scripts.faults.figures import Figure, Setting
from scripts.faults.host_process import LIGHT_HOST, HostProcess, wait_until
from scripts.faults.light_host import JOURNAL_FILE

HOSTS = 8
CUT_S = 60.0
LEAST_CUT_S = 8.0  # in a trial
HEAL_S = 30.0  # the target
WATCH_S = 60.0  # after the cut, if not all are healed sooner
SETTLE_S = 20.0  # for the last groups to arrive
START_S = 120.0
CALM_S = 10.0  # as one swarm, before the cut
LOOK_S = 0.25
OPTIONS = {"own": 1, "external": 4, "round_s": 1.0}


@dataclass(kw_only=True, slots=True)
class Story:
    """What one host made and received, and when it was in touch with the other half after the cut.

    Attributes:
        side: 0 or 1.
        made: name of each own group -> when it was made.
        arrived: name of each foreign group -> when it had passed the verifier.
        dials_s: seconds from the end of the cut until a host of the other half answers it.
        dialed_s: the same until one of them is answered by it.
    """

    side: int
    made: dict[str, float] = field(default_factory=dict)
    arrived: dict[str, float] = field(default_factory=dict)
    dials_s: float = math.inf
    dialed_s: float = math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Healing:
    """How one host came back, in seconds from the end of the cut."""

    old_s: float  # a group of the other half that was made during the cut
    new_s: float  # one made after it
    links_s: float  # connections both ways

    @property
    def healed_s(self) -> float:
        return max(self.old_s, self.new_s, self.links_s)


def measure(setting: Setting) -> list[Figure]:
    """Returns how soon all hosts were one swarm again."""
    cut_s = max(LEAST_CUT_S, CUT_S * setting.scale)
    hosts = _hosts(setting)
    sides = [index % 2 for index in range(HOSTS)]
    proxy = CutProxy([host.address for host in hosts], sides, lambda: [host.pid for host in hosts])
    stories = [Story(side=side) for side in sides]
    try:
        for host, address in zip(hosts, proxy.addresses, strict=True):
            host.start(advertise=address)
            host.wait(host.invite.exists, "invite", START_S)
        ids = [host.node_id for host in hosts]
        if not wait_until(lambda: all(_in_touch(hosts, ids, sides)), START_S):
            raise RuntimeError(f"{setting.workdir}: the two halves did not find each other")
        time.sleep(CALM_S)
        proxy.cut()
        cut_unix_s = time.time()
        setting.say(f"cut off: {proxy.killed} connections between the halves are dead")
        time.sleep(cut_s)
        healed_unix_s = time.time()
        proxy.heal()
        setting.say(f"healed; {proxy.held} connections were tried across the cut")
        _watch_links(hosts, ids, stories, healed_unix_s)
        time.sleep(SETTLE_S)
        for host in hosts:
            host.ask_to_stop()
        for host in hosts:
            host.stop()
    finally:
        for host in hosts:
            host.end()
        proxy.close()
    for host, node_id, story in zip(hosts, ids, stories, strict=True):
        read_story(story, host.workdir / JOURNAL_FILE, node_id)
    return figures(stories, cut_unix_s, healed_unix_s, killed=proxy.killed, failures=sum(h.failures for h in hosts))


def read_story(story: Story, journal: Path, node_id: str) -> None:
    """Adds what a journal says was made and what arrived; `node_id` is whose journal it is."""
    for line in journal.read_text(encoding="utf-8").splitlines():
        record: Mapping[str, Any] = json.loads(line) if line.strip() else {}
        if record.get("event") != "round":
            continue
        for key in record["made"]:
            story.made[f"{node_id} {key}"] = record["unix_s"]
        for name in record["arrived"]:
            story.arrived.setdefault(name, record["unix_s"])


def healings(stories: Sequence[Story], cut_unix_s: float, healed_unix_s: float) -> list[Healing]:
    """Returns how each host came back."""
    found: list[Healing] = []
    for story in stories:
        made = _made_by(stories, 1 - story.side)
        arrived = {name: at_s for name, at_s in story.arrived.items() if name in made and at_s > healed_unix_s}
        old = [at_s for name, at_s in arrived.items() if cut_unix_s < made[name] < healed_unix_s]
        new = [at_s for name, at_s in arrived.items() if made[name] > healed_unix_s]
        found.append(
            Healing(
                old_s=min(old, default=math.inf) - healed_unix_s,
                new_s=min(new, default=math.inf) - healed_unix_s,
                links_s=max(story.dials_s, story.dialed_s),
            )
        )
    return found


def figures(
    stories: Sequence[Story], cut_unix_s: float, healed_unix_s: float, *, killed: int, failures: int
) -> list[Figure]:
    """Returns the figures of the whole swarm."""
    back = healings(stories, cut_unix_s, healed_unix_s)
    leaked = made_apart = arrived_apart = received = 0
    for story in stories:
        made = _made_by(stories, 1 - story.side)
        apart = {name for name, at_s in made.items() if cut_unix_s < at_s < healed_unix_s}
        leaked += sum(story.arrived.get(name, math.inf) <= healed_unix_s for name in apart)
        made_apart += len(apart)
        arrived_apart += sum(name in story.arrived for name in apart)
        near = _made_by(stories, story.side)
        received += any(
            near.get(name, 0.0) > cut_unix_s and at_s <= healed_unix_s for name, at_s in story.arrived.items()
        )
    slowest = max(healing.healed_s for healing in back)
    median = statistics.median(healing.healed_s for healing in back)
    half = f"{len(stories)} hosts, cut for {healed_unix_s - cut_unix_s:.0f} s"
    return [
        Figure(
            name="partition healed",
            value=slowest,
            unit="s",
            at_most=HEAL_S,
            detail=f"slowest host: a group from during the cut, one from after it, links both ways; "
            f"median {median:.1f}; {half}",
        ),
        Figure(name="groups made during the cut received", value=max(h.old_s for h in back), unit="s", detail="first"),
        Figure(name="groups made after the cut received", value=max(h.new_s for h in back), unit="s", detail="first"),
        Figure(name="links both ways", value=max(h.links_s for h in back), unit="s", detail="slowest host"),
        Figure(
            name="groups that crossed during the cut",
            value=leaked,
            at_most=0,
            at_least=0,
            detail=f"of {made_apart} group and receiver pairs",
        ),
        Figure(name="connections that the cut met", value=killed, at_least=len(stories) // 2, detail="all stay dead"),
        Figure(
            name="hosts that received groups of their own half during the cut",
            value=received,
            at_least=len(stories),
            detail="made during it",
        ),
        Figure(
            name="share of the groups made during the cut that reached a host of the other half",
            value=arrived_apart / made_apart if made_apart else math.nan,
            detail=f"by {SETTLE_S:g} s after the links were back",
        ),
        Figure(
            name="processes that ended unasked or not with 0", value=failures, at_most=0, detail=f"of {len(stories)}"
        ),
    ]


def _made_by(stories: Sequence[Story], side: int) -> dict[str, float]:
    """Returns the groups that one half made, with the time."""
    return {name: at_s for story in stories if story.side == side for name, at_s in story.made.items()}


def _hosts(setting: Setting) -> list[HostProcess]:
    hosts: list[HostProcess] = []
    for index in range(HOSTS):
        invite = hosts[0].invite if hosts else None
        hosts.append(
            HostProcess(
                setting.workdir / f"host_{index}", LIGHT_HOST, seed=setting.seed + index, invite=invite, **OPTIONS
            )
        )
    return hosts


def _watch_links(
    hosts: Sequence[HostProcess], ids: Sequence[str], stories: Sequence[Story], healed_unix_s: float
) -> None:
    """Notes when each host and the other half answer each other, until all do or `WATCH_S` are over."""
    sides = [story.side for story in stories]
    while time.time() - healed_unix_s < WATCH_S:
        answered = _answered(hosts, ids, sides, since_unix_s=healed_unix_s)
        now_s = time.time() - healed_unix_s
        for story, node_id, by in zip(stories, ids, answered, strict=True):
            if by:
                story.dials_s = min(story.dials_s, now_s)
            if any(node_id in others for others in answered):
                story.dialed_s = min(story.dialed_s, now_s)
        if all(story.dials_s < math.inf and story.dialed_s < math.inf for story in stories):
            break
        time.sleep(LOOK_S)


def _in_touch(hosts: Sequence[HostProcess], ids: Sequence[str], sides: Sequence[int]) -> list[bool]:
    """Returns of each host whether it has a connection to the other half and the other half one to it."""
    answered = _answered(hosts, ids, sides)
    return [
        bool(by) and any(node_id in others for others in answered) for node_id, by in zip(ids, answered, strict=True)
    ]


def _answered(
    hosts: Sequence[HostProcess], ids: Sequence[str], sides: Sequence[int], since_unix_s: float = 0.0
) -> list[set[str]]:
    """Returns for each host which ones of the other half it is connected to and that answered since a moment."""
    found: list[set[str]] = []
    for host, side in zip(hosts, sides, strict=True):
        others = {node_id for node_id, its_side in zip(ids, sides, strict=True) if its_side != side}
        answered: set[str] = set()
        with contextlib.suppress(AdminError), AdminClient(host.directory) as client:
            status = client.status()
            answered = {
                peer.node_id
                for peer in status.peers
                if peer.state is PeerState.CONNECTED
                and peer.node_id in others
                and peer.contact_age_s is not None
                and status.read_unix_s - peer.contact_age_s > since_unix_s
            }
        found.append(answered)
    return found
