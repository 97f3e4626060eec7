"""A swarm learns: its own reward passes a threshold that it stays far below without updates."""

from __future__ import annotations

import numpy as np
import pytest

from sapo_jax import presets, wiring
from sapo_jax.cold_start import cold_start
from sapo_jax.config import default_config_dict, from_config_dict
from sapo_jax.node import play_round
from tests.fakes import build_tasks

ROUNDS = 60
LAST = 20  # rounds that are judged


def played(learning_rate: float, rounds: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Plays a two-node swarm of tiny models and returns its metrics, each [rounds], averaged over nodes.

    "Is 1935 a leap year? Answer with Yes or No.": three in four answers are No. After a short cold
    start a model answers in tags about every third time and says No as often as the targets did, so
    there is a format to secure and an answer to prefer; nothing but the reward tells which.
    """
    draft = default_config_dict()
    presets.apply(draft, "paper")
    draft.rounds = ROUNDS
    draft.seed = seed
    draft.nodes = 2
    draft.model.source = "init:qwen2"
    draft.model.compute_dtype = "float32"
    draft.text.system_prompt = ""
    draft.tasks.catalog = "easy"
    draft.tasks.specialties = ("leap_year",)
    draft.tasks.shots = 0
    draft.sampling.prompt_buckets = (88,)
    draft.sampling.max_new_tokens = 6
    draft.sharing.local = 4
    draft.sharing.external = 4
    draft.learner.learning_rate = learning_rate
    draft.learner.remat = False
    draft.cold_start.steps = 30
    config = from_config_dict(draft)

    tasks = build_tasks(config)
    model = wiring.load_model(config)
    prompter = wiring.build_prompter(config, model, tasks)
    host = wiring.build_host(config, model, "float32")
    nodes = wiring.build_nodes(config, prompter, tasks, wiring.memory_hub(config))
    streams = [wiring.build_stream(config, tasks, f"cold start of node-{n}") for n in range(config.nodes)]
    cold_start(host, prompter, streams, config)
    history = [play_round(nodes, host, round) for round in range(1, rounds + 1)]
    names = ("reward/own_strict_frac", "reward/own_stopped_frac", "groups/local", "groups/external")
    return {name: np.array([np.mean([node[name] for node in metrics]) for metrics in history]) for name in names}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_own_reward_passes_a_threshold_that_chance_does_not_reach(seed: int) -> None:
    # Seen with three seeds: 0.64 to 0.74 over the last 20 rounds; 0.19 to 0.26 without updates.
    learned = played(1e-3, ROUNDS, seed)
    assert (learned["groups/local"] == 4).all()
    assert 1 < learned["groups/external"].mean() < 4  # the rule draws groups with an advantage only
    assert learned["reward/own_strict_frac"][-LAST:].mean() > 0.55
    assert learned["reward/own_stopped_frac"][-LAST:].mean() > 0.8

    unchanged = played(0.0, LAST, seed)
    assert unchanged["reward/own_strict_frac"].mean() < 0.35
