"""The scorers against the library's own, on what models really answer."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
from reasoning_gym.factory import get_score_answer_fn

from sapo_jax.seeding import hash_seed
from sapo_jax.tasks.catalog import CATALOGS, resolve
from sapo_jax.tasks.examples import answer_text
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scorers import score_answer
from sapo_jax.types import Task

NINE = tuple(s.name for s in CATALOGS["paper"])

ANSWERS = 10_000
TASKS = 100

OPERATORS = "∧∨¬→↔"


def library_score(task: Task, answer: str | None) -> float:
    # A new scorer with default configuration is what the published recipe makes for every answer.
    return LIBRARY[task.ref.dataset](answer, entry(task))  # type: ignore[call-arg,arg-type]


def entry(task: Task) -> dict:
    return {"question": task.question, "answer": task.ground_truth, "metadata": task.metadata}


LIBRARY = {name: get_score_answer_fn(name) for name in NINE}


def draw_tasks(source: ReasoningGymSource, name: str, seed: int = 0) -> list[Task]:
    specialty = next(s for s in source.specialties if s.name == name)
    return [source.task(source.ref(specialty, hash_seed("parity", name, seed), i)) for i in range(TASKS)]


def as_literal(text: str, rng: random.Random) -> str:
    """A matrix text as the Python literals that models write instead."""
    open_, close = rng.choice(["[]", "()"])
    quote = rng.choice(["", "", '"', "'"])
    cell = "," + rng.choice(["", " ", "  "])
    row = "," + rng.choice(["", " ", "\n", "\n "])
    end = rng.choice(["", "", ","])
    rows = [open_ + cell.join(quote + c + quote for c in line.split()) + end + close for line in text.split("\n")]
    outer = rng.choice(["[]", "()", "[]", ("", "")])
    body = (row if outer[0] else ", ").join(rows)
    return rng.choice(["", " "]) + outer[0] + body + end + outer[1]


def formula(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(["P", "Q", "R", "S", "T", "p", "it rains", ""])
    if rng.random() < 0.25:
        return "¬" + rng.choice(["", " "]) + formula(rng, depth - 1)
    text = f"{formula(rng, depth - 1)} {rng.choice(OPERATORS)} {formula(rng, depth - 1)}"
    return f"({text})" if rng.random() < 0.6 else text


def perturb(text: str, rng: random.Random) -> str:
    """One or two small faults: a character changed, dropped, doubled or added."""
    for _ in range(rng.randint(1, 2)):
        i = rng.randrange(len(text) + 1)
        new = rng.choice("0123456789 ,.-+/$()[]{}\\\nabcxPQRS" + OPERATORS)
        text = rng.choice([text[:i] + new + text[i + 1 :], text[:i] + text[i + 1 :], text[:i] + new + text[i:]])
    return text


def answers(tasks: list[Task], task: Task, rng: random.Random) -> str | None:
    """One answer such as a model gives: right, for another question, slightly or badly wrong."""
    right = answer_text(task) or ""
    kind = rng.randrange(12)
    if kind == 0:
        return right
    if kind == 1:
        return answer_text(rng.choice(tasks))
    if kind in (2, 3):
        return perturb(right, rng)
    if kind == 4:
        return rng.choice([None, "", " ", "I do not know", "yes", "42", "nan", "inf", "-0", "1e3", "½", "٣", "_1"])
    if kind == 5:
        decorations = [
            "The answer is {}",
            "{}.",
            "${}$",
            "{}\n",
            "\\frac{{{}}}{{2}}",
            "**{}**",
            "[{}]",
            "({})",
            "{} {}",
        ]
        return rng.choice(decorations).format(right, right)
    if kind == 6:
        return rng.choice([right.lower(), right.upper(), right.title(), right.replace(" ", ""), right + " " * 3])
    if kind in (7, 8):
        return as_literal(rng.choice([right, right, perturb(right, rng)]), rng)
    if kind == 9:
        return str(rng.randint(-20, 120))
    if kind == 10:
        return rng.choice(
            [str(rng.uniform(-50, 50)), f"{rng.randint(1, 99)}/{rng.randint(0, 99)}", "Monday", "sunday", "No"]
        )
    return formula(rng, rng.randint(1, 4))


def compare_honest(source: ReasoningGymSource, name: str, count: int, seed: int = 0) -> None:
    """Scores `count` answers to questions of one specialty with both scorers."""
    rng = random.Random(hash_seed("answers", name, seed))
    tasks = draw_tasks(source, name, seed)
    scores: Counter[float] = Counter()
    for number in range(count):
        task = tasks[number % TASKS]
        answer = answers(tasks, task, rng)
        expected = library_score(task, answer)
        assert score_answer(task, answer) == expected, (task.ref, answer)
        scores[expected] += 1
    assert scores[1.0] > 0.04 * count, "the right answers must be among them"
    assert len(scores) >= 2 and scores.most_common(1)[0][1] < 0.95 * count
    if name == "binary_matrix":
        assert scores[0.1] > 0.05 * count
    if name == "propositional_logic":
        assert min(scores[0.0], scores[0.05], scores[0.25], scores[1.0]) > 0.02 * count
    if name == "calendar_arithmetic":
        assert min(scores[0.1], scores[0.05]) > 0.0025 * count and len(scores) > 20


def compare_all_kinds_of_calendar_questions(count: int, seed: int) -> None:
    (specialty,) = resolve("easy", ("calendar_arithmetic",))  # the library's default: all seven kinds
    source = ReasoningGymSource((specialty,))
    rng = random.Random(hash_seed("calendar answers", seed))
    tasks = [source.task(source.ref(specialty, hash_seed("calendar", seed), i)) for i in range(TASKS)]
    assert len({task.metadata["task"] for task in tasks}) == 7
    for number in range(count):
        task = tasks[number % TASKS]
        answer = answers(tasks, task, rng)
        assert score_answer(task, answer) == library_score(task, answer), (task.ref, answer)


def compare_random_premises(source: ReasoningGymSource, count: int, seed: int) -> None:
    rng = random.Random(hash_seed("premises", seed))
    (task, *_) = draw_tasks(source, "propositional_logic", seed)
    seen: Counter[float] = Counter()
    for _ in range(count):
        premises = [formula(rng, rng.randint(1, 3)) or "P" for _ in range(rng.randint(1, 3))]
        one = dataclasses.replace(task, metadata={"premises": premises, "variables": ["P", "Q", "R", "S"]})
        answer = formula(rng, rng.randint(0, 3))
        expected = library_score(one, answer)
        assert score_answer(one, answer) == expected, (premises, answer)
        seen[expected] += 1
    assert set(seen) == {0.0, 0.05, 0.25, 1.0}


@pytest.mark.parametrize("name", NINE)
def test_ten_thousand_honest_answers_score_as_the_library_does(paper_source: ReasoningGymSource, name: str):
    compare_honest(paper_source, name, ANSWERS)


def test_all_kinds_of_calendar_questions_score_as_the_library_does():
    compare_all_kinds_of_calendar_questions(2_000, seed=1)


def test_logic_with_random_premises_scores_as_the_library_does(paper_source: ReasoningGymSource):
    compare_random_premises(paper_source, 3_000, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NINE)
def test_ten_times_as_many_fresh_answers_score_as_the_library_does(
    paper_source: ReasoningGymSource, name: str, fresh_seed: int
):
    compare_honest(paper_source, name, 10 * ANSWERS, fresh_seed)


@pytest.mark.slow
def test_ten_times_as_many_fresh_calendar_answers_score_as_the_library_does(fresh_seed: int):
    compare_all_kinds_of_calendar_questions(20_000, fresh_seed)


@pytest.mark.slow
def test_ten_times_as_many_fresh_premises_score_as_the_library_does(paper_source: ReasoningGymSource, fresh_seed: int):
    compare_random_premises(paper_source, 30_000, fresh_seed)
