"""The verifier for completions of policies and peers: scorer processes that are killed at a budget.

Whatever a completion does to its scorer happens in a process of its own with little to break, so it
costs its sender one rollout and this process nothing. Spares are kept warm, since a process takes
seconds to start.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Mapping, Sequence

from sapo_jax.tasks.catalog import Specialty
from sapo_jax.tasks.conversation import Budgets, Conversation, Group, Judgment
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scorers import RefusedDatasetError, refuse_unsafe
from sapo_jax.tasks.source import UnknownTaskError
from sapo_jax.tasks.verifier import OWN_LANE, ScoreError, check_sizes
from sapo_jax.tasks.worker_process import WorkerDiedError, WorkerProcess
from sapo_jax.types import Rejection, RejectionReason, Rollout, ScoredRollout, Task, TaskRef

_START_ATTEMPTS = 3  # in a row, once one start has succeeded; before, a failure is believed at once

_Outcome = Judgment | ScoreError


class ScorerStartError(RuntimeError):
    """No scorer process can be started, so nothing can be judged; the message names the cause."""


class ScoringPoolClosedError(RuntimeError):
    """The pool was used after it was closed."""


class ScoringPool:
    """Owns scorer processes; a `Verifier`, thread-safe.

    Calls in one lane take turns, calls in different lanes do not notice each other. The tasks it
    returns have no metadata: that never leaves the processes.
    """

    def __init__(
        self,
        specialties: Sequence[Specialty],
        *,
        lanes: Sequence[str] = (OWN_LANE,),
        workers_per_lane: int = 1,
        spares: int = 1,
        completion_budget_s: float = 1.0,
        group_budget_s: float = 4.0,
    ):
        """Begins to start processes and returns at once.

        Args:
            specialties: the only tasks that can be judged.
            lanes: names for the lanes.
            workers_per_lane: processes that share the work of one call.
            spares: processes that stand by to replace a killed one, for all lanes together.
            completion_budget_s: CPU time that scoring one completion may take.
            group_budget_s: CPU time that judging one rollout may take, its task's rebuilding included.

        Raises:
            CatalogError: two specialties share a name or a digest.
            RefusedDatasetError: answers to one of them cannot be scored safely.
            ValueError: a repeated lane, or a number out of range.
        """
        if not lanes or len(set(lanes)) < len(lanes):
            raise ValueError(f"lanes = {list(lanes)}: must hold at least one name and none twice")
        if workers_per_lane < 1 or spares < 0:
            raise ValueError(f"workers_per_lane = {workers_per_lane} must be at least 1, spares = {spares} at least 0")
        if not 0 < completion_budget_s <= group_budget_s:
            raise ValueError(f"completion_budget_s = {completion_budget_s} must be in (0, {group_budget_s}]")
        self._source = ReasoningGymSource(specialties)  # knows which references are ours; it builds no task here
        self._budgets = Budgets(completion_s=completion_budget_s, group_s=group_budget_s)
        self._lanes = {name: _Lane(workers_per_lane) for name in lanes}
        self._spares_wanted = spares
        self._changed = threading.Condition()  # guards everything below
        self._spares: list[WorkerProcess] = []
        self._workers: set[WorkerProcess] = set()  # all there are, starting and busy ones included
        self._started_once = False
        self._failure: ScorerStartError | None = None
        self._closed = False
        self._kills = 0
        # One thread starts all processes and outlives them: on Linux a child dies with the thread that made it.
        self._starter = threading.Thread(target=self._keep_complete, name="scorer starts", daemon=True)
        self._starter.start()

    @property
    def kills(self) -> int:
        """Processes that were lost so far: killed at a budget, or ended by themselves."""
        with self._changed:
            return self._kills

    def busy_s(self, lane: str) -> float:
        """Returns the CPU time [s] that the processes of `lane` have used to judge."""
        with self._changed:
            return self._lane(lane).busy_s

    def verify(self, rollouts: Sequence[Rollout], *, lane: str = OWN_LANE) -> list[ScoredRollout | Rejection]:
        """See `Verifier.verify`; a rollout beyond its budget is a rejection for TIMEOUT.

        Raises:
            ScorerStartError: no process can be started.
            ScoringPoolClosedError: after `close`.
        """
        groups = [(rollout.task_ref, [completion.text for completion in rollout.completions]) for rollout in rollouts]
        outcomes = self._judge(groups, lane, held_out=False)
        return [self._verdict(rollout, outcome) for rollout, outcome in zip(rollouts, outcomes, strict=True)]

    def score(
        self, texts: Sequence[tuple[TaskRef, Sequence[str]]], *, lane: str = OWN_LANE
    ) -> list[list[float | RejectionReason]]:
        """See `Verifier.score`; a completion beyond its budget has TIMEOUT for a score.

        Raises:
            ScorerStartError: no process can be started.
            ScoringPoolClosedError: after `close`.
        """
        # One group per text, so that a text that kills its scorer takes no other with it.
        outcomes = iter(self._judge([(ref, [text]) for ref, group in texts for text in group], lane, held_out=True))
        scores: list[list[float | RejectionReason]] = []
        for _, group in texts:
            own = [next(outcomes) for _ in group]
            scores.append([found.reason if isinstance(found, ScoreError) else found.scores[0] for found in own])
        return scores

    def warm_up(self) -> None:
        """Returns when every lane has its processes.

        Raises:
            ScorerStartError: no process can be started.
            ScoringPoolClosedError: after `close`.
        """
        with self._changed:
            self._check_open()
            while any(lane.missing for lane in self._lanes.values()):
                self._check_usable()
                self._changed.wait()

    def close(self) -> None:
        """Ends all processes; a call in another thread ends with ScoringPoolClosedError."""
        with self._changed:
            self._closed = True
            for worker in self._workers:
                worker.end()
            self._changed.notify_all()
        self._starter.join()
        for lane in self._lanes.values():
            with lane.turn:  # a call that is still under way reaps its own
                pass
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def __enter__(self) -> ScoringPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _judge(self, groups: Sequence[tuple[TaskRef, Sequence[str]]], lane: str, *, held_out: bool) -> list[_Outcome]:
        """Returns the outcome of every group, in order."""
        with self._changed:
            chosen = self._lane(lane)
        outcomes: dict[int, _Outcome] = {}
        work: list[Group] = []
        for number, (ref, texts) in enumerate(groups):
            try:
                self._screen(ref, texts)
            except ScoreError as error:
                outcomes[number] = error
            else:
                work.append(Group(number=number, task_ref=ref, texts=tuple(texts), held_out=held_out))
        with chosen.turn:
            outcomes |= self._converse(chosen, work)
        return [outcomes[number] for number in range(len(groups))]

    def _screen(self, ref: TaskRef, texts: Sequence[str]) -> None:
        """Raises ScoreError for what no process needs to see; `judge` would say the same."""
        check_sizes(texts)
        try:
            refuse_unsafe(ref.dataset)
            self._source.specialty_of(ref)
        except RefusedDatasetError as error:
            raise ScoreError(RejectionReason.REFUSED_DATASET, str(error)) from error
        except UnknownTaskError as error:
            raise ScoreError(RejectionReason.UNKNOWN_TASK, str(error)) from error

    def _verdict(self, rollout: Rollout, outcome: _Outcome) -> ScoredRollout | Rejection:
        if isinstance(outcome, ScoreError):
            return Rejection(rollout=rollout, reason=outcome.reason, detail=str(outcome))
        task = Task(
            ref=rollout.task_ref,
            specialty=self._source.specialty_of(rollout.task_ref).name,
            question=outcome.question,
            ground_truth=outcome.ground_truth,
            metadata={},
        )
        return ScoredRollout(rollout=rollout, task=task, scores=outcome.scores)

    def _converse(self, lane: _Lane, work: Sequence[Group]) -> Mapping[int, _Outcome]:
        """Has `work` judged by the processes of `lane`; returns the outcomes by number."""
        outcomes: dict[int, _Outcome] = {}
        talks: list[Conversation] = []
        try:
            if work:
                workers = [self._take(lane)]
                while len(workers) < len(work) and (worker := self._take_idle(lane)):
                    workers.append(worker)
                talks += [
                    Conversation(worker, work[first :: len(workers)], self._budgets)
                    for first, worker in enumerate(workers)
                ]
            while talks:
                talk = talks.pop(0)
                talks.append(talk)
                for group, outcome in talk.turn():
                    outcomes[group.number] = outcome
                if talk.is_over:
                    talks.remove(talk)
                    self._give_back(lane, talk)
                    if talk.lost:
                        self._check_open()  # else it was the pool's end that ended the worker
                    if talk.rest:
                        talks.append(Conversation(self._take(lane), talk.rest, self._budgets))
                _wait(talks)
        finally:  # an interrupted one leaves its worker in the middle of something
            for talk in talks:
                talk.lost = True
                talk.worker.kill()
                self._give_back(lane, talk)
        return outcomes

    def _lane(self, name: str) -> _Lane:
        if name not in self._lanes:
            raise ValueError(f"lane {name!r}: must be one of {', '.join(self._lanes)}")
        return self._lanes[name]

    def _take(self, lane: _Lane) -> WorkerProcess:
        """Returns an idle process of `lane`; waits until there is one."""
        while (worker := self._take_idle(lane)) is None:
            with self._changed:
                if not lane.idle and not self._spares:
                    self._check_usable()
                    self._changed.wait()
        return worker

    def _take_idle(self, lane: _Lane) -> WorkerProcess | None:
        with self._changed:
            self._check_open()
            while lane.idle or (lane.missing and self._spares):
                if not lane.idle:
                    lane.idle.append(self._spares.pop(0))
                    lane.owned += 1
                    self._changed.notify_all()
                worker = lane.idle.pop()
                if worker.is_alive:
                    return worker
                self._lose(lane, worker)  # ended while it had nothing to do, by the system's memory killer for one
            return None

    def _give_back(self, lane: _Lane, talk: Conversation) -> None:
        with self._changed:
            lane.busy_s += talk.used_s
            if talk.lost:
                self._lose(lane, talk.worker)
            else:
                lane.idle.append(talk.worker)

    def _lose(self, lane: _Lane, worker: WorkerProcess) -> None:
        worker.kill()
        self._workers.discard(worker)
        lane.owned -= 1
        self._kills += 1
        self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise ScoringPoolClosedError("the scoring pool is closed")

    def _check_usable(self) -> None:
        self._check_open()
        if self._failure is not None:
            raise self._failure

    def _keep_complete(self) -> None:
        """Starts processes wherever some are missing, until the pool is closed."""
        attempts = _START_ATTEMPTS
        while count := self._await_gap():
            try:
                self._start(count)
                attempts = _START_ATTEMPTS
            except (WorkerDiedError, OSError) as error:
                attempts -= 1
                with self._changed:
                    if not attempts or not self._started_once:
                        self._failure = ScorerStartError(f"no scorer process can be started: {error}")
                        self._changed.notify_all()

    def _await_gap(self) -> int:
        """Returns how many processes to start next, 0 when the pool is closed."""
        with self._changed:
            while not self._closed:
                missing = sum(lane.missing for lane in self._lanes.values())
                if len(self._spares) < self._spares_wanted:
                    missing = missing or 1  # spares come after what is waited for, one by one
                if missing and self._failure is None:
                    return missing
                self._changed.wait()
            return 0

    def _start(self, count: int) -> None:
        """Starts `count` processes side by side and places each one when it is ready.

        Raises:
            WorkerDiedError: one of them is of no use.
            OSError: the system starts none.
        """
        starting: list[WorkerProcess] = []
        try:
            for _ in range(count):
                worker = WorkerProcess(self._source.specialties, self._budgets.completion_s, self._budgets.group_s)
                starting.append(worker)
                with self._changed:
                    self._workers.add(worker)
                    if self._closed:
                        worker.end()
            while starting:
                starting[0].wait_ready()
                self._place(starting.pop(0))
        finally:
            for worker in starting:
                worker.kill()
                with self._changed:
                    self._workers.discard(worker)

    def _place(self, worker: WorkerProcess) -> None:
        with self._changed:
            self._started_once = True
            lane = next((lane for lane in self._lanes.values() if lane.missing), None)
            if lane is None:
                self._spares.append(worker)
            else:
                lane.idle.append(worker)
                lane.owned += 1
            self._changed.notify_all()


class _Lane:
    """The processes of one lane; `turn` is held during a call, the rest is guarded by the pool."""

    def __init__(self, size: int):
        self.turn = threading.Lock()
        self.idle: list[WorkerProcess] = []
        self.owned = 0  # idle and busy ones
        self.busy_s = 0.0
        self._size = size

    @property
    def missing(self) -> int:
        return self._size - self.owned


def _wait(talks: Sequence[Conversation]) -> None:
    """Returns when one of `talks` has something to do."""
    if not talks:
        return
    poll = select.poll()
    for talk in talks:
        poll.register(talk.worker, select.POLLIN | (select.POLLOUT if talk.wants_to_send else 0))
    poll.poll(1000 * min(talk.wait_s() for talk in talks))
