from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sapo_jax import wiring
from sapo_jax.cold_start import cold_start
from sapo_jax.config import ColdStartConfig, SamplingConfig, SapoConfig
from sapo_jax.text.byte_tokenizer import byte_tokenizer
from sapo_jax.types import Task
from tests.fakes import RuleHost, build_prompter, build_tasks, small_config


def _run(settings: ColdStartConfig, **changes: Any) -> tuple[SapoConfig, Any, list[list[list[Task]]]]:
    """Runs a cold start; returns config, host, and the tasks drawn for every step and node."""
    config = small_config(cold_start=settings, **changes)
    tasks = build_tasks(config)
    prompter = build_prompter(config, tasks)
    host: Any = RuleHost(config, prompter, lambda node, question, g: ("", True))
    streams = [wiring.build_stream(config, tasks, f"cold {n}") for n in range(config.nodes)]
    told: list[int] = []
    cold_start(host, prompter, streams, config, advance=told.append)
    assert told == [1] * settings.steps
    rows = settings.batch_rows
    drawn = [[list(s.take(step * rows, rows, prompter.fits).tasks) for s in streams] for step in range(settings.steps)]
    return config, host, drawn


def _pairs(config: SapoConfig, host: Any, drawn: list[list[list[Task]]]) -> list[list[tuple[Task, str]]]:
    """Returns what every batch teaches: (task, target text) of each row that counts."""
    tokenizer = byte_tokenizer()
    batches = [batch for step in host.targets for batch in step]
    found = []
    for tasks, batch in zip([tasks for step in drawn for tasks in step], batches, strict=True):
        by_question = {f"user\n{task.question}\nassistant\n": task for task in tasks}
        rows = []
        for q in np.flatnonzero(batch.valid[:, 0]):
            ids = batch.completion_tokens[q, 0][batch.completion_mask[q, 0]].tolist()
            assert ids[-1] == tokenizer.end_id  # the end token is part of what is learned
            prompt = tokenizer.decode(batch.prompt_tokens[q][batch.prompt_mask[q]])
            rows.append((by_question[prompt], tokenizer.decode(ids)))
        found.append(rows)
    return found


def test_targets_are_answers_of_other_questions_of_the_specialty() -> None:
    config, host, drawn = _run(ColdStartConfig(steps=3, batch_rows=16, true_frac=0.0))
    assert host.events == ["supervise"] * 3 + ["begin"]
    taught = equal = 0
    for tasks, rows in zip([tasks for step in drawn for tasks in step], _pairs(config, host, drawn), strict=True):
        for task, target in rows:
            others = [o.ground_truth for o in tasks if o.specialty == task.specialty and o is not task]
            answer = target.removeprefix("<answer>").removesuffix("</answer>")
            assert target == f"<answer>{answer}</answer>" and answer in others
            taught += task.specialty == "chain_sum"
            equal += task.specialty == "chain_sum" and answer == task.ground_truth
    assert taught > 30 and equal < taught / 3  # another question may have the same small sum


def test_true_targets_are_the_right_answers() -> None:
    config, host, drawn = _run(ColdStartConfig(steps=1, batch_rows=8, true_frac=1.0))
    for rows in _pairs(config, host, drawn):
        assert len(rows) == 8
        assert [target for _, target in rows] == [f"<answer>{task.ground_truth}</answer>" for task, _ in rows]


def test_a_question_without_another_answer_teaches_nothing() -> None:
    """One row a step: there is no other question whose answer could be shown."""
    config, host, drawn = _run(ColdStartConfig(steps=2, batch_rows=1, true_frac=0.0))
    assert _pairs(config, host, drawn) == [[]] * 4


def test_an_answer_beyond_the_limit_is_not_taught() -> None:
    sampling = SamplingConfig(group_size=4, max_new_tokens=5, prompt_buckets=(160,))  # tags, end, two characters
    config, host, drawn = _run(ColdStartConfig(steps=2, batch_rows=16, true_frac=1.0), sampling=sampling)
    rows = [row for rows in _pairs(config, host, drawn) for row in rows]
    short = [len(task.ground_truth or "") <= 2 for step in drawn for tasks in step for task in tasks]
    assert 0 < sum(short) < len(short) and len(rows) == sum(short)


def test_every_step_has_tasks_and_a_shape_of_its_own() -> None:
    config, host, _ = _run(ColdStartConfig(steps=2, batch_rows=4))
    for batches in host.targets:
        for batch in batches:
            assert batch.valid.shape == (4, 1) and not batch.truncated.any()
            assert batch.completion_tokens.shape == (4, 1, config.sampling.max_new_tokens)
            assert batch.prompt_tokens.shape == (4, config.sampling.max_prompt_tokens)
    first, second = host.targets
    assert not np.array_equal(first[0].prompt_tokens, second[0].prompt_tokens)  # the stream moves on
    assert not np.array_equal(first[0].prompt_tokens, first[1].prompt_tokens)  # nodes have their own


def test_a_stop_ends_it_between_steps() -> None:
    config = small_config(cold_start=ColdStartConfig(steps=5, batch_rows=2))
    tasks = build_tasks(config)
    prompter = build_prompter(config, tasks)
    host: Any = RuleHost(config, prompter, lambda node, question, g: ("", True))
    streams = [wiring.build_stream(config, tasks, f"cold {n}") for n in range(config.nodes)]

    def stop(count: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        cold_start(host, prompter, streams, config, advance=stop)
    assert host.events == ["supervise"]


def test_no_steps_only_begin() -> None:
    _, host, _ = _run(ColdStartConfig(steps=0))
    assert host.events == ["begin"]
