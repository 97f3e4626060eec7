"""Scores `simple_integration` and `intermediate_integration`, where the library runs the answer as code.

As in the library an answer is right if SymPy simplifies its derivative less the integrand to zero.
Two things come before that. Answer and integrand are parsed by our grammar and measured, and both
are evaluated at a few points: a difference that is not zero there needs no simplifying, so that
wrong answers cost next to nothing and right ones are the only formulas that SymPy works on.

One departure: the library also pays for `Integral(...)` or `integrate(...)` of the question itself.
Here that is no expression, unless it is the text of the ground truth: for some questions the library
finds no closed form and offers no other.
"""

from __future__ import annotations

import sympy

from sapo_jax.tasks.derivatives import differ_somewhere
from sapo_jax.tasks.expressions import Expression, NotExpressionError, parse_expression
from sapo_jax.tasks.symbolic import measure, to_sympy
from sapo_jax.types import Task

_CONSTANT = "C"


def score_integration(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for an antiderivative of the integrand of `task`, else 0.0."""
    if extracted_answer is None:
        return 0.0
    if extracted_answer == task.ground_truth:
        return 1.0
    variable = task.metadata["variable"]
    try:
        answer = parse_expression(extracted_answer)
        measure(answer)
        integrand = parse_expression(task.metadata["integrand"])
        if differ_somewhere(answer, integrand, variable):
            return 0.0
        return float(_simplifies_to_zero(answer, integrand, variable))
    except NotExpressionError:
        return 0.0


def _simplifies_to_zero(answer: Expression, integrand: Expression, variable: str) -> bool:
    derivative = sympy.diff(to_sympy(answer, {variable, _CONSTANT}), sympy.Symbol(variable))
    return sympy.simplify(derivative - to_sympy(integrand, {variable})) == 0
