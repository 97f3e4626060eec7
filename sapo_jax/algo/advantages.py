"""Group-relative advantages: one number per completion, from rewards alone.

The baseline is the mean reward of the completion's own group (never a learned value), and groups
are never mixed: a group is one question answered by one node.
"""

# jax leaves parts of its own signatures untyped:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import jax
import jax.numpy as jnp

from sapo_jax.algo.precision import to_reduction_dtype
from sapo_jax.algo.shapes import check_shapes


def group_advantages(
    rewards: jax.Array,
    completion_valid: jax.Array | None = None,
    *,
    use_std: bool,
    std_floor: float = 0.0,
    epsilon: float = 1e-8,
) -> jax.Array:
    """Returns how much better each completion did than its group.

    A_i = r_i - mean(r), divided by max(std(r), std_floor) + epsilon when `use_std`; mean and std
    run over the valid completions of a group, std with the G - 1 denominator.

    Args:
        rewards: [Q, G] float.
        completion_valid: [Q, G] bool, False where a group is shorter than G; None: all are there.
        use_std: divide by the group's standard deviation (GRPO) or not (Dr. GRPO).
        std_floor: lower bound of that deviation, in reward units. It keeps differences of a few
            hundredths, which some verifiers pay for format alone, from counting like a solution.
        epsilon: added to the deviation.

    Returns:
        [Q, G] float32 (float64 for float64 rewards). Exactly zero for completions that are not
        valid, for groups with fewer than two valid ones, and for groups of equal rewards.

    Reference:
        GRPO, arXiv 2402.03300 section 4.1; without std: Dr. GRPO, arXiv 2503.20783.
    """
    check_shapes(rewards=(rewards, "Q G"), completion_valid=(completion_valid, "Q G"))
    rewards = to_reduction_dtype(rewards)
    valid = jnp.ones(rewards.shape, bool) if completion_valid is None else jnp.asarray(completion_valid, bool)
    count = jnp.sum(valid, axis=1, keepdims=True).astype(rewards.dtype)  # [Q, 1]
    mean = jnp.sum(jnp.where(valid, rewards, 0), axis=1, keepdims=True) / jnp.maximum(count, 1)
    advantages = jnp.where(valid, rewards - mean, 0)
    if use_std:
        variance = jnp.sum(advantages**2, axis=1, keepdims=True) / jnp.maximum(count - 1, 1)
        advantages = advantages / (jnp.maximum(jnp.sqrt(variance), std_floor) + epsilon)
    # The float mean of equal rewards can miss them by one rounding, and epsilon would blow that
    # up to a visible advantage: equality is decided on the rewards themselves.
    highest = jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=1, keepdims=True)
    lowest = jnp.min(jnp.where(valid, rewards, jnp.inf), axis=1, keepdims=True)
    return jnp.where((highest == lowest) | (count < 2), 0, advantages)


def drop_truncated_positives(advantages: jax.Array, truncated: jax.Array) -> jax.Array:
    """Returns `advantages` with positive values of truncated completions set to zero.

    A text cut by the token limit carries no end token, so praising it would teach not to stop.

    Args:
        advantages: [Q, G] float.
        truncated: [Q, G] bool, True where the finish reason is the length limit.
    """
    check_shapes(advantages=(advantages, "Q G"), truncated=(truncated, "Q G"))
    return jnp.where(truncated, jnp.minimum(advantages, 0), advantages)


def informative_groups(advantages: jax.Array) -> jax.Array:
    """Returns which groups [Q] bool have any non-zero advantage in `advantages` [Q, G]."""
    check_shapes(advantages=(advantages, "Q G"))
    return jnp.any(advantages != 0, axis=1)
