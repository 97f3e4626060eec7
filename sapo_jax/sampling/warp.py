"""Truncation of the sampling distribution: top-k, top-p and min-p, as masks on logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def warp(logits: jax.Array, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> jax.Array:
    """Returns `logits` with the tokens that must not be drawn at -inf.

    Applied in the order top-k, top-p, min-p, each on what the one before left; the likeliest token
    always stays. Ties with the last token kept by top-k or top-p are kept too.

    Args:
        logits: [..., V] float, after temperature.
        top_k: how many of the likeliest tokens stay; 0: all.
        top_p: smallest set of likeliest tokens whose probability reaches this; 1: all.
        min_p: least probability relative to the likeliest token; 0: all. arXiv 2407.01082.
    """
    if 0 < top_k < logits.shape[-1]:
        threshold = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    if top_p < 1.0:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # mass of the strictly likelier tokens
        threshold = jnp.min(jnp.where(before < top_p, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    if min_p > 0.0:
        threshold = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    return logits
