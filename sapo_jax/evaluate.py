"""Evaluates a checkpoint on the run's held-out questions: `python -m sapo_jax.evaluate --workdir=DIR`.

    [--round=latest|best|N] [--questions=N] [--samples=N] [--json=FILE]

With the run's own numbers of questions and samples the result is what the run itself measured at
that round. It may run beside the training; JAX_PLATFORMS=cpu keeps it off a busy accelerator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sapo_jax import wiring
from sapo_jax.command import run_command
from sapo_jax.config import SapoConfig
from sapo_jax.evaluation import (
    Evaluation,
    calls_needed,
    evaluate,
    evaluation_metrics,
    questions_per_call,
    specialty_metrics,
)
from sapo_jax.trained import Trained, load_trained
from sapo_jax.workdir import replace_file

_COLUMNS = (
    ("pass@1", "eval/strict_pass_at_1"),
    ("pass@8", "eval/strict_pass_at_8"),
    ("greedy", "eval/greedy_strict_pass_at_1"),
    ("score", "eval/score_mean"),
    ("format", "eval/format_rate"),
)

_OPTIONS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=_OPTIONS)
_ROUND = flags.DEFINE_string("round", "latest", "Which checkpoint: latest, best or rounds.", flag_values=_OPTIONS)
_QUESTIONS = flags.DEFINE_integer(
    "questions", None, "Held-out questions per specialty; the run's if not given.", 1, flag_values=_OPTIONS
)
_SAMPLES = flags.DEFINE_integer(
    "samples", None, "Completions per question; the run's if not given.", 1, flag_values=_OPTIONS
)
_JSON = flags.DEFINE_string("json", None, "File to write the numbers to.", flag_values=_OPTIONS)
flags.mark_flags_as_required(["workdir"], flag_values=_OPTIONS)


def main() -> None:
    """Loads, evaluates, prints."""
    console = Console()
    with console.status("loading"):
        trained = load_trained(_WORKDIR.value or "", _ROUND.value, change=_changed)
    result = _evaluate(trained, console)
    settings = trained.config.eval
    nodes = range(trained.config.nodes)
    console.print(
        f"after round {trained.round}: {len(result.specialties)} held-out questions, "
        f"{settings.samples} samples each at temperature {settings.temperature}",
        highlight=False,
    )
    overall = evaluation_metrics(result)
    console.print(_table("specialty, mean over nodes", [*specialty_metrics(result).items(), ("macro", overall)]))
    per_node = [(f"node {node}", evaluation_metrics(result, node)) for node in nodes]
    console.print(_table("node, macro over specialties", [*per_node, ("mean", overall)]))
    if _JSON.value:
        _write(Path(_JSON.value), trained, result)


def _changed(config: SapoConfig) -> SapoConfig:
    settings = config.eval
    questions, samples = _QUESTIONS.value or settings.questions, _SAMPLES.value or settings.samples
    return replace(config, eval=replace(settings, questions=questions, samples=samples))


def _evaluate(trained: Trained, console: Console) -> Evaluation:
    config = trained.config
    shape = {"questions_per_call": questions_per_call(config), "group_size": config.sampling.group_size}
    with wiring.build_tasks(config) as tasks, Progress(console=console, transient=True) as progress:
        prompter = wiring.build_prompter(config, trained.model, tasks)
        questions = wiring.build_held_out(config, prompter, tasks)
        bar = progress.add_task("evaluating", total=calls_needed(len(questions), config.eval, **shape))
        return evaluate(
            trained.host,
            prompter,
            tasks.verifier,
            questions,
            config.eval,
            advance=lambda count: progress.advance(bar, count),
            **shape,
        )


def _table(title: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """Returns a table with a line under all rows but the last, which sums them up."""
    columns = [(label, name) for label, name in _COLUMNS if name in rows[-1][1]]
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for label, _ in columns:
        table.add_column(label, justify="right")
    for index, (label, metrics) in enumerate(rows):
        table.add_row(label, *(f"{metrics[name]:.3f}" for _, name in columns), end_section=index == len(rows) - 2)
    return table


def _write(path: Path, trained: Trained, result: Evaluation) -> None:
    numbers: dict[str, Any] = {
        "round": trained.round,
        "questions": len(result.specialties),
        "samples": result.scores.shape[-1],
        "mean": {"macro": evaluation_metrics(result), "specialties": specialty_metrics(result)},
        "nodes": [
            {"macro": evaluation_metrics(result, node), "specialties": specialty_metrics(result, node)}
            for node in range(trained.config.nodes)
        ],
    }
    replace_file(path, json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main, _OPTIONS)
