"""One update of one node: `(state, batch) -> (state, metrics)`, pure, to be jitted and mapped over nodes.

Every prompt is computed once and shared by its G completions; micro-batches are cut by groups and
share the whole batch's denominator, so cutting changes memory and nothing else.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sapo_jax.algo.advantages import drop_truncated_positives, group_advantages, informative_groups
from sapo_jax.algo.logprobs import chunked_token_logprobs
from sapo_jax.algo.losses import MetricSums, loss_denominator, policy_loss
from sapo_jax.algo.shapes import check_shapes
from sapo_jax.config import LearnerConfig
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params, bind
from sapo_jax.models.forward import shared_prompt_hidden

Array = Any  # numpy where the host makes it, jax on the device


class TrainState(NamedTuple):
    """What an update changes: float32 master parameters, optimizer moments, updates applied [] int32."""

    params: Params
    opt_state: Any
    updates: jax.Array


class Batch(NamedTuple):
    """The training set of one update: I own and up to J external groups, padded to fixed shapes.

    prompt_tokens, prompt_positions [Q, P] int32 and prompt_mask [Q, P] bool, left-padded;
    completion_tokens [Q, G, C] int32 right-padded, end token included; completion_mask [Q, G, C]
    bool; rewards [Q, G] float32; valid [Q, G] bool, False for rows that only fill the shape;
    truncated [Q, G] bool, cut by the token limit; external [Q] bool.
    """

    prompt_tokens: Array
    prompt_positions: Array
    prompt_mask: Array
    completion_tokens: Array
    completion_mask: Array
    rewards: Array
    valid: Array
    truncated: Array
    external: Array


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state of a node that has not learned yet."""
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def batch_logprobs(
    model: DecoderConfig,
    params: Params,
    batch: Batch,
    *,
    temperature: float,
    logit_chunk_tokens: int,
    dtype: jnp.dtype = jnp.float32,
    remat: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns log-probs and entropies [Q, G, C] of the completion tokens under `params`."""
    sizes = check_shapes(
        prompt_tokens=(batch.prompt_tokens, "Q P"),
        prompt_positions=(batch.prompt_positions, "Q P"),
        prompt_mask=(batch.prompt_mask, "Q P"),
        completion_tokens=(batch.completion_tokens, "Q G C"),
        completion_mask=(batch.completion_mask, "Q G C"),
    )
    shape = (sizes["Q"], sizes["G"], sizes["C"])
    # Completion token c is predicted from the token before it: the prompt's last one opens the row.
    first = jnp.broadcast_to(batch.prompt_tokens[:, -1:, None], (*shape[:2], 1))
    inputs = jnp.concatenate([first, batch.completion_tokens[..., :-1]], axis=-1)  # [Q, G, C]
    offsets = jnp.arange(shape[2], dtype=batch.prompt_positions.dtype)[None, None]
    positions = jnp.broadcast_to(batch.prompt_positions[:, -1, None, None] + offsets, shape)
    hidden = shared_prompt_hidden(
        model,
        params,
        batch.prompt_tokens[:, :-1],
        batch.prompt_positions[:, :-1],
        batch.prompt_mask[:, :-1],
        inputs,
        positions,
        dtype=dtype,
        remat=remat,
    )
    logprobs, entropies = chunked_token_logprobs(
        bind(model, params).logits,
        hidden.reshape(-1, hidden.shape[-1]),  # [Q * G * C, D]
        batch.completion_tokens.reshape(-1),
        chunk=logit_chunk_tokens,
        temperature=temperature,
    )
    return logprobs.reshape(shape), entropies.reshape(shape)


def advantages_of(batch: Batch, settings: LearnerConfig) -> jax.Array:
    """Returns the advantage [Q, G] float32 of every completion; fillers get zero."""
    advantages = group_advantages(
        batch.rewards, batch.valid, use_std=settings.advantage_std, std_floor=settings.advantage_std_floor
    )
    return advantages if settings.allow_truncated_positive else drop_truncated_positives(advantages, batch.truncated)


def update(
    state: TrainState,
    batch: Batch,
    reference: Params | None,
    *,
    model: DecoderConfig,
    settings: LearnerConfig,
    optimizer: optax.GradientTransformation,
    temperature: float,
    max_new_tokens: int,
    dtype: jnp.dtype = jnp.float32,
    advantages: jax.Array | None = None,
) -> tuple[TrainState, MetricSums]:
    """Returns the state after `settings.inner_epochs` steps on `batch`, and metrics as (sum, count).

    Args:
        reference: parameters of the KL penalty's reference; needed when `settings.kl_coef` > 0.
        temperature: of the sampler; log-probs are those of the tempered distribution.
        max_new_tokens: the sampler's limit; completions of a round that were all shorter are padded to less.
        advantages: [Q, G] to be used instead of group-relative ones (supervised steps: all one).

    A micro-batch without any advantage has no gradient and is left out (unless the KL penalty gives
    it one; with several nodes in one call it is computed and ignored). `policy/*` metrics are means
    over the micro-batches that count. A step whose gradient is not
    finite changes nothing and counts in `learner/skipped_updates_frac`. The first step's log-probs
    are the old ones of all others, so its ratios are 1 exactly.
    """
    if advantages is None:
        advantages = advantages_of(batch, settings)
    informative = informative_groups(advantages)
    score = partial(
        batch_logprobs,
        model,
        temperature=temperature,
        logit_chunk_tokens=settings.logit_chunk_tokens,
        dtype=dtype,
    )
    context, (questions, group_size, completion) = batch.prompt_tokens.shape[1] - 1, batch.completion_tokens.shape
    micro_groups = settings.groups_per_pass(questions, context + group_size * completion)
    rows = _Rows(batch, advantages, None, None)
    # Every n-th group in one pass, [n, m, ...] with n = Q / m: groups that a mesh has divided stay divided in each.
    micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(micro_groups, -1, *x.shape[1:]), 0, 1), rows)
    if settings.kl_coef > 0:
        assert reference is not None, "a KL penalty needs reference parameters"
        micro = micro._replace(ref_logprobs=jax.lax.map(lambda part: score(reference, part.batch)[0], micro))
    denominator = loss_denominator(
        batch.completion_mask,
        batch.valid,
        normalizer=settings.loss_normalizer,
        max_new_tokens=max_new_tokens,
    )

    def loss(params: Params, part: _Rows) -> tuple[jax.Array, tuple[MetricSums, jax.Array]]:
        logprobs, entropies = score(params, part.batch, remat=settings.remat)
        total, metrics = policy_loss(
            logprobs,
            part.advantages,
            part.batch.completion_mask,
            denominator=denominator,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            old_logprobs=part.old_logprobs,
            ref_logprobs=part.ref_logprobs,
            kl_coef=settings.kl_coef,
            entropies=entropies,
            external=jnp.broadcast_to(part.batch.external[:, None], part.advantages.shape),
        )
        return total, (metrics, jax.lax.stop_gradient(logprobs))

    def epoch(state: TrainState, micro: _Rows) -> tuple[TrainState, MetricSums, jax.Array]:
        gradients, metrics, logprobs = _accumulate(loss, state.params, micro, always=settings.kl_coef > 0)
        return *_apply(state, gradients, metrics, optimizer), logprobs

    state, metrics, old_logprobs = epoch(state, micro)
    if settings.inner_epochs > 1:
        again = micro._replace(old_logprobs=old_logprobs)
        state, more = jax.lax.scan(lambda state, _: epoch(state, again)[:2], state, None, settings.inner_epochs - 1)
        metrics = jax.tree.map(lambda first, others: first + others.sum(axis=0), metrics, more)
    present = jnp.any(batch.valid, axis=1)
    metrics["groups/informative_frac"] = _pair(jnp.sum(informative & present), jnp.sum(present))
    return state, metrics


class _Rows(NamedTuple):
    batch: Batch
    advantages: jax.Array
    old_logprobs: jax.Array | None
    ref_logprobs: jax.Array | None


def _accumulate(loss: Any, params: Params, micro: _Rows, *, always: bool) -> tuple[Params, MetricSums, jax.Array]:
    """Returns gradients and metrics summed over the micro-batches [n, m, ...], and log-probs [n, m, G, C].

    Those of a micro-batch that is left out are zero.
    """
    _, shapes = jax.eval_shape(loss, params, jax.tree.map(lambda x: x[0], micro))
    no_metrics, no_logprobs = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: tuple[Params, MetricSums], part: _Rows) -> tuple[tuple[Params, MetricSums], jax.Array]:
        def learn() -> tuple[tuple[Params, MetricSums], jax.Array]:
            gradients, (metrics, logprobs) = jax.grad(loss, has_aux=True)(params, part)
            return jax.tree.map(jnp.add, total, (gradients, metrics)), logprobs

        needed = jnp.any(part.advantages != 0) | always
        return jax.lax.cond(needed, learn, lambda: (total, no_logprobs))

    zeros = jax.tree.map(jnp.zeros_like, params), no_metrics
    (gradients, metrics), logprobs = jax.lax.scan(add, zeros, micro)
    return gradients, metrics, logprobs


def _apply(
    state: TrainState, gradients: Params, metrics: MetricSums, optimizer: optax.GradientTransformation
) -> tuple[TrainState, MetricSums]:
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    candidate = TrainState(params, opt_state, state.updates + 1)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), candidate, state)
    metrics = metrics | {
        "learner/grad_norm": _pair(jnp.where(finite, norm, 0), finite),
        "learner/skipped_updates_frac": _pair(~finite, 1),
    }
    return state, metrics


def _pair(total: jax.typing.ArrayLike, count: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(total, jnp.float32), jnp.asarray(count, jnp.float32)
