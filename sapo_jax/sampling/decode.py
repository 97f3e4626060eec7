"""The sampler: every prompt prefilled once, its cache read by G completions decoded together.

One loop serves all nodes: the node axis M lies inside its arrays, the step index is shared, and
the loop ends when every row of every node is done. (A `vmap` over the loop itself would copy the
whole carry each step.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sapo_jax.algo.shapes import check_shapes
from sapo_jax.lengths import completion_buckets
from sapo_jax.models import forward
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.attention import KeyValues
from sapo_jax.models.decoder import Params
from sapo_jax.models.decoding import prepare_decoding
from sapo_jax.models.layers import rope_angles, trailing
from sapo_jax.sampling.draw import draw, weigh
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
    keys: jax.Array  # [M], or one; so with all M below
    token: jax.Array  # [M, Q, G] the input of the next step
    done: jax.Array  # [M, Q, G]
    cache: list[KeyValues]  # of each layer, see `forward.empty_cache`
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
    draw_all = partial(
        _sample,
        config,
        temperature=temperature,
        end_id=end_id,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        truncate=partial(warp, top_k=top_k, top_p=top_p, min_p=min_p) if top_k or top_p < 1 or min_p else None,
        dtype=dtype,
    )
    if sizes["M"] > 1:
        return draw_all(params, prompts, seeds, each=jax.vmap)
    # Without its axis: around an axis of size 1 XLA's CPU back end copies the whole cache in every step.
    single = jax.tree.map(lambda x: x[0], (params, prompts, seeds))
    return jax.tree.map(lambda x: x[None], draw_all(*single, each=lambda function: function))


def _sample(
    config: DecoderConfig,
    params: Params,
    prompts: Prompts,
    seeds: jax.Array,
    *,
    each: Callable[[Callable[..., Any]], Callable[..., Any]],
    temperature: jax.Array,
    end_id: int,
    group_size: int,
    max_new_tokens: int,
    truncate: Callable[[jax.Array], jax.Array] | None,
    dtype: jnp.dtype,
) -> Samples:
    """Returns what `sample` does; `each` maps a function over the node axis, if there is one."""
    rows = (*prompts.tokens.shape[:-1], group_size)  # ([M,] Q, G), which stand before every other axis

    @each
    def prepare(params: Params, prompts: Prompts) -> tuple[Params, list[Params], list[KeyValues]]:
        context = prompts.tokens[:, :-1], prompts.positions[:, :-1], prompts.mask[:, :-1]
        return *prepare_decoding(config, params, dtype), forward.prefill(config, params, *context, dtype=dtype)

    params, layers, prompt_cache = prepare(params, prompts)
    context_mask = prompts.mask[..., :-1]
    # Of all steps, before the first: in a step, XLA would take the cosines anew in every layer that uses them.
    positions = prompts.positions[..., -1:] + trailing(jnp.arange(max_new_tokens), prompts.tokens.ndim)
    all_angles = rope_angles(positions, config.head_size, config.rope_base)  # each [[M,] Q, C, H / 2]

    def unfinished(slots: int, loop: _Loop) -> jax.Array:
        return (loop.step < slots) & ~jnp.all(loop.done)

    def advance(loop: _Loop) -> _Loop:
        @each
        def decode(
            params: Params,
            layers: list[Params],
            token: jax.Array,
            angles: tuple[jax.Array, jax.Array],
            prompt_cache: list[KeyValues],
            context_mask: jax.Array,
            cache: list[KeyValues],
        ) -> tuple[jax.Array, list[KeyValues]]:
            return forward.decode_step(
                config, params, layers, token, angles, loop.step, prompt_cache, context_mask, cache, dtype=dtype
            )

        angles = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, loop.step, 1, axis=x.ndim - 2), all_angles)
        logits, cache = decode(params, layers, loop.token, angles, prompt_cache, context_mask, loop.cache)
        split = each(jax.random.split)(loop.keys)  # [[M,] 2]
        uniforms = each(lambda key: jax.random.uniform(key, (*rows[-2:], 2)))(split[..., 1])
        top = jnp.max(logits, axis=-1, keepdims=True)
        divisor = jnp.where(temperature > 0, temperature, 1.0)

        def scaled() -> jax.Array:
            return (logits - top) / divisor  # 0 for the likeliest token, which is never truncated

        weights = weigh(scaled())
        if truncate is None:
            random = draw(weights, uniforms)  # outside of the branch, where its exponentials are the log-probs', too
            drawn = lax.cond(temperature > 0, lambda: random, lambda: _likeliest(logits))
        else:
            cut = truncate
            drawn = lax.cond(temperature > 0, lambda: draw(weigh(cut(scaled())), uniforms), lambda: _likeliest(logits))
        total = jnp.sum(weights.blocks, axis=-1)
        logprobs = (jnp.take_along_axis(logits, drawn[..., None], axis=-1) - top)[..., 0] / divisor - jnp.log(total)
        alive = ~loop.done
        ended = alive & (drawn == end_id)
        old = loop.samples
        samples = Samples(
            tokens=_put(old.tokens, jnp.where(alive, drawn, end_id), loop.step),
            lengths=old.lengths + alive,
            stopped=old.stopped | ended,
            logprobs=_put(old.logprobs, jnp.where(alive, logprobs, 0), loop.step),
        )
        return _Loop(loop.step + 1, split[..., 0], drawn, loop.done | ended, cache, samples)

    loop = _Loop(
        step=jnp.zeros((), jnp.int32),
        keys=each(jax.random.key)(seeds),
        token=jnp.broadcast_to(prompts.tokens[..., -1:], rows),
        done=jnp.zeros(rows, bool),
        cache=forward.empty_cache(config, rows, 0, dtype),
        samples=Samples(
            tokens=jnp.full((*rows, max_new_tokens), end_id, jnp.int32),
            lengths=jnp.zeros(rows, jnp.int32),
            stopped=jnp.zeros(rows, bool),
            logprobs=jnp.zeros((*rows, max_new_tokens), jnp.float32),
        ),
    )
    for slots in completion_buckets(max_new_tokens):  # a step reads the whole cache, so it grows from loop to loop
        loop = loop._replace(cache=forward.grow_cache(loop.cache, slots))
        loop = lax.while_loop(partial(unfinished, slots), advance, loop)
    return loop.samples


def _likeliest(logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _put(rows: jax.Array, column: jax.Array, step: jax.Array) -> jax.Array:
    """Returns `rows` [..., C] with `column` [...] at index `step`."""
    return lax.dynamic_update_slice_in_dim(rows, column[..., None], step, axis=rows.ndim - 1)
