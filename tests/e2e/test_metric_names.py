"""What a real run logs: the names that reports and scripts read, and none that is not described."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sapo_jax.metrics import read_metrics
from sapo_jax.workdir import METRICS_FILE
from tests.e2e.runs import ROOT

OF_EVALUATIONS = {
    "eval/strict_pass_at_1",
    "eval/strict_pass_at_8",
    "eval/score_mean",
    "eval/format_rate",
    "eval/strict_pass_at_1_gain",
    "eval/strict_pass_at_1_gain_stderr",
    "eval/leap_year/strict_pass_at_1",
}
OF_ROUNDS = {
    "reward/own_mean",
    "reward/train_mean",
    "groups/informative_frac",
    "groups/external",
    "time/sample_s",
    "time/update_s",
    "time/round_s",
    "time/device_idle_frac",
    "tokens/generated",
    "tokens/trained",
}
# Of rounds in which something informed, and in which something foreign did.
OF_INFORMATIVE_ROUNDS = {"policy/entropy", "policy/own_logprob_mean"}
OF_SHARING_ROUNDS = {"policy/external_logprob_mean"}
OF_THE_PROCESS = {"time/update_programs"}


@pytest.mark.parametrize("node", [0, 1, None])
def test_every_name_that_scripts_rely_on_is_logged(whole: Path, node: int | None) -> None:
    lines = [record.metrics for record in read_metrics(whole / METRICS_FILE) if record.node == node]
    evaluations = [metrics for metrics in lines if any(name.startswith("eval/") for name in metrics)]
    rounds = [metrics for metrics in lines if any(name.startswith("reward/") for name in metrics)]
    assert len(evaluations) == 3 and all(metrics.keys() >= OF_EVALUATIONS for metrics in evaluations)
    assert len(rounds) == 40 and all(metrics.keys() >= OF_ROUNDS for metrics in rounds)
    assert node is not None or all(metrics.keys() >= OF_THE_PROCESS for metrics in rounds)
    informative = [metrics for metrics in rounds if metrics["groups/informative_frac"] > 0]
    assert informative and all(metrics.keys() >= OF_INFORMATIVE_ROUNDS for metrics in informative)
    sharing = [metrics for metrics in rounds if metrics["groups/external"] > 0]  # the rule shares what informs
    assert sharing and all(metrics.keys() >= OF_SHARING_ROUNDS for metrics in sharing)


def test_every_logged_name_is_described(whole: Path) -> None:
    described = list(_described())
    assert len(described) > 30
    logged = {name for record in read_metrics(whole / METRICS_FILE) for name in record.metrics}
    assert len(logged) > 30
    assert sorted(name for name in logged if not any(pattern.fullmatch(name) for pattern in described)) == []


def _described() -> Iterator[re.Pattern[str]]:
    """Yields a pattern for every name in the tables of section 5; `<something>` stands for one part of a name."""
    section = (ROOT / "WORKSPACE.md").read_text().split("\n## 5. Metrics\n")[1].split("\n## ")[0]
    for row in re.findall(r"^\|([^|]*)\|", section, re.MULTILINE):
        for name in re.findall(r"`([^`*]+)`", row):
            yield re.compile(re.sub(r"<[a-z]+>", "[^/]+", name))
