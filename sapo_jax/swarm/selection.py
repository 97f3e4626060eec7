"""SampleSelf and SampleExternal of arXiv 2509.08721, Algorithm 1: which rollouts a round trains on.

Pure functions of the candidates and a random generator. The rules `top_reward` and `first` are
those of the paper's public code at different times; the paper itself describes `zero_adv_uniform`.
`publisher_uniform` is for swarms in which nodes differ in pace, or may be greedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sapo_jax.types import ScoredRollout

Rule = Callable[[Sequence[ScoredRollout], int, np.random.Generator], list[ScoredRollout]]


INFORMATIVE_VARIANCE = 1e-6


def is_informative(scores: Sequence[float]) -> bool:
    """Returns whether a group with these scores has a group-relative advantage worth a place in an update.

    The scores' variance decides, with a bound well above rounding: the mean of equal floats may differ
    from them in the last bit, and dividing by the deviation turns differences of a thousandth into full
    advantages. What is drawn for training and what is relayed to others follow this one rule.
    """
    mean = sum(scores) / len(scores)
    return math.dist(scores, [mean] * len(scores)) ** 2 / len(scores) > INFORMATIVE_VARIANCE


def select_local(own: Sequence[ScoredRollout], count: int) -> list[ScoredRollout]:
    """Returns the own part of the training set: the first `count` own rollouts, in order.

    A node draws exactly as many questions as it trains on, so this is all of them; informative
    or not, as in the paper.
    """
    _check_count(count)
    return list(own[:count])


def select(candidates: Sequence[ScoredRollout], count: int, rule: str, rng: np.random.Generator) -> list[ScoredRollout]:
    """Returns the external part of the training set: at most `count` of `candidates`, none twice.

    Fewer than `count` come back when fewer are eligible; nothing is repeated to fill up. The
    elements are the candidate objects themselves.

    Args:
        candidates: other nodes' scored rollouts, in order of arrival.
        count: J, how many are wanted.
        rule: a key of `RULES`.
        rng: consumed by the random rules only.

    Raises:
        ValueError: the rule is unknown or the count negative.
    """
    _check_count(count)
    if rule not in RULES:
        raise ValueError(f"selection rule {rule!r} is not one of {', '.join(RULES)}")
    return RULES[rule](candidates, count, rng)


def _zero_adv_uniform(candidates: Sequence[ScoredRollout], count: int, rng: np.random.Generator) -> list[ScoredRollout]:
    """Drops groups without any advantage, then draws uniformly without replacement (the paper's rule)."""
    return _uniform([item for item in candidates if is_informative(item.scores)], count, rng)


def _publisher_uniform(
    candidates: Sequence[ScoredRollout], count: int, rng: np.random.Generator
) -> list[ScoredRollout]:
    """Drops groups without any advantage, then draws publishers uniformly and one group of each drawn publisher.

    Without replacement: a publisher takes part as long as it has groups left. Whoever floods the
    pool is drawn no more often than the others.
    """
    groups: dict[str, list[ScoredRollout]] = {}
    for item in candidates:
        if is_informative(item.scores):
            groups.setdefault(item.rollout.node_id, []).append(item)
    chosen: list[ScoredRollout] = []
    while groups and len(chosen) < count:
        publisher = list(groups)[rng.integers(len(groups))]
        own = groups[publisher]
        chosen.append(own.pop(rng.integers(len(own))))
        if not own:
            del groups[publisher]
    return chosen


def _uniform(candidates: Sequence[ScoredRollout], count: int, rng: np.random.Generator) -> list[ScoredRollout]:
    """Draws uniformly without replacement."""
    drawn = rng.choice(len(candidates), size=min(count, len(candidates)), replace=False)
    return [candidates[i] for i in drawn]


def _top_reward(candidates: Sequence[ScoredRollout], count: int, rng: np.random.Generator) -> list[ScoredRollout]:
    """Takes the largest total scores; ties go by node id, then question, then arrival.

    Rollouts that scored nothing are never taken, so the result is empty if all are zero. The
    public code means the same but looks for the first zero in the unsorted list.
    """
    del rng
    totals = [(math.fsum(item.scores), item) for item in candidates]
    scoring = [(total, item) for total, item in totals if total > 0]
    scoring.sort(key=lambda pair: (-pair[0], pair[1].rollout.node_id, pair[1].task.question))
    return [item for _, item in scoring[:count]]


def _first(candidates: Sequence[ScoredRollout], count: int, rng: np.random.Generator) -> list[ScoredRollout]:
    """Takes the earliest arrivals, whatever they scored."""
    del rng
    return list(candidates[:count])


def _check_count(count: int) -> None:
    if count < 0:
        raise ValueError(f"count = {count} must be at least 0")


RULES: Mapping[str, Rule] = {
    "zero_adv_uniform": _zero_adv_uniform,
    "publisher_uniform": _publisher_uniform,
    "uniform": _uniform,
    "top_reward": _top_reward,
    "first": _first,
}
FAIR_RULES = ("publisher_uniform",)  # draw from every publisher alike, however much it sends
