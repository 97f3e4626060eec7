"""A member of a swarm that plays rounds without a model: everything of a training host but the gradient.

    python -m scripts.faults.light_host --workdir=DIR --listen=127.0.0.1:PORT [--invite=FILE] ...

Identity, trust, hub, store, verifier, task stream, pool and selection are those of a training process,
and so is the order of what it does: publish, pull, select, then now and then a checkpoint, which is
replaced as a whole. Only the completions are made up, half of them right. It starts in about a second,
so it can be killed and started again a hundred times. What each round did goes into one line of a
journal, written before the checkpoint that contains the round.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from sapo_jax.seeding import generator
from sapo_jax.signals import StopRequest
from sapo_jax.swarm.mesh.host_status import PeerState
from sapo_jax.swarm.mesh.joining import plan_joining
from sapo_jax.swarm.network_exchange import NetworkHub
from sapo_jax.swarm.pool import Pool
from sapo_jax.swarm.selection import select
from sapo_jax.swarm.store.clock import Clock, system_clock
from sapo_jax.swarm.wire.signed_content import GeneratorInfo
from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.specialty import library_version
from sapo_jax.tasks.stream import TaskStream
from sapo_jax.tasks.verifier import InProcessVerifier
from sapo_jax.types import Completion, FinishReason, Rollout, ScoredRollout, Task
from scripts.faults.host_process import NODE, READY_FILE

GROUP_SIZE = 4
JOURNAL_FILE = "journal.jsonl"
CHECKPOINT_FILE = "checkpoint.json"
MAX_USES = 4
POOL_ROLLOUTS = 1024
MAX_OFFERED = 4096  # own groups in an outbox


def content_key(rollout: Rollout) -> str:
    """Returns a digest of what a group says, task and texts, without its publisher and the bytes it came in."""
    ref = rollout.task_ref
    parts = (ref.dataset, ref.config_digest, ref.seed, ref.index, rollout.round)
    texts = [(completion.text, completion.finish_reason.value) for completion in rollout.completions]
    return hashlib.sha256(repr((parts, texts)).encode()).hexdigest()[:32]


class LightHost:
    """One node with its hub; `play` is a round."""

    def __init__(self, options: argparse.Namespace, stop: StopRequest) -> None:
        """Opens hub and journal and takes up the checkpoint, if there is one."""
        self._options = options
        self._workdir = Path(options.workdir)
        specialties = resolve("easy")
        self._source = ReasoningGymSource(specialties)
        self._verifier = InProcessVerifier(self._source)
        self._stream = TaskStream(
            source=self._source, specialties=specialties, run_seed=options.seed, node_id=NODE, draw="stratified"
        )
        self._pool = Pool(max_rollouts=POOL_ROLLOUTS, max_age_rounds=options.max_age_rounds, max_uses=MAX_USES)
        clock = skewed_clock(options.wall_offset_s)
        joining = plan_joining(
            self._workdir,
            invite_path=Path(options.invite) if options.invite else None,
            now=datetime.datetime.fromtimestamp(clock.wall(), datetime.UTC),
        )
        self.hub = NetworkHub(
            {NODE: joining.identity(NODE)},
            swarm_id=joining.swarm_id,
            trust=joining.trust,
            verify=self._verifier.verify,
            busy_s=time.thread_time,  # asked by the thread that verifies
            is_resuming=True,
            on_drain=stop.request,
            mailbox_rollouts=POOL_ROLLOUTS,
            listen=options.listen,
            advertise=[options.advertise] if options.advertise else [],
            peers=joining.peers,
            directory=joining.directory,
            catalog_digests=[specialty.digest for specialty in specialties],
            generator=GeneratorInfo(model_name="light"),
            verifier_version=library_version(),
            clock=clock,
        )
        joining.write_invite(self.hub.host.addresses)
        self._exchange = self.hub.connect(NODE)
        self.round = 0
        self._position = 0
        self._resume()
        self._journal = (self._workdir / JOURNAL_FILE).open("a", encoding="utf-8")
        self._journal.write("\n")  # a kill may have cut off the line before
        self._note(event="start", after=self.round, damaged=self.hub.host.store.stats().damaged)
        self.hub.start_verifying()
        (self._workdir / READY_FILE).write_text(str(os.getpid()))

    def play(self) -> None:
        """Publishes, pulls and selects as `play_round` does, and keeps what a killed process needs."""
        self.round += 1
        is_publishing = self.round <= self._options.publish_until
        own = self._own() if is_publishing else []
        self._exchange.publish(own)
        arrived = self._exchange.pull()
        self._pool.add(arrived, self.round)
        rng = generator(self._options.seed, NODE, "select", self.round)
        drawn = select(self._pool.candidates(self.round), self._options.external, "zero_adv_uniform", rng)
        self._pool.mark_used(drawn)
        self._note(
            event="round",
            round=self.round,
            unix_s=time.time(),
            own=len(own),
            made=[content_key(item.rollout) for item in own],
            arrived=[_name(item) for item in arrived],
            drawn=[_name(item) for item in drawn],
            waiting=None if is_publishing else self._without_holder(),
        )
        if self.round % self._options.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Writes the checkpoint, all of it or nothing."""
        state = {
            "round": self.round,
            "position": self._position,
            "exchange": self.hub.to_json(),
            "pool": self._pool.to_json(),
        }
        path = self._workdir / CHECKPOINT_FILE
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def close(self) -> None:
        """Notes how the network went, saves, and leaves the swarm."""
        host = self.hub.host
        peers = [peer for peer in self.hub.status().peers if peer.state is not PeerState.CALLING]
        self._note(
            event="end",
            connected=sum(peer.state is PeerState.CONNECTED for peer in peers),
            troubles=sorted({peer.last_error for peer in peers if peer.last_error}),
            refused={**_refusals(host.metrics.registry), **host.pusher.refused, **host.fetcher.counts},
            counts=dict(self.hub.counts()),
            damaged=host.store.stats().damaged,
        )
        self.save()
        self.hub.close()
        self._journal.close()

    def _own(self) -> list[ScoredRollout]:
        drawn = self._stream.take(self._position, self._options.own)
        self._position = drawn.counter
        rollouts = [
            Rollout(
                task_ref=task.ref,
                node_id=NODE,
                round=self.round,
                policy_version=self.round - 1,
                completions=self._completions(task, place),
            )
            for place, task in enumerate(drawn.tasks)
        ]
        return [item for item in self._verifier.verify(rollouts) if isinstance(item, ScoredRollout)]

    def _completions(self, task: Task, place: int) -> tuple[Completion, ...]:
        rng = generator(self._options.text_seed, NODE, "completions", self.round, place)
        wrong = f"none of {rng.integers(2**32)}"
        texts = [
            f"I think {rng.integers(2**32)}: <answer>{task.ground_truth if right else wrong}</answer>"
            for right in rng.random(GROUP_SIZE) < 0.5
        ]
        return tuple(Completion(text=text, finish_reason=FinishReason.STOP) for text in texts)

    def _without_holder(self) -> int:
        """Returns how many own groups no peer holds."""
        return sum(group.copies == 0 for group in self.hub.host.store.outbox_pending(MAX_OFFERED))

    def _resume(self) -> None:
        path = self._workdir / CHECKPOINT_FILE
        if not path.exists():
            return
        state: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.round, self._position = state["round"], state["position"]
        self.hub.restore_json(state["exchange"], self._source.task)
        self._pool.restore_json(state["pool"], self._source.task)

    def _note(self, **fields: Any) -> None:
        self._journal.write(json.dumps(fields) + "\n")
        self._journal.flush()


