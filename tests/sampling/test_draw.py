"""The draw: frequencies against the distribution, and what may never be drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sapo_jax.sampling import draw as drawing
from sapo_jax.sampling.draw import BLOCK, weigh

LARGEST_UNIFORM = 1 - 2**-24  # the float32 below 1


def draw(logits: jax.Array, uniforms: jax.Array) -> jax.Array:
    return drawing.draw(weigh(logits - jnp.max(logits, axis=-1, keepdims=True)), uniforms)


def drawn(logits: np.ndarray, count: int, seed: int) -> np.ndarray:
    uniforms = jax.random.uniform(jax.random.key(seed), (count, 2))
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
    return np.asarray(jax.jit(draw)(rows, uniforms))


def assert_drawn_from(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    """A chi-square test over the tokens that expect at least 8 draws, all others pooled."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities / probabilities.sum() * len(tokens)
    common = expected >= 8
    found, wanted = counts[common], expected[common]
    rest = len(tokens) - wanted.sum()
    if rest >= 8:
        found, wanted = np.append(found, counts[~common].sum()), np.append(wanted, rest)
    wanted = wanted * (found.sum() / wanted.sum())
    assert scipy.stats.chisquare(found, wanted).pvalue > 1e-3


@pytest.mark.parametrize("vocab", [2, 10, BLOCK - 1, BLOCK, BLOCK + 1, 700])
def test_frequencies_follow_the_softmax(vocab: int) -> None:
    generator = np.random.default_rng(vocab)
    logits = generator.normal(scale=1.5, size=vocab) + 40  # far from zero: only differences count
    logits[generator.random(vocab) < 0.3] = -np.inf
    logits[vocab // 2] = 40
    with np.errstate(divide="ignore"):
        assert_drawn_from(drawn(logits, 40_000, seed=vocab), np.exp(logits - 40))


def test_frequencies_of_a_large_vocabulary() -> None:
    vocab = 49_152
    logits = np.random.default_rng(0).normal(scale=3.0, size=vocab)
    tokens = np.concatenate([drawn(logits, 1_000, seed) for seed in range(15)])
    probabilities = np.exp(logits - logits.max())
    assert_drawn_from(tokens, probabilities)
    # Hardly any single token expects 8 draws; blocks of neighbors do.
    assert_drawn_from(tokens // 64, probabilities.reshape(-1, 64).sum(axis=1))
    assert_drawn_from(tokens % 64, probabilities.reshape(-1, 64).sum(axis=0))


@pytest.mark.parametrize("vocab", [3, BLOCK, 1000])
def test_the_edges_of_the_uniform_numbers_draw_what_can_be_drawn(vocab: int) -> None:
    generator = np.random.default_rng(vocab)
    edges = jnp.asarray([[a, b] for a in (0.0, LARGEST_UNIFORM) for b in (0.0, LARGEST_UNIFORM)], jnp.float32)
    for _ in range(50):
        logits = generator.normal(size=vocab)
        allowed = generator.random(vocab) < 3 / vocab
        allowed[generator.integers(vocab)] = True
        logits[~allowed] = -np.inf
        tokens = np.asarray(draw(jnp.asarray(np.tile(logits, (4, 1)), jnp.float32), edges))
        assert allowed[tokens].all()
        assert tokens[0] == np.flatnonzero(allowed)[0] and tokens[3] == np.flatnonzero(allowed)[-1]


@pytest.mark.parametrize("level", ["block", "token"])
def test_rounding_of_the_running_sum_never_draws_a_forbidden_token(level: str) -> None:
    """A running sum computed as a tree may rise by a rounding where nothing was added, or even fall.

    The uniform number is put right there: on the running sum before each forbidden entry.
    """
    count, width = (1000, BLOCK) if level == "block" else (BLOCK, 1)
    generator = np.random.default_rng(1)
    weights = np.exp(generator.normal(size=count)).astype(np.float32)
    weights[generator.random(count) < 0.5] = 0
    # Each entry is one block whose first token carries all its weight, or one token of the only block.
    logits = np.full((count, width), -np.inf, np.float32)
    with np.errstate(divide="ignore"):
        logits[:, 0] = np.log(weights)
    total = np.asarray(jnp.cumsum(jnp.exp(jnp.asarray(logits[:, 0] - logits.max()))))
    forbidden = np.flatnonzero((weights[1:] == 0) & (total[1:] != total[:-1])) + 1
    forbidden = forbidden if len(forbidden) else np.flatnonzero(weights[1:] == 0) + 1
    middle = (total[forbidden - 1] / total[-1]).view(np.int32)
    uniforms = np.unique([(middle + ulps).view(np.float32) for ulps in (-2, -1, 0, 1, 2)])
    uniforms = uniforms[uniforms < 1]
    rows = jnp.asarray(logits.reshape(1, -1))
    for uniform in uniforms:
        pair = [uniform, 0] if level == "block" else [0, uniform]
        token = int(draw(rows, jnp.asarray([pair], jnp.float32))[0])
        assert weights[token // width] > 0 and token % width == 0


def test_leading_axes_are_drawn_row_by_row() -> None:
    generator = np.random.default_rng(2)
    logits = jnp.asarray(generator.normal(size=(2, 3, 300)), jnp.float32)
    uniforms = jnp.asarray(generator.random((2, 3, 2)), jnp.float32)
    together = draw(logits, uniforms)
    assert together.dtype == jnp.int32
    alone = jax.jit(draw)
    for index in np.ndindex(2, 3):
        assert together[index] == alone(logits[index], uniforms[index])
