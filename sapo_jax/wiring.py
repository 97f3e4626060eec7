"""Builds the parts of a run from its configuration; the commands share it and nothing else wires."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sapo_jax.config import ConfigError, SapoConfig
from sapo_jax.host import Host
from sapo_jax.models.compute_dtype import resolve_compute_dtype
from sapo_jax.models.decoder import init_params
from sapo_jax.models.sources import LoadedModel, load
from sapo_jax.node import Node
from sapo_jax.prompting import Prompter
from sapo_jax.seeding import hash_seed
from sapo_jax.swarm.memory_exchange import MemoryHub
from sapo_jax.tasks.catalog import Specialty, resolve
from sapo_jax.tasks.held_out import held_out_tasks
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.stream import TaskStream, require_usable
from sapo_jax.tasks.system_prompts import system_prompt
from sapo_jax.tasks.verifier import Verifier
from sapo_jax.types import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSide:
    """Everything about problems: which there are, who builds and who scores them."""

    specialties: tuple[Specialty, ...]
    source: ReasoningGymSource
    verifier: Verifier


def select_platform(config: SapoConfig) -> None:
    """Makes JAX use `config.host.platform`; call it before anything touches a device.

    Raises:
        ConfigError: there is no such device.
    """
    wanted = config.host.platform
    if wanted == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        found = jax.default_backend()
    except RuntimeError as error:  # the environment asks for a platform that is not there
        raise ConfigError(f"config.host.platform = {wanted!r}: {str(error).splitlines()[0]}") from error
    if wanted not in ("auto", found):
        raise ConfigError(
            f'config.host.platform = {wanted!r}: no such device here, found {found}; use "auto" to take what there is'
        )


def build_tasks(config: SapoConfig) -> TaskSide:
    """Returns the task side of a run; raises CatalogError for what cannot be trained on."""
    specialties = resolve(config.tasks.catalog, config.tasks.specialties)
    source = ReasoningGymSource(specialties)
    return TaskSide(specialties=specialties, source=source, verifier=Verifier(source))


def build_prompter(config: SapoConfig, model: LoadedModel, tasks: TaskSide) -> Prompter:
    """Returns the prompt layout of the model's tokenizer."""
    return Prompter(
        model.tokenizer,
        tasks.source,
        system=system_prompt(config.text.system_prompt),
        shots=config.tasks.shots,
        enable_thinking=config.text.enable_thinking,
        prompt_buckets=config.sampling.prompt_buckets,
    )


def load_model(config: SapoConfig) -> LoadedModel:
    """Returns the model of `config.model.source`, checked against the lengths the run needs."""
    model = load(config.model.source, init=config.model.init)
    longest = config.sampling.max_prompt_tokens + config.sampling.max_new_tokens
    if longest > model.config.max_positions:
        raise ConfigError(
            f"config.sampling.prompt_buckets[-1] + config.sampling.max_new_tokens = {longest}: "
            f"{model.origin} was made for {model.config.max_positions} positions"
        )
    return model


def build_host(
    config: SapoConfig, model: LoadedModel, compute_dtype: str, *, per_program: int = 0, learning: bool = True
) -> Host:
    """Returns the host with every node at the model's weights; `init:` weights follow from the run's seed.

    Args:
        per_program: nodes in one compiled call; 0: `nodes_per_program`. Checkpoints are laid out by it.
        learning: False for a host that only samples, without optimizer state.
    """
    params = model.params
    if params is None:
        params = jax.device_get(init_params(model.config, jax.random.key(hash_seed(config.seed, "init"))))
    return Host(
        config,
        model.config,
        params,
        end_id=model.tokenizer.end_id,
        dtype=jnp.dtype(compute_dtype),
        nodes_per_program=per_program or nodes_per_program(config),
        learning=learning,
    )


def compute_dtype(config: SapoConfig, model: LoadedModel) -> str:
    """Returns the name of the dtype to compute in; fix it for the run, "auto" may measure."""
    return resolve_compute_dtype(config.model.compute_dtype, model.config)


def nodes_per_program(config: SapoConfig) -> int:
    """Returns how many nodes are computed in one call: as configured, else all, or one on a CPU.

    A CPU gains nothing from batching different weights, and one node at a time needs less memory.
    """
    per_program = config.host.nodes_per_program
    if not per_program:
        per_program = 1 if config.host.mesh_node == 1 and jax.default_backend() == "cpu" else config.nodes
    return per_program


def build_stream(config: SapoConfig, tasks: TaskSide, node_id: str) -> TaskStream:
    """Returns a node's stream of training tasks."""
    return TaskStream(
        source=tasks.source,
        specialties=tasks.specialties,
        run_seed=config.seed,
        node_id=node_id,
        draw=config.tasks.draw,
        stream=config.tasks.stream,
        pool_size=config.tasks.pool_size,
    )


def build_nodes(config: SapoConfig, prompter: Prompter, tasks: TaskSide) -> tuple[list[Node], MemoryHub]:
    """Returns the nodes of this host, joined by an exchange in memory."""
    ids = [f"node-{index}" for index in range(config.nodes)]
    hub = MemoryHub(ids, mailbox_rollouts=config.sharing.pool_rollouts)
    nodes = [
        Node(
            node_id,
            config,
            stream=build_stream(config, tasks, node_id),
            prompter=prompter,
            verifier=tasks.verifier,
            exchange=hub.connect(node_id),
        )
        for node_id in ids
    ]
    return nodes, hub


def build_held_out(config: SapoConfig, prompter: Prompter, tasks: TaskSide) -> list[Task]:
    """Returns the held-out questions of all specialties; checks that most prompts fit the limit.

    Raises:
        StreamError: a specialty whose prompts mostly exceed the limit.
    """
    require_usable(tasks.source, tasks.specialties, prompter.fits)
    return [
        task
        for specialty in tasks.specialties
        for task in held_out_tasks(tasks.source, specialty, config.eval.questions, prompter.fits)
    ]
