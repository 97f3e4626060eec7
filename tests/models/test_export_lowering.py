"""Sampler and update lower for every platform on a machine that has none of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from sapo_jax.config import LearnerConfig
from sapo_jax.learner.optimizer import make_optimizer
from sapo_jax.learner.step import Batch, init_state, update
from sapo_jax.models.node_axis import over_nodes
from sapo_jax.sampling.decode import Prompts, sample
from tests.models.random_models import random_params, small_config

CASES = [("llama", "float32"), ("qwen2", "bfloat16"), ("qwen3", "bfloat16")]
PLATFORMS = ("tpu", "cuda", "cpu")
M, Q, G, C, P = 2, 3, 4, 5, 8
SETTINGS = LearnerConfig(micro_batch_groups=1, inner_epochs=2, kl_coef=0.1, max_grad_norm=1.0, logit_chunk_tokens=8)


def node_params(family: str) -> tuple[Any, Any]:
    config = small_config(family)
    nodes = [random_params(config, seed) for seed in range(M)]
    return config, jax.tree.map(lambda *leaves: np.stack(leaves), *nodes)


def prompts() -> Prompts:
    tokens = np.random.default_rng(0).integers(0, 40, (M, Q, P)).astype(np.int32)
    mask = np.arange(P) >= np.arange(Q)[:, None] * 2
    positions = np.maximum(np.arange(P) - np.arange(Q)[:, None] * 2, 0).astype(np.int32)
    arrays: Any = (tokens, np.tile(mask, (M, 1, 1)), np.tile(positions, (M, 1, 1)))
    return Prompts(*arrays)


def batch() -> Batch:
    generator = np.random.default_rng(1)
    questions = prompts()
    arrays: Any = (
        questions.tokens,
        questions.positions,
        questions.mask,
        generator.integers(0, 40, (M, Q, G, C)).astype(np.int32),
        np.arange(C) < generator.integers(1, C + 1, (M, Q, G, 1)),
        generator.random((M, Q, G)).astype(np.float32),
        np.ones((M, Q, G), bool),
        np.zeros((M, Q, G), bool),
        np.zeros((M, Q), bool),
    )
    return Batch(*arrays)


def lowered(function: Any, *arguments: Any) -> export.Exported:
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return exported


@pytest.mark.parametrize(("family", "dtype"), CASES)
@pytest.mark.usefixtures("backend")
def test_the_sampler_lowers_for_every_platform(family: str, dtype: str) -> None:
    """Both decode steps: what is made for a CPU, and what is made for the others."""
    config, params = node_params(family)
    draw = partial(
        sample,
        config,
        end_id=1,
        group_size=G,
        max_new_tokens=C,
        top_k=30,
        top_p=0.95,
        min_p=0.01,
        dtype=jnp.dtype(dtype),
    )
    arguments = (params, prompts(), np.array([1, 2], np.uint32), np.float32(0.8))
    exported = lowered(draw, *arguments)
    if (family, dtype) == ("llama", "float32"):
        for found, wanted in zip(
            jax.tree.leaves(jax.jit(exported.call)(*arguments)), jax.tree.leaves(jax.jit(draw)(*arguments)), strict=True
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_the_update_lowers_for_every_platform(family: str, dtype: str) -> None:
    config, params = node_params(family)
    full = replace(SETTINGS, schedule="cosine", warmup_rounds=2, optimizer="adamw", weight_decay=0.01)
    optimizer = make_optimizer(full, rounds=9)
    one = partial(
        update,
        model=config,
        settings=SETTINGS,
        optimizer=optimizer,
        temperature=1.0,
        max_new_tokens=C,
        dtype=jnp.dtype(dtype),
    )
    state = jax.eval_shape(over_nodes(partial(init_state, optimizer=optimizer)), params)
    exported = lowered(over_nodes(one), state, batch(), params)
    produced = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    # The state that comes out can go in again, in float32 whatever the precision of the computation.
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(produced[0]), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(produced[0].params)} == {np.dtype(np.float32)}
