"""The sampler: every prompt prefilled once, its cache read by G completions decoded together.

One loop serves all nodes: the node axis M lies inside its arrays, the step index is shared, and
the loop ends when every row of every node is done. (A `vmap` over the loop itself would copy the
whole carry each step.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sapo_jax.algo.logprobs import token_logprobs
from sapo_jax.algo.shapes import check_shapes
from sapo_jax.models import forward
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params
from sapo_jax.sampling.draw import draw
from sapo_jax.sampling.warp import warp

GREEDY = 0.0  # the temperature that asks for the likeliest token


Array = Any  # numpy where the host makes it, jax on the device


class Prompts(NamedTuple):
    """Left-padded prompts: tokens [M, Q, P] int32, mask [M, Q, P] bool, positions [M, Q, P] int32."""

    tokens: Array
    mask: Array
    positions: Array


class Samples(NamedTuple):
    """What the sampler drew.

    tokens [M, Q, G, C] int32 right-padded, end token included; lengths [M, Q, G] int32;
    stopped [M, Q, G] bool, the end token was drawn (else the limit cut it); logprobs
    [M, Q, G, C] float32 of the drawn tokens after temperature, before truncation, 0 past the length.
    """

    tokens: jax.Array
    lengths: jax.Array
    stopped: jax.Array
    logprobs: jax.Array


class _Loop(NamedTuple):
    step: jax.Array
    keys: jax.Array  # [M]
    token: jax.Array  # [M, Q, G] the input of the next step
    done: jax.Array  # [M, Q, G]
    cache: forward.KeyValues  # [L, M, Q, G, C, K, H]
    samples: Samples


def sample(
    config: DecoderConfig,
    params: Params,
    prompts: Prompts,
    seeds: jax.Array,
    temperature: jax.Array,
    *,
    end_id: int,
    group_size: int,
    max_new_tokens: int,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    dtype: jnp.dtype = jnp.float32,
) -> Samples:
    """Returns `group_size` completions of every prompt of every node.

    Args:
        params: leaves [M, ...].
        prompts: the questions; every prompt holds at least one token.
        seeds: [M] uint32, one per node; equal seeds and arrays give equal samples.
        temperature: scalar float32; `GREEDY` takes the likeliest token each time.
        end_id: the token that ends a completion; nothing else does but the limit.
        max_new_tokens: C.
        top_k, top_p, min_p: see `warp`.
        dtype: of activations and caches.
    """
    sizes = check_shapes(
        tokens=(prompts.tokens, "M Q P"),
        mask=(prompts.mask, "M Q P"),
        positions=(prompts.positions, "M Q P"),
        seeds=(seeds, "M"),
        temperature=(temperature, ""),
    )
    nodes, questions = sizes["M"], sizes["Q"]
    rows = (nodes, questions, group_size)
    params, axes = _layers_first(params)
    context_mask = prompts.mask[..., :-1]
    prompt_cache = jax.vmap(
        lambda p, t, s, m: forward.prefill(config, p, t, s, m, dtype=dtype), in_axes=(axes, 0, 0, 0), out_axes=1
    )(params, prompts.tokens[..., :-1], prompts.positions[..., :-1], context_mask)
    last_position = prompts.positions[..., -1, None]  # [M, Q, 1]
    decode_step = jax.vmap(
        lambda *args: forward.decode_step(config, *args), in_axes=(axes, 0, 0, None, 1, 0, 1), out_axes=(0, 1)
    )

    def unfinished(loop: _Loop) -> jax.Array:
        return (loop.step < max_new_tokens) & ~jnp.all(loop.done)

    def advance(loop: _Loop) -> _Loop:
        positions = jnp.broadcast_to(last_position + loop.step, rows)
        logits, cache = decode_step(params, loop.token, positions, loop.step, prompt_cache, context_mask, loop.cache)
        scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
        split = jax.vmap(jax.random.split)(loop.keys)  # [M, 2]
        uniforms = jax.vmap(lambda key: jax.random.uniform(key, (questions, group_size, 2)))(split[:, 1])
        drawn = lax.cond(
            temperature > 0,
            lambda: draw(warp(scaled, top_k=top_k, top_p=top_p, min_p=min_p), uniforms),
            lambda: jnp.argmax(scaled, axis=-1).astype(jnp.int32),
        )
        logprobs = token_logprobs(scaled, drawn).astype(jnp.float32)
        alive = ~loop.done
        ended = alive & (drawn == end_id)
        old = loop.samples
        samples = Samples(
            tokens=_put(old.tokens, jnp.where(alive, drawn, end_id), loop.step),
            lengths=old.lengths + alive,
            stopped=old.stopped | ended,
            logprobs=_put(old.logprobs, jnp.where(alive, logprobs, 0), loop.step),
        )
        return _Loop(loop.step + 1, split[:, 0], drawn, loop.done | ended, cache, samples)

    start = _Loop(
        step=jnp.zeros((), jnp.int32),
        keys=jax.vmap(jax.random.key)(seeds),
        token=jnp.broadcast_to(prompts.tokens[..., -1, None], rows),
        done=jnp.zeros(rows, bool),
        cache=forward.empty_cache(config, rows, max_new_tokens, dtype),
        samples=Samples(
            tokens=jnp.full((*rows, max_new_tokens), end_id, jnp.int32),
            lengths=jnp.zeros(rows, jnp.int32),
            stopped=jnp.zeros(rows, bool),
            logprobs=jnp.zeros((*rows, max_new_tokens), jnp.float32),
        ),
    )
    return lax.while_loop(unfinished, advance, start).samples


def _layers_first(params: Params) -> tuple[Params, dict[str, Any]]:
    """Returns params with stacked leaves as [L, M, ...], and the node axis of each part.

    Scanning layers of [M, L, ...] leaves would move the layer axis to the front in every decode
    step; this does it once a call.
    """
    blocks = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), params["blocks"])
    return params | {"blocks": blocks}, {name: 1 if name == "blocks" else 0 for name in params}


def _put(rows: jax.Array, column: jax.Array, step: jax.Array) -> jax.Array:
    """Returns `rows` [..., C] with `column` [...] at index `step`."""
    return lax.dynamic_update_slice_in_dim(rows, column[..., None], step, axis=rows.ndim - 1)
