"""The policy-gradient objective: clipped ratio, optional KL penalty, one shared denominator.

The objective is that of DAPO and of SAPO's public code: a two-sided clip with separate bounds, a
sum over tokens and no sequence weights. With one inner epoch the old log-probs are the current
ones, the ratio is 1 and the clip never acts: the update is then advantage-weighted log-likelihood.
"""

# jax leaves parts of its own signatures untyped:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from sapo_jax.algo.precision import to_reduction_dtype
from sapo_jax.algo.shapes import check_shapes

# A metric is (sum, count), so that micro-batches and nodes add up before the division.
MetricSums = dict[str, tuple[jax.Array, jax.Array]]

# exp(20) = 4.9e8 is far beyond any clip bound; past it float32 overflows into inf and then nan.
MAX_LOG_RATIO = 20.0

# Tokens below this probability count as rare: they carry most of the gradient's norm.
RARE_PROBABILITY = 1e-3


def log_ratios(logprobs: jax.Array, old_logprobs: jax.Array | None, loss_mask: jax.Array) -> jax.Array:
    """Returns log(pi / pi_old) per token, within +-MAX_LOG_RATIO and 0 where the mask is False.

    Args:
        logprobs: [..., C] float, under the parameters being differentiated.
        old_logprobs: [..., C] float, at the start of the update; None: taken at these very
            parameters, so the ratio is 1 while its gradient is that of `logprobs`.
        loss_mask: [..., C] bool.
    """
    check_shapes(logprobs=(logprobs, "... C"), old_logprobs=(old_logprobs, "... C"), loss_mask=(loss_mask, "... C"))
    logprobs = to_reduction_dtype(logprobs)
    old = logprobs if old_logprobs is None else to_reduction_dtype(old_logprobs)
    difference = jnp.where(loss_mask, logprobs - jax.lax.stop_gradient(old), 0)
    return jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_objective(
    logprobs: jax.Array,
    old_logprobs: jax.Array | None,
    advantages: jax.Array,
    loss_mask: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
) -> jax.Array:
    """Returns the objective of each token (to be maximized), 0 where the mask is False.

    min(x A, clip(x, 1 - clip_low, 1 + clip_high) A) with x = exp(logprobs - old_logprobs).

    Args:
        logprobs: [..., C] float, under the parameters being differentiated.
        old_logprobs: [..., C] float or None, see `log_ratios`.
        advantages: [...] float, one per completion; no gradient flows through it.
        loss_mask: [..., C] bool.
        clip_low: how far below 1 the ratio may fall before a negative advantage stops pushing.
        clip_high: how far above 1 it may rise before a positive advantage stops pushing.

    Reference:
        PPO, arXiv 1707.06347 eq. 7; separate bounds: DAPO, arXiv 2503.14476 section 3.1.
    """
    check_shapes(logprobs=(logprobs, "... C"), advantages=(advantages, "..."))
    ratio = jnp.exp(log_ratios(logprobs, old_logprobs, loss_mask))
    advantage = jax.lax.stop_gradient(to_reduction_dtype(advantages))[..., None].astype(ratio.dtype)  # [..., 1]
    objective = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)
    return jnp.where(loss_mask, objective, 0)


def kl_penalty(logprobs: jax.Array, ref_logprobs: jax.Array, loss_mask: jax.Array) -> jax.Array:
    """Returns a non-negative estimate of KL(pi || pi_ref) per token, 0 where the mask is False.

    exp(d) - d - 1 with d = ref_logprobs - logprobs, d within +-MAX_LOG_RATIO.

    Args:
        logprobs: [..., C] float, under the parameters being differentiated.
        ref_logprobs: [..., C] float, under the frozen reference; no gradient flows through it.
        loss_mask: [..., C] bool.

    Reference:
        The "k3" estimator as in GRPO, arXiv 2402.03300 eq. 4.
    """
    difference = -log_ratios(logprobs, ref_logprobs, loss_mask)
    return jnp.exp(difference) - difference - 1


def loss_denominator(
    loss_mask: jax.Array, completion_valid: jax.Array, *, normalizer: str, max_new_tokens: int
) -> jax.Array:
    """Returns what the summed token losses of a whole batch are divided by, at least 1.

    Computed once on the full batch and handed to every micro-batch, so that their losses and
    gradients add up to the full batch's.

    Args:
        loss_mask: [..., C] bool.
        completion_valid: [...] bool, False for rows that only fill up the batch.
        normalizer: `tokens`: the completion tokens of the batch (DAPO's token mean); `constant`:
            the valid rows times `max_new_tokens` (Dr. GRPO), free of any length bias.
        max_new_tokens: C's limit, in tokens; used by `constant` only.

    Returns:
        [] float32.

    Raises:
        ValueError: an unknown `normalizer`.
    """
    check_shapes(completion_valid=(completion_valid, "..."), loss_mask=(loss_mask, "... C"))
    if normalizer == "tokens":
        total = jnp.sum(loss_mask)
    elif normalizer == "constant":
        total = jnp.sum(completion_valid) * max_new_tokens
    else:
        raise ValueError(f"normalizer = {normalizer!r}: must be one of tokens, constant")
    return jnp.maximum(total, 1).astype(jnp.float32)


