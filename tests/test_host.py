"""The host: few compilations, and the same numbers however nodes are laid out on programs and devices."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapo_jax.config import ColdStartConfig, HostConfig, LearnerConfig, SamplingConfig, SapoConfig, SharingConfig
from sapo_jax.host import Host, SampledRow
from sapo_jax.learner.step import Batch
from sapo_jax.models.decoder import Params
from sapo_jax.sampling.decode import GREEDY
from sapo_jax.text.encode import EncodedPrompts, pad_prompts
from tests.models.random_models import random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = small_config("qwen2", vocab_size=48)
END = 3
GROUP = 4
BUCKETS = (8, 16)
MAX_NEW = 6
CONFIG = SapoConfig(
    rounds=4,
    nodes=2,
    sampling=SamplingConfig(group_size=GROUP, max_new_tokens=MAX_NEW, prompt_buckets=BUCKETS),
    sharing=SharingConfig(local=2, external=2),
    # A large epsilon: Adam divides by the gradient's size, and would blow the rounding of tiny ones up.
    learner=LearnerConfig(learning_rate=0.02, epsilon=1e-2, remat=False, micro_batch_groups=2),
    cold_start=ColdStartConfig(steps=1, batch_rows=4),
)


def make_host(config: SapoConfig = CONFIG, *, nodes_per_program: int = 1, **layout: int) -> Host:
    config = replace(config, host=HostConfig(nodes_per_program=nodes_per_program, **layout))
    return Host(
        config,
        MODEL,
        random_params(MODEL, 1),
        end_id=END,
        dtype=jnp.dtype(jnp.float32),
        nodes_per_program=nodes_per_program,
    )


def random_prompts(generator: np.random.Generator, nodes: int, questions: int, bucket: int) -> list[EncodedPrompts]:
    batches = []
    for _ in range(nodes):
        rows = [generator.integers(0, MODEL.vocab_size, generator.integers(1, bucket + 1)) for _ in range(questions)]
        batches.append(pad_prompts([row.tolist() for row in rows], bucket, pad_id=END, side="left"))
    return batches


def random_batches(
    generator: np.random.Generator, nodes: int, questions: int, bucket: int, group_size: int = GROUP
) -> list[Batch]:
    batches = []
    shape = (questions, group_size)
    for prompts in random_prompts(generator, nodes, questions, bucket):
        lengths = generator.integers(1, MAX_NEW + 1, (*shape, 1))
        batches.append(
            Batch(
                prompt_tokens=prompts.tokens,  # type: ignore[arg-type]
                prompt_positions=prompts.prompt_positions,  # type: ignore[arg-type]
                prompt_mask=prompts.prompt_mask,  # type: ignore[arg-type]
                completion_tokens=generator.integers(0, 48, (*shape, MAX_NEW)).astype(np.int32),
                completion_mask=np.arange(MAX_NEW) < lengths,  # type: ignore[arg-type]
                rewards=generator.random(shape).astype(np.float32),
                valid=np.ones(shape, bool),  # type: ignore[arg-type]
                truncated=generator.random(shape) < 0.2,
                external=generator.random(questions) < 0.5,
            )
        )
    return batches


@contextmanager
def compilations(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Yields what XLA is asked to compile inside the block, one log line each."""
    found: list[str] = []
    caplog.clear()
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        yield found
    found += [message for message in caplog.messages if message.startswith("Compiling ")]


