"""Derivatives as numbers: whether a function is an antiderivative, tested at a few points.

Each expression is evaluated in complex floating point together with its derivative. That costs
microseconds whatever the expression is, and never more: numbers that leave the range of floats end
the evaluation.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sapo_jax.tasks.expressions import Expression, NotExpressionError, Number, evaluate
from sapo_jax.tasks.symbolic import symbol_or_constant

# Small, and off every line where a function of calculus jumps.
_POINTS = (0.13 + 0.07j, 0.29 + 0.11j)
_OTHER_SYMBOLS = (0.57 + 0.23j, 0.83 + 0.31j, 0.41 + 0.43j, 0.67 + 0.19j, 0.37 + 0.29j)

_TOLERANCE = 1e-6  # relative to the largest number met on the way
_MAX_RATIO = 1e9  # of the largest numbers met in answer and integrand


def differ_somewhere(antiderivative: Expression, integrand: Expression, variable: str) -> bool:
    """Returns whether the derivative of one expression differs from the other at a tested point.

    Raises:
        NotExpressionError: one of them has no finite value anywhere, has a vanishing part, or is
            so much larger than the other that nothing can be said.
    """
    for point in _POINTS:
        left, right = _Differentiation(variable, point), _Differentiation(variable, point)
        difference = evaluate(antiderivative, left).slope - evaluate(integrand, right).value
        if left.largest > _MAX_RATIO * right.largest:
            raise NotExpressionError("numbers out of proportion")
        if abs(difference) > _TOLERANCE * max(left.largest, right.largest):
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Dual:
    """A value and its derivative."""

    value: complex
    slope: complex = 0


class _Differentiation:
    """Complex numbers with derivatives, and the largest magnitude seen so far (at least 1)."""

    def __init__(self, variable: str, point: complex):
        self._variable = variable
        self._point = point
        self._others: dict[str, complex] = {}
        self.largest = 1.0

    def number(self, number: Number) -> _Dual:
        return self._seen(lambda: _Dual(complex(float(number.value))))

    def name(self, name: str) -> _Dual:
        if name == self._variable:
            return self._seen(lambda: _Dual(self._point, 1))
        constant = symbol_or_constant(name, {"C"})
        if constant.is_number:
            return _Dual(complex(float(constant)))
        if name not in self._others:
            if len(self._others) == len(_OTHER_SYMBOLS):
                raise NotExpressionError("too many symbols")
            self._others[name] = _OTHER_SYMBOLS[len(self._others)]
        return _Dual(self._others[name])

    def call(self, name: str, arguments: Sequence[_Dual]) -> _Dual:
        if name in ("log", "ln") and len(arguments) == 2:
            return self.operate("/", self.call("log", arguments[:1]), self.call("log", arguments[1:]))
        if name not in _FUNCTIONS or len(arguments) != 1:
            raise NotExpressionError("no such function")
        function, derivative = _FUNCTIONS[name]
        (argument,) = arguments

        def result() -> _Dual:
            value = function(argument.value)
            return _Dual(value, derivative(argument.value, value) * argument.slope)

        return self._seen(result)

    def negative(self, value: _Dual) -> _Dual:
        return _Dual(-value.value, -value.slope)

    def power(self, base: _Dual, exponent: _Dual) -> _Dual:
        def result() -> _Dual:
            if exponent.slope == 0:
                value = base.value**exponent.value
                return _Dual(value, exponent.value * base.value ** (exponent.value - 1) * base.slope)
            logarithm = cmath.log(base.value)
            value = cmath.exp(exponent.value * logarithm)
            return _Dual(value, value * (exponent.slope * logarithm + exponent.value * base.slope / base.value))

        return self._seen(result)

    def operate(self, operator: str, left: _Dual, right: _Dual) -> _Dual:
        match operator:
            case "+":
                return self._seen(lambda: _Dual(left.value + right.value, left.slope + right.slope))
            case "-":
                return self._seen(lambda: _Dual(left.value - right.value, left.slope - right.slope))
            case "*":
                return self._seen(
                    lambda: _Dual(left.value * right.value, left.slope * right.value + left.value * right.slope)
                )
            case "/":
                return self.operate("*", left, self.power(right, _Dual(-1)))
        raise NotExpressionError("no operator of calculus")

    def _seen(self, make: Callable[[], _Dual]) -> _Dual:
        """Returns what `make` gives, which must be finite."""
        try:
            result = make()
        except (ArithmeticError, ValueError) as error:
            raise NotExpressionError("no finite value") from error
        if not (cmath.isfinite(result.value) and cmath.isfinite(result.slope)):
            raise NotExpressionError("no finite value")
        self.largest = max(self.largest, abs(result.value), abs(result.slope))
        return result


# Each function with its derivative, as a function of argument and value.
_Function = tuple[Callable[[complex], complex], Callable[[complex, complex], complex]]
_FUNCTIONS: dict[str, _Function] = {
    "exp": (cmath.exp, lambda z, w: w),
    "log": (cmath.log, lambda z, w: 1 / z),
    "ln": (cmath.log, lambda z, w: 1 / z),
    "sqrt": (cmath.sqrt, lambda z, w: 1 / (2 * w)),
    "sin": (cmath.sin, lambda z, w: cmath.cos(z)),
    "cos": (cmath.cos, lambda z, w: -cmath.sin(z)),
    "tan": (cmath.tan, lambda z, w: 1 + w * w),
    "cot": (lambda z: 1 / cmath.tan(z), lambda z, w: -1 - w * w),
    "sec": (lambda z: 1 / cmath.cos(z), lambda z, w: w * cmath.tan(z)),
    "csc": (lambda z: 1 / cmath.sin(z), lambda z, w: -w / cmath.tan(z)),
    "asin": (cmath.asin, lambda z, w: 1 / cmath.sqrt(1 - z * z)),
    "acos": (cmath.acos, lambda z, w: -1 / cmath.sqrt(1 - z * z)),
    "atan": (cmath.atan, lambda z, w: 1 / (1 + z * z)),
    "sinh": (cmath.sinh, lambda z, w: cmath.cosh(z)),
    "cosh": (cmath.cosh, lambda z, w: cmath.sinh(z)),
    "tanh": (cmath.tanh, lambda z, w: 1 - w * w),
    "asinh": (cmath.asinh, lambda z, w: 1 / cmath.sqrt(1 + z * z)),
}
