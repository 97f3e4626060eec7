"""Host-side records that the beats of a round hand to each other.

Plain Python and frozen: no arrays, no jax, no network types. What crosses between nodes is a
`Rollout`; everything else stays inside one node.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class FinishReason(enum.Enum):
    """Why a completion ended; text alone cannot say it, so it travels with the text."""

    STOP = "stop"  # the policy emitted its end token
    LENGTH = "length"  # the token limit cut it


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRef:
    """Enough to rebuild one task anywhere: question and ground truth follow from it.

    Attributes:
        dataset: ReasoningGym dataset name.
        config_digest: hex SHA-256 over the dataset's name, configuration and library version.
        seed: dataset seed, in [0, 2**32).
        index: item index under that seed.
    """

    dataset: str
    config_digest: str
    seed: int
    index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One verifiable problem, rebuilt locally from its `ref`.

    `ground_truth` is None for datasets that have no single answer; `metadata` is what the scorer
    of the dataset needs and never comes from a peer.
    """

    ref: TaskRef
    specialty: str
    question: str
    ground_truth: str | None
    metadata: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One response sampled from a policy, prompt excluded.

    `token_ids` (end token included when the reason is STOP) and `behavior_logprobs` are known for
    local completions only; they never leave the node.
    """

    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] | None = None
    behavior_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One question with all its completions from one node: the unit that is shared and selected.

    The paper's C_n(q); its completions are the group that shares a baseline.

    Attributes:
        node_id: who produced it.
        round: the producer's round; comparable only within one `node_id`.
        policy_version: updates the producer had made when it sampled, skipped ones included.
    """

    task_ref: TaskRef
    node_id: str
    round: int
    policy_version: int
    completions: tuple[Completion, ...]

    @property
    def group_size(self) -> int:
        return len(self.completions)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredRollout:
    """A rollout with its task rebuilt and scored by this node's own verifier.

    `scores` are in [0, 1], one per completion, in order.
    """

    rollout: Rollout
    task: Task
    scores: tuple[float, ...]


class RejectionReason(enum.Enum):
    """Why a verifier turned a rollout, or one completion, down."""

    REFUSED_DATASET = "refused_dataset"
    UNKNOWN_TASK = "unknown_task"
    GENERATION_FAILED = "generation_failed"
    HELD_OUT = "held_out"
    GROUP_SIZE = "group_size"
    COMPLETION_SIZE = "completion_size"
    BAD_SCORE = "bad_score"  # not finite, or outside [0, 1]
    SCORER_FAILED = "scorer_failed"
    TIMEOUT = "timeout"  # over its time budget, so that its scorer process was killed
    WORKER_DIED = "worker_died"  # its scorer process ended or answered nonsense


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A rollout that was turned down, and why; `detail` is for logs, short and printable."""

    rollout: Rollout
    reason: RejectionReason
    detail: str
