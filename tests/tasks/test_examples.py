from __future__ import annotations

import dataclasses
import re
import statistics
from collections import Counter

import pytest

from sapo_jax.tasks.catalog import CATALOGS, resolve
from sapo_jax.tasks.examples import BANK_QUESTIONS, ExamplesError, solved_examples
from sapo_jax.tasks.held_out import is_held_out
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scorers import score_answer
from sapo_jax.tasks.stream import TaskStream
from sapo_jax.types import Task

NINE = tuple(s.name for s in CATALOGS["paper"])


def tasks_of(source: ReasoningGymSource, name: str, count: int) -> tuple[Task, ...]:
    specialties = tuple(s for s in source.specialties if s.name == name)
    return TaskStream(source=source, specialties=specialties, run_seed=1, node_id="a").take(0, count).tasks


@pytest.mark.parametrize("name", NINE)
def test_examples_are_right_distinct_trainable_and_not_the_task(mini_source: ReasoningGymSource, name: str):
    tasks = tasks_of(mini_source, name, 30)
    for task in tasks[:10]:
        examples = solved_examples(mini_source, task, 3)
        questions = [question for question, _ in examples]
        assert len(set(questions)) == 3 and task.question not in questions
        assert not any(is_held_out(question) for question in questions)
        assert examples == solved_examples(ReasoningGymSource(mini_source.specialties), task, 3)
        assert solved_examples(mini_source, task, 1) == examples[:1]
    used = Counter(example for task in tasks for example in solved_examples(mini_source, task, 2))
    assert 8 < len(used) <= BANK_QUESTIONS
    typical = statistics.mean(len(task.question) for task in tasks)
    assert statistics.mean(len(question) for question, _ in used) <= typical * 1.05


def test_logic_examples_follow_from_their_premises(mini_source: ReasoningGymSource):
    tasks = tasks_of(mini_source, "propositional_logic", 60)
    checked = set()
    for task in tasks:
        for question, answer in solved_examples(mini_source, task, 2):
            premises = re.findall(r"\d+\. (.+)\n", question)
            example = dataclasses.replace(task, metadata={"premises": premises, "variables": [*"PQRS"]})
            assert len(premises) >= 2 and score_answer(example, answer) == 1.0
            checked.add(question)
    assert len(checked) > 8


class Misleading(ReasoningGymSource):
    """Offers a wrong answer for every item with an even index, as propositional_logic does for some."""

    def task(self, ref):
        task = super().task(ref)
        return task if ref.index % 2 else dataclasses.replace(task, ground_truth=None, metadata=WRONG)


WRONG = {"premises": ["P ∧ Q"], "variables": ["P", "Q", "R"], "example_answer": "R → Q ∧ ¬P"}


def test_wrong_answers_of_the_library_are_not_shown():
    source = Misleading(resolve("rg_mini_l1", ("propositional_logic",)))
    for task in tasks_of(source, "propositional_logic", 10):
        answers = [answer for _, answer in solved_examples(source, task, 10)]
        assert len(answers) == 10 and WRONG["example_answer"] not in answers


def test_the_task_itself_is_never_shown_even_if_it_is_in_the_bank(mini_source: ReasoningGymSource):
    task = tasks_of(mini_source, "base_conversion", 1)[0]
    bank = solved_examples(mini_source, task, BANK_QUESTIONS - 1)
    found = 0
    for other in tasks_of(mini_source, "base_conversion", 1500):
        if other.question in dict(bank):
            found += 1
            assert other.question not in dict(solved_examples(mini_source, other, BANK_QUESTIONS - 1))
    assert found > 0, "else the test proves nothing"


def test_no_shots_need_no_examples(mini_source: ReasoningGymSource):
    assert solved_examples(mini_source, tasks_of(mini_source, "bf", 1)[0], 0) == ()


def test_too_many_shots_and_datasets_without_answers_are_clear_errors(mini_source: ReasoningGymSource):
    with pytest.raises(ExamplesError, match=r"config\.tasks\.shots = 40: specialty 'bf' has only 1[56] solved"):
        solved_examples(mini_source, tasks_of(mini_source, "bf", 1)[0], 40)
    source = ReasoningGymSource(resolve("easy", ("graph_color",)))
    with pytest.raises(ExamplesError, match=r"'graph_color' has no right answer to show.*config\.tasks\.shots = 0"):
        solved_examples(source, tasks_of(source, "graph_color", 1)[0], 1)
