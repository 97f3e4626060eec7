"""What must hold on every accelerator, and does on CPUs. SAPO_TEST_PLATFORM=cuda -m accel runs it on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapo_jax import presets, wiring
from sapo_jax.cold_start import cold_start
from sapo_jax.config import SapoConfig, default_config_dict, from_config_dict
from sapo_jax.host import Host
from sapo_jax.learner.step import Batch, batch_logprobs
from sapo_jax.models.architecture import FAMILIES, DecoderConfig
from sapo_jax.models.decoder import Params
from sapo_jax.models.layers import rope_angles
from sapo_jax.node import play_round
from sapo_jax.sampling.decode import Prompts, sample
from tests.models.random_models import random_params, small_config

pytestmark = pytest.mark.accel

Q, P, G, C = 6, 48, 8, 32
TEMPERATURE = 0.8


@pytest.fixture
def exact_products() -> Iterator[None]:
    """Accelerators multiply float32 with fewer bits unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def test_the_platform_is_the_one_that_was_asked_for() -> None:
    wanted = os.environ.get("SAPO_TEST_PLATFORM", "cpu")
    assert jax.default_backend() == {"cuda": "gpu", "rocm": "gpu"}.get(wanted, wanted)


def ragged_prompts(config: DecoderConfig) -> Prompts:
    """Returns the prompts of one node, [1, Q, P], the shortest of one token."""
    lengths = np.array([P, 1, 17, 32, 2, 40])[None, :, None]
    index = np.arange(P)[None, None]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, Q, P))
    arrays: Any = (tokens.astype(np.int32), index >= P - lengths, np.maximum(index - P + lengths, 0).astype(np.int32))
    return Prompts(*arrays)


def as_batch(prompts: Prompts, tokens: np.ndarray, mask: np.ndarray) -> Batch:
    """Returns what the learner is given for one node's own samples [Q, G, C]."""
    nothing = np.zeros((Q, G))
    arrays: Any = (
        prompts.tokens[0],
        prompts.positions[0],
        prompts.mask[0],
        tokens,
        mask,
        nothing,
        nothing == 0,
        nothing == 1,
        nothing[:, 0] == 1,
    )
    return Batch(*arrays)


def test_rotary_angles_are_exact_where_products_are_not() -> None:
    positions = np.array([[0, 1, 255, 257], [511, 1023, 2047, 4095]], np.int32)
    cosine, sine = jax.jit(partial(rope_angles, head_size=64, base=1e4))(positions)
    angles = positions[..., None] * 1e4 ** (-np.arange(32) / 32)
    for found, expected in ((cosine, np.cos(angles)), (sine, np.sin(angles))):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)  # 4095 in float32 has steps of 2 ** -12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("exact_products")
def test_sampler_and_learner_agree_on_the_log_probs_of_the_same_tokens(family: str) -> None:
    """In float32 but for rounding; in bfloat16 as closely as bfloat16 agrees with float32."""
    config = small_config(family, vocab_size=600, width=128, mlp_width=320, layers=4, heads=8, kv_heads=4, head_size=32)
    params, prompts = random_params(config, 1), ragged_prompts(config)
    stacked = jax.tree.map(lambda x: x[None], params)
    for dtype in (jnp.float32, jnp.bfloat16):
        draw = partial(sample, config, end_id=5, group_size=G, max_new_tokens=C, dtype=jnp.dtype(dtype))
        samples = jax.device_get(jax.jit(draw)(stacked, prompts, jnp.array([7], jnp.uint32), jnp.float32(TEMPERATURE)))
        mask = np.arange(C) < samples.lengths[0][..., None]
        assert mask.mean() > 0.5 and len(np.unique(samples.tokens[0][mask])) > 200
        drawn, batch = samples.logprobs[0][mask], as_batch(prompts, samples.tokens[0], mask)
        learned = learner_logprobs(config, params, batch, dtype)[mask]
        if dtype == jnp.float32:
            np.testing.assert_allclose(drawn, learned, rtol=0, atol=1e-3)
        else:
            # Two programs round differently: each is as far from float32, now to this side, now to that.
            exact = learner_logprobs(config, params, batch, jnp.float32)[mask]
            rounding = np.abs(learned - exact).mean()
            assert 1e-3 < rounding < 0.15
            assert np.abs(drawn - exact).mean() < 1.4 * rounding
            assert np.abs(drawn - learned).mean() < 2 * rounding
            assert np.abs((drawn - learned).mean()) < 0.5 * rounding


def learner_logprobs(config: DecoderConfig, params: Params, batch: Batch, dtype: Any) -> np.ndarray:
    score = partial(
        batch_logprobs, config, temperature=TEMPERATURE, logit_chunk_tokens=500, dtype=jnp.dtype(dtype), remat=True
    )
    return np.asarray(jax.jit(score)(params, batch)[0])


def two_nodes() -> SapoConfig:
    draft = default_config_dict()
    presets.apply(draft, "paper")
    draft.nodes = 2
    draft.model.source = "init:qwen2"
    draft.model.compute_dtype = "float32"
    draft.text.system_prompt = ""
    draft.tasks.catalog = "easy"
    draft.tasks.specialties = ("leap_year",)
    draft.tasks.shots = 0
    draft.sampling.prompt_buckets = (88,)
    draft.sampling.max_new_tokens = 8
    draft.sharing.local = 4
    draft.sharing.external = 4
    draft.learner.learning_rate = 0.02
    draft.learner.epsilon = 1e-2  # Adam divides by the gradient's size, and would blow the rounding of tiny ones up
    draft.cold_start.steps = 40
    return from_config_dict(draft)


@pytest.mark.usefixtures("exact_products")
def test_a_round_of_two_nodes_is_the_same_in_one_program_and_in_two() -> None:
    config = two_nodes()
    tasks = wiring.build_tasks(config)
    model = wiring.load_model(config)
    prompter = wiring.build_prompter(config, model, tasks)
    apart, together = (wiring.build_host(config, model, "float32", per_program=number) for number in (1, 2))
    streams = [wiring.build_stream(config, tasks, f"cold start of node-{n}") for n in range(2)]
    cold_start(apart, prompter, streams, config)
    begun = params_of(apart)
    take_over(together, apart)
    metrics = []
    for host in (apart, together):
        nodes = wiring.build_nodes(config, prompter, tasks, wiring.memory_hub(config))
        metrics.append(play_round(nodes, host, 1))
    for expected, found in zip(*metrics, strict=True):
        assert expected["groups/informative_frac"] > 0 and expected["groups/external"] > 0
        untimed = {name: value for name, value in expected.items() if not name.startswith("time/")}
        assert {name: found[name] for name in untimed} == pytest.approx(untimed, rel=1e-3, abs=1e-5)
    for before, expected, found in zip(begun, params_of(apart), params_of(together), strict=True):
        for old, ours, theirs in zip(*map(jax.tree.leaves, (before, expected, found)), strict=True):
            assert np.abs(ours - old).max() > 1e-3  # it has learned
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def params_of(host: Host) -> list[Any]:
    return [jax.device_get(host.params_of(node)) for node in range(host.nodes)]


def take_over(together: Host, apart: Host) -> None:
    """Gives the host with all nodes in one program the arrays of the one with a program each."""
    states = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(apart.arrays)["states"])
    shapes = together.release_arrays()
    placed = jax.tree.map(lambda leaf, shape: jax.device_put(leaf, shape.sharding), {"states": [states]}, shapes)
    together.load_arrays(placed)
