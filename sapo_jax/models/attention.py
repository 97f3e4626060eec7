"""Softmax attention over one or two key sets, with grouped heads.

Letters: Q questions, G completions of one question, S prompt positions, C completion positions,
N = K * R query heads, K key/value heads, H head size. Scores and softmax are float32 or wider.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def causal(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns [B, S, N, H]: every position sees the valid positions up to itself.

    Args:
        q: [B, S, N, H]. k, v: [B, S, K, H].
        mask: [B, S] bool, which keys are real tokens.
    """
    grouped = _group(q, k.shape[-2])  # [B, S, K, R, H]
    length = q.shape[1]
    seen = jnp.tril(jnp.ones((length, length), bool))[None] & mask[:, None, :]
    # A padded query may see no key at all; letting it see itself keeps its softmax finite.
    seen = seen | jnp.eye(length, dtype=bool)[None]
    scores = _scores("bskrh,btkh->bkrst", grouped, k)
    scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return _ungroup(_mix("bkrst,btkh->bskrh", weights, v))


def shared_prompt(
    q: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    prompt_mask: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array,
) -> jax.Array:
    """Returns [Q, G, C, N, H]: completion positions see their question's prompt and their own past.

    The prompt's keys exist once per question and are read by all G completions. The softmax runs
    over both key sets together, so the result equals attention over their concatenation.

    Args:
        q: [Q, G, C, N, H] queries of completion positions.
        prompt_k, prompt_v: [Q, S, K, H]. prompt_mask: [Q, S] bool.
        k, v: [Q, G, E, K, H] keys and values of the completion itself (E = C, or the cache length).
        seen: [C, E] bool, which of them each position may see.
    """
    grouped = _group(q, k.shape[-2])  # [Q, G, C, K, R, H]
    far = _scores("qgckrh,qskh->qkrgcs", grouped, prompt_k)
    far = jnp.where(prompt_mask[:, None, None, None, None, :], far, -jnp.inf)
    near = _scores("qgckrh,qgekh->qkrgce", grouped, k)
    near = jnp.where(seen[None, None, None, None], near, -jnp.inf)
    # `initial`: a prompt of one token has no context at all.
    top = jnp.maximum(far.max(-1, keepdims=True, initial=-jnp.inf), near.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)  # the softmax does not depend on it
    far, near = jnp.exp(far - top), jnp.exp(near - top)
    total = far.sum(-1, keepdims=True) + near.sum(-1, keepdims=True)
    context = _mix("qkrgcs,qskh->qgckrh", (far / total).astype(v.dtype), prompt_v)
    context = context + _mix("qkrgce,qgekh->qgckrh", (near / total).astype(v.dtype), v)
    return _ungroup(context)


def _group(q: jax.Array, kv_heads: int) -> jax.Array:
    return q.reshape(*q.shape[:-2], kv_heads, q.shape[-2] // kv_heads, q.shape[-1])


def _ungroup(context: jax.Array) -> jax.Array:
    return context.reshape(*context.shape[:-3], context.shape[-3] * context.shape[-2], context.shape[-1])


def _scores(spec: str, q: jax.Array, k: jax.Array) -> jax.Array:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    return jnp.einsum(spec, q, k, preferred_element_type=wide) * (q.shape[-1] ** -0.5)


def _mix(spec: str, weights: jax.Array, v: jax.Array) -> jax.Array:
    wide = jnp.promote_types(v.dtype, jnp.float32)
    return jnp.einsum(spec, weights, v, preferred_element_type=wide).astype(v.dtype)
