"""One scorer process and the groups it was given: what it answered, and when it has had its time.

Time is the process's own CPU time where the system tells it, so that a busy machine costs nobody a
rollout. The time of day counts as well, at ten times as much, for a process that does not even compute.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sapo_jax.tasks.frames import encode
from sapo_jax.tasks.verifier import ScoreError
from sapo_jax.tasks.worker_process import WorkerDiedError, WorkerProcess
from sapo_jax.types import RejectionReason, TaskRef

_PATIENCE = 10  # the time of day may be this multiple of the budget
_LEAST_WAIT_S = 0.005

_SEND_BYTES = 1 << 16  # frames of small groups travel together

_REASONS = frozenset(reason.value for reason in RejectionReason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budgets:
    """The CPU time [s] that scoring one completion and judging one whole group may take."""

    completion_s: float
    group_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Completions of one task to be judged; `number` is its place in the batch."""

    number: int
    task_ref: TaskRef
    texts: tuple[str, ...]
    held_out: bool  # whether questions for evaluation are judged too


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgment:
    """What a worker found: the rebuilt task's texts and a score in [0, 1] per completion."""

    question: str
    ground_truth: str | None
    scores: tuple[float, ...]


class Conversation:
    """Hands groups to a worker and takes its answers; waits nowhere."""

    def __init__(self, worker: WorkerProcess, groups: Iterable[Group], budgets: Budgets):
        """Prepares to give `groups` to a `worker` that is ready and has nothing to do."""
        self.worker = worker
        self.lost = False  # whether the worker had to be given up
        self.used_s = 0.0  # CPU time of the worker so far
        self._budgets = budgets
        self._unsent = deque(groups)
        self._sent: deque[Group] = deque()  # the worker is busy with the first of them
        self._began = self._group_since = self._now()
        self._completion_since: _Instant | None = None  # None while the task is rebuilt

    @property
    def is_over(self) -> bool:
        """Whether every group has its outcome, or the worker is lost."""
        return self.lost or not (self._unsent or self._sent)

    @property
    def wants_to_send(self) -> bool:
        """Whether something waits until the worker reads."""
        return bool(self._unsent) or self.worker.wants_to_send

    @property
    def rest(self) -> list[Group]:
        """The groups without an outcome."""
        return [*self._sent, *self._unsent]

    def turn(self) -> Iterator[tuple[Group, Judgment | ScoreError]]:
        """Sends and takes what can go now; yields the groups that are done and their outcomes.

        A worker beyond a budget, or one that misbehaves, is killed: the group that it was busy with gets
        this as its outcome, those behind it are the `rest`.
        """
        # Before the messages are read: what the worker has said by now is then known, however long this thread
        # is kept waiting in between.
        now = self._now()
        self.used_s = now.cpu_s - self._began.cpu_s  # at once: the end of a worker that dies is paid for too
        try:
            self._send()
            for message in self.worker.receive():
                yield from self._take(message)
            self._send()
            overdue = next((limit for limit, left_s in self._left_s(now) if left_s <= 0), None)
        except WorkerDiedError as error:
            yield from self._give_up(ScoreError(RejectionReason.WORKER_DIED, f"scorer process: {error}"))
            return
        if overdue is not None:
            yield from self._give_up(ScoreError(RejectionReason.TIMEOUT, f"scoring took longer than {overdue}"))

    def wait_s(self) -> float:
        """Returns after which time [s] a turn is due even if the worker says nothing."""
        return max(_LEAST_WAIT_S, min(left_s for _, left_s in self._left_s(self._now())))

    def _now(self) -> _Instant:
        return _Instant(time.monotonic(), self.worker.cpu_s())

    def _left_s(self, now: _Instant) -> Iterator[tuple[str, float]]:
        """Yields each budget by its name, and how much of it is left."""
        budgets = self._budgets
        yield f"group_budget_s = {budgets.group_s:g}", _left_s(budgets.group_s, self._group_since, now)
        if self._completion_since is not None:
            left_s = _left_s(budgets.completion_s, self._completion_since, now)
            yield f"completion_budget_s = {budgets.completion_s:g}", left_s

    def _send(self) -> None:
        while True:
            self.worker.send()
            if self.worker.wants_to_send or not self._unsent:
                return
            frames = bytearray()
            while self._unsent and len(frames) < _SEND_BYTES:
                group = self._unsent.popleft()
                ref = group.task_ref
                frames += encode(
                    {
                        "task_ref": [ref.dataset, ref.config_digest, ref.seed, ref.index],
                        "texts": group.texts,
                        "held_out": group.held_out,
                    }
                )
                self._sent.append(group)
            self.worker.send(bytes(frames))

    def _take(self, message: Any) -> Iterator[tuple[Group, Judgment | ScoreError]]:
        if not self._sent:
            raise WorkerDiedError("it sent an answer that nobody asked for")
        now = self._now()
        if message is None:
            self._completion_since = now
            return
        outcome = _outcome(message, len(self._sent[0].texts))
        self._group_since, self._completion_since = now, None
        yield self._sent.popleft(), outcome

    def _give_up(self, error: ScoreError) -> Iterator[tuple[Group, ScoreError]]:
        self.lost = True
        self.worker.kill()
        if self._sent:
            yield self._sent.popleft(), error


@dataclass(frozen=True, slots=True)
class _Instant:
    wall_s: float
    cpu_s: float


def _left_s(budget_s: float, since: _Instant, now: _Instant) -> float:
    return min(budget_s - (now.cpu_s - since.cpu_s), _PATIENCE * budget_s - (now.wall_s - since.wall_s))


def _outcome(message: Any, count: int) -> Judgment | ScoreError:
    """Returns what an answer about `count` completions says; the worker is not trusted to be sane.

    Raises:
        WorkerDiedError: no worker writes this.
    """
    match message:
        case {"question": str(question), "ground_truth": str() | None as ground_truth, "scores": [*scores]} if len(
            scores
        ) == count and all(type(score) is float and 0.0 <= score <= 1.0 for score in scores):
            return Judgment(question=question, ground_truth=ground_truth, scores=tuple(scores))
        case {"reason": str(reason), "detail": str(detail)} if reason in _REASONS:
            return ScoreError(RejectionReason(reason), detail)
        case _:
            raise WorkerDiedError("it sent nonsense: an answer without scores in [0, 1] or a reason")
