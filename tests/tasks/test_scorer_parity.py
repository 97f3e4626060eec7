"""The scorers against the library's own, on what models really answer."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import Counter

import pytest

from sapo_jax.seeding import hash_seed
from sapo_jax.tasks.catalog import CATALOGS, resolve
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scorers import score_answer
from sapo_jax.types import Task
from tests.tasks.honest_answers import (
    TASKS,
    bitwise_answer,
    draw_tasks,
    expression_answer,
    formula,
    general_answer,
    library_score,
    list_answer,
)

NINE = tuple(s.name for s in CATALOGS["paper"])

ANSWERS = 10_000

KINDS = {
    "bitwise_arithmetic": bitwise_answer,
    "countdown": expression_answer,
    "intermediate_integration": expression_answer,
    "n_queens": list_answer,
    "number_sorting": list_answer,
    "polynomial_multiplication": expression_answer,
    "puzzle24": expression_answer,
    "simple_integration": expression_answer,
    "spiral_matrix": list_answer,
    "string_insertion": list_answer,
}
SLOW = ("simple_integration", "intermediate_integration")  # the library takes a minute for 10,000 answers


def compare_honest(source: ReasoningGymSource, name: str, count: int, seed: int = 0) -> None:
    """Scores `count` answers to questions of one specialty with both scorers."""
    rng = random.Random(hash_seed("answers", name, seed))
    tasks = draw_tasks(source, name, seed)
    scores: Counter[float] = Counter()
    for number in range(count):
        task = tasks[number % TASKS]
        answer = general_answer(tasks, task, rng)
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
        answer = general_answer(tasks, task, rng)
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


def _library_is_unfit(task: Task) -> bool:
    """Returns whether the library pays for any form of an unsolved integral, or needs minutes to refute an answer."""
    return "Integral" in (task.ground_truth or "") or task.metadata.get("problem_type") == "trigonometric"


def _compare(name: str, count: int) -> Counter[float]:
    """Scores `count` answers by both and returns how often each score came."""
    (specialty,) = resolve("easy", (name,))
    source = ReasoningGymSource((specialty,))
    rng = random.Random(hash_seed("answers", name))
    tasks = [task for task in draw_tasks(source, name) if not _library_is_unfit(task)]
    library = functools.cache(lambda number, answer: library_score(tasks[number], answer))
    scores: Counter[float] = Counter()
    for number in range(count):
        index = number % len(tasks)
        answer = KINDS[name](tasks, tasks[index], rng)
        expected = library(index, answer)
        assert score_answer(tasks[index], answer) == expected, (tasks[index].ref, tasks[index].ground_truth, answer)
        scores[expected] += 1
    return scores


@pytest.mark.parametrize("name", sorted(KINDS))
def test_scorers_of_ours_agree_where_the_library_runs_text(name: str):
    count = 500 if name in SLOW else ANSWERS
    scores = _compare(name, count)
    assert scores[1.0] > count / 50, "the right answers must be among them"
    assert scores.most_common(1)[0][1] < 0.95 * count
    partial = {"countdown": 0.05, "n_queens": 0.5, "puzzle24": 0.01, "spiral_matrix": 0.1, "string_insertion": 0.1}
    assert scores[partial.get(name, 0.0)] > count / 50


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_ten_thousand_antiderivatives_score_as_the_library_says(name: str):
    assert _compare(name, ANSWERS)[1.0] > ANSWERS / 10


def test_antiderivatives_of_powers_of_sines_score_as_the_library_says():
    weights = [0, 0, 0, 1, 0, 0, 0, 0]
    (specialty,) = resolve("easy", (f'intermediate_integration:{{"problem_type_weights": {weights}}}',))
    source = ReasoningGymSource((specialty,))
    for task in draw_tasks(source, "intermediate_integration")[:30]:
        for form in ("{}", "({0}) + c + 5", "-(-({0}))", "2*({0})/2", "({0})*1.0", "{0} + x - x"):
            answer = form.format(task.ground_truth)
            assert score_answer(task, answer) == library_score(task, answer) == 1.0, (task.metadata, answer)


@pytest.mark.parametrize("name", ["coin_flip", "spell_backward"])
def test_repaired_scorers_differ_only_where_the_library_pays_for_wrong_answers(name: str):
    (specialty,) = resolve("easy", (f'{name}:{{"size": 500}}',))  # the library's configuration, not the catalog's
    source = ReasoningGymSource((specialty,))
    rng = random.Random(3)
    tasks = draw_tasks(source, name)
    seen: Counter[bool] = Counter()
    for number in range(ANSWERS):
        task = tasks[number % TASKS]
        answer = general_answer(tasks, task, rng)
        try:
            expected = library_score(task, answer)
        except OverflowError:
            expected = 0.0
        score = score_answer(task, answer)
        if expected < 0.99 or score == 1.0:
            assert score == expected, (task.ground_truth, answer)
        else:
            is_right = (answer or "").lower() == (task.ground_truth or "").lower()
            assert score < 0.99 and not is_right, (task.ground_truth, answer)
        seen[score == expected] += 1
    assert seen[True] > 0.9 * ANSWERS and seen[False] > 10
