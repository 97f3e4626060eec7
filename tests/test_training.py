from __future__ import annotations

from sapo_jax.training import swarm_metrics


def test_the_swarm_sums_counts_and_averages_the_rest() -> None:
    first = {"tokens/generated": 10.0, "tokens/truncated_frac": 0.5, "reward/own_mean": 0.25, "groups/external": 2.0}
    second = {"tokens/generated": 30.0, "tokens/truncated_frac": 0.0, "reward/own_mean": 0.75, "groups/external": 1.0}
    first["groups/rejected_external_held_out"] = 3.0  # counters are logged where there is something to count
    second["policy/external_logprob_mean"] = -1.5
    second["groups/evicted_age"] = second["groups/missed"] = second["tasks/skipped_held_out"] = 4.0
    assert swarm_metrics([first, second]) == {
        "tokens/generated": 40.0,
        "tokens/truncated_frac": 0.25,
        "reward/own_mean": 0.5,
        "groups/external": 1.5,
        "groups/rejected_external_held_out": 3.0,
        "policy/external_logprob_mean": -1.5,
        "groups/evicted_age": 4.0,
        "groups/missed": 4.0,
        "tasks/skipped_held_out": 4.0,
    }
