"""Hostile answers: nothing runs, nothing hangs, nothing leaves [0, 1]."""

from __future__ import annotations

import dataclasses
import decimal
import functools
import math
import time
from pathlib import Path

import pytest
from reasoning_gym.factory import get_score_answer_fn

from sapo_jax.tasks.catalog import CATALOGS, resolve
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scorers import REFUSED, RefusedDatasetError, score_answer
from sapo_jax.types import Task, TaskRef
from scripts.faults.exploits import BOMBS, HOSTILE, RUN_BY_LIBRARY, code_that_writes

NINE = tuple(s.name for s in CATALOGS["paper"])

BUDGET_S = 1.0


def first_task(source: ReasoningGymSource, name: str) -> Task:
    specialty = next(s for s in source.specialties if s.name == name)
    return source.task(source.ref(specialty, 11, 0))


@functools.cache
def library_task(dataset: str, index: int = 0) -> Task:
    """A task of any dataset with the library's configuration."""
    (specialty,) = resolve("easy", (f'{dataset}:{{"size": 500}}',))
    source = ReasoningGymSource((specialty,))
    return source.task(source.ref(specialty, 3, index))


def made_up(dataset: str, ground_truth: str | None, **metadata: object) -> Task:
    ref = TaskRef(dataset=dataset, config_digest="", seed=0, index=0)
    return Task(ref=ref, specialty=dataset, question="?", ground_truth=ground_truth, metadata=metadata)


@pytest.mark.parametrize("dataset", ["binary_matrix", "spiral_matrix", "n_queens", "countdown", "simple_integration"])
def test_the_library_would_run_these_payloads(dataset: str, tmp_path: Path):
    marker = tmp_path / "marker"
    task = library_task(dataset)
    entry = {"question": task.question, "answer": task.ground_truth, "metadata": task.metadata}
    get_score_answer_fn(dataset)(code_that_writes(marker)[1], entry)  # type: ignore[call-arg]
    assert marker.exists(), "else the next tests prove nothing"


@pytest.mark.parametrize("name", NINE)
def test_t4_code_in_an_answer_never_runs(paper_source: ReasoningGymSource, tmp_path: Path, name: str):
    _assert_nothing_runs(first_task(paper_source, name), tmp_path / "marker")


@pytest.mark.parametrize("dataset", RUN_BY_LIBRARY)
def test_t4_code_never_runs_where_the_library_would_run_it(dataset: str, tmp_path: Path):
    _assert_nothing_runs(library_task(dataset), tmp_path / "marker")


def _assert_nothing_runs(task: Task, marker: Path) -> None:
    for payload in code_that_writes(marker):
        assert 0.0 <= score_answer(task, payload) < 0.99
    assert not marker.exists()


@pytest.mark.parametrize("name", NINE)
def test_hostile_answers_get_no_success_and_no_exception(paper_source: ReasoningGymSource, name: str):
    task = first_task(paper_source, name)
    for answer in HOSTILE:
        score = score_answer(task, answer)
        assert math.isfinite(score) and 0.0 <= score < 0.99, (answer[:40], score)


@pytest.mark.parametrize("dataset", RUN_BY_LIBRARY)
def test_t5_no_answer_takes_long_or_fails_where_the_library_runs_text(dataset: str):
    task = library_task(dataset)
    for answer in [*HOSTILE, *BOMBS]:
        start = time.process_time()
        score = score_answer(task, answer)
        assert time.process_time() - start < BUDGET_S, answer[:60]
        assert math.isfinite(score) and 0.0 <= score < 0.99, (answer[:60], score)


