"""Drawing one token a row by a two-level inverse CDF.

The usual Gumbel draw needs one random number per vocabulary entry, which costs more than the
matrix products of a small model on a CPU. Here two uniform numbers suffice: one picks a block of
the vocabulary by its total weight, one a token inside the block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 256  # tokens a block: about the square root of the vocabularies in use


class Weights(NamedTuple):
    """Of one distribution over a vocabulary, in blocks.

    tokens [..., n, BLOCK] float >= 0, the entries past the vocabulary 0; blocks [..., n], their sums.
    """

    tokens: jax.Array
    blocks: jax.Array


def weigh(shifted: jax.Array) -> Weights:
    """Returns exp(shifted).

    Args:
        shifted: [..., V] float, logits less their maximum; -inf marks tokens that must not be drawn.
    """
    vocab = shifted.shape[-1]
    blocks = -(-vocab // BLOCK)
    padding = [(0, 0)] * (shifted.ndim - 1) + [(0, blocks * BLOCK - vocab)]
    weights = jnp.pad(jnp.exp(shifted), padding).reshape(*shifted.shape[:-1], blocks, BLOCK)
    return Weights(weights, jnp.sum(weights, axis=-1))


def draw(weights: Weights, uniforms: jax.Array) -> jax.Array:
    """Returns tokens [...] int32 distributed in proportion to `weights`.

    Args:
        uniforms: [..., 2] float in [0, 1).
    """
    block = _inverse_cdf(weights.blocks, uniforms[..., 0])
    inside = jnp.take_along_axis(weights.tokens, block[..., None, None], axis=-2)[..., 0, :]  # [..., BLOCK]
    return block * BLOCK + _inverse_cdf(inside, uniforms[..., 1])


def _inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Returns index [...] int32 drawn in proportion to `weights` [..., n]; never one of weight 0."""
    total = jnp.cumsum(weights, axis=-1)
    target = uniform[..., None] * total[..., -1:]
    # Weight is asked for, too: a running sum can rise by a rounding where nothing was added.
    candidates = (total > target) & (weights > 0)
    # Rounding can put the target on the total itself: then the last index that has weight.
    last = weights.shape[-1] - 1 - jnp.argmax(weights[..., ::-1] > 0, axis=-1)
    index = jnp.where(jnp.any(candidates, axis=-1), jnp.argmax(candidates, axis=-1), last)
    return index.astype(jnp.int32)
