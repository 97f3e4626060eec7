"""Scores number answers of tasks whose own text the library runs through `eval`.

The ground truths are read by grammar instead. `bitwise_arithmetic` needs no more than that: the
generator of the task has computed the value of its problem already.
"""

from __future__ import annotations

import json
import math

from sapo_jax.tasks.literals import NotLiteralError, parse_sequence
from sapo_jax.types import Task

_TOLERANCE = 1.0  # the library's, per number; it was meant for rounding


def score_bitwise_arithmetic(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for the right integer in any base that its prefix names, else 0.0."""
    if extracted_answer is None or task.ground_truth is None:
        return 0.0
    try:
        return float(int(extracted_answer, 0) == int(task.ground_truth, 0))
    except ValueError:  # no integer, or a decimal one of more than 4300 digits
        return 0.0


def score_number_sorting(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for a JSON list (of numbers, or of strings of them) in order and near the truth.

    Near means that each number is off by 1 at most, as in the library. Unlike there, a list of nan
    is not right for every question.
    """
    if extracted_answer is None or task.ground_truth is None:
        return 0.0
    try:
        values = json.loads(extracted_answer.replace("'", '"'))
        if not isinstance(values, list):
            return 0.0
        numbers = [float(value) for value in values]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return 0.0
    truth = _numbers(task.ground_truth)
    if len(numbers) != len(truth) or not all(math.isfinite(number) for number in numbers):
        return 0.0
    if numbers != sorted(numbers, reverse=task.metadata["direction"] != "ascending"):
        return 0.0
    return float(all(abs(number - right) <= _TOLERANCE for number, right in zip(numbers, truth, strict=True)))


def _numbers(ground_truth: str) -> list[float]:
    """Returns the numbers of a list of strings, as the generator writes it."""
    values = parse_sequence(ground_truth)
    if not all(isinstance(value, str) for value in values):
        raise NotLiteralError("not all items are strings")
    return [float(value) for value in values if isinstance(value, str)]
