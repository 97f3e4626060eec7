from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapo_jax import wiring
from sapo_jax.config import EvalConfig
from sapo_jax.evaluation import (
    Evaluation,
    calls_needed,
    evaluate,
    evaluation_metrics,
    gain_metrics,
    questions_per_call,
    specialty_metrics,
)
from tests.fakes import RuleHost, build_prompter, build_tasks, small_config, truths_of


def _result() -> Evaluation:
    """Two nodes, three questions (two of `sum`, one of `year`), eight samples each."""
    scores = np.zeros((2, 3, 8))
    scores[0, 0, :4] = 1.0  # 4 of 8 solved
    scores[0, 1, :] = 0.5  # partial credit is no success
    scores[0, 2, 0] = 0.99  # the limit counts
    scores[1, 0, 0] = 1.0
    formatted = np.zeros((2, 3, 8), bool)
    formatted[0, :2] = True
    greedy = np.array([[1.0, 0.5, 0.0], [1.0, 1.0, 0.989]])
    return Evaluation(specialties=("sum", "sum", "year"), scores=scores, formatted=formatted, greedy_scores=greedy)


def test_metrics_of_one_node_by_hand() -> None:
    metrics = evaluation_metrics(_result(), 0)
    assert metrics == {
        # sum: (4/8 + 0) / 2 = 1/4, year: 1/8; macro (1/4 + 1/8) / 2
        "eval/strict_pass_at_1": pytest.approx(3 / 16),
        "eval/sum/strict_pass_at_1": pytest.approx(1 / 4),
        "eval/year/strict_pass_at_1": pytest.approx(1 / 8),
        "eval/sum/strict_pass_at_8": pytest.approx(1 / 2),
        "eval/year/strict_pass_at_8": pytest.approx(1.0),
        "eval/sum/greedy_strict_pass_at_1": pytest.approx(1 / 2),
        "eval/year/greedy_strict_pass_at_1": 0.0,
        # with eight samples one success suffices: sum (1 + 0) / 2, year 1
        "eval/strict_pass_at_8": pytest.approx(3 / 4),
        # greedy: sum (1 + 0) / 2, year 0
        "eval/greedy_strict_pass_at_1": pytest.approx(1 / 4),
        # scores: sum (0.5 + 0.5) / 2, year 0.99 / 8
        "eval/score_mean": pytest.approx((0.5 + 0.99 / 8) / 2),
        # sum all, year none
        "eval/format_rate": pytest.approx(1 / 2),
    }


def test_metrics_of_the_swarm_are_means_over_nodes() -> None:
    result = _result()
    both, one, two = evaluation_metrics(result), evaluation_metrics(result, 0), evaluation_metrics(result, 1)
    assert both == {name: pytest.approx((one[name] + two[name]) / 2) for name in one}
    assert two["eval/strict_pass_at_1"] == pytest.approx(1 / 32)  # sum 1/16, year 0


def test_metrics_of_each_specialty() -> None:
    by_specialty = specialty_metrics(_result(), 0)
    assert list(by_specialty) == ["sum", "year"]
    assert by_specialty["year"] == {
        "eval/strict_pass_at_1": pytest.approx(1 / 8),
        "eval/strict_pass_at_8": 1.0,
        "eval/greedy_strict_pass_at_1": 0.0,
        "eval/score_mean": pytest.approx(0.99 / 8),
        "eval/format_rate": 0.0,
    }


def test_what_was_not_measured_has_no_metric() -> None:
    result = _result()
    fewer = replace(result, scores=result.scores[..., :4], formatted=result.formatted[..., :4])
    assert "eval/strict_pass_at_8" not in evaluation_metrics(fewer)
    assert "eval/greedy_strict_pass_at_1" not in evaluation_metrics(replace(result, greedy_scores=np.zeros((2, 0))))


def test_core_6_is_averaged_where_all_six_are() -> None:
    names = (
        "base_conversion",
        "basic_arithmetic",
        "bf",
        "binary_matrix",
        "calendar_arithmetic",
        "decimal_arithmetic",
        "fraction_simplification",
    )
    scores = np.zeros((1, 7, 1))
    scores[0, [0, 2], 0] = 1.0  # bf is not one of the six
    result = Evaluation(specialties=names, scores=scores, formatted=scores > 0, greedy_scores=np.zeros((1, 0)))
    metrics = evaluation_metrics(result)
    assert metrics["eval/core6_strict_pass_at_1"] == pytest.approx(1 / 6)
    assert metrics["eval/strict_pass_at_1"] == pytest.approx(2 / 7)
    assert "eval/core6_strict_pass_at_1" not in evaluation_metrics(_result())


