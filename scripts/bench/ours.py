"""Our side of the workloads: the `Host` of a training run, with random weights."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sapo_jax.config import ConfigError, LearnerConfig, SamplingConfig, SapoConfig, SharingConfig
from sapo_jax.host import Host
from sapo_jax.learner.step import Batch, batch_logprobs
from sapo_jax.memory_fit import check_fit
from sapo_jax.memory_plan import plan_memory
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params
from sapo_jax.models.node_axis import over_nodes
from sapo_jax.models.sharding import make_mesh
from sapo_jax.text.encode import EncodedPrompts
from scripts.bench.processes import say
from scripts.bench.workloads import Checked, Inputs, Kind, Workload

NO_END = -1  # no token ends a completion
LEARNING_RATE = 1e-6
PHASES = {Kind.SAMPLE: ("sampling",), Kind.UPDATE: ("update",), Kind.SCORE: (), Kind.ROUND: ("sampling", "update")}


def build(
    workload: Workload,
    config: DecoderConfig,
    params: Params,
    inputs: Inputs,
    *,
    dtype: str,
    nodes: int,
    per_program: int,
    learner: LearnerConfig,
) -> Callable[[], Checked]:
    """Returns a function that does the work once for all nodes and returns what can be checked of it.

    Says how much memory that needs; ends the process with one line if there is less.
    """
    settings = SapoConfig(
        nodes=nodes,
        sampling=SamplingConfig(
            group_size=workload.group_size, max_new_tokens=workload.completion, prompt_buckets=(workload.prompt,)
        ),
        sharing=SharingConfig(local=workload.questions, external=0),
        learner=dataclasses.replace(learner, learning_rate=LEARNING_RATE, allow_truncated_positive=True),
    )
    _check_memory(workload.kind, settings, config, dtype, per_program or nodes)
    host = Host(
        settings,
        config,
        params,
        end_id=NO_END,
        dtype=jnp.dtype(dtype),
        nodes_per_program=per_program or nodes,
        learning=workload.kind is not Kind.SAMPLE,
    )
    prompts = _encoded(inputs.prompts)
    batch = make_batch(prompts, inputs.completions, inputs.rewards)
    counter = iter(range(10**9))

    def sample() -> np.ndarray:
        seeds = [next(counter) * nodes + node for node in range(nodes)]
        rows = host.sample([prompts] * nodes, seeds, 1.0, group_size=workload.group_size)
        return np.array([[row.token_ids for row in group] for group in rows[0]], np.int32)

    def final_scale() -> np.ndarray:
        return np.asarray(host.arrays["states"][0]["params"]["final_norm"]["scale"][0])

    def update(batch: Batch) -> Checked:
        before = final_scale()
        metrics = host.update([batch] * nodes)[0]
        return {
            "logprob_mean": metrics["policy/own_logprob_mean"],
            "grad_norm": metrics["learner/grad_norm"],
            "moved": float(np.abs(final_scale() - before).sum()),
        }

    if workload.kind is Kind.SAMPLE:
        return lambda: {"tokens": float(sample().size)}
    if workload.kind is Kind.UPDATE:
        return lambda: update(batch)
    if workload.kind is Kind.ROUND:
        return lambda: update(make_batch(prompts, sample(), inputs.rewards))
    one_node = partial(
        batch_logprobs,
        config,
        temperature=1.0,
        logit_chunk_tokens=learner.logit_chunk_tokens,
        dtype=jnp.dtype(dtype),
    )
    programs = [state["params"] for state in host.arrays["states"]]
    scored = jax.jit(over_nodes(lambda params, batch: one_node(params, batch)[0]))
    stacked = jax.tree.map(lambda x: jnp.stack([x] * (nodes // len(programs))), batch)

    def score() -> Checked:
        found = [np.asarray(scored(params, stacked)[0]) for params in programs][0]  # [Q, G, C]
        return {"logprob_mean": float(found.mean()), "logprobs": found[0, 0].tolist()}

    return score


def _check_memory(kind: Kind, settings: SapoConfig, config: DecoderConfig, dtype: str, per_program: int) -> None:
    learning = kind is not Kind.SAMPLE
    plan = plan_memory(
        settings, config, make_mesh(), compute_dtype=dtype, nodes_per_program=per_program, learning=learning
    ).only(*PHASES[kind])
    try:
        check_fit(plan, settings, nodes_per_program=per_program, say=say)
    except ConfigError as error:
        sys.exit(f"error: {error}")


def make_batch(prompts: EncodedPrompts, completions: np.ndarray, rewards: np.ndarray) -> Batch:
    """Returns the batch of one node: every completion of full length."""
    return Batch(
        prompt_tokens=prompts.tokens,
        prompt_positions=prompts.prompt_positions,
        prompt_mask=prompts.prompt_mask,
        completion_tokens=completions,
        completion_mask=np.ones(completions.shape, bool),
        rewards=rewards,
        valid=np.ones(rewards.shape, bool),
        truncated=np.zeros(rewards.shape, bool),
        external=np.zeros(len(rewards), bool),
    )


def _encoded(tokens: np.ndarray) -> EncodedPrompts:
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return EncodedPrompts(tokens=tokens, prompt_mask=np.ones(tokens.shape, bool), prompt_positions=positions)
