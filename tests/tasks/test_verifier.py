from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest

from sapo_jax.tasks import verifier as verifier_module
from sapo_jax.tasks.held_out import held_out_tasks
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.source import GenerationError
from sapo_jax.tasks.stream import TaskStream
from sapo_jax.tasks.verifier import InProcessVerifier, ScoreError, score_completion, strict_success
from sapo_jax.types import (
    Completion,
    FinishReason,
    Rejection,
    RejectionReason,
    Rollout,
    ScoredRollout,
    Task,
    TaskRef,
)


def first_task(source: ReasoningGymSource, name: str) -> Task:
    specialties = tuple(s for s in source.specialties if s.name == name)
    return TaskStream(source=source, specialties=specialties, run_seed=2, node_id="a").take(0, 1).tasks[0]


def rollout(ref: TaskRef, *texts: str) -> Rollout:
    completions = tuple(Completion(text=text, finish_reason=FinishReason.STOP) for text in texts)
    return Rollout(task_ref=ref, node_id="peer", round=1, policy_version=1, completions=completions)


def verify_with(source: ReasoningGymSource) -> Callable[[Rollout], ScoredRollout | Rejection]:
    return lambda rollout: InProcessVerifier(source).verify([rollout])[0]


def reason(result: ScoredRollout | Rejection) -> RejectionReason:
    assert isinstance(result, Rejection)
    assert result.detail and result.detail.isprintable() and len(result.detail) < 600
    return result.reason


def test_a_rollout_is_scored_on_the_task_rebuilt_from_its_reference(mini_source: ReasoningGymSource):
    task = first_task(mini_source, "fraction_simplification")
    truth = f"reasoning <answer>{task.ground_truth}</answer>"
    peer = rollout(task.ref, truth, "<answer>1/0</answer>", str(task.ground_truth), "", f"<answer>7</answer>{truth}")
    scored = verify_with(mini_source)(peer)
    assert isinstance(scored, ScoredRollout)
    assert scored.rollout is peer and scored.task == task
    assert scored.scores == (1.0, 0.05, 0.01, 0.01, 1.0)
    assert [strict_success(s) for s in scored.scores] == [True, False, False, False, True]


def test_strict_success_starts_at_099():
    assert strict_success(0.99) and strict_success(1.0)
    assert not strict_success(math.nextafter(0.99, 0)) and not strict_success(math.nan)


def test_unusable_rollouts_are_rejected_with_a_reason(mini_source: ReasoningGymSource):
    verify = verify_with(mini_source)
    ref = first_task(mini_source, "base_conversion").ref
    specialty = mini_source.specialties[2]
    held_out = held_out_tasks(mini_source, specialty, 1)[0]
    replace = dataclasses.replace
    assert reason(verify(rollout(replace(ref, config_digest="\x1b[31m"), "x"))) is RejectionReason.UNKNOWN_TASK
    assert reason(verify(rollout(replace(ref, seed=2**32), "x"))) is RejectionReason.UNKNOWN_TASK
    assert reason(verify(rollout(replace(ref, seed=-(10**5000)), "x"))) is RejectionReason.UNKNOWN_TASK
    assert reason(verify(rollout(replace(ref, dataset="composite"), "x"))) is RejectionReason.REFUSED_DATASET
    assert reason(verify(rollout(replace(ref, dataset="no_such"), "x"))) is RejectionReason.UNKNOWN_TASK
    assert reason(verify(rollout(held_out.ref, "x"))) is RejectionReason.HELD_OUT
    assert reason(verify(rollout(ref))) is RejectionReason.GROUP_SIZE
    assert reason(verify(rollout(ref, *["x"] * 65))) is RejectionReason.GROUP_SIZE
    assert isinstance(verify(rollout(ref, *["x"] * 64)), ScoredRollout)


def test_completions_beyond_64_kib_are_rejected(mini_source: ReasoningGymSource):
    verify = verify_with(mini_source)
    ref = first_task(mini_source, "base_conversion").ref
    assert isinstance(verify(rollout(ref, "x" * 2**16)), ScoredRollout)
    assert reason(verify(rollout(ref, "fine", "x" * (2**16 + 1)))) is RejectionReason.COMPLETION_SIZE
    assert reason(verify(rollout(ref, "é" * 2**15 + "x"))) is RejectionReason.COMPLETION_SIZE
    assert isinstance(verify(rollout(ref, "\ud800", "\x00")), ScoredRollout)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, -1e-9, 1.0 + 1e-9, 148.4])
def test_scores_outside_the_unit_interval_are_rejected(
    mini_source: ReasoningGymSource, monkeypatch: pytest.MonkeyPatch, score: float
):
    monkeypatch.setattr(verifier_module, "score_answer", lambda task, answer: score)
    task = first_task(mini_source, "bf")
    assert reason(verify_with(mini_source)(rollout(task.ref, "x"))) is RejectionReason.BAD_SCORE
    with pytest.raises(ScoreError, match="outside"):
        score_completion(task, "x")


def test_failing_scorers_and_generators_are_rejections(
    mini_source: ReasoningGymSource, monkeypatch: pytest.MonkeyPatch
):
    ref = first_task(mini_source, "bf").ref

    def recurse(task: Task, answer: str | None) -> float:
        return recurse(task, answer)

    with monkeypatch.context() as patch:
        patch.setattr(verifier_module, "score_answer", recurse)
        assert reason(verify_with(mini_source)(rollout(ref, "x"))) is RejectionReason.SCORER_FAILED

    def fail(ref: TaskRef) -> Task:
        raise GenerationError("cannot")

    monkeypatch.setattr(mini_source, "task", fail)
    assert reason(verify_with(mini_source)(rollout(ref, "x"))) is RejectionReason.GENERATION_FAILED


def test_one_bad_completion_rejects_the_whole_rollout(mini_source: ReasoningGymSource, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verifier_module, "score_answer", lambda task, answer: 2.0 if answer == "evil" else 0.5)
    ref = first_task(mini_source, "bf").ref
    assert isinstance(verify_with(mini_source)(rollout(ref, "a", "b")), ScoredRollout)
    assert reason(verify_with(mini_source)(rollout(ref, "a", "<answer>evil</answer>"))) is RejectionReason.BAD_SCORE


def test_texts_are_scored_one_by_one_and_held_out_questions_too(
    mini_source: ReasoningGymSource, monkeypatch: pytest.MonkeyPatch
):
    held_out = held_out_tasks(mini_source, mini_source.specialties[2], 1)[0]
    logic = first_task(mini_source, "bf")
    unknown = dataclasses.replace(logic.ref, index=10**6)
    real = verifier_module.score_answer
    monkeypatch.setattr(
        verifier_module, "score_answer", lambda task, answer: 2.0 if answer == "evil" else real(task, answer)
    )
    truth = f"<answer>{held_out.ground_truth}</answer>"
    scores = InProcessVerifier(mini_source).score(
        [(held_out.ref, [truth, "<answer>evil</answer>", "x" * (2**16 + 1), truth]), (logic.ref, []), (unknown, ["x"])]
    )
    assert scores == [
        [1.0, RejectionReason.BAD_SCORE, RejectionReason.COMPLETION_SIZE, 1.0],
        [],
        [RejectionReason.UNKNOWN_TASK],
    ]