def test_gain_over_round_zero_by_hand() -> None:
    before = _result()
    scores = before.scores.copy()
    scores[0, 0, 4:] = 1.0  # node 0, first question: 4/8 -> 8/8
    after = replace(before, scores=scores)
    # Node 0: sum gains (4/8 + 0) / 2 = 1/4, year 0, so 1/8; over both nodes half of that.
    assert gain_metrics(before, after, 0)["eval/strict_pass_at_1_gain"] == pytest.approx(1 / 8)
    swarm = gain_metrics(before, after)
    assert swarm["eval/strict_pass_at_1_gain"] == pytest.approx(1 / 16)
    # Of the two questions of `sum` one gains 1/4 over the nodes: a draw of two has standard deviation
    # 1/8 / sqrt(2); `year` has one question and no spread, so the macro average halves it.
    assert swarm["eval/strict_pass_at_1_gain_stderr"] == pytest.approx(1 / 8 / np.sqrt(2) / 2, rel=0.05)
    assert gain_metrics(before, before) == {"eval/strict_pass_at_1_gain": 0.0, "eval/strict_pass_at_1_gain_stderr": 0.0}


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    result = _result()
    path = tmp_path / "evaluations" / "round_000003.npz"
    result.save(path)
    loaded = Evaluation.load(path)
    assert loaded.specialties == result.specialties
    for name in ("scores", "formatted", "greedy_scores"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(result, name))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_every_node_is_asked_every_question() -> None:
    """Node 0 solves with even samples, node 1 never writes tags; greedy solves always."""
    config = small_config(eval=EvalConfig(questions=5, samples=6, temperature=0.7))
    tasks = build_tasks(config)
    prompter = build_prompter(config, tasks)
    questions = wiring.build_held_out(config, prompter, tasks)
    truths = truths_of(questions)

    def rule(node: int, question: str, g: int) -> tuple[str, bool]:
        if node == 1:
            return truths[question], True
        return f"<answer>{truths[question] if g % 2 == 0 else 'none'}</answer>", True

    host: Any = RuleHost(config, prompter, rule)
    told: list[int] = []
    shape = {"questions_per_call": 4, "group_size": 4}
    result = evaluate(host, prompter, tasks.verifier, questions, config.eval, advance=told.append, **shape)

    assert result.specialties == ("chain_sum",) * 5 + ("leap_year",) * 5
    assert result.scores.shape == (2, 10, 6)
    np.testing.assert_array_equal(result.scores[0] == 1, np.broadcast_to(np.arange(6) % 4 % 2 == 0, (10, 6)))
    np.testing.assert_array_equal(result.formatted, np.broadcast_to([[[True]], [[False]]], (2, 10, 6)))
    np.testing.assert_array_equal(result.greedy_scores[0], np.ones(10))
    # Ten questions are three calls of four; six samples are two calls of four, greedy is one of one.
    assert len(host.sampled) == len(told) == 9
    assert calls_needed(10, config.eval, **shape) == 9
    assert {(call["temperature"], call["group_size"]) for call in host.sampled} == {(0.7, 4), (0.0, 1)}
    asked = [call["questions"][0] for call in host.sampled if call["temperature"] == 0]
    last = questions[-1].question
    assert asked == [[task.question for task in questions[:4]], [task.question for task in questions[4:8]], [
        questions[8].question, last, last, last
    ]]  # fmt: skip
    # The same random numbers in every evaluation, others for every node and every call.
    seeds = [call["seeds"] for call in host.sampled if call["temperature"] > 0]
    assert len({seed for pair in seeds for seed in pair}) == 2 * len(seeds)
    again: Any = RuleHost(config, prompter, rule)
    evaluate(again, prompter, tasks.verifier, questions, config.eval, advance=told.append, **shape)
    assert again.sampled == host.sampled


def test_questions_of_one_call() -> None:
    config = small_config()
    assert questions_per_call(config) == config.sharing.local == 2
    assert questions_per_call(replace(config, eval=EvalConfig(questions_per_call=7))) == 7


def test_held_out_questions_are_the_same_for_every_seed_and_mix() -> None:
    one = small_config(eval=EvalConfig(questions=4))
    other = replace(one, seed=9, nodes=1, sharing=replace(one.sharing, local=1, external=0))
    found = []
    for config in (one, other):
        tasks = build_tasks(config)
        found.append([task.question for task in wiring.build_held_out(config, build_prompter(config, tasks), tasks)])
    assert found[0] == found[1]
