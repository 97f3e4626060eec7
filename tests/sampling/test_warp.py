"""Truncation by hand-worked cases and against a plain NumPy reference."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from sapo_jax.sampling.warp import warp

# Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625.
LADDER = np.log([0.0625, 0.5, 0.125, 0.25, 0.0625]).astype(np.float32)


def kept(logits: Any, **settings: Any) -> list[int]:
    result = np.asarray(warp(jnp.asarray(logits, jnp.float32), **settings))
    stays = result > -np.inf
    np.testing.assert_array_equal(result[stays], np.asarray(logits, np.float32)[stays])
    return np.flatnonzero(stays).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 4}, [0, 1, 2, 3, 4]),  # the two last are equally likely
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.01}, [1]),
        ({"top_p": 0.49}, [1]),
        ({"top_p": 0.51}, [1, 3]),
        ({"top_p": 0.74}, [1, 3]),
        ({"top_p": 0.76}, [1, 2, 3]),
        ({"top_p": 0.88}, [0, 1, 2, 3, 4]),  # one of the two last is needed, and both are alike
        ({"min_p": 0.24}, [1, 2, 3]),  # at least 0.12
        ({"min_p": 0.26}, [1, 3]),  # at least 0.13
        ({"min_p": 0.999}, [1]),
        # top-k leaves 0.5 and 0.25, which renormalized are 2/3 and 1/3.
        ({"top_k": 2, "top_p": 0.6}, [1]),
        ({"top_k": 2, "top_p": 0.7}, [1, 3]),
        ({"top_p": 0.76, "min_p": 0.3}, [1, 3]),
    ],
)
def test_cases_worked_by_hand(settings: dict[str, Any], expected: list[int]) -> None:
    assert kept(LADDER, **settings) == expected
    assert kept(LADDER - 30, **settings) == expected


def reference(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Returns the tokens that stay, one rule after the other, for logits without ties."""
    ranked = sorted(range(len(logits)), key=lambda token: -logits[token])
    if top_k:
        ranked = ranked[:top_k]
    weights = np.exp(logits[ranked] - logits[ranked[0]])
    cumulated = np.cumsum(weights) / weights.sum()
    ranked = ranked[: int(np.searchsorted(cumulated, top_p)) + 1] if top_p < 1 else ranked
    return {token for token in ranked if np.exp(logits[token] - logits[ranked[0]]) >= min_p}


def test_random_cases_against_numpy() -> None:
    generator = np.random.default_rng(0)
    sizes = set()
    for _ in range(60):
        logits = generator.normal(scale=2, size=(3, 50)).astype(np.float32)
        top_k = int(generator.integers(0, 30))
        top_p = float(generator.choice([1.0, generator.random()]))
        min_p = float(generator.choice([0.0, generator.random() / 4]))
        warped = np.asarray(warp(jnp.asarray(logits), top_k=top_k, top_p=top_p, min_p=min_p))
        for row, result in zip(logits, warped, strict=True):
            expected = reference(row.astype(np.float64), top_k, top_p, min_p)
            assert set(np.flatnonzero(result > -np.inf)) == expected, (top_k, top_p, min_p)
            sizes.add(len(expected))
    assert len(sizes) > 15
