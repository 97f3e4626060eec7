from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sapo_jax.types import Completion, FinishReason, Rollout, ScoredRollout, Task, TaskRef


def make_ref(index: int) -> TaskRef:
    return TaskRef(dataset="toy", config_digest="ab" * 32, seed=2**32 - 1, index=index)


def make_task(ref: TaskRef) -> Task:
    return Task(
        ref=ref, specialty="toy", question=f"question {ref.index:03d}", ground_truth=str(ref.index), metadata={}
    )


def make_rollout(node_id: str = "a", index: int = 0, group_size: int = 2, round: int = 0) -> Rollout:
    return Rollout(
        task_ref=make_ref(index),
        node_id=node_id,
        round=round,
        policy_version=round,
        completions=tuple(
            Completion(
                text=f"<answer>{node_id}{index}.{i}</answer>",
                finish_reason=FinishReason.LENGTH if i % 2 else FinishReason.STOP,
                token_ids=(1, 2, 3 + i),
                behavior_logprobs=(-0.1, -1.0 / 3.0, -2.5),
            )
            for i in range(group_size)
        ),
    )


def make_scored(
    scores: Sequence[float] = (0.0, 1.0), node_id: str = "a", index: int = 0, round: int = 0
) -> ScoredRollout:
    rollout = make_rollout(node_id, index, group_size=len(scores), round=round)
    return ScoredRollout(rollout=rollout, task=make_task(rollout.task_ref), scores=tuple(scores))


@pytest.fixture(scope="session")
def rollout() -> Callable[..., Rollout]:
    """Makes a rollout: (node_id, index, group_size, round)."""
    return make_rollout


@pytest.fixture(scope="session")
def scored() -> Callable[..., ScoredRollout]:
    """Makes a scored rollout: (scores, node_id, index, round)."""
    return make_scored


@pytest.fixture(scope="session")
def rebuild_task() -> Callable[[TaskRef], Task]:
    """Makes the task that `scored` uses from its reference."""
    return make_task
