"""Scores completions, own and foreign alike, on tasks that this node rebuilt itself.

Nothing a peer says about question, truth or reward is believed: the task follows from its
reference, the score from this node's scorer. Whatever is wrong with a rollout comes back as a
`Rejection` for the caller to count; no content makes `verify` raise.

`Verifier` is what the rest of the package uses. `ScoringPool` is the one for completions of policies
and peers: it judges in other processes. `InProcessVerifier` is what those processes run; nothing
stops a scorer that takes forever in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from sapo_jax.config import MAX_GROUP_SIZE
from sapo_jax.tasks.extract import extract_answer
from sapo_jax.tasks.held_out import is_held_out
from sapo_jax.tasks.scorers import RefusedDatasetError, refuse_unsafe, score_answer
from sapo_jax.tasks.source import GenerationError, TaskSource, UnknownTaskError
from sapo_jax.types import Rejection, RejectionReason, Rollout, ScoredRollout, Task, TaskRef

MAX_COMPLETION_BYTES = 64 * 1024
STRICT_SUCCESS_SCORE = 0.99

OWN_LANE = "own"
EXTERNAL_LANE = "external"


class ScoreError(ValueError):
    """Completions that cannot be given scores in [0, 1]; `reason` says which way."""

    def __init__(self, reason: RejectionReason, message: str):
        """Makes the error for `reason`."""
        super().__init__(message)
        self.reason = reason


class Verifier(Protocol):
    """This node's judge. Lanes never wait for each other, so that foreign work cannot delay own work."""

    def verify(self, rollouts: Sequence[Rollout], *, lane: str = OWN_LANE) -> list[ScoredRollout | Rejection]:
        """Returns each rollout with its task rebuilt and its completions scored, or why it is rejected; in order.

        The tasks may lack metadata, which only scorers need. A held-out question is a rejection.
        """
        ...

    def score(
        self, texts: Sequence[tuple[TaskRef, Sequence[str]]], *, lane: str = OWN_LANE
    ) -> list[list[float | RejectionReason]]:
        """Returns the scores of completions of any tasks, held-out ones included; same shape and order.

        A completion without a score has its reason instead and does not affect its neighbors.
        """
        ...

    def busy_s(self, lane: str) -> float:
        """Returns the CPU seconds that judging in `lane` has taken so far."""
        ...

    def warm_up(self) -> None:
        """Returns when `verify` and `score` can answer without delay."""
        ...

    def close(self) -> None:
        """Frees what the verifier holds; closing twice is allowed."""
        ...


def strict_success(score: float) -> bool:
    """Returns whether `score` counts as solved: at least 0.99, which no partial credit reaches."""
    return score >= STRICT_SUCCESS_SCORE


def score_completion(task: Task, text: str) -> float:
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
        raise ScoreError(RejectionReason.BAD_SCORE, f"scorer of {task.ref.dataset!r} returned {score}, outside [0, 1]")
    return score


def check_sizes(texts: Sequence[str]) -> None:
    """Raises ScoreError unless `texts` are between 1 and 64 completions of at most 64 KiB."""
    if not 1 <= len(texts) <= MAX_GROUP_SIZE:
        raise ScoreError(RejectionReason.GROUP_SIZE, f"{len(texts)} is not in [1, {MAX_GROUP_SIZE}]")
    for number, text in enumerate(texts):
        size = _size_bytes(text)
        if size > MAX_COMPLETION_BYTES:
            raise ScoreError(
                RejectionReason.COMPLETION_SIZE,
                f"completion {number} has {size} bytes, more than {MAX_COMPLETION_BYTES}",
            )


def judge(
    source: TaskSource,
    ref: TaskRef,
    texts: Sequence[str],
    *,
    held_out: bool,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Task, tuple[float, ...]]:
    """Returns the task of `ref` and the scores of the completions `texts`.

    Args:
        source: rebuilds the task.
        ref: which task.
        texts: the completions of one group.
        held_out: whether questions that are for evaluation only are judged too.
        advance: told when the task is rebuilt and after every score.

    Raises:
        ScoreError: anything that is wrong with them; nothing else.
    """
    check_sizes(texts)
    try:
        refuse_unsafe(ref.dataset)
        task = source.task(ref)
    except RefusedDatasetError as error:
        raise ScoreError(RejectionReason.REFUSED_DATASET, str(error)) from error
    except UnknownTaskError as error:
        raise ScoreError(RejectionReason.UNKNOWN_TASK, str(error)) from error
    except GenerationError as error:
        raise ScoreError(RejectionReason.GENERATION_FAILED, str(error)) from error
    if not held_out and is_held_out(task.question):
        raise ScoreError(RejectionReason.HELD_OUT, f"question of {ref.dataset!r} is for evaluation only")
    advance()
    scores: list[float] = []
    for text in texts:
        scores.append(score_completion(task, text))
        advance()
    return task, tuple(scores)


class InProcessVerifier:
    """A `Verifier` without protection against slow scorers; holds no state of its own."""

    def __init__(self, source: TaskSource):
        """Makes a verifier that rebuilds tasks with `source`."""
        self._source = source

    def verify(self, rollouts: Sequence[Rollout], *, lane: str = OWN_LANE) -> list[ScoredRollout | Rejection]:
        """See `Verifier.verify`; the tasks have their metadata."""
        del lane
        return [self._verify_one(rollout) for rollout in rollouts]

    def score(
        self, texts: Sequence[tuple[TaskRef, Sequence[str]]], *, lane: str = OWN_LANE
    ) -> list[list[float | RejectionReason]]:
        """See `Verifier.score`."""
        del lane
        return [[self._score_one(ref, text) for text in group] for ref, group in texts]

    def busy_s(self, lane: str) -> float:
        """Returns 0: what this process spends on judging is not told from the rest."""
        del lane
        return 0.0

    def warm_up(self) -> None:
        """Does nothing: it is always ready."""

    def close(self) -> None:
        """Does nothing: there is nothing to free."""

    def _verify_one(self, rollout: Rollout) -> ScoredRollout | Rejection:
        try:
            texts = [completion.text for completion in rollout.completions]
            task, scores = judge(self._source, rollout.task_ref, texts, held_out=False)
        except ScoreError as error:
            return Rejection(rollout=rollout, reason=error.reason, detail=str(error))
        return ScoredRollout(rollout=rollout, task=task, scores=scores)

    def _score_one(self, ref: TaskRef, text: str) -> float | RejectionReason:
        try:
            _, (score,) = judge(self._source, ref, [text], held_out=True)
        except ScoreError as error:
            return error.reason
        return score


def _size_bytes(text: str) -> int:
    # A lone surrogate has no UTF-8 form; it must not raise here.
    return len(text.encode("utf-8", "surrogatepass"))