@pytest.mark.parametrize("dataset", ["simple_integration", "intermediate_integration", "polynomial_multiplication"])
def test_bombs_hidden_in_a_right_answer_take_no_longer(dataset: str):
    task = library_task(dataset, 1)
    assert score_answer(task, task.ground_truth) == 1.0
    for bomb in BOMBS[:40]:
        for answer in (f"{task.ground_truth} + ({bomb}) - ({bomb})", f"{task.ground_truth} + 0*({bomb})"):
            start = time.process_time()
            score = score_answer(task, answer)
            assert time.process_time() - start < BUDGET_S, answer[-60:]
            assert 0.0 <= score <= 1.0


@pytest.mark.parametrize(
    "zero",
    [
        "sin(8*x) - 8*sin(x)*cos(x)*cos(2*x)*cos(4*x)",
        "(x + 1)**20*(x - 1)**20 - (x**2 - 1)**20",
        "(x*y + x*z)**30 - (x*(y + z))**30",
        "tan(2*x) - 2*tan(x)/(1 - tan(x)**2)",
        "asin(3*x)*sin(2*x) - 2*asin(3*x)*sin(x)*cos(x)",
        "sqrt(x**2 + 2*x*C + C**2)*sin(3*x + 2) - sqrt((x + C)**2)*sin(3*x + 2)",
    ],
)
def test_formulas_that_only_simplifying_shows_to_be_zero_take_no_longer(zero: str):
    task = made_up("simple_integration", "?", integrand="2*x", variable="x")
    start = time.process_time()
    assert score_answer(task, f"x**2 + {zero}") == 1.0
    assert time.process_time() - start < BUDGET_S


def test_an_unsolved_integral_is_no_answer_but_where_nothing_else_is_known():
    task = library_task("intermediate_integration")
    variable, integrand = task.metadata["variable"], task.metadata["integrand"]
    unsolved = f"Integral({integrand}, {variable}) + C"
    entry = {"question": task.question, "answer": task.ground_truth, "metadata": task.metadata}
    assert get_score_answer_fn("intermediate_integration")(unsolved, entry) == 1.0  # type: ignore[call-arg]
    assert score_answer(task, unsolved) == 0.0
    assert score_answer(dataclasses.replace(task, ground_truth=unsolved), unsolved) == 1.0


@pytest.mark.parametrize(
    ("integrand", "answer", "expected"),
    [
        ("2*x", "x**2", 1.0),
        ("2*x", "x**2 + C", 1.0),
        ("2*x", "x**2 + c + 5", 1.0),
        ("2*x", "x * x", 1.0),
        ("2*x", "(x + 1)**2 - 2*x - C", 1.0),
        ("2*x", "1.0*x**2", 1.0),
        ("sin(x)*cos(x)", "sin(x)**2/2", 1.0),
        ("sin(x)*cos(x)", "-cos(2*x)/4 + C", 1.0),
        ("E**x", "exp(x)", 1.0),
        ("asin(3*x)", "x*asin(3*x) + sqrt(1 - 9*x**2)/3", 1.0),
        ("log(x**2)", "x*ln(x**2) - 2*x", 1.0),
        ("2*x", "X**2", 0.0),
        ("2*x", "x**2 + x/1000000", 0.0),
        ("2*x", "x^2", 0.0),
        ("2*x", "2x", 0.0),
        ("2*x", "x**2 + S", 0.0),
        ("2*x", "x**2 = y", 0.0),
        ("1/x", "log(abs(x))", 0.0),
    ],
)
def test_antiderivatives(integrand: str, answer: str, expected: float):
    task = made_up("simple_integration", "?", integrand=integrand, variable="x")
    assert score_answer(task, answer) == expected
    entry = {"answer": "?", "metadata": task.metadata}
    assert get_score_answer_fn("simple_integration")(answer, entry) == expected  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("(8 - 2)*4*1", 1.0),
        ("4*(8-2)/1", 1.0),
        ("49/2*1*1", 0.01),  # 49 is no number of the game
        ("(10*10 - 2)/4", 1.0),  # 24.5, cut off
        ("sqrt(6)*sqrt(6)*2*2", 1.0),
        ("4!*1*1*1", 1.0),
        ("8*3*1", 0.01),
        ("8/(3 - 8/3)", 1.0),
        ("8/(3 - 3)*1", 0.01),
        ("(-8)**(1/3)*1", 0.01),
        ("24", 0.01),
        (None, 0.01),
    ],
)
def test_puzzle24_arithmetic_agrees_with_the_library(answer: str | None, expected: float):
    assert score_answer(made_up("puzzle24", "?", numbers=[1, 2, 4, 8]), answer) == expected
    assert get_score_answer_fn("puzzle24")(answer, {"answer": "?", "metadata": {}}) == expected  # type: ignore[call-arg]


