"""Scores answers that the library runs through `eval` to see whether they are lists.

Each of these datasets pays 1.0 for the exact text and less for a Python list that says the same.
Here the list is parsed by the grammar of `literals`, which covers what honest answers consist of;
anything else scores 0.
"""

from __future__ import annotations

from collections.abc import Callable

from sapo_jax.tasks.literals import NotLiteralError, items_of, parse_sequence
from sapo_jax.types import Task


def score_binary_matrix(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for the exact matrix text, 0.1 for the same matrix as a literal, else 0.0."""
    if extracted_answer is None or task.ground_truth is None:
        return 0.0
    if extracted_answer == task.ground_truth:
        return 1.0
    return 0.1 if _written_out(extracted_answer, _matrix) == task.ground_truth else 0.0


def score_n_queens(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for the text of any valid board, 0.5 for one as a literal of strings, else 0.0."""
    if extracted_answer is None:
        return 0.0
    boards = task.metadata["valid_answers"]
    if extracted_answer in boards:
        return 1.0
    return 0.5 if _written_out(extracted_answer, _board) in boards else 0.0


def score_spiral_matrix(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for the exact numbers, 0.1 for the same numbers as a literal, else 0.0."""
    if not extracted_answer or task.ground_truth is None:
        return 0.0
    truth = task.ground_truth.strip()
    if extracted_answer.strip() == truth:
        return 1.0
    return 0.1 if _written_out(extracted_answer.strip(), _row) == truth else 0.0


def score_string_insertion(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for the exact string, 0.1 for the same string as a literal, else 0.0."""
    if extracted_answer is None or task.ground_truth is None:
        return 0.0
    if extracted_answer == task.ground_truth:
        return 1.0
    return 0.1 if _written_out(extracted_answer, _joined) == task.ground_truth else 0.0


def _written_out(text: str, write: Callable[[list], str]) -> str | None:
    """Returns the items of a literal as `write` puts them, or None if `text` is no such literal."""
    try:
        return write(parse_sequence(text))
    except NotLiteralError:
        return None


def _matrix(rows: list) -> str:
    return "\n".join(_row(items_of(row)) for row in rows)


def _row(items: list) -> str:
    return " ".join(str(item) for item in items)


def _board(rows: list) -> str:
    return "\n".join(" ".join(_strings(items_of(row))) for row in rows)


def _joined(items: list) -> str:
    return "".join(_strings(items))


def _strings(items: list) -> list[str]:
    if not all(isinstance(item, str) for item in items):
        raise NotLiteralError("not all items are strings")
    return items