@pytest.mark.parametrize(
    "layout",
    [
        {"nodes_per_program": 1},
        {"nodes_per_program": 2},
        {"nodes_per_program": 2, "mesh_node": 2, "mesh_fsdp": 2, "mesh_tensor": 2},
    ],
)
def test_nothing_is_compiled_after_one_pass_through_the_buckets(
    layout: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    generator = np.random.default_rng(0)
    config = replace(CONFIG, learner=replace(CONFIG.learner, kl_coef=0.1))

    def play(host: Host, bucket: int) -> None:
        prompts = random_prompts(generator, 2, 2, bucket)
        host.sample(prompts, generator.integers(0, 2**32, 2).tolist(), 1.0, group_size=GROUP)
        host.sample(prompts, [0, 0], GREEDY, group_size=1)
        host.update(random_batches(generator, 2, 4, bucket))

    with compilations(caplog) as first:
        host = make_host(config, **layout)
        host.supervise(random_batches(generator, 2, 4, BUCKETS[-1], group_size=1))
        host.begin()
        for bucket in BUCKETS:
            play(host, bucket)
    assert any("_update" in line for line in first) and any("_sample" in line for line in first)
    traced = dict(host.traces)
    assert traced == {"sample": 2 * len(BUCKETS), "update": len(BUCKETS), "supervise": 1}
    with compilations(caplog) as later:
        for bucket in (8, 16, 16, 8, 16):
            play(host, bucket)
            host.supervise(random_batches(generator, 2, 4, BUCKETS[-1], group_size=1))
    assert later == []
    assert dict(host.traces) == traced


def played(host: Host, questions: int = 4) -> tuple[list[Any], list[dict[str, float]], list[Params]]:
    """Two updates with other batches for every node, sampling in between; all from fixed seeds."""
    generator = np.random.default_rng(1)
    samples: list[Any] = []
    metrics: list[dict[str, float]] = []
    for round in range(2):
        metrics += host.update(random_batches(generator, host.nodes, questions, 8))
        prompts = random_prompts(generator, host.nodes, 2, 8)
        seeds = generator.integers(0, 2**32, host.nodes).tolist()
        samples += host.sample(prompts, seeds, 1.0 + round / 4, group_size=GROUP)
        samples += host.sample(prompts, seeds, GREEDY, group_size=1)
    return samples, metrics, [jax.device_get(host.params_of(node)) for node in range(host.nodes)]


def assert_same_run(host: Host, expected: tuple[list[Any], list[dict[str, float]], list[Params]]) -> None:
    samples, metrics, params = played(host)
    rows, expected_rows = flat(samples), flat(expected[0])
    assert len(rows) == len(expected_rows) > 50
    for row, wanted in zip(rows, expected_rows, strict=True):
        assert (row.token_ids, row.stopped) == (wanted.token_ids, wanted.stopped)
        np.testing.assert_allclose(row.logprobs, wanted.logprobs, rtol=0, atol=1e-4)
    for found, wanted in zip(metrics, expected[1], strict=True):
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    for found, wanted in zip(params, expected[2], strict=True):
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def flat(samples: list[Any]) -> list[SampledRow]:
    return [row for node in samples for question in node for row in question]


@pytest.fixture(scope="module")
def four_alone() -> tuple[list[Any], list[dict[str, float]], list[Params]]:
    """A run of four nodes, each computed by itself on one device."""
    result = played(make_host(replace(CONFIG, nodes=4)))
    embeddings = [params["embed"]["embedding"] for params in result[2]]
    for node in range(1, 4):  # the updates have led the nodes apart, or nothing would be compared here
        assert np.abs(embeddings[node] - embeddings[0]).max() > 0.01
    assert np.abs(embeddings[0] - random_params(MODEL, 1)["embed"]["embedding"]).max() > 0.01
    return result


@pytest.mark.parametrize("nodes_per_program", [2, 4])
def test_nodes_computed_together_learn_and_sample_as_if_alone(four_alone: Any, nodes_per_program: int) -> None:
    assert_same_run(make_host(replace(CONFIG, nodes=4), nodes_per_program=nodes_per_program), four_alone)


@pytest.mark.parametrize(
    "layout",
    [
        {"nodes_per_program": 4, "mesh_node": 2, "mesh_fsdp": 2, "mesh_tensor": 2},
        {"nodes_per_program": 4, "mesh_node": 2, "mesh_data": 2, "mesh_tensor": 2},
        {"nodes_per_program": 1, "mesh_data": 2, "mesh_fsdp": 2, "mesh_tensor": 2},
    ],
)
def test_a_mesh_of_eight_devices_gives_the_numbers_of_one(four_alone: Any, layout: dict[str, int]) -> None:
    host = make_host(replace(CONFIG, nodes=4), **layout)
    before = jax.tree.map(lambda x: x.sharding, host.arrays)
    assert_same_run(host, four_alone)
    # Updates leave everything where it was.
    same = jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim), host.arrays, before)
    assert all(jax.tree.leaves(same))
    # Every device holds its part of a kernel and no more; moments lie as their parameters do.
    parts = np.prod([layout.get(f"mesh_{axis}", 1) for axis in ("node", "fsdp", "tensor")])
    shape = host.arrays["states"][0]["params"]["blocks"]["mlp"]["up"]["kernel"].shape  # [M', L, D, F]
    kernels = [leaf for leaf in jax.tree.leaves(host.arrays) if leaf.shape == shape]
    assert len(kernels) == 2 * 3 * len(host.arrays["states"])  # gate and up; parameter, first and second moment
    for leaf in kernels:
        assert len(leaf.sharding.device_set) == 8
        assert leaf.addressable_shards[0].data.size * parts == leaf.size


