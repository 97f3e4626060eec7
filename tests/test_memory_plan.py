"""What a run needs is counted as XLA and JAX count it, part by part, and less rather than more."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapo_jax.config import (
    ColdStartConfig,
    EvalConfig,
    HostConfig,
    LearnerConfig,
    SamplingConfig,
    SapoConfig,
    SharingConfig,
)
from sapo_jax.host import Host
from sapo_jax.learner.optimizer import make_optimizer
from sapo_jax.learner.step import Batch, batch_logprobs, init_state, update
from sapo_jax.memory_plan import MemoryPlan, plan_memory
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import abstract_params
from sapo_jax.models.node_axis import over_nodes
from sapo_jax.models.sharding import make_mesh
from sapo_jax.sampling.decode import Prompts, sample
from tests.models.random_models import random_params, small_config

# Our count of a phase over what XLA's CPU compiler says that its program needs beside its arguments.
UPDATE = (0.6, 1.0)
SAMPLING = (0.7, 1.05)

# What runs compile with, unlike tests (see conftest.py): memory depends on it.
USUAL_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}

WIDE = small_config("llama", vocab_size=512, width=128, mlp_width=384, layers=12, heads=4, kv_heads=2, head_size=32)
UNTIED = replace(WIDE, vocab_size=8192, tie_embeddings=False)  # the embedding is a quarter of it
CONFIG = SapoConfig(
    nodes=1,
    sampling=SamplingConfig(group_size=8, max_new_tokens=64, prompt_buckets=(16, 128)),
    sharing=SharingConfig(local=4, external=4),
    learner=LearnerConfig(micro_batch_groups=2, remat=False),
)


def plan_of(
    config: SapoConfig, model: DecoderConfig = WIDE, dtype: str = "float32", per_program: int = 1, **mesh: int
) -> MemoryPlan:
    return plan_memory(config, model, make_mesh(**mesh), compute_dtype=dtype, nodes_per_program=per_program)


def shapes_of_batch(config: SapoConfig, questions: int) -> Batch:
    shape = jax.ShapeDtypeStruct
    prompts = (questions, config.sampling.max_prompt_tokens)
    rows = (questions, config.sampling.group_size)
    completions = (*rows, config.sampling.max_new_tokens)
    arrays: Any = [shape(prompts, kind) for kind in (np.int32, np.int32, np.bool_)]
    arrays += [shape(completions, kind) for kind in (np.int32, np.bool_)]
    arrays += [shape(rows, kind) for kind in (np.float32, np.bool_, np.bool_)]
    return Batch(*arrays, *[shape((questions,), np.bool_)])


def with_nodes(tree: Any, nodes: int) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((nodes, *leaf.shape), leaf.dtype), tree)


def temp_bytes(lowered: Any) -> int:
    return lowered.compile(USUAL_OPTIONS).memory_analysis().temp_size_in_bytes


def temp_bytes_of_update(config: SapoConfig, model: DecoderConfig = WIDE, dtype: str = "float32") -> int:
    """Returns what XLA allocates for the update of all nodes in one program, beside arguments and results."""
    optimizer = make_optimizer(config.learner, config.rounds)
    one_node = partial(
        update,
        model=model,
        settings=config.learner,
        optimizer=optimizer,
        temperature=1.0,
        max_new_tokens=config.sampling.max_new_tokens,
        dtype=jnp.dtype(dtype),
    )
    state = jax.eval_shape(partial(init_state, optimizer=optimizer), abstract_params(model))
    arguments = with_nodes((state, shapes_of_batch(config, config.train_groups)), config.nodes)
    lowered = jax.jit(over_nodes(one_node), donate_argnums=0).lower(*arguments, None)
    return temp_bytes(lowered)


def temp_bytes_of_sampling(config: SapoConfig, model: DecoderConfig, dtype: str) -> int:
    settings = config.sampling
    batch = with_nodes(shapes_of_batch(config, config.sharing.local), config.nodes)
    prompts = Prompts(batch.prompt_tokens, batch.prompt_mask, batch.prompt_positions)
    draw = partial(
        sample,
        model,
        end_id=-1,
        group_size=settings.group_size,
        max_new_tokens=settings.max_new_tokens,
        dtype=jnp.dtype(dtype),
    )
    seeds, temperature = jax.ShapeDtypeStruct((config.nodes,), np.uint32), jax.ShapeDtypeStruct((), np.float32)
    params = with_nodes(abstract_params(model), config.nodes)
    return temp_bytes(jax.jit(draw).lower(params, prompts, seeds, temperature))


@pytest.mark.parametrize(
    ("learner", "vocab_size"),
    [
        ({}, 512),  # activations decide
        ({"remat": True, "micro_batch_groups": 8}, 512),  # one pass: activations of a layer at a time
        ({"remat": True, "micro_batch_groups": 1, "logit_chunk_tokens": 4096}, 8192),  # logits decide
    ],
)
def test_an_update_is_counted_as_xla_counts_it(learner: dict[str, Any], vocab_size: int) -> None:
    model = replace(WIDE, vocab_size=vocab_size)
    config = replace(CONFIG, learner=replace(CONFIG.learner, **learner))
    counted = plan_of(config, model).phase_bytes("update")
    ratio = counted / temp_bytes_of_update(config, model)
    print(f"counted over needed: {ratio:.2f}")
    assert UPDATE[0] < ratio < UPDATE[1], plan_of(config, model).phases["update"]


@pytest.mark.parametrize(
    ("max_new_tokens", "model", "dtype"),
    [
        (4, WIDE, "float32"),  # the copy of the weights decides
        (128, WIDE, "float32"),  # caches decide
        (4, UNTIED, "float32"),
        (4, UNTIED, "bfloat16"),
    ],
)
def test_sampling_is_counted_as_xla_counts_it(max_new_tokens: int, model: DecoderConfig, dtype: str) -> None:
    config = replace(CONFIG, sampling=replace(CONFIG.sampling, max_new_tokens=max_new_tokens))
    plan = plan_of(config, model, dtype)
    ratio = plan.phase_bytes("sampling") / temp_bytes_of_sampling(config, model, dtype)
    print(f"counted over needed: {ratio:.2f}")
    assert SAMPLING[0] < ratio < SAMPLING[1], plan.phases["sampling"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", [False, True])
def test_activations_are_those_that_differentiation_keeps(dtype: str, remat: bool) -> None:
    """What two more questions add in each further layer: kernels, and what exists once, cancel out."""

    def kept(questions: int, layers: int) -> int:
        model = replace(WIDE, layers=layers)
        score = partial(
            batch_logprobs,
            model,
            temperature=1.0,
            logit_chunk_tokens=8,  # logits are not kept
            dtype=jnp.dtype(dtype),
            remat=remat,
        )
        batch = shapes_of_batch(CONFIG, questions)
        back = jax.eval_shape(lambda p, b: jax.vjp(lambda p: score(p, b), p)[1], abstract_params(model), batch)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back))

    def counted(questions: int, layers: int) -> int:
        learner = replace(CONFIG.learner, remat=remat, micro_batch_groups=questions, logit_chunk_tokens=8)
        config = replace(CONFIG, learner=learner)
        return plan_of(config, replace(WIDE, layers=layers), dtype).phases["update"]["activations"]

    def of_a_layer(count: Any) -> int:
        return count(4, 6) - count(2, 6) - count(4, 3) + count(2, 3)

    ratio = of_a_layer(counted) / of_a_layer(kept)
    assert 0.9 < ratio <= 1.0


@pytest.mark.parametrize(
    ("per_program", "layout", "kl_coef"),
    [(1, {}, 0.0), (2, {}, 0.1), (2, {"mesh_node": 2, "mesh_fsdp": 2, "mesh_tensor": 2}, 0.1)],
)
def test_the_state_is_what_a_host_holds(per_program: int, layout: dict[str, Any], kl_coef: float) -> None:
    model = small_config("qwen2", vocab_size=48, kv_heads=1)  # one key head: that axis is never divided
    config = replace(
        CONFIG,
        nodes=4,
        host=HostConfig(nodes_per_program=per_program, **layout),
        learner=replace(CONFIG.learner, kl_coef=kl_coef),
    )
    host = Host(
        config,
        model,
        random_params(model, 1),
        end_id=3,
        dtype=jnp.dtype("float32"),
        nodes_per_program=per_program,
    )
    shards = [shard.data.nbytes for leaf in jax.tree.leaves(host.arrays) for shard in leaf.addressable_shards]
    plan = plan_of(config, model, per_program=per_program, **{axis[5:]: size for axis, size in layout.items()})
    # Beside them are counters of updates, one or two of four bytes for every node on every device.
    assert 0 <= sum(shards) - plan.state_bytes <= 4 * 2 * 4 * 8
    assert set(plan.state) == {"weights", "moments"} | ({"reference"} if kl_coef else set())


def test_what_nodes_and_lengths_do_to_each_part() -> None:
    one = plan_of(CONFIG)
    two = plan_of(replace(CONFIG, nodes=2))
    assert two.state_bytes == 2 * one.state_bytes and two.phases == one.phases  # one after another
    together = plan_of(replace(CONFIG, nodes=2), per_program=2)
    assert together.needed_bytes == 2 * one.needed_bytes
    longer = plan_of(replace(CONFIG, sampling=replace(CONFIG.sampling, prompt_buckets=(16, 256))))
    assert longer.phases["sampling"]["prompt cache"] == one.phases["sampling"]["prompt cache"] * 255 // 127
    assert longer.phases["sampling"]["completion cache"] == one.phases["sampling"]["completion cache"]
    wider = plan_of(replace(CONFIG, eval=EvalConfig(questions_per_call=12)))
    caches = [plan.phases["evaluation"]["completion cache"] for plan in (wider, one)]
    assert caches[0] == 3 * caches[1] and wider.phases["sampling"] == one.phases["sampling"]
    cold = plan_of(replace(CONFIG, cold_start=ColdStartConfig(steps=1, batch_rows=512)))
    assert cold.largest_phase == "cold start" and set(cold.phases) - set(one.phases) == {"cold start"}


def test_a_host_that_only_samples_keeps_its_weights_alone() -> None:
    plan = plan_memory(CONFIG, WIDE, make_mesh(), compute_dtype="float32", nodes_per_program=1, learning=False)
    assert set(plan.state) == {"weights"} and set(plan.phases) == {"sampling"}
    assert plan.only().needed_bytes == plan.state_bytes


def test_the_axes_of_a_mesh_divide_the_work() -> None:
    config = replace(CONFIG, nodes=2, host=HostConfig(nodes_per_program=2))
    whole = plan_of(config, per_program=2)
    for axis in ("node", "data", "tensor"):
        # Devices of a CPU share its memory: a half on each of two counts as the whole.
        layout: dict[str, Any] = {axis: 2}
        divided = plan_of(config, per_program=2, **layout).phases["sampling"]
        assert divided["completion cache"] == whole.phases["sampling"]["completion cache"]
    doubled = plan_of(config, per_program=2, data=2)
    assert doubled.state_bytes == 2 * whole.state_bytes  # every device of the axis has all the weights