def skewed_clock(offset_s: float) -> Clock:
    """Returns the clocks of this machine with a wall clock that is ahead by `offset_s`, or behind."""
    system = system_clock()
    return dataclasses.replace(system, wall=lambda: system.wall() + offset_s)


def _name(item: ScoredRollout) -> str:
    """Returns the name of a foreign group in the journal: its publisher and what it says."""
    return f"{item.rollout.node_id} {content_key(item.rollout)}"


def _refusals(registry: CollectorRegistry) -> dict[str, int]:
    """Returns how many groups that callers handed over were rejected, by reason."""
    found: Counter[str] = Counter()
    for metric in registry.collect():
        for sample in metric.samples:
            if sample.name == "sapo_exchange_published_groups_total" and sample.labels["outcome"] == "rejected":
                found[sample.labels["reason"]] += round(sample.value)
    return dict(found)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--advertise", default="", help="what others dial, if not --listen")
    parser.add_argument("--invite", default="")
    parser.add_argument("--seed", type=int, default=0, help="of tasks and draws")
    parser.add_argument("--text_seed", type=int, default=0, help="of completions; another one replays with other texts")
    parser.add_argument("--own", type=int, default=2, help="groups published per round")
    parser.add_argument("--external", type=int, default=8, help="groups drawn per round at most")
    parser.add_argument("--max_age_rounds", type=int, default=0)
    parser.add_argument("--round_s", type=float, default=0.1)
    parser.add_argument("--checkpoint_every", type=int, default=5)
    parser.add_argument("--publish_until", type=int, default=10**9, help="the last round that publishes")
    parser.add_argument("--wall_offset_s", type=float, default=0.0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Plays rounds until a signal asks to stop."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    options = _options(arguments)
    with StopRequest(lambda _: None) as stop:
        host = LightHost(options, stop)
        while not stop:
            began_s = time.monotonic()
            host.play()
            time.sleep(max(0.0, options.round_s - (time.monotonic() - began_s)))
        host.close()


if __name__ == "__main__":
    main()
