"""Without sharing a swarm is as many silos: each node ends where it would have ended alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from sapo_jax.metrics import read_metrics
from sapo_jax.trained import load_trained
from sapo_jax.workdir import METRICS_FILE
from tests.e2e.runs import tiny, train

ROUNDS = 6


def _node_0(workdir: Path) -> tuple[Any, list[dict[str, float]]]:
    records = [record for record in read_metrics(workdir / METRICS_FILE) if record.node == 0]
    metrics = [{k: v for k, v in record.metrics.items() if k[:5] != "time/"} for record in records]
    return jax.device_get(load_trained(str(workdir), "latest", node=0).host.params_of(0)), metrics


def test_a_node_of_a_swarm_without_sharing_equals_a_node_alone_bit_for_bit(tmp_path: Path) -> None:
    settings = (f"--config.rounds={ROUNDS}", "--config.learner.learning_rate=0.003")
    ends = {}
    for name, nodes, variant in (("swarm", 2, "2_0"), ("alone", 1, "2_0"), ("sharing", 2, "2_2")):
        train(tiny(tmp_path / name, *settings, f"--config.nodes={nodes}", variant=variant))
        ends[name] = _node_0(tmp_path / name)
    (params, metrics), (alone, alone_metrics) = ends["swarm"], ends["alone"]
    jax.tree.map(np.testing.assert_array_equal, params, alone)
    assert metrics == alone_metrics and len(metrics) == ROUNDS + 2
    assert max(values.get("reward/own_mean", 0) for values in metrics) > 0  # else nothing was learned
    shared, _ = ends["sharing"]
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, params, shared)))
