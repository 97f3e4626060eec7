"""Hostile answers: nothing runs, nothing hangs, nothing leaves [0, 1]."""

from __future__ import annotations

import dataclasses
import decimal
import math
from pathlib import Path

import pytest
from reasoning_gym.factory import get_score_answer_fn

from sapo_jax.tasks.catalog import CATALOGS, resolve
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scorers import MAX_ANSWER_CHARS, REFUSED, RefusedDatasetError, score_answer
from sapo_jax.types import Task, TaskRef

NINE = tuple(s.name for s in CATALOGS["paper"])


def first_task(source: ReasoningGymSource, name: str) -> Task:
    specialty = next(s for s in source.specialties if s.name == name)
    return source.task(source.ref(specialty, 11, 0))


def made_up(dataset: str, ground_truth: str | None, **metadata: object) -> Task:
    ref = TaskRef(dataset=dataset, config_digest="", seed=0, index=0)
    return Task(ref=ref, specialty=dataset, question="?", ground_truth=ground_truth, metadata=metadata)


def code_that_writes(marker: Path) -> list[str]:
    write = f"__import__('pathlib').Path({str(marker)!r}).write_text('x')"
    return [
        write,
        f"[{write}]",
        f"[[{write}, 1], [0, 1]]",
        f"(lambda: {write})()",
        f"__import__('os').system('touch {marker}')",
        f"[[0 for _ in [{write}]]]",
        f"exec({write!r})",
        f"f'{{{write}}}'",
        f"[[0, 1], [1, 0]] if {write} else 0",
    ]


def test_the_library_would_run_these_payloads(tmp_path: Path):
    marker = tmp_path / "marker"
    get_score_answer_fn("binary_matrix")(code_that_writes(marker)[1], {"answer": "0"})  # type: ignore[call-arg]
    assert marker.exists(), "else the next test proves nothing"


@pytest.mark.parametrize("name", NINE)
def test_code_in_an_answer_never_runs(paper_source: ReasoningGymSource, tmp_path: Path, name: str):
    marker = tmp_path / "marker"
    task = first_task(paper_source, name)
    for payload in code_that_writes(marker):
        assert 0.0 <= score_answer(task, payload) < 0.99
    assert not marker.exists()


DIGITS = "9" * 5_000  # more than int() accepts
HOSTILE = [
    "(" * 3_000 + "1" + ")" * 3_000,
    "[" * 8_000,
    "[" * 4_000 + "]" * 4_000,
    "¬" * 6_000 + "P",
    "¬" * 900 + "P",
    "(" * 500 + "P" + ")" * 500,
    "P∧" * 500 + "P",
    "∧".join(chr(ord("a") + i % 26) * (1 + i // 26) for i in range(100)),
    "9**9**9**9",
    "1e999999999",
    "-1e999999999",
    "1e-999999999",
    "1E+9999999999999999999",
    "nan",
    "-nan",
    "sNaN",
    "inf",
    "-Infinity",
    DIGITS,
    "-" + DIGITS,
    f"1/{DIGITS}",
    f"\\frac{{{DIGITS}}}{{{DIGITS}}}",
    "9" * 4_000,
    "9" * 4_000 + "/3",
    "٣",
    "१२/३",
    "²",
    "\ud800",
    "\u0000",
    "\u202e7",
    "\\frac{" + " " * 15_000,
    "\\frac{" + "1" * 15_000 + "}",
    "{" * 9_000,
    "0 " * 8_000,
    "x" * (MAX_ANSWER_CHARS + 1),
]


@pytest.mark.parametrize("name", NINE)
def test_hostile_answers_get_no_success_and_no_exception(paper_source: ReasoningGymSource, name: str):
    task = first_task(paper_source, name)
    for answer in HOSTILE:
        score = score_answer(task, answer)
        assert math.isfinite(score) and 0.0 <= score < 0.99, (answer[:40], score)


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


def test_decimal_scores_use_default_tolerance_and_ignore_the_context(paper_source: ReasoningGymSource):
    task = dataclasses.replace(first_task(paper_source, "decimal_arithmetic"), ground_truth="12345.678")
    with decimal.localcontext() as context:
        context.prec = 2
        assert score_answer(task, "12345.679") == 1.0  # within 10^-3, the default of three decimals
        assert score_answer(task, "12345.67904") == 0.0  # two digits would round the error down
    assert score_answer(task, "12345.7") == 0.0  # a one-decimal configuration would accept it
