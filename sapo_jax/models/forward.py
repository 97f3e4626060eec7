"""The decoder's three computations: plain forward, prompt prefill and decode, shared-prompt forward.

All are pure in `(params, arrays)` for one node and mapped over nodes by their callers. A prompt is
given as its context (all tokens but the last) and its last token, which opens every completion:
input c of a completion is the token before completion token c, so hidden state c predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sapo_jax.models import attention
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.attention import KeyValues
from sapo_jax.models.decoder import Params, bind
from sapo_jax.models.decoding import bind_decoding
from sapo_jax.models.layers import Block, accumulator, rope_angles
from sapo_jax.models.slots import write_slot


def forward(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    *,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Returns [B, T, V] logits of whole sequences, padded on either side.

    Args:
        tokens: [B, T] int32. positions: [B, T] int32. mask: [B, T] bool, real tokens.
    """
    hidden, _ = _causal_blocks(config, params, tokens, positions, mask, dtype, collect=False)
    return bind(config, params).logits(hidden)


def prefill(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    *,
    dtype: jnp.dtype = jnp.float32,
) -> list[KeyValues]:
    """Returns each layer's keys and values [Q, K, S, H] of prompt contexts [Q, S]."""
    k, v = _causal_blocks(config, params, tokens, positions, mask, dtype, collect=True)[1]  # [L, Q, K, S, H]
    return [KeyValues(k[layer], v[layer]) for layer in range(config.layers)]


def empty_cache(config: DecoderConfig, rows: tuple[int, ...], length: int, dtype: jnp.dtype) -> list[KeyValues]:
    """Returns the zero cache of each layer: k [..., Q, K, G, H, length], v [..., Q, K, G, length, H].

    It holds numbers of `dtype`. On a CPU they lie in float32: XLA's back end there has no bfloat16 updates of slices
    and would widen the whole cache in every step.
    """
    if jax.default_backend() == "cpu":
        dtype = accumulator(dtype)
    v = jnp.zeros((*rows[:-1], config.kv_heads, rows[-1], length, config.head_size), dtype)
    return [KeyValues(v.mT, v)] * config.layers


def grow_cache(cache: Sequence[KeyValues], length: int) -> list[KeyValues]:
    """Returns what `empty_cache` would with more slots, the first of them as in `cache`."""

    def padded(slots: jax.Array, axis: int) -> jax.Array:
        added = [(0, 0)] * slots.ndim
        added[axis] = (0, length - slots.shape[axis])
        return jnp.pad(slots, added)

    return [KeyValues(padded(layer.k, -1), padded(layer.v, -2)) for layer in cache]


def decode_step(
    config: DecoderConfig,
    params: Params,
    layers: Sequence[Params],
    tokens: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    step: jax.Array,
    prompt: Sequence[KeyValues],
    prompt_mask: jax.Array,
    cache: Sequence[KeyValues],
    *,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[jax.Array, list[KeyValues]]:
    """Returns logits [Q, G, V] after one more token of every completion, and the cache with it.

    Layers are spelled out, not scanned: a scan would copy every layer's weights and cache out of their stacks in every
    step, which costs a third of it on a CPU.

    Args:
        params, layers: see `prepare_decoding`.
        tokens: [Q, G] int32. step: scalar int32, the same for all rows.
        angles: of the new position, each [Q, 1, H / 2], see `rope_angles`.
        prompt: of each layer k and v [Q, K, S, H], shared by the G completions. prompt_mask: [Q, S] bool.
        cache: see `empty_cache`; slots before `step` are filled.
        dtype: of activations.
    """
    model, blocks = bind_decoding(config, params, layers)
    cosine, sine = angles
    of_completions = cosine[:, None], sine[:, None]  # [Q, 1, 1, H / 2]
    seen = jnp.arange(cache[0].v.shape[-2]) <= step
    hidden = model.embed_tokens(tokens, dtype)[..., None, :]  # [Q, G, 1, D]
    extended: list[KeyValues] = []
    for block, far, near in zip(blocks, prompt, cache, strict=True):
        attend = partial(_extend_and_attend, step=step, prompt=far, prompt_mask=prompt_mask, cache=near, seen=seen)
        hidden, near = block(hidden, of_completions, attend)
        extended.append(near)
    return model.logits(hidden[..., 0, :]), extended


def _extend_and_attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    step: jax.Array,
    prompt: KeyValues,
    prompt_mask: jax.Array,
    cache: KeyValues,
    seen: jax.Array,
) -> tuple[jax.Array, KeyValues]:
    """Returns the context [Q, G, 1, N, H] of the new position, and the layer's cache with it in slot `step`."""
    cache = KeyValues(
        write_slot(cache.k, jnp.moveaxis(k, (1, 2), (2, 4)), step, axis=-1),
        write_slot(cache.v, jnp.moveaxis(v, (1, 2), (2, 3)), step, axis=-2),
    )
    return attention.shared_prompt(q, prompt, prompt_mask, KeyValues(cache.k.mT, cache.v), seen[None]), cache


