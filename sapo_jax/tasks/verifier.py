"""Scores completions, own and foreign alike, on tasks that this node rebuilt itself.

Nothing a peer says about question, truth or reward is believed: the task follows from its
reference, the score from this node's scorer. Whatever is wrong with a rollout comes back as a
`Rejection` for the caller to count; no content makes `verify` raise.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from sapo_jax.config import MAX_GROUP_SIZE
from sapo_jax.tasks.extract import extract_answer
from sapo_jax.tasks.held_out import is_held_out
from sapo_jax.tasks.scorers import RefusedDatasetError, refuse_unsafe, score_answer
from sapo_jax.tasks.source import GenerationError, TaskSource, UnknownTaskError
from sapo_jax.types import Rollout, ScoredRollout, Task

MAX_COMPLETION_BYTES = 64 * 1024
STRICT_SUCCESS_SCORE = 0.99


class RejectionReason(enum.Enum):
    """Why a rollout is not used."""

    REFUSED_DATASET = "refused_dataset"
    UNKNOWN_TASK = "unknown_task"
    GENERATION_FAILED = "generation_failed"
    HELD_OUT = "held_out"
    GROUP_SIZE = "group_size"
    COMPLETION_SIZE = "completion_size"
    BAD_SCORE = "bad_score"  # not finite, or outside [0, 1]
    SCORER_FAILED = "scorer_failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A rollout that was turned down, and why; `detail` is for logs, short and printable."""

    rollout: Rollout
    reason: RejectionReason
    detail: str


class ScoreError(ValueError):
    """A completion that cannot be given a score in [0, 1]; `reason` says which way."""

    def __init__(self, reason: RejectionReason, message: str):
        """Makes the error for `reason`."""
        super().__init__(message)
        self.reason = reason


def strict_success(score: float) -> bool:
    """Returns whether `score` counts as solved: at least 0.99, which no partial credit reaches."""
    return score >= STRICT_SUCCESS_SCORE


class Verifier:
    """This node's judge; holds no state of its own."""

    def __init__(self, source: TaskSource):
        """Makes a verifier that rebuilds tasks with `source`."""
        self._source = source

    def score(self, task: Task, text: str) -> float:
        """Returns the score in [0, 1] of the text of a completion of `task`.

        Raises:
            ScoreError: the dataset is refused, the scorer fails or leaves [0, 1].
        """
        try:
            score = score_answer(task, extract_answer(text))
        except RefusedDatasetError as error:
            raise ScoreError(RejectionReason.REFUSED_DATASET, str(error)) from error
        except Exception as error:  # library scorers fail in many ways on odd answers
            raise ScoreError(
                RejectionReason.SCORER_FAILED,
                f"scorer of {task.ref.dataset!r} failed: {type(error).__name__}: {str(error)!r:.200}",
            ) from error
        if not (math.isfinite(score) and 0.0 <= score <= 1.0):
            raise ScoreError(
                RejectionReason.BAD_SCORE, f"scorer of {task.ref.dataset!r} returned {score}, outside [0, 1]"
            )
        return score

    def verify(self, rollout: Rollout) -> ScoredRollout | Rejection:
        """Returns `rollout` with its task rebuilt and its completions scored, or why it is rejected."""
        if not 1 <= rollout.group_size <= MAX_GROUP_SIZE:
            return _reject(rollout, RejectionReason.GROUP_SIZE, f"{rollout.group_size} is not in [1, {MAX_GROUP_SIZE}]")
        for number, completion in enumerate(rollout.completions):
            size = _size_bytes(completion.text)
            if size > MAX_COMPLETION_BYTES:
                detail = f"completion {number} has {size} bytes, more than {MAX_COMPLETION_BYTES}"
                return _reject(rollout, RejectionReason.COMPLETION_SIZE, detail)
        try:
            refuse_unsafe(rollout.task_ref.dataset)
            task = self._source.task(rollout.task_ref)
        except RefusedDatasetError as error:
            return _reject(rollout, RejectionReason.REFUSED_DATASET, str(error))
        except UnknownTaskError as error:
            return _reject(rollout, RejectionReason.UNKNOWN_TASK, str(error))
        except GenerationError as error:
            return _reject(rollout, RejectionReason.GENERATION_FAILED, str(error))
        if is_held_out(task.question):
            detail = f"question of {task.ref.dataset!r} is for evaluation only"
            return _reject(rollout, RejectionReason.HELD_OUT, detail)
        try:
            scores = tuple(self.score(task, completion.text) for completion in rollout.completions)
        except ScoreError as error:
            return _reject(rollout, error.reason, str(error))
        return ScoredRollout(rollout=rollout, task=task, scores=scores)


def _reject(rollout: Rollout, reason: RejectionReason, detail: str) -> Rejection:
    return Rejection(rollout=rollout, reason=reason, detail=detail)


def _size_bytes(text: str) -> int:
    # A lone surrogate has no UTF-8 form; it must not raise here.
    return len(text.encode("utf-8", "surrogatepass"))
