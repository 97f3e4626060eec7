"""Scores `countdown` and `puzzle24` by exact arithmetic, where the library runs the answer as code.

Values equal the library's. Both collect the numbers from the text and compare the value loosely: in
`countdown` it may be off by a hundred-thousandth of the target; in `puzzle24` what follows the
decimal point is cut off, and any four numbers in [1, 10] count as used. Powers and factorials beyond
the bounds below are no expressions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from sapo_jax.tasks.expressions import NotExpressionError, Number, evaluate, parse_expression
from sapo_jax.types import Task

_MAX_BITS = 4096  # of a numerator or denominator
_MAX_FACTORIAL = 100

_NO_SUCCESS = 0.01
_EXPRESSION = 0.05  # countdown only: an expression with a value, though not a solution

_NUMBERS = re.compile(r"\b\d+\b")

# A rational number exactly, an irrational one approximately.
_Real = Fraction | float


def score_countdown(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for an expression with the right value and numbers, 0.05 for another, else 0.01."""
    if extracted_answer is None:
        return _NO_SUCCESS
    value = _value(extracted_answer)
    if value is None:
        return _NO_SUCCESS
    if sorted(_numbers(extracted_answer)) != sorted(task.metadata["numbers"]):
        return _EXPRESSION
    target = task.metadata["target"]
    return 1.0 if abs(value - target) <= 1e-6 + 1e-5 * abs(target) else _EXPRESSION


def score_puzzle24(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for an expression of four numbers in [1, 10] whose whole part is 24, else 0.01."""
    del task  # the library compares with its default range, not with the numbers of the question
    if extracted_answer is None:
        return _NO_SUCCESS
    numbers = _numbers(extracted_answer)
    if len(numbers) != 4 or not all(1 <= number <= 10 for number in numbers):
        return _NO_SUCCESS
    value = _value(extracted_answer.strip())
    return 1.0 if value is not None and 24 <= _snapped(value) < 25 else _NO_SUCCESS


def _numbers(text: str) -> list[int]:
    """Returns the integers that stand alone in `text`; long ones are as good as any wrong one."""
    return [int(digits) if len(digits) < 20 else -1 for digits in _NUMBERS.findall(text)]


def _value(text: str) -> _Real | None:
    try:
        return evaluate(parse_expression(text), _Arithmetic())
    except NotExpressionError:
        return None


def _snapped(value: _Real) -> _Real:
    """Returns an approximate value that misses an integer by a rounding error as that integer."""
    if isinstance(value, float) and math.isfinite(value) and abs(value - round(value)) < 1e-9:
        return round(value)
    return value


class _Arithmetic:
    """Real numbers: exact where they are rational, within `_MAX_BITS`."""

    def number(self, number: Number) -> _Real:
        return number.value

    def name(self, name: str) -> _Real:
        if name not in _CONSTANTS:
            raise NotExpressionError("a name without a value")
        return _CONSTANTS[name]

    def call(self, name: str, arguments: Sequence[_Real]) -> _Real:
        if len(arguments) != 1:
            raise NotExpressionError("one argument expected")
        (argument,) = arguments
        if name == "sqrt":
            return self.power(argument, Fraction(1, 2))
        if name in ("abs", "Abs"):
            return abs(argument)
        if name == "factorial" and isinstance(argument, Fraction) and argument.denominator == 1:
            if 0 <= argument <= _MAX_FACTORIAL:
                return Fraction(math.factorial(int(argument)))
        raise NotExpressionError("no such function")

    def negative(self, value: _Real) -> _Real:
        return -value

    def power(self, base: _Real, exponent: _Real) -> _Real:
        try:
            if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
                if _bits(base) * abs(exponent) > _MAX_BITS:
                    raise NotExpressionError("too large")
                return base ** int(exponent)
            value = float(base) ** float(exponent)
        except ArithmeticError as error:
            raise NotExpressionError("no finite value") from error
        if isinstance(value, complex):
            raise NotExpressionError("no real value")
        return value

    def operate(self, operator: str, left: _Real, right: _Real) -> _Real:
        try:
            value = _OPERATIONS[operator](left, right)
        except (ArithmeticError, ValueError) as error:
            raise NotExpressionError("no finite value") from error
        if isinstance(value, Fraction) and _bits(value) > _MAX_BITS:
            raise NotExpressionError("too large")
        return value


def _exclusive_or(left: _Real, right: _Real) -> _Real:
    if not all(isinstance(value, Fraction) and value.denominator == 1 for value in (left, right)):
        raise NotExpressionError("only integers have bits")
    return Fraction(int(left) ^ int(right))


_CONSTANTS: dict[str, _Real] = {"pi": math.pi, "E": math.e, "nan": math.nan, "oo": math.inf}

_OPERATIONS = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
    "//": lambda left, right: Fraction(left // right),
    "%": lambda left, right: left % right,
    "^": _exclusive_or,
}


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
