"""The workloads in tunix: `RLCluster`, its own sampler, `GRPOLearner`.

Actor and sampler share one mesh of one device, as tunix is run on a single machine. A round is the learner's `train` on
one batch; an update is `RLCluster.update_actor` on examples of one group each, which it accumulates; sampling and
scoring are `RLCluster.generate` and `get_old_per_token_logps`. Weights come in through a safetensors file. The pad and
end token is -1, no id of the model, so every completion runs to the limit.

What differs, and is left as tunix does it:

- it computes logits of the prompts too, and the entropy of every completion token;
- its Llama class has a fixed rotary base and one type for weights and products. Its Qwen2 class has neither limit, so
  llama models run in that, with biases of zero whose gradients are dropped;
- with bfloat16 products are in it and weights in float32, but when nothing is learned: then weights are too;
- what it logs as the gradient norm is a mean over micro-batches. The norm of the whole update, which others report, is
  taken in the optimizer;
- its loop does not report log-probs: they are computed apart and outside the time, before the first update only;
- with one seed it samples the same numbers in every call.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file

from sapo_jax.config import LearnerConfig
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params
from sapo_jax.models.weight_table import disassemble
from scripts.bench.workloads import Inputs, Kind, Workload

LEARNING_RATE = 1e-6  # everybody's
NO_TOKEN = -1
ENDLESS = 10**9  # optimizer steps, so that the loop never ends by itself


def build(
    workload: Workload, config: DecoderConfig, params: Params, inputs: Inputs, *, dtype: str, seed: int
) -> Callable[[], dict[str, float]]:
    """Returns a function that does the work once and returns what can be checked of it."""
    is_learning = workload.kind in (Kind.UPDATE, Kind.ROUND)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    model = _load_model(config, params, mesh, dtype, "float32" if is_learning else dtype)
    cluster = _make_cluster(workload, model, mesh, freeze_biases=not config.qkv_bias, seed=seed)
    texts = [" ".join(map(str, row)) for row in inputs.prompts.tolist()]
    if workload.kind is Kind.SAMPLE:
        repeated = [text for text in texts for _ in range(workload.group_size)]
        return lambda: {"tokens": float(sum(len(ids) for ids in cluster.generate(repeated).tokens))}
    if workload.kind is Kind.SCORE:
        return lambda: {"logprob_mean": _logprob_mean(cluster, workload, inputs)}
    learner = _make_learner(workload, cluster, inputs)
    if workload.kind is Kind.UPDATE:
        return _updates(cluster, workload, inputs)
    return _rounds(cluster, learner, texts)


def _updates(cluster: Any, workload: Workload, inputs: Inputs) -> Callable[[], dict[str, float]]:
    from tunix.rl import function_registry  # pyright: ignore[reportMissingImports]
    from tunix.rl.grpo.grpo_learner import TrainExample  # pyright: ignore[reportMissingImports]

    advantages_of = function_registry.get_advantage_estimator("grpo")
    start = {"logprob_mean": _logprob_mean(cluster, workload, inputs)}

    def example(question: int) -> Any:
        prompts = jnp.asarray(np.repeat(inputs.prompts[question : question + 1], workload.group_size, axis=0))
        completions = jnp.asarray(inputs.completions[question])
        return TrainExample(
            prompt_ids=prompts,
            prompt_mask=jnp.ones(prompts.shape, bool),
            completion_ids=completions,
            completion_mask=jnp.ones(completions.shape, bool),
            advantages=jnp.asarray(
                advantages_of(rewards=inputs.rewards[question], num_generations=workload.group_size)
            ),
            ref_per_token_logps=None,
            old_per_token_logps=None,
        )

    def run() -> dict[str, float]:
        cluster.update_actor([example(question) for question in range(workload.questions)], None)
        found = {**start, "grad_norm": _grad_norm(cluster)}
        start.clear()
        return found

    return run


def _rounds(cluster: Any, learner: Any, texts: list[str]) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        learner.train([{"prompts": texts}])  # one batch is one step; state and compiled programs stay for the next
        return {"grad_norm": _grad_norm(cluster)}

    return run


class _Ids:
    """A tokenizer, as tunix wants one: texts are numbers of ids."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int | None:
        return None

    def eos_id(self) -> int:
        return NO_TOKEN

    def pad_id(self) -> int:
        return NO_TOKEN