def test_a_list_of_nan_is_not_sorted():
    task = library_task("number_sorting")
    nans = str(["nan"] * len(task.metadata["original_numbers"]))
    entry = {"question": task.question, "answer": task.ground_truth, "metadata": task.metadata}
    assert get_score_answer_fn("number_sorting")(nans, entry) == 1.0  # type: ignore[call-arg]
    assert score_answer(task, nans) == 0.0
    assert score_answer(task, task.ground_truth) == 1.0


@pytest.mark.parametrize(
    ("truth", "answer", "expected"),
    [
        ("0.1640625", "0", 1 / 9),
        ("0.1640625", "0.1", 3 / 9),
        ("0.5", "0.512", 3 / 5),
        ("0.5", "1/2", 1.0),
        ("0.5", "0.50009", 1.0),
        ("0.5", "0.4", 2 / 3),
        ("0.5", "1e999999999", 0.0),
    ],
)
def test_coin_flip_pays_in_full_only_for_the_probability(truth: str, answer: str, expected: float):
    assert score_answer(made_up("coin_flip", truth), answer) == pytest.approx(expected)


@pytest.mark.parametrize("length", range(3, 21))
def test_a_word_with_something_after_it_is_not_spelled_right(length: int):
    task = made_up("spell_backward", "abcdefghijklmnopqrst"[:length])
    assert score_answer(task, f"{task.ground_truth}x") == 0.8
    assert score_answer(task, task.ground_truth) == score_answer(task, (task.ground_truth or "").upper()) == 1.0


def test_a_logic_answer_at_the_bounds_is_still_scored():
    # 16 variables in all: a truth table of 65,536 assignments, which the library would list one by one.
    names = "abcdefghijkl"
    task = made_up("propositional_logic", None, premises=["P ∧ Q", "R → S"], variables=["P", "Q", "R", "S"])
    clause = " ∨ ".join(["P", *names])
    assert score_answer(task, clause) == 1.0
    assert score_answer(task, clause.replace("∨", "∧")) == 0.05
    assert score_answer(task, f"{clause} ∨ m") == 0.0


