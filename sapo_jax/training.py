"""A whole run: resume, cold start, rounds, held-out evaluations, checkpoints, metrics.

`Training` owns the parts of a run between `open_workdir` and the last checkpoint. What a round does
is `node.py`'s business; when things happen is decided here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sapo_jax import wiring
from sapo_jax.checkpoint import Checkpointer, CheckpointError, Restored
from sapo_jax.cold_start import cold_start
from sapo_jax.config import SapoConfig
from sapo_jax.evaluation import Evaluation, calls_needed, evaluate, evaluation_metrics, gain_metrics, questions_per_call
from sapo_jax.host import Host
from sapo_jax.member import Member
from sapo_jax.metrics import FROM, CompositeTracker, JsonlTracker, TensorBoardTracker, Tracker
from sapo_jax.node import Metrics, play_round
from sapo_jax.progress import Progress, Stage
from sapo_jax.report import write_report
from sapo_jax.signals import Stopped, StopRequest
from sapo_jax.swarm.exchange import Hub
from sapo_jax.swarm.selection import FAIR_RULES
from sapo_jax.swarm_flags import SwarmRequest
from sapo_jax.tasks.verifier import EXTERNAL_LANE, OWN_LANE
from sapo_jax.workdir import Workdir

EVALUATIONS = "evaluations"  # directory of per-question results, one file per evaluated round
REST_S = 0.2  # between two looks at whether to stop, in a pause between rounds

# Beginnings of the names of metrics that add up over nodes; the others are averaged.
_TOTALS = (
    "tokens/generated",
    "tokens/trained",
    "groups/rejected",
    "groups/evicted",
    FROM,
    "tasks/skipped",
)


class Training:
    """Plays the rounds of one configuration in one workdir, from wherever it stands there."""

    def __init__(
        self,
        config: SapoConfig,
        workdir: Workdir,
        progress: Progress,
        stop: StopRequest,
        request: SwarmRequest | None = None,
        *,
        host_kind: Callable[..., Host] = Host,
    ) -> None:
        """Loads what the run needs; nothing is trained yet.

        With a `request` the process takes part in a swarm on the network; without, its nodes are the swarm.
        The leader of a process group has a `host_kind` of its own.
        """
        self._host_kind = host_kind
        self._request = request
        self._member: Member | None = None
        self._config = config
        self._workdir = workdir
        self._progress = progress
        self._stop = stop
        with contextlib.ExitStack() as opened:  # closes what is open if something below fails
            self._load(opened)
            self._opened = opened.pop_all()

    def run(self, *, least_round_s: float = 0.0) -> int:
        """Plays until `config.rounds` rounds are done or a stop is requested; returns the rounds done.

        The state is saved at the end in both cases, unless a stop came before the first round. A stop
        lets a round finish and discards an evaluation, which the resumed run repeats. The report is
        brought up to date by every evaluation, so that a run that fails later leaves one.

        Args:
            least_round_s: from the start of a round to that of the next, at least; the process sleeps meanwhile.
        """
        try:
            done = self._resume_or_begin()
        except Stopped:
            return 0  # in the cold start: there is nothing worth saving yet
        if self._member is not None:
            self._member.hub.start_verifying()
        is_fresh = done == 0 and not self._evaluation_path(0).exists()
        with _Trackers(self._workdir, first_round=0 if is_fresh else done + 1) as tracker:
            self._evaluate_if_due(done, tracker)
            if is_fresh and self._config.cold_start.steps:
                self._save(done)  # a killed run need not repeat the cold start
            while done < self._config.rounds and not self._stop:
                began_s = time.monotonic()
                with self._progress.stage("training", announce=False):
                    metrics = play_round(self._nodes, self._host, done + 1)
                done += 1
                self._log_round(done, metrics, tracker)
                self._evaluate_if_due(done, tracker)
                if self._is_due(done, self._config.checkpoint.every_rounds):
                    self._save(done)
                self._rest_until(began_s + least_round_s)
            if done or not self._stop:  # the weights a run begins with are no loss
                with self._progress.stage("saving", announce=False):
                    self._save(done)
                    self._checkpoints.wait()
        return done

    def close(self) -> None:
        """Leaves the swarm, closes the checkpoint store and ends the scorer processes."""
        self._opened.close()

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, opened: contextlib.ExitStack) -> None:
        config, workdir, progress = self._config, self._workdir, self._progress
        with progress.stage("preparing tasks"):
            lanes = (OWN_LANE, EXTERNAL_LANE) if self._request is not None else (OWN_LANE,)
            self._tasks = opened.enter_context(wiring.build_tasks(config, lanes=lanes))
        with progress.stage(f"loading {config.model.source}"):
            model = wiring.load_model(config)
        for assumption in model.tokenizer.assumptions:
            progress.print(f"assumed: {assumption}")
        if "compute_dtype" not in workdir.resolved:
            # The layout of the checkpoints follows from the second, so it holds on any machine from now on.
            workdir.fix_resolved(
                compute_dtype=wiring.compute_dtype(config, model), nodes_per_program=wiring.nodes_per_program(config)
            )
        self._prompter = wiring.build_prompter(config, model, self._tasks)
        with progress.stage("choosing held-out questions"):
            self._held_out = wiring.build_held_out(config, self._prompter, self._tasks)
        with progress.stage("placing weights"):
            self._host = wiring.build_host(
                config,
                model,
                str(workdir.resolved["compute_dtype"]),
                per_program=int(workdir.resolved["nodes_per_program"]),
                kind=self._host_kind,
                say=progress.print,
            )
        with progress.stage("waiting for scorer processes", announce=False):
            self._tasks.verifier.warm_up()
        self._hub = self._join(opened)
        self._nodes = wiring.build_nodes(config, self._prompter, self._tasks, self._hub)
        self._hub_counts = self._hub.counts()  # up to the last logged round
        self._checkpoints = Checkpointer(
            workdir.checkpoints_path,
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
            background=wiring.writes_in_background(),
        )
        opened.callback(self._checkpoints.close)

    def _join(self, opened: contextlib.ExitStack) -> Hub:
        """Returns what joins the nodes: this process alone, or a swarm on the network if one was asked for."""
        if self._request is None:
            return wiring.memory_hub(self._config)
        with self._progress.stage("joining the swarm", announce=False):
            self._member = Member(
                self._request,
                self._config,
                node_ids=wiring.node_ids(self._config),
                verify=partial(self._tasks.verifier.verify, lane=EXTERNAL_LANE),
                busy_s=partial(self._tasks.verifier.busy_s, EXTERNAL_LANE),
                catalog_digests=[specialty.digest for specialty in self._tasks.specialties],
                drain=self._stop.request,
            )
        opened.callback(self._member.close)
        self._progress.print(self._member.welcome())
        sharing = self._config.sharing
        if sharing.external and sharing.selection not in FAIR_RULES:
            self._progress.print(
                f"note: with config.sharing.selection = {sharing.selection!r} whoever publishes much is drawn often; "
                f"{' or '.join(FAIR_RULES)} gives every publisher the same share"
            )
        return self._member.hub

    def _resume_or_begin(self) -> int:
        latest, damaged = self._checkpoints.latest_round(), self._checkpoints.damaged_rounds()
        if latest is None and damaged:  # beginning anew would overwrite what may still be repaired
            raise CheckpointError(
                f"{self._checkpoints.directory}: no checkpoint is intact (damaged: {', '.join(map(str, damaged))}); "
                "bring one back, or begin anew in another workdir"
            )
        # What a killed run evaluated after its last checkpoint is about to happen again.
        for path in sorted((self._workdir.path / EVALUATIONS).glob("round_*.npz")):
            if path > self._evaluation_path(latest or 0):
                path.unlink()
        if latest is None:
            if self._config.cold_start.steps:
                self._cold_start()
            return 0
        if later := [round for round in damaged if round > latest]:
            self._progress.print(f"note: passing over damaged checkpoints: {', '.join(map(str, later))}")
        with self._progress.stage("restoring the checkpoint"):
            restored = self._checkpoints.restore(latest, self._host.release_arrays())
        self._host.load_arrays(restored.arrays)
        self._restore_host_state(restored)
        self._progress.resume_at(restored.round)
        self._progress.print(f"resumed after round {restored.round}")
        if self._workdir.rounds_added and self._config.learner.schedule != "constant":
            self._progress.print(
                f"note: config.learner.schedule = {self._config.learner.schedule!r} falls to zero over config.rounds, "
                "so with more rounds the learning rate is higher again than where the run ended"
            )
        for change in self._workdir.environment_changes():
            self._progress.print(f"note: the run may differ from an uninterrupted one: {change}")
        return restored.round

    def _restore_host_state(self, restored: Restored) -> None:
        try:
            exchange = restored.host_state["exchange"]
            if exchange["kind"] == self._exchange_kind:
                self._hub.restore_json(exchange["state"], self._tasks.source.task)
            else:
                self._progress.print(
                    f"note: the run goes on with exchange {self._exchange_kind} instead of {exchange['kind']}; "
                    "pools are kept"
                )
            self._hub_counts = self._hub.counts()
            for node, state in zip(self._nodes, restored.host_state["nodes"], strict=True):
                node.restore_json(state, self._tasks.source.task)
        except (ValueError, KeyError) as error:  # another version of the task library does not know its tasks
            place = self._workdir.checkpoints_path / str(restored.round)
            raise CheckpointError(f"{place}: its exchange and pools cannot be restored: {error}") from error

    def _cold_start(self) -> None:
        streams = [
            wiring.build_stream(self._config, self._tasks, f"cold start of node-{n}") for n in range(self._config.nodes)
        ]
        with self._progress.stage("cold start", total=self._config.cold_start.steps) as stage:
            cold_start(self._host, self._prompter, streams, self._config, advance=self._advance(stage))

    def _advance(self, stage: Stage) -> Callable[[int], None]:
        """Returns a callback that shows progress and raises Stopped when a stop was requested."""

        def advance(count: int) -> None:
            stage.advance(count)
            self._stop.check()

        return advance

    def _rest_until(self, at_s: float) -> None:
        """Sleeps up to a moment on the monotonic clock, in pieces, so that a stop is noticed."""
        while not self._stop and (left_s := at_s - time.monotonic()) > 0:
            time.sleep(min(left_s, REST_S))

    def _is_due(self, done: int, every: int) -> bool:
        return every > 0 and done % every == 0

    def _evaluate_if_due(self, done: int, tracker: Tracker) -> None:
        due = done in (0, self._config.rounds) or self._is_due(done, self._config.eval.every_rounds)
        if not due or self._stop or self._evaluation_path(done).exists():
            return
        shape = {"questions_per_call": questions_per_call(self._config), "group_size": self._config.sampling.group_size}
        calls = calls_needed(len(self._held_out), self._config.eval, **shape)
        try:
            with self._progress.stage(f"evaluating after round {done}", total=calls) as stage:
                result = evaluate(
                    self._host,
                    self._prompter,
                    self._tasks.verifier,
                    self._held_out,
                    self._config.eval,
                    advance=self._advance(stage),
                    **shape,
                )
        except Stopped:
            return
        first = result if done == 0 else Evaluation.load(self._evaluation_path(0))
        for node in [*range(self._config.nodes), None]:
            tracker.log(done, node, evaluation_metrics(result, node) | gain_metrics(first, result, node))
        result.save(self._evaluation_path(done))
        self._progress.evaluated(done, evaluation_metrics(result) | gain_metrics(first, result))
        with self._progress.stage("writing the report", announce=False):
            write_report(self._workdir.path)

    def _log_round(self, done: int, metrics: Sequence[Metrics], tracker: Tracker) -> None:
        for index, values in enumerate(metrics):
            tracker.log(done, index, values)
        counts = self._hub.counts()
        news = {name: float(count - self._hub_counts.get(name, 0)) for name, count in counts.items()}
        self._hub_counts = counts
        if self._member is not None and (line := self._member.news()):
            self._progress.print(line)
        swarm = swarm_metrics(metrics) | {name: count for name, count in news.items() if count}
        swarm["time/update_programs"] = float(self._host.traces["update"])
        tracker.log(done, None, swarm)
        self._progress.round_done(done, swarm)

    def _save(self, done: int) -> None:
        self._checkpoints.wait()  # before the host makes its arrays ready: one copy of them at a time
        if done in self._checkpoints.rounds():
            return
        path = self._evaluation_path(done)
        best = evaluation_metrics(Evaluation.load(path))["eval/strict_pass_at_1"] if path.exists() else None
        host_state: dict[str, Any] = {
            "exchange": {"kind": self._exchange_kind, "state": self._hub.to_json()},
            "nodes": [node.to_json() for node in self._nodes],
        }
        self._checkpoints.save(done, self._host.arrays, host_state, best)

    @property
    def _exchange_kind(self) -> str:
        """What joins the nodes, for a resumed run that is to be joined otherwise."""
        return "memory" if self._member is None else "network"

    def _evaluation_path(self, done: int) -> Path:
        return self._workdir.path / EVALUATIONS / f"round_{done:06d}.npz"


def swarm_metrics(metrics: Sequence[Metrics]) -> Metrics:
    """Returns one dict for the swarm: counts and tokens summed over nodes, everything else averaged."""
    names = sorted({name for values in metrics for name in values})
    swarm: Metrics = {}
    for name in names:
        values = [node[name] for node in metrics if name in node]
        is_total = name.startswith(_TOTALS)
        swarm[name] = float(np.sum(values) if is_total else np.mean(values))
    return swarm


class _Trackers(CompositeTracker):
    def __init__(self, workdir: Workdir, first_round: int) -> None:
        super().__init__(
            [
                JsonlTracker(workdir.metrics_path, first_round),
                TensorBoardTracker(workdir.tensorboard_path, first_round),
            ]
        )

    def __enter__(self) -> _Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