def _load_model(config: DecoderConfig, params: Params, mesh: jax.sharding.Mesh, dtype: str, param_dtype: str) -> Any:
    """Returns tunix's Qwen2 model with our weights, in `param_dtype`; raises ValueError for another architecture."""
    from tunix.models.qwen2 import model  # pyright: ignore[reportMissingImports]
    from tunix.models.qwen2 import params as loader  # pyright: ignore[reportMissingImports]

    if config.qk_norm:
        raise ValueError(f"--model: {config.family} has norms on q and k, which this runner has no class of tunix for")
    dimensions = model.ModelConfig(
        num_layers=config.layers,
        vocab_size=config.vocab_size,
        embed_dim=config.width,
        hidden_dim=config.mlp_width,
        num_heads=config.heads,
        head_dim=config.head_size,
        num_kv_heads=config.kv_heads,
        rope_theta=int(config.rope_base),
        norm_eps=config.norm_epsilon,
        use_tied_embedding=config.tie_embeddings,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(param_dtype),
    )
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in disassemble(config, params)}
    if not config.qkv_bias:
        for layer in range(config.layers):
            for part, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
                name = f"model.layers.{layer}.self_attn.{part}_proj.bias"
                tensors[name] = np.zeros(heads * config.head_size, np.float32)
    with tempfile.TemporaryDirectory() as directory:
        save_file(tensors, Path(directory, "model.safetensors"))
        return loader.create_model_from_safe_tensors(directory, dimensions, mesh, dtype=jnp.dtype(param_dtype))


def _make_cluster(workload: Workload, model: Any, mesh: jax.sharding.Mesh, *, freeze_biases: bool, seed: int) -> Any:
    from tunix.rl import rl_cluster  # pyright: ignore[reportMissingImports]
    from tunix.rl.rollout.base_rollout import RolloutConfig  # pyright: ignore[reportMissingImports]

    roles = rl_cluster.Role
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(_measure(freeze_biases), optax.adam(LEARNING_RATE)),
        eval_every_n_steps=ENDLESS,
        max_steps=ENDLESS,
        mini_batch_size=workload.questions,
        train_micro_batch_size=1,
        rollout_micro_batch_size=workload.questions,
        compute_logps_micro_batch_size=workload.questions,
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=workload.completion,
        max_prompt_length=workload.prompt,
        kv_cache_size=workload.prompt + workload.completion,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
        seed=seed,  # a key would be donated, and gone at the second call
    )
    return rl_cluster.RLCluster(
        actor=model,
        tokenizer=_Ids(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: mesh for role in (roles.ACTOR, roles.REFERENCE, roles.ROLLOUT)},
            training_config=training,
            rollout_config=rollout,
        ),
    )


def _make_learner(workload: Workload, cluster: Any, inputs: Inputs) -> Any:
    """Returns the learner, which also gives the cluster its loss."""
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner  # pyright: ignore[reportMissingImports]

    rewards = inputs.rewards.reshape(-1).tolist()

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return rewards

    settings = GRPOConfig(num_generations=workload.group_size, beta=0.0, epsilon=LearnerConfig().clip_low)
    settings.epsilon_high = LearnerConfig().clip_high  # read by the loss, but no field
    return GRPOLearner(rl_cluster=cluster, algo_config=settings, reward_fns=reward)


class _Measured(NamedTuple):
    norm: jax.Array


def _measure(freeze_biases: bool) -> optax.GradientTransformation:
    """Returns a transformation that keeps the norm of what passes, and drops gradients of biases if asked to."""

    def init(params: Any) -> _Measured:
        return _Measured(jnp.zeros(()))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _Measured]:
        if freeze_biases:
            updates = jax.tree_util.tree_map_with_path(
                lambda path, grad: jnp.zeros_like(grad) if "_bias" in jax.tree_util.keystr(path) else grad, updates
            )
        return updates, _Measured(optax.global_norm(updates))

    return optax.GradientTransformation(init, update)


def _grad_norm(cluster: Any) -> float:
    """Returns the norm of the last update's gradient, once that update is done."""
    state = cluster.actor_trainer.optimizer.opt_state  # of MultiSteps around our chain
    return float(state.inner_opt_state[0].norm[...])


def _logprob_mean(cluster: Any, workload: Workload, inputs: Inputs) -> float:
    logprobs = cluster.get_old_per_token_logps(
        prompt_tokens=jnp.asarray(np.repeat(inputs.prompts, workload.group_size, axis=0)),
        completion_tokens=jnp.asarray(inputs.completions.reshape(-1, workload.completion)),
        micro_batch_size=workload.group_size,
    )
    return float(jnp.mean(logprobs))
