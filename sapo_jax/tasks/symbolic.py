"""SymPy objects built from trees of ours: SymPy never sees a text, so it cannot run one.

Names and functions mean what SymPy's parser takes them for; those that calculus answers do not need
are refused. SymPy multiplies out numbers as it builds, and more than that when it simplifies, so
`measure` bounds what an expression would expand to before anything is built.
"""

from __future__ import annotations

import builtins
import functools
import math
import types
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import sympy

from sapo_jax.tasks.expressions import Expression, NotExpressionError, Number, evaluate

_MAX_EXPONENT = 128
_MAX_DEGREE = 128
_MAX_BITS = 2048
_MAX_TERMS = 512
_MAX_CALLS = 24
_MAX_SYMBOLS = 5
_MAX_ARGUMENT_BITS = 10  # of numbers inside functions and variable exponents

CONSTANTS = {"pi": sympy.pi, "E": sympy.E}
FUNCTIONS = {
    **{name: getattr(sympy, name) for name in ("exp", "log", "ln", "sqrt")},
    **{name: getattr(sympy, name) for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{name: getattr(sympy, name) for name in ("asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh")},
}


def to_sympy(expression: Expression, symbols: Collection[str] = ()) -> sympy.Expr:
    """Returns `expression` as Python's operators on SymPy objects give it.

    Args:
        expression: one that `measure` accepts.
        symbols: names that are symbols whatever else SymPy knows by that name.

    Raises:
        NotExpressionError: a name or a function is not supported.
    """
    return evaluate(expression, _SymPy(symbols))


def measure(expression: Expression) -> None:
    """Checks how large `expression` would be as a quotient of two expanded polynomials.

    Raises:
        NotExpressionError: terms, degree, digits, calls or names exceed the bounds.
    """
    evaluate(expression, _Measuring())


class _SymPy:
    """SymPy's expressions."""

    def __init__(self, symbols: Collection[str]):
        self._symbols = symbols

    def number(self, number: Number) -> sympy.Expr:
        value = sympy.Rational(number.value.numerator, number.value.denominator)
        return sympy.Float(value, max(15, number.digits)) if number.digits else value

    def name(self, name: str) -> sympy.Expr:
        return symbol_or_constant(name, self._symbols)

    def call(self, name: str, arguments: Sequence[sympy.Expr]) -> sympy.Expr:
        if name in self._symbols or name not in FUNCTIONS or not 1 <= len(arguments) <= 1 + (name in ("log", "ln")):
            raise NotExpressionError("no such function")
        return FUNCTIONS[name](*arguments)

    def negative(self, value: sympy.Expr) -> sympy.Expr:
        return -value

    def power(self, base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
        return base**exponent

    def operate(self, operator: str, left: Any, right: Any) -> sympy.Expr:
        match operator:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "/":
                return left / right
        raise NotExpressionError("no operator of calculus")


def symbol_or_constant(name: str, symbols: Collection[str]) -> sympy.Expr:
    """Returns what a name stands for.

    Raises:
        NotExpressionError: SymPy's parser takes it for something that is neither.
    """
    if name not in symbols:
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in _taken_names():
            raise NotExpressionError("a name with another meaning")
    return sympy.Symbol(name)


@functools.cache
def _taken_names() -> frozenset[str]:
    """Returns the names that SymPy's parser does not make symbols of."""
    exported = {name: getattr(sympy, name) for name in sympy.__all__}
    taken = {name for name, value in exported.items() if callable(value) or isinstance(value, sympy.Basic)}
    functions = {name for name, value in vars(builtins).items() if isinstance(value, types.BuiltinFunctionType)}
    return frozenset(taken | functions | {"Q", "True", "False", "None"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """Bounds of an expression as a quotient of two polynomials, multiplied out, in names and calls.

    Attributes:
        constant: there is no symbol in it.
        value: of a constant of rational numbers alone, where known.
        terms, degree: of the numerator.
        divisor_terms, divisor_degree: of the denominator.
        bits: of the largest coefficient, hence also of what is left when all symbols cancel.
    """

    constant: bool = True
    value: Fraction | None = None
    terms: int = 1
    degree: int = 0
    divisor_terms: int = 1
    divisor_degree: int = 0
    bits: int = 1

    def __post_init__(self):
        if (
            self.terms + self.divisor_terms > _MAX_TERMS
            or max(self.degree, self.divisor_degree) > _MAX_DEGREE
            or self.bits > _MAX_BITS
        ):
            raise NotExpressionError("too large when multiplied out")


class _Measuring:
    """Bounds on sizes; whatever they refuse is never computed."""

    def __init__(self):
        self._calls = 0
        self._symbols: set[str] = set()

    def number(self, number: Number) -> _Size:
        return _Size(value=number.value, bits=_bits(number.value))

    def name(self, name: str) -> _Size:
        if name in CONSTANTS:
            return _Size(bits=2)
        self._symbols.add(name)
        if len(self._symbols) > _MAX_SYMBOLS:
            raise NotExpressionError("too many symbols")
        return _Size(constant=False, degree=1)

    def call(self, name: str, arguments: Sequence[_Size]) -> _Size:
        self._calls += 1
        if self._calls > _MAX_CALLS or not arguments:
            raise NotExpressionError("too many calls, or one of nothing")
        bits = max(argument.bits for argument in arguments)
        constant = all(argument.constant for argument in arguments)
        if name == "sqrt":
            return replace(self.power(arguments[0], _Size(value=Fraction(1, 2))), value=None)
        if name not in ("log", "ln") and bits > _MAX_ARGUMENT_BITS:
            raise NotExpressionError("a number inside a function is too large")
        if name == "exp":  # of a multiple of a logarithm it is a power
            bits = 2 << bits
        return _Size(constant=constant, degree=1, bits=bits)

    def negative(self, value: _Size) -> _Size:
        return replace(value, value=None if value.value is None else -value.value)

    def power(self, base: _Size, exponent: _Size) -> _Size:
        if exponent.value is None:
            if exponent.constant or not base.constant or exponent.bits > _MAX_ARGUMENT_BITS:
                raise NotExpressionError("an exponent of another kind")
            return _Size(constant=False, degree=1, bits=base.bits << exponent.bits)
        if abs(exponent.value) > _MAX_EXPONENT:
            raise NotExpressionError("an exponent is too large")
        times = math.ceil(abs(exponent.value))
        size = _Size(
            constant=base.constant,
            terms=_power_terms(base.terms, times),
            degree=base.degree * times,
            divisor_terms=_power_terms(base.divisor_terms, times),
            divisor_degree=base.divisor_degree * times,
            bits=(base.bits + max(base.terms, base.divisor_terms).bit_length() - 1) * times or 1,
        )
        if base.value is not None and exponent.value.denominator == 1 and (base.value or exponent.value >= 0):
            size = replace(size, value=base.value ** abs(int(exponent.value)))  # inverted below, like the rest
        return size if exponent.value >= 0 else _inverse(size)

    def operate(self, operator: str, left: _Size, right: _Size) -> _Size:
        if operator == "/":
            left, right, operator = left, _inverse(right), "*"
        constant = left.constant and right.constant
        divisor_terms = left.divisor_terms * right.divisor_terms
        divisor_degree = left.divisor_degree + right.divisor_degree
        if operator == "*":
            return _Size(
                constant=constant,
                value=None if left.value is None or right.value is None else left.value * right.value,
                terms=left.terms * right.terms,
                degree=left.degree + right.degree,
                divisor_terms=divisor_terms,
                divisor_degree=divisor_degree,
                bits=left.bits + right.bits + min(left.terms, right.terms).bit_length() - 1,
            )
        if operator not in "+-":
            raise NotExpressionError("no operator of calculus")
        right_value = right.value if operator == "+" or right.value is None else -right.value
        return _Size(
            constant=constant,
            value=None if left.value is None or right_value is None else left.value + right_value,
            terms=left.terms * right.divisor_terms + right.terms * left.divisor_terms,
            degree=max(left.degree + right.divisor_degree, right.degree + left.divisor_degree),
            divisor_terms=divisor_terms,
            divisor_degree=divisor_degree,
            bits=max(left.bits, right.bits) + 1,
        )


def _inverse(size: _Size) -> _Size:
    if size.value == 0:
        raise NotExpressionError("a division by zero")
    return replace(
        size,
        value=None if size.value is None else 1 / size.value,
        terms=size.divisor_terms,
        degree=size.divisor_degree,
        divisor_terms=size.terms,
        divisor_degree=size.degree,
    )


def _power_terms(terms: int, times: int) -> int:
    """Returns how many terms a power of a sum has, cut off beyond the bound."""
    if terms == 1 or times == 0:
        return 1
    return math.comb(terms + times - 1, times) if terms + times <= _MAX_TERMS else _MAX_TERMS + 1


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
