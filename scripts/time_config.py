r"""Times whole rounds of a config, and their parts: sampling, work on the host, update.

    python scripts/time_config.py                                      SmolLM2-135M, 8 own groups of 8
    python scripts/time_config.py --random_weights --rounds=5 --json=bench.json
    python scripts/time_config.py --config=configs/smollm2_135m.py:4_4 --device=gpu \
        --config.nodes=8 --config.sampling.prompt_buckets='(512,)' --config.sampling.max_new_tokens=32

Rounds are played as in training: drawn, sampled, scored, published, pulled, selected, encoded,
updated. Three things differ, so that all rounds do the same work: prompts have one length (the
smallest bucket that holds most prompts of every specialty; longer ones are passed over), half of
each group counts as right whatever it says (an update skips groups without advantage), and nothing
is evaluated or saved. Where nodes are computed in several programs, scoring overlaps with sampling and counts to it.

FLOPs are those of the matrix products that the shapes ask for: every prompt once, completions up to
the limit, padding and masked attention included, recomputation left out. The floor is their time at
the rate of one large matrix product on this machine; memory traffic comes on top.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` is not installed

import sapo_jax
from sapo_jax import wiring
from sapo_jax.command import run_command
from sapo_jax.config import SapoConfig, from_config_dict, to_dict
from sapo_jax.models.sources import LoadedModel
from sapo_jax.node import play_round
from sapo_jax.tasks.stream import StreamError, require_usable
from sapo_jax.tasks.verifier import OWN_LANE, Verifier
from sapo_jax.training import swarm_metrics
from sapo_jax.types import Rejection, RejectionReason, Rollout, ScoredRollout, TaskRef
from scripts.bench.floor import measure_rates, parameters, pass_flops, peak_memory_bytes
from scripts.bench.workloads import SMOLLM2_135M

# Part of a round -> the metric that times it and the tokens that measure its speed.
PARTS = {
    "sampling": ("time/sample_s", "tokens/generated"),
    "host": ("time/verify_s", None),
    "update": ("time/update_s", "tokens/trained"),
    "round": ("time/round_s", "tokens/generated"),
}

_DEFAULT_CONFIG = f"--config={Path(__file__).resolve().parents[1] / 'configs' / 'smollm2_135m.py'}:8_0"
_OPTIONS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file("config", help_string="What to time.", flag_values=_OPTIONS)
_DEVICE = flags.DEFINE_enum(
    "device", "auto", ["auto", "cpu", "gpu", "tpu"], "Overrides config.host.platform.", flag_values=_OPTIONS
)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds timed, after one that compiles.", 1, flag_values=_OPTIONS)
_RANDOM_WEIGHTS = flags.DEFINE_bool(
    "random_weights",
    False,
    "Random weights of SmolLM2-135M's dimensions, no download; prompts are short questions in bytes.",
    flag_values=_OPTIONS,
)
_JSON = flags.DEFINE_string("json", "", "File for the result and everything it depends on.", flag_values=_OPTIONS)


class HalfRight:
    """A verifier that scores as another one, then calls every second completion right and the others wrong."""

    def __init__(self, verifier: Verifier):
        """Makes one that judges with `verifier`, which it owns from now on."""
        self._verifier = verifier

    def verify(self, rollouts: Sequence[Rollout], *, lane: str = OWN_LANE) -> list[ScoredRollout | Rejection]:
        """Returns each rollout with scores 0, 1, 0, 1, ..., or why it is rejected."""
        return [
            verdict
            if isinstance(verdict, Rejection)
            else dataclasses.replace(verdict, scores=tuple(float(i % 2) for i in range(verdict.rollout.group_size)))
            for verdict in self._verifier.verify(rollouts, lane=lane)
        ]

    def score(
        self, texts: Sequence[tuple[TaskRef, Sequence[str]]], *, lane: str = OWN_LANE
    ) -> list[list[float | RejectionReason]]:
        """Returns what the other verifier does."""
        return self._verifier.score(texts, lane=lane)

    def warm_up(self) -> None:
        """Prepares the other verifier."""
        self._verifier.warm_up()

    def close(self) -> None:
        """Closes the other verifier."""
        self._verifier.close()


def prepare(raw: Any, *, device: str, random_weights: bool) -> SapoConfig:
    """Returns the config to time from a ConfigDict; with random weights it asks short questions in bytes."""
    if device != "auto":
        raw.host.platform = device
    if random_weights:
        raw.model.source = "init:llama"
        raw.text.system_prompt = ""
        raw.tasks.catalog, raw.tasks.specialties, raw.tasks.shots = "easy", ("chain_sum", "leap_year"), 0
        # Most sampled ids mean nothing in bytes; as text they would be gone before the update.
        raw.learner.local_encoding = "tokens"
    return from_config_dict(raw)


def with_usual_prompts(config: SapoConfig, model: LoadedModel, tasks: wiring.TaskSide) -> SapoConfig:
    """Returns `config` with one prompt bucket: the smallest that holds most prompts of every specialty."""
    for bucket in config.sampling.prompt_buckets:
        config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, prompt_buckets=(bucket,)))
        with contextlib.suppress(StreamError):
            require_usable(tasks.source, tasks.specialties, wiring.build_prompter(config, model, tasks).fits)
            break
    return config


def measure(config: SapoConfig, model: LoadedModel, rounds: int) -> dict[str, Any]:
    """Returns times [s], tokens, FLOPs and floors of `rounds` rounds, JSON-ready."""
    with wiring.build_tasks(config) as tasks:
        config = with_usual_prompts(config, model, tasks)
        prompter = wiring.build_prompter(config, model, tasks)
        dtype = wiring.compute_dtype(config, model)
        host = wiring.build_host(config, model, dtype, say=print)
        tasks = dataclasses.replace(tasks, verifier=HalfRight(tasks.verifier))
        tasks.verifier.warm_up()
        nodes = wiring.build_nodes(config, prompter, tasks, wiring.memory_hub(config))
        first_s = swarm_metrics(play_round(nodes, host, 1))["time/round_s"]
        played = [swarm_metrics(play_round(nodes, host, 2 + number)) for number in range(rounds)]

    shape = {
        "group_size": config.sampling.group_size,
        "prompt": config.sampling.max_prompt_tokens,
        "completion": config.sampling.max_new_tokens,
    }
    sampling = config.nodes * pass_flops(model.config, questions=config.sharing.local, **shape)
    passes = 3 * config.nodes * config.learner.inner_epochs
    update = passes * pass_flops(model.config, questions=config.train_groups, **shape)
    flops = {"sampling": sampling, "update": update, "round": sampling + update}
    rate = measure_rates(dtype).flops_per_s
    parts = {}
    for part, (timed, counted) in PARTS.items():
        times = sorted(metrics[timed] for metrics in played)
        parts[part] = {"median_s": statistics.median(times), "least_s": times[0], "most_s": times[-1]}
        if counted:
            speeds = [metrics[counted] / metrics[timed] for metrics in played]
            parts[part]["tokens_per_s"] = statistics.median(speeds)
        if part in flops:
            parts[part] |= {"flops": flops[part], "floor_s": flops[part] / rate}
    return {
        "parts": parts,
        "device_idle_frac": statistics.median(metrics["time/device_idle_frac"] for metrics in played),
        "first_round_s": first_s,
        "matmul_flops_per_s": rate,
        "peak_memory_bytes": peak_memory_bytes(),
        "compute_dtype": dtype,
        "prompt_tokens": config.sampling.max_prompt_tokens,
        "nodes_per_program": wiring.nodes_per_program(config),
        "parameters": parameters(model.config),
    }


def describe(config: SapoConfig, result: dict[str, Any]) -> str:
    """Returns the result as a table."""
    sampling, sharing = config.sampling, config.sharing
    lines = [
        f"{config.model.source}, {result['parameters'] / 1e6:.1f}M parameters, {result['compute_dtype']}, "
        f"{jax.devices()[0].device_kind}",
        f"{config.nodes} node(s), {result['nodes_per_program']} at a time; {sharing.local} own + {sharing.external} "
        f"external groups of {sampling.group_size}; prompts of {result['prompt_tokens']}, "
        f"up to {sampling.max_new_tokens} new tokens",
        "",
        f"{'':10}{'median s':>10}{'least':>9}{'most':>9}{'tokens/s':>11}{'TFLOP':>9}{'floor s':>9}{'x floor':>9}",
    ]
    for part, row in result["parts"].items():
        line = f"{part:10}{row['median_s']:>10.3f}{row['least_s']:>9.3f}{row['most_s']:>9.3f}"
        line += f"{row['tokens_per_s']:>11,.0f}" if "tokens_per_s" in row else " " * 11
        if "flops" in row:
            line += f"{row['flops'] / 1e12:>9.3f}{row['floor_s']:>9.3f}{row['median_s'] / row['floor_s']:>9.1f}"
        lines.append(line.rstrip())
    lines += [
        "",
        f"devices idle: {result['device_idle_frac']:.1%} of a round, with neither sampling nor update pending",
        f"floor: {result['matmul_flops_per_s'] / 1e9:,.0f} GFLOP/s in one large matrix product",
        f"peak memory: {result['peak_memory_bytes'] / 2**30:.2f} GiB; first round: {result['first_round_s']:.1f} s",
    ]
    return "\n".join(lines)


def main() -> None:
    """Times the rounds, prints the table and writes the JSON file."""
    config = prepare(_CONFIG.value, device=_DEVICE.value, random_weights=_RANDOM_WEIGHTS.value)
    wiring.select_platform(config)
    model = wiring.load_model(config)
    if _RANDOM_WEIGHTS.value:
        model = dataclasses.replace(model, config=SMOLLM2_135M)
    result = measure(config, model, _ROUNDS.value)
    print(describe(config, result))
    if _JSON.value:
        machine = {"platform": platform.platform(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
        record = {"arguments": sys.argv[1:], "sapo_jax": sapo_jax.__version__, "machine": machine}
        Path(_JSON.value).write_text(
            json.dumps(record | {"result": result, "config": to_dict(config)}, indent=1) + "\n"
        )


if __name__ == "__main__":
    # As a flag's default it would be loaded whenever this module is imported.
    if not any(argument.partition("=")[0] in ("--config", "-config") for argument in sys.argv):
        sys.argv.insert(1, _DEFAULT_CONFIG)
    run_command(main, _OPTIONS)
