"""Log-probabilities of given tokens, from logits or from hidden states a chunk at a time.

Natural logarithm, after temperature, before any top-k or top-p truncation. Callers state the
alignment: these functions score `tokens[..., t]` with `logits[..., t, :]`, so logits must already
be those that predict the token.
"""

# jax leaves parts of its own signatures untyped:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sapo_jax.algo.precision import to_reduction_dtype
from sapo_jax.algo.shapes import check_shapes

Pair = tuple[jax.Array, jax.Array]


def token_logprobs_and_entropy(
    logits: jax.Array, tokens: jax.Array, *, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-prob of each token and the entropy of the distribution it was scored under.

    Args:
        logits: [..., V] float, the logits that predict each token.
        tokens: [...] int.
        temperature: positive.

    Returns:
        Two arrays [...], float32 (float64 for float64 logits), in nats. No gradient flows through
        the entropy: it is a measurement.
    """
    check_shapes(tokens=(tokens, "..."), logits=(logits, "... V"))
    logits = to_reduction_dtype(logits) / temperature
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(shifted)
    total = jnp.sum(weights, axis=-1)
    # Select by comparison rather than by gather: it fuses with the sums here, and its transpose is
    # a select instead of a scatter into a [..., V] array.
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, shifted.shape, shifted.ndim - 1)
    chosen = jnp.sum(jnp.where(vocabulary == tokens[..., None].astype(jnp.int32), shifted, 0), axis=-1)
    logprobs = chosen - jnp.log(total)
    # A token with logit -inf has weight 0 and adds nothing; 0 * -inf would be nan.
    weighted = jnp.sum(jnp.where(weights > 0, weights * shifted, 0), axis=-1)
    return logprobs, jax.lax.stop_gradient(jnp.log(total) - weighted / total)


def chunked_token_logprobs(
    logits_fn: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    *,
    chunk: int,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns log-probs and entropies of `targets` while at most [chunk, V] logits exist.

    Values and gradients equal `token_logprobs_and_entropy(logits_fn(hidden), targets)`. With more
    than one chunk the backward pass recomputes each chunk's logits instead of keeping them; with
    one it keeps them and there is no loop.

    Args:
        logits_fn: the output head, [r, D] -> [r, V] for any r, row by row. Gradients reach the
            parameters it closes over; they are summed over chunks in the dtype those have where
            it captures them, so cast to a lower precision inside it and not before.
        hidden: [R, D] float, the states that predict each target.
        targets: [R] int.
        chunk: rows at a time, at least 1; R needs not be a multiple.
        temperature: positive.

    Returns:
        Log-probs [R] and entropies [R] (without gradient), float32 (float64 for float64 logits).
    """
    rows = check_shapes(hidden=(hidden, "R D"), targets=(targets, "R"))["R"]
    if chunk < 1:
        raise ValueError(f"chunk = {chunk} must be at least 1")

    def score(hidden_chunk: jax.Array, target_chunk: jax.Array) -> tuple[jax.Array, jax.Array]:
        return token_logprobs_and_entropy(logits_fn(hidden_chunk), target_chunk, temperature=temperature)

    if rows <= chunk:
        return score(hidden, targets)
    chunks = -(-rows // chunk)
    padding = chunks * chunk - rows
    # Every n-th row in one chunk: rows that a mesh has divided stay divided in each.
    hidden = jnp.swapaxes(jnp.pad(hidden, ((0, padding), (0, 0))).reshape(chunk, chunks, -1), 0, 1)
    targets = jnp.pad(targets, (0, padding)).reshape(chunk, chunks).T  # [R / chunk, chunk]

    def body(carry: None, pair: Pair) -> tuple[None, Pair]:
        return carry, score(*pair)

    # Nothing outside a loop can be merged with the recomputation inside it, so the barrier that
    # `prevent_cse` adds would only cost time.
    recomputed: Callable[[None, Pair], tuple[None, Pair]] = jax.checkpoint(body, prevent_cse=False)
    _, (logprobs, entropies) = jax.lax.scan(recomputed, None, (hidden, targets))
    return logprobs.T.reshape(-1)[:rows], entropies.T.reshape(-1)[:rows]  # [R]
