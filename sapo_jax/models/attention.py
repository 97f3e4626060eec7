"""Softmax attention over one or two key sets, with grouped heads.

Letters: Q questions, G completions of one question, S prompt positions, C completion positions,
N = K * R query heads, K key/value heads, H head size. Scores and softmax are float32 or wider.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sapo_jax.models.layers import accumulator, rows_of


class KeyValues(NamedTuple):
    """Keys, rotated, and values of one layer or of all; their shape is said where they are taken or returned."""

    k: jax.Array
    v: jax.Array


def causal(q: jax.Array, keys: KeyValues, mask: jax.Array) -> jax.Array:
    """Returns [B, S, N, H]: every position sees the valid positions up to itself.

    Args:
        q: [B, S, N, H].
        keys: k and v [B, K, S, H].
        mask: [B, S] bool, which keys are real tokens.
    """
    length = q.shape[1]
    seen = jnp.tril(jnp.ones((length, length), bool))[None] & mask[:, None, :]
    # A padded query may see no key at all; letting it see itself keeps its softmax finite.
    seen = seen | jnp.eye(length, dtype=bool)[None]
    grouped = _heads_first(q, keys.k.shape[1])  # [B, K, S, R, H]
    scores = _scores("bkxh,bkth->bkxt", _flat(grouped, 2), keys.k).reshape(*grouped.shape[:-1], length)
    scores = jnp.where(seen[:, None, :, None], scores, -jnp.inf)
    weights = jax.nn.softmax(rows_of(scores), axis=-1).astype(q.dtype).reshape(scores.shape)
    context = _mix("bkxt,bkth->bkxh", _flat(weights, 2), keys.v)
    return _positions_first(context.astype(q.dtype).reshape(grouped.shape))


def shared_prompt(
    q: jax.Array, prompt: KeyValues, prompt_mask: jax.Array, own: KeyValues, seen: jax.Array
) -> jax.Array:
    """Returns [Q, G, C, N, H]: completion positions see their question's prompt and their own past.

    The prompt's keys exist once per question and are read by all G completions. The softmax runs
    over both key sets together, so the result equals attention over their concatenation. Everything keeps the order
    question, head, completion, position, in which both products need no copy of their factors.

    Args:
        q: [Q, G, C, N, H] queries of completion positions.
        prompt: k and v [Q, K, S, H]. prompt_mask: [Q, S] bool.
        own: k and v [Q, K, G, E, H] of the completion itself (E = C, or the cache length).
        seen: [C, E] bool, which of them each position may see.
    """
    questions, g, c = q.shape[:3]
    grouped = _heads_first(q.reshape(questions, g * c, *q.shape[3:]), prompt.k.shape[1])  # [Q, K, G * C, R, H]
    rows = (*grouped.shape[:2], g, c, grouped.shape[3])  # (Q, K, G, C, R)
    far = _scores("qkxh,qksh->qkxs", _flat(grouped, 2), prompt.k)
    near = _scores("qkgxh,qkgeh->qkgxe", _flat(grouped.reshape(*rows, -1), 3), own.k)
    far = jnp.where(prompt_mask[:, None, None], far, -jnp.inf)
    near = jnp.where(jnp.repeat(seen, rows[-1], axis=0)[None, None, None], near, -jnp.inf)
    far_weights, near_weights, total = _softmax_parts(rows_of(far), rows_of(_flat(near, 2)))
    far, near = (x.astype(q.dtype) for x in (far_weights.reshape(far.shape), near_weights.reshape(near.shape)))
    context = rows_of(_mix("qkxs,qksh->qkxh", far, prompt.v))
    context = context + rows_of(_flat(_mix("qkgxe,qkgeh->qkgxh", near, own.v), 2))
    return _positions_first((context / total).astype(q.dtype).reshape(grouped.shape)).reshape(q.shape)


def _softmax_parts(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns unnormalized weights of scores a [..., S] and b [..., E] in one softmax, and their sum [..., 1]."""
    # `initial`: a prompt of one token has no context at all.
    top = jnp.maximum(a.max(-1, keepdims=True, initial=-jnp.inf), b.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)  # the softmax does not depend on it
    a, b = jnp.exp(a - top), jnp.exp(b - top)
    return a, b, a.sum(-1, keepdims=True) + b.sum(-1, keepdims=True)


def _heads_first(q: jax.Array, kv_heads: int) -> jax.Array:
    """Returns queries [B, S, N, H] as [B, K, S, R, H]."""
    b, s, n, h = q.shape
    return jnp.swapaxes(q.reshape(b, s, kv_heads, n // kv_heads, h), 1, 2)


def _positions_first(context: jax.Array) -> jax.Array:
    """Returns [B, K, S, R, H] as [B, S, N, H]."""
    b, k, s, r, h = context.shape
    return jnp.swapaxes(context, 1, 2).reshape(b, s, k * r, h)


def _flat(x: jax.Array, first: int) -> jax.Array:
    """Returns `x` with the axes from `first` to the last but one as one."""
    return x.reshape(*x.shape[:first], math.prod(x.shape[first:-1]), x.shape[-1])


def _scores(spec: str, q: jax.Array, k: jax.Array) -> jax.Array:
    wide = accumulator(q.dtype)
    return jnp.einsum(spec, q, k, preferred_element_type=wide) * (q.shape[-1] ** -0.5)


def _mix(spec: str, weights: jax.Array, v: jax.Array) -> jax.Array:
    wide = accumulator(v.dtype)
    return jnp.einsum(spec, weights, v, preferred_element_type=wide)