def test_calendar_scores_of_negative_and_zero_truths():
    def score(truth: str, answer: str) -> float:
        return score_answer(made_up("calendar_arithmetic", truth, task="recurring_event_day"), answer)

    assert score("-1", "-1") == 1.0
    assert score("-1", "0") == pytest.approx(math.exp(-5))
    assert score("-1", "1") == pytest.approx(math.exp(-10))
    assert score("0", "0") == 1.0 and score("0", "1") == 0.0
    assert score("10", "11") == pytest.approx(math.exp(-0.5))
    assert score("3", "9" * 4_000) == 0.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("0 1\n1 0", 1.0),
        ("[[0, 1], [1, 0]]", 0.1),
        ("((0,1),(1,0))", 0.1),
        ("[0, 1], [1, 0]", 0.1),
        ("[[0, 1],\n [1, 0],]", 0.1),
        ("[['0', '1'], \"10\"]", 0.1),
        ("[[-0, +1], [0x1, 0b0]]", 0.1),
        ("[(0, 1), [(1), 0]]", 0.1),
        ("[0, 1],\n[1, 0]", 0.0),
        ("[[0 1], [1 0]]", 0.0),
        ("[[0, 1], [1, 0]", 0.0),
        ("[[0, 1], [1, 0]]]", 0.0),
        ("[[0, 1), [1, 0]]", 0.0),
        ("[[00, 01], [1, 0]]", 0.0),
        ("[[0, 1.0], [1, 0]]", 0.0),
        ("[[0, True], [1, 0]]", 0.0),
        ("[[0,, 1], [1, 0]]", 0.0),
        ("[, [0, 1], [1, 0]]", 0.0),
        ("[[0, [1]], [1, 0]]", 0.0),
        ("[[0, 1], [1, 0]][0]", 0.0),
        ("0110", 0.0),
        ("[]", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_binary_matrix_grammar_agrees_with_python(answer: str | None, expected: float):
    task = made_up("binary_matrix", "0 1\n1 0")
    assert score_answer(task, answer) == expected
    assert get_score_answer_fn("binary_matrix")(answer, {"answer": task.ground_truth}) == expected  # type: ignore[call-arg]


@pytest.mark.parametrize("dataset", sorted(REFUSED))
def test_a_refused_dataset_is_never_scored(dataset: str):
    with pytest.raises(RefusedDatasetError, match=dataset):
        score_answer(made_up(dataset, "1"), "1")


@pytest.mark.parametrize(
    ("dataset", "answers"),
    [
        ("coin_flip", ["1e999999999", "1E-999999999", "1e400"]),
        ("complex_arithmetic", ["nan", "NaN+nanj", "1e999", "(" * 9_000]),
        ("rubiks_cube", ["R999999999", "R1000"]),
        ("rush_hour", ["A+99999999999", "B-1000"]),
        ("prime_factorization", ["x × y", "no idea", "9" * 5_000, "2 × 2.5"]),
        ("game_of_life_halting", ["maybe", "x", "0"]),
        ("game_of_life", ["{}", '{"a": 1}', "null", "3", "[[]]"]),
    ],
)
def test_known_faults_of_other_library_scorers_pay_nothing(dataset: str, answers: list[str]):
    (specialty,) = resolve("easy", (dataset,))
    source = ReasoningGymSource((specialty,))
    task = source.task(source.ref(specialty, 3, 1))
    for answer in answers:
        assert score_answer(task, answer) <= 0.01, answer
    if task.ground_truth is not None:
        assert score_answer(task, task.ground_truth) == 1.0


def test_a_large_json_answer_is_not_compared_node_by_node():
    truth = '{"edges": [[1, 2], [3, 4]], "name": "triangle"}'
    task = made_up("codeio", truth)
    bomb = '{"edges": [' + ", ".join(["[1, [2, [3]]]"] * 1_000) + "]}"
    text = '{"name": "' + "x" * 16_000 + '"}'
    start = time.process_time()
    assert [score_answer(task, answer) for answer in (bomb, text, "[" * 8_000)] == [0.0, 0.01, 0.0]
    assert time.process_time() - start < 3 * BUDGET_S
    assert score_answer(task, truth) == 1.0
    assert 0.5 < score_answer(task, truth.replace("4", "5")) < 1.0
    long_truth = f'{{"values": [{", ".join(map(str, range(500)))}]}}'
    assert score_answer(made_up("codeio", long_truth), long_truth) == 1.0


def test_decimal_scores_use_default_tolerance_and_ignore_the_context(paper_source: ReasoningGymSource):
    task = dataclasses.replace(first_task(paper_source, "decimal_arithmetic"), ground_truth="12345.678")
    with decimal.localcontext() as context:
        context.prec = 2
        assert score_answer(task, "12345.679") == 1.0  # within 10^-3, the default of three decimals
        assert score_answer(task, "12345.67904") == 0.0  # two digits would round the error down
    assert score_answer(task, "12345.7") == 0.0  # a one-decimal configuration would accept it
