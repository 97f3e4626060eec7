"""The decoder's three computations: plain forward, prompt prefill and decode, shared-prompt forward.

All are pure in `(params, arrays)` for one node and mapped over nodes by their callers. A prompt is
given as its context (all tokens but the last) and its last token, which opens every completion:
input c of a completion is the token before completion token c, so hidden state c predicts it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sapo_jax.models import attention
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params, bind
from sapo_jax.models.layers import Block, rope_angles


class KeyValues(NamedTuple):
    """Keys and values of all layers, rotated: each [L, ..., K, H]."""

    k: jax.Array
    v: jax.Array


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
) -> KeyValues:
    """Returns the keys and values [L, Q, S, K, H] of prompt contexts [Q, S]."""
    return _causal_blocks(config, params, tokens, positions, mask, dtype, collect=True)[1]


def empty_cache(config: DecoderConfig, rows: tuple[int, ...], length: int, dtype: jnp.dtype) -> KeyValues:
    """Returns a zero cache [L, *rows, length, K, H]."""
    shape = (config.layers, *rows, length, config.kv_heads, config.head_size)
    return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def decode_step(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    step: jax.Array,
    prompt: KeyValues,
    prompt_mask: jax.Array,
    cache: KeyValues,
) -> tuple[jax.Array, KeyValues]:
    """Returns logits [Q, G, V] after one more token of every completion, and the cache with it.

    Args:
        tokens, positions: [Q, G] int32. step: scalar int32, the same for all rows.
        prompt: [L, Q, S, K, H], shared by the G completions. prompt_mask: [Q, S] bool.
        cache: [L, Q, G, C, K, H]; slots before `step` are filled.
    """
    model = bind(config, params)
    angles = rope_angles(positions[..., None], config.head_size, config.rope_base)
    seen = (jnp.arange(cache.k.shape[3]) <= step)[None]  # [1, C]

    def body(block: Block, carry: tuple[jax.Array, KeyValues], layer: tuple) -> tuple:
        hidden, cache = carry
        index, prompt_k, prompt_v = layer

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeyValues]:
            updated = KeyValues(_write(cache.k, k, index, step), _write(cache.v, v, index, step))
            own_k = lax.dynamic_index_in_dim(updated.k, index, keepdims=False)
            own_v = lax.dynamic_index_in_dim(updated.v, index, keepdims=False)
            return attention.shared_prompt(q, prompt_k, prompt_v, prompt_mask, own_k, own_v, seen), updated

        return block(hidden, angles, attend), None

    hidden = model.embed_tokens(tokens, cache.k.dtype)[..., None, :]  # [Q, G, 1, D]
    layers = (jnp.arange(config.layers, dtype=jnp.int32), prompt.k, prompt.v)
    (hidden, cache), _ = model.scan_blocks(body, (hidden, cache), layers)
    return model.logits(hidden[..., 0, :]), cache


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

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        def own(x: jax.Array) -> jax.Array:
            return x[:, s:].reshape(q_count, g, c, *x.shape[2:])  # [Q, G, C, heads, H]

        prompt = attention.causal(q[:, :s], k[:, :s], v[:, :s], context_mask)
        completion = attention.shared_prompt(own(q), k[:, :s], v[:, :s], context_mask, own(k), own(v), seen)
        return jnp.concatenate([prompt, completion.reshape(q_count, g * c, *prompt.shape[2:])], axis=1), None

    def body(block: Block, hidden: jax.Array, _: None) -> tuple[jax.Array, None]:
        return block(hidden, angles, attend)

    hidden, _ = model.scan_blocks(body, model.embed_tokens(tokens, dtype), None, remat=remat)
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

    def body(block: Block, hidden: jax.Array, _: None) -> tuple[jax.Array, KeyValues | None]:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeyValues | None]:
            return attention.causal(q, k, v, mask), KeyValues(k, v) if collect else None

        return block(hidden, angles, attend)

    return model.scan_blocks(body, model.embed_tokens(tokens, dtype), None)


def _write(cache: jax.Array, rows: jax.Array, layer: jax.Array, step: jax.Array) -> jax.Array:
    """Returns `cache` [L, Q, G, C, K, H] with `rows` [Q, G, 1, K, H] at (layer, step)."""
    zero = jnp.zeros((), jnp.int32)
    return lax.dynamic_update_slice(cache, rows[None], (layer, zero, zero, step, zero, zero))
