"""What is known of every ReasoningGym dataset: who scores it, and who can rebuild its tasks."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from reasoning_gym.factory import DATASETS

from sapo_jax.tasks.scorers import OWN, REFUSED, REPAIRED
from sapo_jax.tasks.specialty import HASH_SEED_DEPENDENT

# Many answers are right, and the generator offers none of them as the ground truth.
WITHOUT_GROUND_TRUTH = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})


class ScoredBy(enum.Enum):
    """Whose program scores a dataset."""

    OWN = "own scorer"
    REPAIRED = "repaired library"
    LIBRARY = "library"
    NOBODY = "nobody"


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditedDataset:
    """One dataset.

    Attributes:
        name: ReasoningGym's.
        scored_by: whose program scores it; text of strangers is judged unless that is nobody.
        reason: why it is not simply the library's scorer, or why that is trusted.
        needs_hash_seed: its tasks are the same only in processes with the same PYTHONHASHSEED.
        has_ground_truth: its tasks name an answer; otherwise many are right.
    """

    name: str
    scored_by: ScoredBy
    reason: str
    needs_hash_seed: bool
    has_ground_truth: bool

    @property
    def allowed(self) -> bool:
        """Whether text of strangers is judged."""
        return self.scored_by is not ScoredBy.NOBODY


def audit() -> list[AuditedDataset]:
    """Returns every dataset of the installed library, by name."""
    return [_audited(name) for name in sorted(DATASETS)]


def _audited(name: str) -> AuditedDataset:
    if name in REFUSED:
        scored_by, reason = ScoredBy.NOBODY, REFUSED[name]
    elif name in OWN:
        scored_by, reason = ScoredBy.OWN, OWN[name][1]
    elif name in REPAIRED:
        scored_by, reason = ScoredBy.REPAIRED, REPAIRED[name][1]
    else:
        scored_by, reason = ScoredBy.LIBRARY, "runs no text and bounds its work"
    return AuditedDataset(
        name=name,
        scored_by=scored_by,
        reason=reason,
        needs_hash_seed=name in HASH_SEED_DEPENDENT,
        has_ground_truth=name not in WITHOUT_GROUND_TRUTH,
    )