def test_a_learning_rate_of_zero_leaves_every_bit_where_it_was() -> None:
    host = make_host(replace(CONFIG, learner=replace(CONFIG.learner, learning_rate=0.0)))
    _, _, params = played(host)
    for found, wanted in zip(jax.tree.leaves(params[0]), jax.tree.leaves(random_params(MODEL, 1)), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_arrays_taken_over_by_another_host_continue_the_run() -> None:
    config = replace(CONFIG, learner=replace(CONFIG.learner, kl_coef=0.2, inner_epochs=2))
    first, second = make_host(config), make_host(config)
    batches = [random_batches(np.random.default_rng(seed), 2, 4, 8) for seed in range(2)]
    first.update(batches[0])
    saved = jax.device_get(first.arrays)
    second.update(batches[1])  # it stands elsewhere, and its reference is older
    second.load_arrays(jax.device_put(saved))
    assert first.update(batches[1]) == second.update(batches[1])
    for ours, theirs in zip(jax.tree.leaves(first.arrays), jax.tree.leaves(second.arrays), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_supervised_steps_and_a_fresh_beginning() -> None:
    host = make_host(replace(CONFIG, learner=replace(CONFIG.learner, kl_coef=0.2)))
    generator = np.random.default_rng(2)
    before = host.params_of(1)
    for _ in range(3):
        host.supervise(random_batches(generator, 2, 4, 16, group_size=1))
    learned = jax.device_get(host.params_of(1))
    assert np.abs(learned["embed"]["embedding"] - before["embed"]["embedding"]).max() > 1e-3
    host.begin()
    state = host.arrays["states"][1]
    assert int(state["updates"][0]) == 0
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(state["opt_state"]))
    reference = host.arrays["references"][1]
    for ours, kept, theirs in zip(*map(jax.tree.leaves, (host.params_of(1), reference, learned)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(kept[0], theirs)


@pytest.mark.parametrize("nodes_per_program", [1, 2])
def test_what_is_begun_is_what_would_have_been_done(nodes_per_program: int) -> None:
    config = replace(CONFIG, nodes=4)
    waiting, begun = (make_host(config, nodes_per_program=nodes_per_program) for _ in range(2))
    generator = np.random.default_rng(3)
    prompts, batches = random_prompts(generator, 4, 2, 8), random_batches(generator, 4, 4, 8)
    parts = begun.start_sample(prompts, [1, 2, 3, 4], 1.0, group_size=GROUP)
    learning = begun.start_update(batches)  # while nobody has read a completion
    rows = waiting.sample(prompts, [1, 2, 3, 4], 1.0, group_size=GROUP)
    found = list(parts)
    assert [len(part) for part in found] == [nodes_per_program] * (4 // nodes_per_program)
    assert [row for part in found for row in part] == rows
    assert list(learning) == waiting.update(batches)
    for ours, theirs in zip(jax.tree.leaves(begun.arrays), jax.tree.leaves(waiting.arrays), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert 0 < begun.busy_s() == begun.busy_s()
