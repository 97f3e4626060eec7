"""Estimates from held-out results: pass@k, gains with their error, averages over specialties.

Pure numpy functions. A "success" is one completion whose score is that of the right answer; what
counts as one is the evaluation's business.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sapo_jax import seeding

# The six of the nine specialties without a free-reward task (propositional_logic), a task that small
# models do not reach (bf) and the one with by far the longest prompts (arc_1d).
CORE_6 = frozenset(
    {
        "basic_arithmetic",
        "base_conversion",
        "binary_matrix",
        "calendar_arithmetic",
        "decimal_arithmetic",
        "fraction_simplification",
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A difference of means, after minus before, and its standard error."""

    mean: float
    stderr: float


def pass_at_k(successes: ArrayLike, samples: int, k: int) -> np.ndarray:
    """Returns the unbiased chance that one of k completions succeeds, per question.

    pass@k = 1 - C(n - c, k) / C(n, k) with n = `samples` and c = `successes`; its mean over
    questions estimates pass@k of the policy.

    Args:
        successes: [...] integers in [0, samples], successful completions per question.
        samples: completions drawn per question.
        k: completions one may try, in [1, samples].

    Returns:
        [...] float64.

    Raises:
        ValueError: k or a count out of range, or counts that are not whole numbers.

    Reference: arXiv 2107.03374, equation 1.
    """
    counts = np.asarray(successes)
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k}: must be in [1, samples = {samples}]")
    if counts.size and (np.any(counts != np.floor(counts)) or counts.min() < 0 or counts.max() > samples):
        raise ValueError(f"successes must be whole numbers in [0, samples = {samples}]")
    # C(n - c, k) / C(n, k) is the product over i < k of (n - c - i) / (n - i): no large factorials, and
    # a factor of zero where fewer than k completions failed.
    steps = np.arange(k)
    failing = (samples - np.arange(samples + 1)[:, None] - steps) / (samples - steps)  # [n + 1, k]
    return (1.0 - failing.prod(axis=1))[counts.astype(np.int64)]


def paired_gain(
    before: ArrayLike,
    after: ArrayLike,
    specialties: Sequence[str] | None = None,
    *,
    draws: int = 4000,
    seed: int = 0,
) -> Gain:
    """Returns the mean gain on the same questions and its bootstrap standard error.

    Every specialty weighs the same, as in the macro average; with equally many questions each, or
    without `specialties`, that is the plain mean over nodes and questions. For the error, questions
    are resampled with replacement within each specialty and nodes are kept: it says how far the
    gain would move with other questions, not with other runs.

    Args:
        before: [M, Q, ...] values per node and question; further axes (samples) are averaged.
        after: the same questions in the same order, later.
        specialties: Q names, the strata.
        draws: bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: shapes that differ, no questions, or non-finite values.
    """
    first, last = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != last.shape or first.ndim < 2 or first.size == 0:
        raise ValueError(f"before {first.shape} and after {last.shape} must both be [nodes, questions, ...], not empty")
    difference = last - first
    if not np.all(np.isfinite(difference)):
        raise ValueError("before and after must be finite")
    per_question = difference.mean(axis=(0, *range(2, difference.ndim)))  # [Q]
    rng = seeding.generator("paired_gain", seed)
    means, resampled = [], []
    for rows in _strata(specialties, per_question.shape[0]):
        values = per_question[rows]
        means.append(values.mean())
        # How often each question is drawn; [draws, n] counts times [n] values needs no gather.
        counts = rng.multinomial(values.size, np.full(values.size, 1.0 / values.size), size=draws)
        resampled.append(counts @ values / values.size)
    return Gain(mean=float(np.mean(means)), stderr=float(np.mean(resampled, axis=0).std(ddof=1)))


def specialty_means(values: ArrayLike, specialties: Sequence[str]) -> dict[str, float]:
    """Returns the mean of `values` [M, Q, ...] per specialty, by name, names sorted."""
    array = np.asarray(values, np.float64)
    if array.ndim < 2 or array.shape[1] != len(specialties):
        raise ValueError(f"values {array.shape} must be [nodes, {len(specialties)} questions, ...]")
    names = np.asarray(specialties)
    return {str(name): float(array[:, names == name].mean()) for name in np.unique(names)}


def macro_mean(per_specialty: Mapping[str, float], members: Collection[str] | None = None) -> float | None:
    """Returns the unweighted mean over specialties, or None where it is not defined.

    Args:
        per_specialty: a value per specialty.
        members: the specialties averaged, for example `CORE_6`; None: all. If one of them is
            missing the average has another meaning, so there is none.
    """
    names = sorted(per_specialty if members is None else members)
    if not names or any(name not in per_specialty for name in names):
        return None
    return float(np.mean([per_specialty[name] for name in names]))


def _strata(specialties: Sequence[str] | None, questions: int) -> list[np.ndarray]:
    if specialties is None:
        return [np.arange(questions)]
    if len(specialties) != questions:
        raise ValueError(f"{len(specialties)} specialties for {questions} questions")
    names = np.asarray(specialties)
    return [np.flatnonzero(names == name) for name in np.unique(names)]