def shared_prompt_hidden(
    config: DecoderConfig,
    params: Params,
    context: jax.Array,
    context_positions: jax.Array,
    context_mask: jax.Array,
    inputs: jax.Array,
    input_positions: jax.Array,
    *,
    dtype: jnp.dtype = jnp.float32,
    remat: bool = False,
) -> jax.Array:
    """Returns [Q, G, C, D] hidden states of completion positions, each prompt computed once.

    Prompt and completions of a question travel as one packed stream of S + G * C positions, so
    every projection is one product; only attention tells them apart. Equal to `forward` on the
    G concatenated sequences, at 1 / G of the prompt's work.

    Args:
        context, context_positions, context_mask: [Q, S] prompts without their last token.
        inputs, input_positions: [Q, G, C] the last prompt token, then completion tokens 0 .. C - 2.
    """
    model = bind(config, params)
    q_count, s = context.shape
    _, g, c = inputs.shape
    tokens = jnp.concatenate([context, inputs.reshape(q_count, g * c)], axis=1)  # [Q, S + G * C]
    positions = jnp.concatenate([context_positions, input_positions.reshape(q_count, g * c)], axis=1)
    angles = rope_angles(positions, config.head_size, config.rope_base)
    seen = jnp.tril(jnp.ones((c, c), bool))

    def split(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        # Not by slices: the gradient of those pads each part to the whole before it adds them.
        of_context, own = jax.lax.split(x, (s, g * c), axis)
        return of_context, own.reshape(*x.shape[:axis], g, c, *x.shape[axis + 1 :])

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        context_q, own_q = split(q, 1)  # [Q, S, N, H], [Q, G, C, N, H]
        context_k, own_k = split(jnp.swapaxes(k, 1, 2), 2)  # [Q, K, S, H], [Q, K, G, C, H]
        context_v, own_v = split(jnp.swapaxes(v, 1, 2), 2)
        context_keys = KeyValues(context_k, context_v)
        prompt = attention.causal(context_q, context_keys, context_mask)
        completion = attention.shared_prompt(own_q, context_keys, context_mask, KeyValues(own_k, own_v), seen)
        return jnp.concatenate([prompt, completion.reshape(q_count, g * c, *prompt.shape[2:])], axis=1), None

    def body(block: Block, hidden: jax.Array) -> tuple[jax.Array, None]:
        return block(hidden, angles, attend)

    hidden, _ = model.scan_blocks(body, model.embed_tokens(tokens, dtype), remat=remat)
    return hidden[:, s:].reshape(q_count, g, c, -1)


def _causal_blocks(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    dtype: jnp.dtype,
    *,
    collect: bool,
) -> tuple[jax.Array, Any]:
    model = bind(config, params)
    angles = rope_angles(positions, config.head_size, config.rope_base)

    def body(block: Block, hidden: jax.Array) -> tuple[jax.Array, KeyValues | None]:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeyValues | None]:
            keys = KeyValues(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))
            return attention.causal(q, keys, mask), keys if collect else None

        return block(hidden, angles, attend)

    return model.scan_blocks(body, model.embed_tokens(tokens, dtype))
