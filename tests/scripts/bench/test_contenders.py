"""Ours and both forms of the torch baseline do the same work, and the benchmark would notice if they did not."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from sapo_jax.config import LearnerConfig
from scripts import bench_round
from scripts.bench import ours
from scripts.bench.workloads import QWEN25_05B, TINY, Inputs, Kind, Workload, make_inputs, make_params
from scripts.torch_baseline import build as torch_build

SEED = int(os.environ.get("SAPO_TEST_SEED", np.random.default_rng().integers(2**31)))
QWEN = dataclasses.replace(
    QWEN25_05B, vocab_size=300, width=32, mlp_width=48, layers=2, heads=4, kv_heads=2, head_size=8
)


def built(contender: str, kind: Kind, config=TINY, inputs: Inputs | None = None, dtype: str = "float32"):
    workload = Workload(kind=kind, prompt=9, completion=5, questions=3, group_size=4)
    inputs = inputs or make_inputs(workload, config.vocab_size, SEED)
    inputs.completions[0, 0, 0] = 0  # the id that is most often a special one
    params = make_params(config, SEED)
    if contender == "ours":
        learner = LearnerConfig(micro_batch_groups=1, remat=False)
        return ours.build(workload, config, params, inputs, dtype=dtype, nodes=2, per_program=1, learner=learner)
    return torch_build.build(
        workload, config, params, inputs, dtype=dtype, device="cpu", is_reference=contender == "reference"
    )


@pytest.mark.parametrize("config", [TINY, QWEN], ids=["llama", "qwen2"])
def test_all_find_the_same_before_and_after_updates(config):
    runs = [built(contender, Kind.UPDATE, config) for contender in ("ours", "reference", "best_torch")]
    for _ in range(3):  # the second and third see what the first has changed
        first, *others = [run() for run in runs]
        assert first["moved"] != 0, SEED
        for other in others:
            assert other.pop("moved") == pytest.approx(first["moved"], rel=bench_round.MOVED), SEED
            assert other == pytest.approx({name: first[name] for name in other}, rel=2e-4), SEED


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-3)])
def test_all_score_alike(dtype, tolerance):
    first, *others = [built(contender, Kind.SCORE, dtype=dtype)() for contender in ("ours", "reference", "best_torch")]
    assert np.std(first["logprobs"]) > 0.01, SEED
    for other in others:
        assert other["logprob_mean"] == pytest.approx(first["logprob_mean"], rel=tolerance), SEED
        assert other["logprobs"] == pytest.approx(first["logprobs"], rel=tolerance), SEED


@pytest.mark.parametrize("contender", ["ours", "reference", "best_torch"])
def test_all_sample_to_the_limit(contender):
    assert built(contender, Kind.SAMPLE)()["tokens"] == 3 * 4 * 5
    assert set(built(contender, Kind.ROUND)()) == {"logprob_mean", "grad_norm", "moved"}
