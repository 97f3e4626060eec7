"""What there is, and one clear line where a run needs more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest
from absl import flags

from sapo_jax import memory_fit, wiring
from sapo_jax.command import run_command
from sapo_jax.config import ConfigError, LearnerConfig, ModelConfig, SapoConfig
from sapo_jax.memory_fit import GIB, describe, memory_limit_bytes, require_fit
from sapo_jax.memory_plan import MemoryPlan

CONFIG = SapoConfig(
    nodes=4, model=ModelConfig(source="init:llama"), learner=LearnerConfig(micro_batch_groups=4, remat=False, kl_coef=1)
)
STATE = {"weights": GIB, "moments": 2 * GIB, "reference": GIB}
UPDATE = {"gradients": GIB // 2, "activations": 6 * GIB, "logits": GIB}
PLAN = MemoryPlan(state=STATE, phases={"sampling": {"logits": GIB // 2}, "update": UPDATE})


def refused(plan: MemoryPlan, limit: float, config: SapoConfig = CONFIG, per_program: int = 2) -> str:
    with pytest.raises(ConfigError) as caught:
        require_fit(plan, int(limit * GIB), config, nodes_per_program=per_program)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_state_and_the_largest_phase_have_to_fit() -> None:
    assert PLAN.needed_bytes == 11.5 * GIB
    require_fit(PLAN, int(11.5 * GIB), CONFIG, nodes_per_program=2)
    require_fit(PLAN, None, CONFIG, nodes_per_program=2)
    assert refused(PLAN, 11.4) == (
        "config.learner.micro_batch_groups = 4: this needs at least 11.5 GiB of memory and there are 11.4; "
        "update takes 7.5 of them (activations 6.0, logits 1.0, gradients 0.5); change it, config.learner.remat, "
        "config.host.nodes_per_program, config.sampling.group_size, config.sampling.prompt_buckets, "
        "config.sampling.max_new_tokens or config.nodes"
    )


def test_a_token_budget_is_named_where_it_decides() -> None:
    assert CONFIG.train_groups == 8
    for budget, groups, key in ((3 * 767, 4, "micro_batch_tokens = 2301"), (8 * 767, 4, "micro_batch_groups = 4")):
        learner = replace(CONFIG.learner, micro_batch_tokens=budget, micro_batch_groups=groups)
        assert refused(PLAN, 11.4, replace(CONFIG, learner=learner)).startswith(f"config.learner.{key}: ")


def test_the_keys_are_those_that_still_help() -> None:
    least = replace(CONFIG, nodes=1, learner=replace(CONFIG.learner, micro_batch_groups=1, remat=True))
    message = refused(PLAN, 9, least, per_program=1)
    assert message.startswith("config.sampling.group_size = 8: ")
    assert not any(key in message for key in ("micro_batch_groups", "remat", "nodes"))
    assert refused(PLAN, 3).startswith(
        "config.nodes = 4: this needs at least 11.5 GiB of memory and there are 3.0; what"
    )
    assert refused(PLAN, 3, least, 1).startswith("config.model.source = 'init:llama': ")


@pytest.mark.parametrize(
    ("phase", "part", "key"),
    [
        ("update", "gradients", "config.host.nodes_per_program = 2"),
        ("update", "logits", "config.learner.logit_chunk_tokens = 1024"),
        ("sampling", "completion cache", "config.host.nodes_per_program = 2"),
        ("evaluation", "completion cache", "config.eval.questions_per_call = 4"),
        ("cold start", "activations", "config.cold_start.batch_rows = 32"),
    ],
)
def test_each_part_names_its_own_key(phase: str, part: str, key: str) -> None:
    plan = MemoryPlan(state={"weights": GIB}, phases={phase: {"other": 1, part: GIB}})
    assert refused(plan, 1.5).startswith(f"{key}: ")


def test_a_plan_is_one_line() -> None:
    assert describe(PLAN, 24 * GIB) == (
        "memory, at least: weights, moments and reference 4.0 GiB, sampling 0.5, update 7.5; 24.0 here"
    )
    alone = MemoryPlan(state={"weights": 3 * GIB // 1000}, phases={})
    assert describe(alone, None) == "memory, at least: weights 0.003 GiB"


class Device:
    """An accelerator that says what it has."""

    platform = "gpu"

    def __init__(self, stats: dict[str, int] | None) -> None:
        self._stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self._stats


def test_an_accelerator_says_itself_what_it_has() -> None:
    devices: list[Any] = [Device({"bytes_limit": 7, "bytes_in_use": 3}), Device({}), Device(None)]
    assert [memory_limit_bytes(device) for device in devices] == [7, None, None]


def test_a_run_is_refused_before_its_weights_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, nodes=400)
    model = wiring.load_model(config)
    lines: list[str] = []
    monkeypatch.setattr(memory_fit, "memory_limit_bytes", lambda device: 64 * 2**20)
    monkeypatch.setattr(wiring, "init_params", None)  # nothing is made
    with pytest.raises(ConfigError, match=r"^config.nodes = 400: this needs at least 0\.\d GiB of memory and there"):
        wiring.build_host(config, model, "float32", per_program=1, say=lines.append)
    assert not lines


def _all_memory() -> None:
    jnp.zeros(2**46, jnp.float32).block_until_ready()  # more than a process can address


def _no_memory() -> None:
    raise MemoryError("Unable to allocate 9 GiB")


@pytest.mark.parametrize("main", [_all_memory, _no_memory])
def test_memory_that_runs_out_later_is_one_line_with_the_same_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["command"])
    with pytest.raises(SystemExit) as caught:
        run_command(main, flags.FlagValues())
    message = capsys.readouterr().err
    assert caught.value.code == 1 and message.startswith("error: out of ") and message.count("\n") == 1
    assert memory_fit.OUT_OF_MEMORY_ADVICE in message and "llocat" in message
