"""Solved examples for few-shot prompts.

Each specialty has one small bank of solved training questions, the same for every run and node.
Which of them stand before a question follows from that question alone, so a prompt can be rebuilt
anywhere. A bank keeps the shorter half of what was drawn: examples are repeated in every prompt and
teach the format, not the skill. (The very shortest would all be of one kind where a specialty mixes
several.)
"""

from __future__ import annotations

import functools

from sapo_jax.seeding import generator, hash_seed
from sapo_jax.tasks.held_out import is_held_out
from sapo_jax.tasks.source import GenerationError, TaskSource
from sapo_jax.tasks.specialty import Specialty
from sapo_jax.tasks.verifier import ScoreError, score_completion, strict_success
from sapo_jax.types import Task

BANK_QUESTIONS = 16
_CANDIDATES = 2 * BANK_QUESTIONS
_MAX_DRAWS = 12 * _CANDIDATES

Example = tuple[str, str]  # question and the text of a right answer


class ExamplesError(ValueError):
    """Solved examples that cannot be given."""


def answer_text(task: Task) -> str | None:
    """Returns the answer that the dataset of `task` offers as right, or None if it offers none."""
    if task.ground_truth is not None:
        return task.ground_truth
    example = task.metadata.get("example_answer")  # propositional_logic: one of many
    return example if isinstance(example, str) else None


def solved_examples(source: TaskSource, task: Task, shots: int) -> tuple[Example, ...]:
    """Returns `shots` distinct solved questions of the specialty of `task`, never that task itself.

    A pure function of the question and the specialty; none of them is a held-out question.

    Raises:
        ExamplesError: the dataset has no right answer to show, or the bank is too small.
    """
    if shots == 0:
        return ()
    specialty = next(s for s in source.specialties if s.name == task.specialty)
    bank = [example for example in _bank(source, specialty) if example[0] != task.question]
    if shots > len(bank):
        raise ExamplesError(
            f"config.tasks.shots = {shots}: specialty {specialty.name!r} has only {len(bank)} solved examples to "
            f"choose from (at most {BANK_QUESTIONS - 1} for any specialty)"
        )
    chosen = generator("examples", specialty.digest, task.question).permutation(len(bank))[:shots]
    return tuple(bank[i] for i in chosen)


@functools.lru_cache(maxsize=256)
def _bank(source: TaskSource, specialty: Specialty) -> tuple[Example, ...]:
    size = specialty.config["size"]
    found: dict[str, str] = {}
    for draw in range(_MAX_DRAWS):
        if len(found) == _CANDIDATES:
            break
        page, index = divmod(draw, size)
        try:
            task = source.task(source.ref(specialty, hash_seed("example bank", specialty.digest, page), index))
        except GenerationError:
            continue
        if is_held_out(task.question):
            continue
        answer = answer_text(task)
        if answer is None:
            raise ExamplesError(
                f"specialty {specialty.name!r}: dataset {specialty.dataset!r} has no right answer to show; "
                "use config.tasks.shots = 0 or leave it out"
            )
        if _is_right(task, answer):
            found[task.question] = answer
    shortest = sorted(found.items(), key=lambda example: (len(example[0]) + len(example[1]), example))
    return tuple(shortest[:BANK_QUESTIONS])


def _is_right(task: Task, answer: str) -> bool:
    # propositional_logic sometimes offers a conclusion that does not follow, or a trivial one.
    try:
        return strict_success(score_completion(task, f"<answer>{answer}</answer>"))
    except ScoreError:
        return False
