"""The verifier for completions of policies and peers: scorer processes that are killed at a budget.

Whatever a completion does to its scorer happens in a process of its own with little to break, so it
costs its sender one rollout and this process nothing. `worker_supply` keeps the processes ready.
"""

from __future__ import annotations

import select
from collections.abc import Mapping, Sequence

from sapo_jax.tasks.conversation import Budgets, Conversation, Group, Judgment
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scorers import RefusedDatasetError, refuse_unsafe
from sapo_jax.tasks.source import UnknownTaskError
from sapo_jax.tasks.specialty import Specialty
from sapo_jax.tasks.verifier import OWN_LANE, ScoreError, check_sizes
from sapo_jax.tasks.worker_process import WorkerProcess
from sapo_jax.tasks.worker_supply import Lane, WorkerSupply
from sapo_jax.types import Rejection, RejectionReason, Rollout, ScoredRollout, Task, TaskRef

_Outcome = Judgment | ScoreError


class ScoringPool:
    """Judges in scorer processes; a `Verifier`, thread-safe.

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
        self._supply = WorkerSupply(
            lambda: WorkerProcess(self._source.specialties, completion_budget_s, group_budget_s),
            lanes=lanes,
            per_lane=workers_per_lane,
            spares=spares,
        )

    @property
    def kills(self) -> int:
        """Processes that were lost so far: killed at a budget, or ended by themselves."""
        return self._supply.kills

    def busy_s(self, lane: str) -> float:
        """Returns the CPU time [s] that the processes of `lane` have used to judge, new ones for lost ones included."""
        return self._supply.busy_s(lane)

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
        self._supply.wait_complete()

    def close(self) -> None:
        """Ends all processes; a call in another thread ends with ScoringPoolClosedError."""
        self._supply.close()

    def __enter__(self) -> ScoringPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _judge(self, groups: Sequence[tuple[TaskRef, Sequence[str]]], lane: str, *, held_out: bool) -> list[_Outcome]:
        """Returns the outcome of every group, in order."""
        chosen = self._supply.lane(lane)
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

    def _converse(self, lane: Lane, work: Sequence[Group]) -> Mapping[int, _Outcome]:
        """Has `work` judged by the processes of `lane`; returns the outcomes by number."""
        outcomes: dict[int, _Outcome] = {}
        talks: list[Conversation] = []
        try:
            if work:
                workers = [self._supply.take(lane)]
                while len(workers) < len(work) and (worker := self._supply.take_idle(lane)):
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
                    self._supply.give_back(lane, talk.worker, used_s=talk.used_s, is_lost=talk.lost)
                    if talk.lost:
                        self._supply.check_open()  # else it was the pool's end that ended the worker
                    if talk.rest:
                        talks.append(Conversation(self._supply.take(lane), talk.rest, self._budgets))
                _wait(talks)
        finally:  # an interrupted one leaves its worker in the middle of something
            for talk in talks:
                self._supply.give_back(lane, talk.worker, used_s=talk.used_s, is_lost=True)
        return outcomes


def _wait(talks: Sequence[Conversation]) -> None:
    """Returns when one of `talks` has something to do."""
    if not talks:
        return
    poll = select.poll()
    for talk in talks:
        poll.register(talk.worker, select.POLLIN | (select.POLLOUT if talk.wants_to_send else 0))
    poll.poll(1000 * min(talk.wait_s() for talk in talks))
