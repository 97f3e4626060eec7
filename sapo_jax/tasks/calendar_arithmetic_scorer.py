"""Scores `calendar_arithmetic` answers as the library means to, within [0, 1] and without raising.

Repairs: the library divides by the signed ground truth, so a truth of -1 pays up to exp(5) = 148
for a wrong number, and a long number overflows its division.
"""

from __future__ import annotations

import math

from sapo_jax.types import Task

_WEEKDAYS = frozenset({"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"})
_WEEKDAY_TASKS = frozenset({"weekday_offset", "weekday_of_date_from_first_date", "weekday_of_date"})
_NUMBER_TASKS = frozenset({"count_business_days", "count_days", "recurring_event_day"})


def score_calendar_arithmetic(task: Task, extracted_answer: str | None) -> float:
    """Returns the score of an answer to one of the seven kinds of calendar questions.

    Weekdays: 1.0 if right, 0.1 for another weekday, 0.05 for one in other capitals. Numbers:
    exp(-5 |answer - truth| / |truth|). Leap years: 1.0 or 0.0.
    """
    if not extracted_answer or task.ground_truth is None:
        return 0.0
    kind = task.metadata["task"]
    if kind in _WEEKDAY_TASKS:
        return _score_weekday(extracted_answer.strip(), task.ground_truth)
    if kind in _NUMBER_TASKS:
        return _score_number(extracted_answer, int(task.ground_truth))
    if kind == "is_leap_year":
        return float(extracted_answer.strip().lower() == task.ground_truth.lower())
    return 0.0


def _score_weekday(weekday: str, truth: str) -> float:
    if weekday == truth:
        return 1.0
    if weekday in _WEEKDAYS:
        return 0.1
    return 0.05 if weekday.title() in _WEEKDAYS else 0.0


def _score_number(text: str, truth: int) -> float:
    try:
        number = int(text.strip())  # refuses more than 4300 digits with a ValueError
    except ValueError:
        return 0.0
    if truth == 0:
        return float(number == 0)
    try:
        relative_error = abs(number - truth) / abs(truth)
    except OverflowError:  # too far off for a float
        return 0.0
    return math.exp(-5 * relative_error)
