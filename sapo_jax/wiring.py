"""Builds the parts of a run from its configuration; the commands share it and nothing else wires."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sapo_jax.config import ConfigError, SapoConfig
from sapo_jax.errors import first_line
from sapo_jax.host import Host
from sapo_jax.memory_fit import check_fit
from sapo_jax.memory_plan import plan_memory
from sapo_jax.models import sharding
from sapo_jax.models.compute_dtype import resolve_compute_dtype
from sapo_jax.models.decoder import init_params
from sapo_jax.models.sources import LoadedModel, load
from sapo_jax.node import Node
from sapo_jax.prompting import Prompter
from sapo_jax.seeding import hash_seed
from sapo_jax.swarm.exchange import Hub
from sapo_jax.swarm.memory_exchange import MemoryHub
from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.held_out import held_out_tasks
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scoring_pool import ScoringPool
from sapo_jax.tasks.specialty import Specialty, require_reproducible
from sapo_jax.tasks.stream import TaskStream, require_usable
from sapo_jax.tasks.system_prompts import system_prompt
from sapo_jax.tasks.verifier import OWN_LANE, Verifier
from sapo_jax.types import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSide:
    """Everything about problems: which there are, who builds and who scores them; close it after use."""

    specialties: tuple[Specialty, ...]
    source: ReasoningGymSource
    verifier: Verifier

    def close(self) -> None:
        """Ends the verifier's processes."""
        self.verifier.close()

    def __enter__(self) -> TaskSide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        raise ConfigError(f"config.host.platform = {wanted!r}: {first_line(error)}") from error
    if wanted not in ("auto", found):
        raise ConfigError(
            f'config.host.platform = {wanted!r}: no such device here, found {found}; use "auto" to take what there is'
        )


def build_tasks(config: SapoConfig, *, lanes: Sequence[str] = (OWN_LANE,)) -> TaskSide:
    """Returns the task side of a run, whose scorer processes start in the background.

    Args:
        lanes: of the verifier; work in one never delays work in another.

    Raises:
        CatalogError: something that cannot be trained on.
    """
    specialties = resolve(config.tasks.catalog, config.tasks.specialties)
    require_reproducible(specialties)
    source = ReasoningGymSource(specialties)
    verifier = ScoringPool(
        specialties,
        lanes=lanes,
        workers_per_lane=config.tasks.scorer_workers or min(4, max(1, (os.cpu_count() or 1) // 16)),
        completion_budget_s=config.tasks.completion_budget_s,
        group_budget_s=config.tasks.group_budget_s,
    )
    return TaskSide(specialties=specialties, source=source, verifier=verifier)


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
    config: SapoConfig,
    model: LoadedModel,
    compute_dtype: str,
    *,
    per_program: int = 0,
    learning: bool = True,
    kind: Callable[..., Host] = Host,
    say: Callable[[str], object] = lambda line: None,
) -> Host:
    """Returns the host with every node at the model's weights; `init:` weights follow from the run's seed.

    Args:
        per_program: nodes in one compiled call; 0: `nodes_per_program`. Checkpoints are laid out by it.
        learning: False for a host that only samples, without optimizer state.
        kind: makes the host from what `Host` takes; the processes of a group have kinds of their own.
        say: is told how much memory the host and its work need, and of every program.

    Raises:
        ConfigError: fewer devices than the mesh needs, or more memory needed than there is.
    """
    per_program = per_program or nodes_per_program(config)
    _check_memory(config, model, compute_dtype, per_program=per_program, learning=learning, say=say)
    params = model.params
    if params is None:
        params = jax.device_get(init_params(model.config, jax.random.key(hash_seed(config.seed, "init"))))
    return kind(
        config,
        model.config,
        params,
        end_id=model.tokenizer.end_id,
        dtype=jnp.dtype(compute_dtype),
        nodes_per_program=per_program,
        learning=learning,
        say=say,
    )


def _check_memory(
    config: SapoConfig,
    model: LoadedModel,
    compute_dtype: str,
    *,
    per_program: int,
    learning: bool,
    say: Callable[[str], object],
) -> None:
    host = config.host
    mesh = sharding.make_mesh(node=host.mesh_node, data=host.mesh_data, fsdp=host.mesh_fsdp, tensor=host.mesh_tensor)
    plan = plan_memory(
        config, model.config, mesh, compute_dtype=compute_dtype, nodes_per_program=per_program, learning=learning
    )
    if not learning:
        plan = plan.only()  # whoever asks such a host says how many questions and completions at a time
    check_fit(plan, config, nodes_per_program=per_program, say=say)


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


def writes_in_background() -> bool:
    """Returns whether checkpoints are written while the devices work on: not on a CPU, which is a device here."""
    return jax.default_backend() != "cpu"


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


def node_ids(config: SapoConfig) -> tuple[str, ...]:
    """Returns what the nodes of a host are called within its process."""
    return tuple(f"node-{index}" for index in range(config.nodes))


def memory_hub(config: SapoConfig) -> MemoryHub:
    """Returns the hub of a swarm that lives in this process alone."""
    return MemoryHub(node_ids(config), mailbox_rollouts=config.sharing.pool_rollouts)


def build_nodes(config: SapoConfig, prompter: Prompter, tasks: TaskSide, hub: Hub) -> list[Node]:
    """Returns the nodes of this host, joined by `hub`."""
    return [
        Node(
            node_id,
            config,
            stream=build_stream(config, tasks, node_id),
            prompter=prompter,
            verifier=tasks.verifier,
            exchange=hub.connect(node_id),
        )
        for node_id in node_ids(config)
    ]


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
