"""Arithmetic expressions, parsed to a small tree of ours; no text is ever run as code.

The grammar is the part of Python that answers consist of, since the library's scorers read answers
with SymPy's parser, which is Python with undefined names as symbols and `!` for factorials: numbers,
names, `+ - * / // % ** ^ !`, brackets and calls. Multiplication signs are not implied: `2x` is no
expression there either. `^` is exclusive or, looser than the rest, and no power.

A tree means nothing by itself: `evaluate` folds it with an `Algebra`, which says what numbers,
names, calls and operators are, and refuses what it does not know.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeVar

MAX_CHARS = 2048
_MAX_DEPTH = 48
_MAX_NUMBER_CHARS = 64
_MAX_DECIMAL_EXPONENT = 99

_TOKEN = re.compile(
    r"""[ \t\f]*(?:
        (?P<decimal>(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?|[0-9][0-9_]*[eE][+-]?[0-9]+)
      | (?P<integer>0[xXoObB][0-9a-fA-F_]+|[0-9][0-9_]*)
      | (?P<name>[^\W\d]\w*)
      | (?P<operator>\*[ \t\f]*\*|/[ \t\f]*/|[-+*/%^!(),])
      | (?P<comment>\#[^\r\n]*)
      | (?P<line>\r\n|\r|\n)
    )""",
    re.VERBOSE,
)


class NotExpressionError(ValueError):
    """Text outside the grammar or beyond its bounds, or an expression that an algebra refuses."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number; `digits` is 0 for an integer, otherwise how many significant ones its text has."""

    value: Fraction
    digits: int = 0


@dataclass(frozen=True, slots=True)
class Name:
    """A symbol or a constant."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function of some arguments; `factorial` for the postfix `!`."""

    name: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Negative:
    """The operand with the other sign."""

    operand: Expression


@dataclass(frozen=True, slots=True)
class Power:
    """Base to the power of exponent."""

    base: Expression
    exponent: Expression


@dataclass(frozen=True, slots=True)
class Chain:
    """Operators of one rank, applied from the left: `first`, then each operator and its operand.

    One level of the tree however long the chain is, so depth is what the text nests.
    """

    first: Expression
    rest: tuple[tuple[str, Expression], ...]


Expression = Number | Name | Call | Negative | Power | Chain

Value = TypeVar("Value")


class Algebra(Protocol[Value]):
    """What the parts of an expression are; each method raises NotExpressionError for what it refuses."""

    def number(self, number: Number) -> Value:
        """Returns a number."""
        ...

    def name(self, name: str) -> Value:
        """Returns what a name stands for."""
        ...

    def call(self, name: str, arguments: Sequence[Value]) -> Value:
        """Returns a function's value."""
        ...

    def negative(self, value: Value) -> Value:
        """Returns the value with the other sign."""
        ...

    def power(self, base: Value, exponent: Value) -> Value:
        """Returns a power."""
        ...

    def operate(self, operator: str, left: Value, right: Value) -> Value:
        """Returns what one of `+ - * / // % ^` gives."""
        ...


def evaluate(expression: Expression, algebra: Algebra[Value]) -> Value:
    """Returns what `expression` is in `algebra`, operands before operators and from the left.

    Raises:
        NotExpressionError: the algebra refuses a part of it.
    """
    match expression:
        case Number():
            return algebra.number(expression)
        case Name(name):
            return algebra.name(name)
        case Call(name, arguments):
            return algebra.call(name, [evaluate(argument, algebra) for argument in arguments])
        case Negative(operand):
            return algebra.negative(evaluate(operand, algebra))
        case Power(base, exponent):
            return algebra.power(evaluate(base, algebra), evaluate(exponent, algebra))
        case Chain(first, rest):
            value = evaluate(first, algebra)
            for operator, operand in rest:
                value = algebra.operate(operator, value, evaluate(operand, algebra))
            return value


def parse_expression(text: str) -> Expression:
    """Returns the tree of `text`.

    Raises:
        NotExpressionError: it is no expression, or one beyond the bounds.
    """
    if len(text) > MAX_CHARS:
        raise NotExpressionError("too long")
    parser = _Parser(_tokens(text.strip()))
    expression = parser.rank(0, depth=0)
    parser.expect("end")
    return expression


def _tokens(text: str) -> list[tuple[str, str]]:
    """Returns the kind and the text of each token; an operator is its own kind."""
    tokens = []
    position = depth = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotExpressionError("no such token")
        position = match.end()
        kind = match.lastgroup or ""
        token = match.group(kind)
        if kind == "line" and depth == 0:
            raise NotExpressionError("a new line outside brackets")
        if kind in ("line", "comment"):
            continue
        depth += (token == "(") - (token == ")")
        if kind == "operator":
            kind = token = re.sub(r"\s", "", token)  # the library's parser joins `* *`
        tokens.append((kind, token))
    return [*tokens, ("end", "")]


# Loosest first. Unary signs, powers and what they apply to bind tighter than all of these.
_RANKS = (("^",), ("+", "-"), ("*", "/", "//", "%"))


class _Parser:
    """Recursive descent over the tokens, in Python's order of precedence."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self._tokens = tokens
        self._position = 0

    def expect(self, kind: str) -> None:
        """Passes over one token, which must be of `kind`."""
        if self._kind() != kind:
            raise NotExpressionError(f"no {kind}")
        self._position += 1

    def rank(self, rank: int, depth: int) -> Expression:
        """Parses a chain of operators of one rank, or whatever binds tighter."""
        if depth > _MAX_DEPTH:
            raise NotExpressionError("nested too deeply")
        if rank == len(_RANKS):
            return self._signed(depth)
        first = self.rank(rank + 1, depth)
        rest = []
        while self._kind() in _RANKS[rank]:
            operator = self._take()
            rest.append((operator, self.rank(rank + 1, depth)))
        return Chain(first, tuple(rest)) if rest else first

    def _signed(self, depth: int) -> Expression:
        if depth > _MAX_DEPTH:
            raise NotExpressionError("nested too deeply")
        if self._kind() in ("+", "-"):
            sign = self._take()
            operand = self._signed(depth + 1)
            return Negative(operand) if sign == "-" else operand
        base = self._factorial(depth)
        if self._kind() != "**":
            return base
        self._take()
        return Power(base, self._signed(depth + 1))

    def _factorial(self, depth: int) -> Expression:
        value = self._operand(depth)
        if self._kind() == "!":
            self._take()
            value = Call("factorial", (value,))
        return value

    def _operand(self, depth: int) -> Expression:
        kind = self._kind()
        token = self._take()
        if kind in ("integer", "decimal"):
            return _number(kind, token)
        if kind == "name":
            if keyword.iskeyword(token):
                raise NotExpressionError("a keyword")
            return Call(token, self._arguments(depth + 1)) if self._kind() == "(" else Name(token)
        if kind != "(":
            raise NotExpressionError("no value")
        value = self.rank(0, depth + 1)
        self.expect(")")
        if self._kind() == "(":
            raise NotExpressionError("a value is called")
        return value

    def _arguments(self, depth: int) -> tuple[Expression, ...]:
        self._take()
        arguments = []
        while self._kind() != ")":
            arguments.append(self.rank(0, depth))
            if self._kind() != ")":
                self.expect(",")
        self._take()
        return tuple(arguments)

    def _kind(self) -> str:
        return self._tokens[self._position][0]

    def _take(self) -> str:
        token = self._tokens[self._position][1]
        if self._kind() != "end":
            self._position += 1
        return token


def _number(kind: str, token: str) -> Number:
    if len(token) > _MAX_NUMBER_CHARS:
        raise NotExpressionError("a number is too long")
    try:
        if kind == "integer":
            return Number(Fraction(int(token, 0)))  # base 0: the rules of Python's integer literals
        mantissa, _, exponent = token.lower().partition("e")
        if abs(int(exponent or 0)) > _MAX_DECIMAL_EXPONENT:
            raise NotExpressionError("an exponent is too large")
        # Read as Python reads it, which refuses misplaced underscores.
        float(token)
    except ValueError as error:
        raise NotExpressionError("no number") from error
    return Number(Fraction(token), digits=len(re.sub(r"\D", "", mantissa).lstrip("0")) or 1)