def policy_loss(
    logprobs: jax.Array,
    advantages: jax.Array,
    loss_mask: jax.Array,
    *,
    denominator: jax.typing.ArrayLike,
    clip_low: float,
    clip_high: float,
    old_logprobs: jax.Array | None = None,
    ref_logprobs: jax.Array | None = None,
    kl_coef: float = 0.0,
    entropies: jax.Array | None = None,
    external: jax.Array | None = None,
) -> tuple[jax.Array, MetricSums]:
    """Returns the loss of these rows (to be minimized) and what they add to each metric.

    loss = -sum over masked tokens of (clipped_objective - kl_coef * kl_penalty) / denominator.
    The losses of all micro-batches of a batch sum to the batch's loss.

    Args:
        logprobs: [..., C] float, under the parameters being differentiated.
        advantages: [...] float, one per completion.
        loss_mask: [..., C] bool, True on completion tokens that are trained, end token included.
        denominator: [] number, `loss_denominator` of the whole batch.
        clip_low: see `clipped_objective`.
        clip_high: see `clipped_objective`.
        old_logprobs: [..., C] float, or None on the first update of a batch: the ratio is then 1.
        ref_logprobs: [..., C] float, under the reference policy; needed when `kl_coef` is not 0.
        kl_coef: weight of the KL penalty.
        entropies: [..., C] float, of the policy at each token, in nats; None: not measured.
        external: [...] bool, True for completions of other nodes; None: all are this node's.

    Returns:
        The loss [] and the metrics as (sum, count), all float32 (float64 for float64 log-probs):
        `policy/ratio_mean`, `policy/clip_frac` (share of tokens whose gradient the clip removes),
        `policy/kl_to_old` (from the old policy to this one); `policy/own_logprob_mean`,
        `policy/own_rare_token_frac` and both for `external`; with `entropies`, `policy/entropy`
        over own tokens, the only ones it estimates the policy's entropy on, and
        `policy/external_entropy`; with `ref_logprobs`, `policy/kl_to_ref`.

    Raises:
        ValueError: `kl_coef` is not 0 and there are no `ref_logprobs`.
    """
    check_shapes(
        logprobs=(logprobs, "... C"),
        loss_mask=(loss_mask, "... C"),
        old_logprobs=(old_logprobs, "... C"),
        ref_logprobs=(ref_logprobs, "... C"),
        entropies=(entropies, "... C"),
        advantages=(advantages, "..."),
        external=(external, "..."),
        denominator=(denominator, ""),
    )
    if kl_coef != 0 and ref_logprobs is None:
        raise ValueError(f"kl_coef = {kl_coef} needs ref_logprobs")
    logprobs = to_reduction_dtype(logprobs)
    objective = clipped_objective(logprobs, old_logprobs, advantages, loss_mask, clip_low=clip_low, clip_high=clip_high)
    kl = None if ref_logprobs is None else kl_penalty(logprobs, ref_logprobs, loss_mask)
    if kl is not None:
        objective = objective - kl_coef * kl
    loss = -jnp.sum(objective) / jnp.asarray(denominator).astype(objective.dtype)

    own = loss_mask if external is None else loss_mask & ~external[..., None]
    foreign = jnp.zeros_like(loss_mask) if external is None else loss_mask & external[..., None]
    log_ratio = log_ratios(logprobs, old_logprobs, loss_mask)
    ratio, sign = jnp.exp(log_ratio), jnp.sign(advantages)[..., None]
    clipped = ((ratio > 1 + clip_high) & (sign > 0)) | ((ratio < 1 - clip_low) & (sign < 0))
    rare = logprobs < math.log(RARE_PROBABILITY)
    metrics = {
        "policy/ratio_mean": _masked_sum(ratio, loss_mask),
        "policy/clip_frac": _masked_sum(clipped, loss_mask),
        "policy/kl_to_old": _masked_sum(ratio - log_ratio - 1, loss_mask),
        "policy/own_logprob_mean": _masked_sum(logprobs, own),
        "policy/external_logprob_mean": _masked_sum(logprobs, foreign),
        "policy/own_rare_token_frac": _masked_sum(rare, own),
        "policy/external_rare_token_frac": _masked_sum(rare, foreign),
    }
    if kl is not None:
        metrics["policy/kl_to_ref"] = _masked_sum(kl, loss_mask)
    if entropies is not None:
        metrics["policy/entropy"] = _masked_sum(entropies, own)
        metrics["policy/external_entropy"] = _masked_sum(entropies, foreign)
    return loss, jax.lax.stop_gradient(metrics)


def _masked_sum(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of `values` where `mask` is True, and how many those are."""
    values = to_reduction_dtype(values)
    return jnp.sum(jnp.where(mask, values, 0)), jnp.sum(mask).astype(values.dtype)
