"""Policies read back from a workdir, for the commands that look at them; safe beside a running run.

Where a run computed does not matter here: its mesh and platform are forgotten, its precision is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from sapo_jax import wiring
from sapo_jax.checkpoint import Checkpointer, CheckpointError
from sapo_jax.config import HostConfig, ModelConfig, SapoConfig
from sapo_jax.host import Host
from sapo_jax.models.sources import LoadedModel
from sapo_jax.workdir import CHECKPOINTS, WorkdirError, read_record

Change = Callable[[SapoConfig], SapoConfig]


def _unchanged(config: SapoConfig) -> SapoConfig:
    return config


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Policies that can be sampled and exported, not trained.

    Attributes:
        config: of their run, with `nodes` as many as the host has.
        round: rounds of training behind them.
        model: dimensions, tokenizer and origin; its weights are those of before the training.
        host: holds them; without optimizer states.
    """

    config: SapoConfig
    round: int
    model: LoadedModel
    host: Host


def load_trained(workdir: str, round: str, *, node: int | None = None, change: Change = _unchanged) -> Trained:
    """Returns the policies of a checkpoint in `workdir`, or the one of `node` alone.

    Args:
        round: "latest", "best" (on held-out questions), or a number of rounds.
        change: what shall be other than in the run, in keys that the parameters do not depend on.

    Raises:
        WorkdirError: not a run's directory, no such node, or a `round` that is none of these.
        CheckpointError: no such checkpoint, or one that cannot be read.
    """
    record = read_record(workdir)
    config = change(replace(record.config, host=HostConfig()))
    if node is not None and not 0 <= node < config.nodes:
        raise WorkdirError(f"--node={node}: the run at {workdir} has nodes 0 to {config.nodes - 1}")
    with Checkpointer(Path(workdir).expanduser() / CHECKPOINTS, read_only=True) as checkpoints:
        found = _find(checkpoints, round)
        model = wiring.load_model(config)
        dtype, per_program = str(record.resolved["compute_dtype"]), int(record.resolved["nodes_per_program"])
        host = wiring.build_host(config, model, dtype, per_program=per_program, learning=False)
        host.load_arrays(checkpoints.restore(found, host.release_arrays(), partial=True).arrays)
    if node is not None and config.nodes > 1:
        config = replace(config, nodes=1)
        alone = replace(model, params=jax.device_get(host.params_of(node)))
        host = wiring.build_host(config, alone, dtype, learning=False)
    return Trained(config=config, round=found, model=model, host=host)


def load_untrained(source: str, change: Change = _unchanged) -> Trained:
    """Returns the policy of a weight source as it is, under the default configuration changed by `change`."""
    config = change(SapoConfig(nodes=1, model=ModelConfig(source=source)))
    model = wiring.load_model(config)
    host = wiring.build_host(config, model, wiring.compute_dtype(config, model), learning=False)
    return Trained(config=config, round=0, model=model, host=host)


def _find(checkpoints: Checkpointer, round: str) -> int:
    if round == "best":
        found = checkpoints.best_round()
        if found is None:
            raise CheckpointError(
                f"{checkpoints.directory}: no checkpoint was evaluated on held-out questions; use --round=latest"
            )
    elif round == "latest":
        found = checkpoints.latest_round()
        if found is None:
            raise CheckpointError(f"{checkpoints.directory}: no intact checkpoint")
    elif round.isdecimal():
        found = int(round)
    else:
        raise WorkdirError(f"--round={round}: must be latest, best or a number of rounds")
    return found
