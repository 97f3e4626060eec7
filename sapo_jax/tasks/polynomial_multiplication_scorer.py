"""Scores `polynomial_multiplication` answers with SymPy objects of ours, where the library runs the text.

As in the library an answer is right if SymPy holds it for the same object as the ground truth, that
is, multiplied out; the order of terms and factors does not matter.
"""

from __future__ import annotations

from sapo_jax.tasks.expressions import NotExpressionError, parse_expression
from sapo_jax.tasks.symbolic import measure, to_sympy
from sapo_jax.types import Task


def score_polynomial_multiplication(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for the product as SymPy writes it, up to the order of terms, else 0.0."""
    if extracted_answer is None or task.ground_truth is None:
        return 0.0
    try:
        answer = parse_expression(extracted_answer)
        measure(answer)
        return float(to_sympy(answer) == to_sympy(parse_expression(task.ground_truth)))
    except NotExpressionError:
        return 0.0
