"""The floor counts the arithmetic that the programs contain."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from sapo_jax.learner.step import Batch, batch_logprobs
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import abstract_params
from sapo_jax.sampling.decode import Prompts, sample
from scripts.bench.floor import Rates, Work, pass_flops, work_of
from scripts.bench.workloads import Kind, Workload

MODEL = DecoderConfig(
    family="llama",
    vocab_size=300,
    width=32,
    mlp_width=80,
    layers=3,
    heads=4,
    kv_heads=2,
    head_size=8,
    rope_base=1e4,
    norm_epsilon=1e-6,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    max_positions=512,
)
Q, G, P, C = 3, 4, 17, 6
EXPECTED = pass_flops(MODEL, questions=Q, group_size=G, prompt=P, completion=C)


def product_flops(jaxpr, while_trips=1):
    """Returns the FLOPs of all matrix products in `jaxpr`, loops multiplied out; RoPE's outer product is none."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            inner = 1
            for axis in contracted:
                inner *= equation.invars[0].aval.shape[axis]
            total += 2 * inner * equation.outvars[0].aval.size if contracted else 0
        trips = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        trips = while_trips if equation.primitive.name == "while" else trips
        for inside in jaxprs_in_params(equation.params):
            total += trips * product_flops(inside, while_trips)
    return total


def tokens(*shape, dtype: Any = jnp.int32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def batch():
    prompt, rows = (Q, P), (Q, G)
    return Batch(
        prompt_tokens=tokens(*prompt),
        prompt_positions=tokens(*prompt),
        prompt_mask=tokens(*prompt, dtype=bool),
        completion_tokens=tokens(*rows, C),
        completion_mask=tokens(*rows, C, dtype=bool),
        rewards=tokens(*rows, dtype=jnp.float32),
        valid=tokens(*rows, dtype=bool),
        truncated=tokens(*rows, dtype=bool),
        external=tokens(Q, dtype=bool),
    )


def score(params, batch):
    return batch_logprobs(MODEL, params, batch, temperature=1.0, logit_chunk_tokens=1000)[0].sum()


def test_counts_the_products_of_a_forward_pass():
    assert product_flops(jax.make_jaxpr(score)(abstract_params(MODEL), batch()).jaxpr) == EXPECTED


def test_an_update_is_three_forward_passes():
    gradient = jax.make_jaxpr(jax.grad(score))(abstract_params(MODEL), batch())
    assert product_flops(gradient.jaxpr) == 3 * EXPECTED


def test_counts_the_products_of_sampling():
    nodes = 2
    params = jax.tree.map(lambda leaf: tokens(nodes, *leaf.shape, dtype=leaf.dtype), abstract_params(MODEL))
    shape = (nodes, Q, P)
    prompts = Prompts(tokens(*shape), tokens(*shape, dtype=bool), tokens(*shape))
    draw = partial(sample, MODEL, end_id=1, group_size=G, max_new_tokens=C)
    traced = jax.make_jaxpr(draw)(params, prompts, tokens(nodes, dtype=jnp.uint32), tokens(dtype=jnp.float32))
    assert product_flops(traced.jaxpr, while_trips=C) == nodes * EXPECTED


def test_a_round_is_its_sampling_and_its_update_and_a_bound_is_the_slower_of_two():
    shape = {"prompt": P, "completion": C, "questions": Q, "group_size": G}
    sampling, update, whole = (
        work_of(Workload(kind=kind, **shape), MODEL, "float32") for kind in (Kind.SAMPLE, Kind.UPDATE, Kind.ROUND)
    )
    assert whole == sampling + update
    assert sum(part.flops for part in sampling) == pytest.approx(EXPECTED)
    assert sum(part.flops for part in update) == 3 * EXPECTED
    rates = Rates(flops_per_s=10.0, bytes_per_s=2.0)
    assert Work(flops=100.0, bytes=2.0).seconds(rates) == 10.0
    assert Work(flops=10.0, bytes=8.0).seconds(rates) == 4.0
