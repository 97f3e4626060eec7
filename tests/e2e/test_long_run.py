"""Hundreds of rounds in one process: after a while nothing is compiled any more, and memory stays where it is."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import pytest

from sapo_jax import lengths, training
from sapo_jax.metrics import read_metrics
from sapo_jax.node import play_round
from sapo_jax.workdir import METRICS_FILE
from tests.e2e.runs import tiny, train

ROUNDS, WARM = 240, 40
# From round 40 to round 240. The bounded caches of tasks and prompts are still filling, by some 20 KiB a round.
MOST_GROWTH = 16 * 2**20


def resident_bytes() -> int:
    """Returns what this process really holds, without what its allocator has not given back yet."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.slow
def test_hundreds_of_rounds_compile_nothing_new_and_keep_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes share all they make of three specialties with prompts of different lengths."""
    monkeypatch.setattr(lengths, "SHORTEST", 4)  # completions of several lengths, too
    compiled: list[int] = []
    resident: dict[int, int] = {}
    arrays: dict[int, int] = {}

    def watched(nodes: Any, host: Any, round: int) -> Any:
        result = play_round(nodes, host, round)
        if round in (WARM, ROUNDS):
            resident[round], arrays[round] = resident_bytes(), len(jax.live_arrays())
        rounds.append(round)
        return result

    def note(event: str, duration_s: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(len(rounds))

    rounds: list[int] = []
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        with mock.patch.object(training, "play_round", watched):
            train(
                tiny(
                    tmp_path,
                    f"--config.rounds={ROUNDS}",
                    # Beside leap_year: a second flag adds to the first.
                    '--config.tasks.specialties=("chain_sum","letter_counting")',
                    "--config.sampling.prompt_buckets=(64,96,128,256)",
                    "--config.sharing.max_age_rounds=4",
                    "--config.cold_start.steps=20",
                    "--config.sharing.selection=uniform",
                )
            )
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    swarm = [record.metrics for record in read_metrics(tmp_path / METRICS_FILE) if record.node is None]
    programs = [metrics["time/update_programs"] for metrics in swarm if "time/update_programs" in metrics]
    assert len(programs) == len(rounds) == ROUNDS
    assert programs[WARM] == programs[-1] > 1
    assert compiled and max(compiled) < WARM
    assert sum(metrics.get("groups/external", 0) for metrics in swarm) > ROUNDS
    assert arrays[ROUNDS] == arrays[WARM]
    grown = resident[ROUNDS] - resident[WARM]
    print(f"memory grew by {grown / 2**20:.1f} MiB in {ROUNDS - WARM} rounds")
    assert grown < MOST_GROWTH
