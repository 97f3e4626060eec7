"""One round of SAPO, in order: generate, publish, pull, select, update (arXiv 2509.08721, Algorithm 1).

A `Node` is everything of one node that is not an array: its identity, its place in the task
stream, its pool and its exchange. The arrays of all nodes of this process lie in the `Host`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from sapo_jax.config import SapoConfig
from sapo_jax.host import Host, SampledRow
from sapo_jax.learner.batching import TrainingGroup, build_batch, cut_completions, prompt_bucket
from sapo_jax.learner.step import Batch
from sapo_jax.lengths import completion_buckets
from sapo_jax.metrics import FROM
from sapo_jax.prompting import Prompter
from sapo_jax.seeding import generator, hash_seed
from sapo_jax.swarm.exchange import Exchange
from sapo_jax.swarm.pool import Pool
from sapo_jax.swarm.selection import select, select_local
from sapo_jax.swarm.wire.identity import short_name
from sapo_jax.tasks.stream import Draw, StreamError, TaskStream
from sapo_jax.tasks.verifier import Verifier, strict_success
from sapo_jax.types import FinishReason, Rejection, Rollout, ScoredRollout, Task, TaskRef

Metrics = dict[str, float]
_Item = TypeVar("_Item")


def play_round(nodes: Sequence[Node], host: Host, round: int) -> list[Metrics]:
    """Plays round `round` (counted from 1) on every node of the host and returns each node's metrics.

    Nothing waits for another node: an empty exchange leaves a node with its own rollouts. What the host
    can do while the devices work, it does then: completions of one program are scored while the next
    samples, and the tasks of the next round are drawn during the update.
    """
    clock = _Clock(host)
    tasks = [node.draw() for node in nodes]
    rows = generate(nodes, host, tasks, round)
    own = score_own(nodes, tasks, clock.laps("time/sample_s", rows), round)
    for node, rollouts in zip(nodes, own, strict=True):
        node.publish(rollouts)
    for node in nodes:
        node.pull(round)
    training = [node.select(rollouts, round) for node, rollouts in zip(nodes, own, strict=True)]
    clock.lap("time/verify_s")
    learning = update(nodes, host, training)
    for node in nodes:
        node.draw_ahead()
    played = [node.round_metrics(*sets) for node, *sets in zip(nodes, own, training, strict=True)]
    learned = list(learning)
    clock.lap("time/update_s")
    times = clock.metrics()
    return [metrics | more | times for metrics, more in zip(played, learned, strict=True)]


def generate(
    nodes: Sequence[Node], host: Host, tasks: Sequence[Sequence[Task]], round: int
) -> Iterator[list[list[list[SampledRow]]]]:
    """Begins G completions of each of a node's I tasks from its own policy.

    Returns them as tokens: one [M'][I][G] per program of M' nodes, waiting for each when it is read.
    """
    sampling = host.config.sampling
    prompts = nodes[0].prompter.encode_all(tasks)
    seeds = [node.seed("sample", round) for node in nodes]
    return host.start_sample(prompts, seeds, sampling.temperature, group_size=sampling.group_size)


def score_own(
    nodes: Sequence[Node],
    tasks: Sequence[Sequence[Task]],
    rows: Iterable[Sequence[Sequence[Sequence[SampledRow]]]],
    round: int,
) -> list[list[ScoredRollout]]:
    """Returns each node's own rollouts of this round.

    What `rows` yields, the completions of one program's nodes, is scored in one batch by the verifier that all
    share, before the next is read.
    """
    own: list[list[ScoredRollout]] = []
    for part in rows:
        here = slice(len(own), len(own) + len(part))
        own += _score_part(nodes[here], tasks[here], part, round)
    return own


def _score_part(
    nodes: Sequence[Node], tasks: Sequence[Sequence[Task]], rows: Sequence[Sequence[Sequence[SampledRow]]], round: int
) -> list[list[ScoredRollout]]:
    made = [node.own_rollouts(drawn, group, round) for node, drawn, group in zip(nodes, tasks, rows, strict=True)]
    verdicts = iter(nodes[0].verifier.verify([rollout for rollouts in made for rollout in rollouts]))
    return [node.accepted([next(verdicts) for _ in rollouts]) for node, rollouts in zip(nodes, made, strict=True)]


def update(nodes: Sequence[Node], host: Host, training: Sequence[Sequence[ScoredRollout]]) -> Iterator[Metrics]:
    """Re-encodes each node's training set with its own tokenizer and begins one update of each.

    Returns each node's metrics, waiting for them when they are read.
    """
    config = host.config
    groups = [node.encode(rollouts) for node, rollouts in zip(nodes, training, strict=True)]
    # One shape for all nodes: the buckets of the longest prompt and of the longest completion among them.
    length = max(prompt_bucket(own, config.sampling.prompt_buckets) for own in groups)
    batches = [
        build_batch(
            own,
            node.prompter.tokenizer,
            questions=config.train_groups,
            group_size=config.sampling.group_size,
            max_new_tokens=config.sampling.max_new_tokens,
            prompt_length=length,
            local_encoding=config.learner.local_encoding,
        )
        for node, own in zip(nodes, groups, strict=True)
    ]
    batches = cut_completions(batches, completion_buckets(config.sampling.max_new_tokens))
    counts = [
        {
            "tokens/trained": float(np.sum(batch.completion_mask)),
            "tokens/truncated_frac": float(np.sum(batch.truncated) / max(1, np.sum(batch.valid))),
            "tokens/padding_frac": _padding_frac(batch),
        }
        for batch in batches
    ]
    return (metrics | counted for metrics, counted in zip(host.start_update(batches), counts, strict=True))


def _padding_frac(batch: Batch) -> float:
    """Returns the share of the update's positions, prompts counted once, that hold no token of a real row."""
    tokens = np.sum(batch.prompt_mask[batch.valid.any(axis=1)]) + np.sum(batch.completion_mask & batch.valid[..., None])
    return 1.0 - float(tokens) / (batch.prompt_mask.size + batch.completion_mask.size)


class Node:
    """The host-side half of one node."""

    def __init__(
        self,
        node_id: str,
        config: SapoConfig,
        *,
        stream: TaskStream,
        prompter: Prompter,
        verifier: Verifier,
        exchange: Exchange,
    ) -> None:
        """Joins a stream of tasks, a prompt layout, a verifier and an access to the swarm."""
        self.node_id = node_id
        self.prompter = prompter
        self.verifier = verifier
        self._config = config
        self._stream = stream
        self._exchange = exchange
        self._position = 0  # in the task stream, up to which tasks were played
        self._ahead: Draw | None = None  # what the next `draw` returns
        self._pool = Pool(
            max_rollouts=config.sharing.pool_rollouts,
            max_age_rounds=config.sharing.max_age_rounds,
            max_uses=config.sharing.max_uses,
        )
        self._counts: Counter[str] = Counter()  # since the last round_metrics
        self._evicted = self._pool.evicted  # at the last round_metrics

    def seed(self, purpose: str, round: int) -> int:
        """Returns this node's uint32 seed for one purpose in one round."""
        return hash_seed(self._config.seed, self.node_id, purpose, round)

    def draw(self) -> list[Task]:
        """Returns the next I tasks of the stream whose prompts fit."""
        drawn, self._ahead = self._ahead or self._next_draw(), None
        self._position = drawn.counter
        for reason, count in drawn.skipped.items():
            self._counts[f"tasks/skipped_{reason.value}"] += count
        return list(drawn.tasks)

    def draw_ahead(self) -> None:
        """Builds and encodes the tasks of the next `draw`, which alone moves the place in the stream.

        Raises nothing: what is wrong with the stream is said by `draw`, in the round that wants the tasks.
        """
        with contextlib.suppress(StreamError):
            self._ahead = self._next_draw()

    def own_rollouts(self, tasks: Sequence[Task], rows: Sequence[Sequence[SampledRow]], round: int) -> list[Rollout]:
        """Returns what was sampled for `tasks` as rollouts of this round."""
        self._counts["tokens/generated"] += sum(len(row.token_ids) for group in rows for row in group)
        return [
            Rollout(
                task_ref=task.ref,
                node_id=self.node_id,
                round=round,
                policy_version=(round - 1) * self._config.learner.inner_epochs,
                completions=tuple(self.prompter.completion(row) for row in group),
            )
            for task, group in zip(tasks, rows, strict=True)
        ]

    def accepted(self, verdicts: Sequence[ScoredRollout | Rejection]) -> list[ScoredRollout]:
        """Returns those of the own rollouts that have scores; the others are counted."""
        scored: list[ScoredRollout] = []
        for verdict in verdicts:
            if isinstance(verdict, Rejection):
                self._counts[f"groups/rejected_own_{verdict.reason.value}"] += 1
            else:
                scored.append(verdict)
        return scored

    def publish(self, own: Sequence[ScoredRollout]) -> None:
        """Hands the own rollouts to the exchange."""
        self._exchange.publish(own)

    def pull(self, round: int) -> None:
        """Takes what has arrived and fits into this node's prompt limit into its pool.

        A node that trains on nothing external (J = 0) only empties its mailbox.
        """
        arrived = self._exchange.pull()
        if self._config.sharing.external == 0:
            return
        fitting = [scored for scored in arrived if self.prompter.fits(scored.task)]
        self._counts["groups/rejected_prompt_too_long"] += len(arrived) - len(fitting)
        self._pool.add(fitting, round)

    def select(self, own: Sequence[ScoredRollout], round: int) -> list[ScoredRollout]:
        """Returns the training set: I own rollouts, then up to J external ones by the selection rule."""
        sharing = self._config.sharing
        rng = generator(self._config.seed, self.node_id, "select", round)
        external = select(self._pool.candidates(round), sharing.external, sharing.selection, rng)
        self._pool.mark_used(external)
        return select_local(own, sharing.local) + external

    def encode(self, training: Sequence[ScoredRollout]) -> list[TrainingGroup]:
        """Returns the training set with this node's own prompts; the reward is the verifier's score."""
        return [
            TrainingGroup(
                prompt_ids=self.prompter.encode(scored.task),
                completions=scored.rollout.completions,
                rewards=scored.scores,
                external=scored.rollout.node_id != self.node_id,
            )
            for scored in training
        ]

    def round_metrics(self, own: Sequence[ScoredRollout], training: Sequence[ScoredRollout]) -> Metrics:
        """Returns what this round did on the host, and forgets its counts."""
        own_scores = [score for scored in own for score in scored.scores]
        train_scores = [score for scored in training for score in scored.scores]
        completions = [completion for scored in own for completion in scored.rollout.completions]
        external = [scored for scored in training if scored.rollout.node_id != self.node_id]
        metrics: Metrics = {
            "groups/local": float(len(training) - len(external)),
            "groups/external": float(len(external)),
            "groups/pool": float(len(self._pool)),
        }
        if own_scores:
            metrics["reward/own_mean"] = float(np.mean(own_scores))
            metrics["reward/own_strict_frac"] = float(np.mean([strict_success(score) for score in own_scores]))
            stopped = [completion.finish_reason is FinishReason.STOP for completion in completions]
            metrics["reward/own_stopped_frac"] = float(np.mean(stopped))
        # Counted by name, because several publishers may share an alias.
        for name, count in Counter(short_name(scored.rollout.node_id) for scored in external).items():
            metrics[f"{FROM}{name}"] = float(count)
        if train_scores:
            metrics["reward/train_mean"] = float(np.mean(train_scores))
        for reason, count in self._pool.evicted.items():
            self._counts[f"groups/evicted_{reason}"] += count - self._evicted[reason]
        self._evicted = self._pool.evicted
        metrics |= {name: float(count) for name, count in self._counts.items() if count}
        self._counts.clear()
        return metrics

    def to_json(self) -> dict[str, Any]:
        """Returns what a resumed run needs of this node, JSON-ready."""
        return {"node_id": self.node_id, "position": self._position, "pool": self._pool.to_json()}

    def restore_json(self, state: Mapping[str, Any], rebuild_task: Callable[[TaskRef], Task]) -> None:
        """Takes over what `to_json` wrote."""
        if state["node_id"] != self.node_id:
            raise ValueError(f"the state of node {state['node_id']!r} is not that of node {self.node_id!r}")
        self._position, self._ahead = int(state["position"]), None
        self._pool.restore_json(state["pool"], rebuild_task)
        self._evicted = self._pool.evicted

    def _next_draw(self) -> Draw:
        return self._stream.take(self._position, self._config.sharing.local, self.prompter.fits)


class _Clock:
    """Splits the time of a round into named parts, in seconds, and tells how much of it the devices waited."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._busy_s = host.busy_s()
        self._start_s = self._last_s = time.perf_counter()
        self._laps: Metrics = {}

    def lap(self, name: str) -> None:
        """Adds the time since the last lap to the part `name`."""
        now_s = time.perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + now_s - self._last_s
        self._last_s = now_s

    def laps(self, name: str, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yields `items` with a lap before each."""
        for item in items:
            self.lap(name)
            yield item

    def metrics(self) -> Metrics:
        """Returns the parts, the whole, and the share of it in which no program was pending (see `DeviceClock`)."""
        busy_s = self._host.busy_s() - self._busy_s
        round_s = time.perf_counter() - self._start_s
        return self._laps | {"time/round_s": round_s, "time/device_idle_frac": max(0.0, 1.0 - busy_s / round_s)}
