"""Scores `binary_matrix` answers by parsing a literal grammar, where the library runs `eval`.

The library pays 1.0 for the exact text, and 0.1 for a Python expression whose value, written out
row by row, equals that text. Here the expression may be nested lists or tuples of integer literals
and plain strings: what honest answers consist of. Anything else (names, calls, arithmetic,
comprehensions, comments) scores 0.
"""

from __future__ import annotations

import re

from sapo_jax.types import Task

_MAX_CHARS = 16 * 1024
_MAX_DEPTH = 8
_MAX_INTEGER_CHARS = 32

_TOKEN = re.compile(
    r"""(?P<space>[ \t\f\r\n]+)
      | (?P<integer>[+-]?[0-9][0-9A-Za-z_]*)
      | (?P<string>'[^'\\\r\n]*'|"[^"\\\r\n]*")
      | (?P<punctuation>[\[\](),])
    """,
    re.VERBOSE,
)

_CLOSING = {"[": "]", "(": ")"}

# A parsed value: an integer as text in canonical form, a string as a tuple of characters, or a
# sequence of values as a list.
_Value = str | tuple[str, ...] | list["_Value"]


class _NotLiteral(Exception):
    """The text is outside the grammar."""


def score_binary_matrix(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for the exact matrix text, 0.1 for the same matrix as a literal, else 0.0."""
    if extracted_answer is None or task.ground_truth is None:
        return 0.0
    if extracted_answer == task.ground_truth:
        return 1.0
    if len(extracted_answer) > _MAX_CHARS:
        return 0.0
    try:
        rows = _rows(_parse(extracted_answer))
    except _NotLiteral:
        return 0.0
    return 0.1 if "\n".join(" ".join(row) for row in rows) == task.ground_truth else 0.0


def _rows(value: _Value) -> list[list[str]]:
    """Returns the cells of a matrix as text, row by row, as iterating over the value gives them."""
    rows = []
    for row in _iterate(value):
        cells = []
        for cell in _iterate(row):
            if isinstance(cell, list):
                raise _NotLiteral
            cells.append("".join(cell))
        rows.append(cells)
    return rows


def _iterate(value: _Value) -> list[_Value]:
    if isinstance(value, str):
        raise _NotLiteral  # an integer
    if isinstance(value, tuple):
        return [(character,) for character in value]
    return value


def _parse(text: str) -> _Value:
    # Python, too, skips blanks around an expression, but no new line outside brackets inside it.
    tokens = _tokens(text.strip(" \t\r\n"))
    value, position = _sequence_or_single(tokens, 0, closing="", depth=0)
    if position != len(tokens):
        raise _NotLiteral
    return value


def _tokens(text: str) -> list[str]:
    tokens = []
    position = depth = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _NotLiteral
        position = match.end()
        token = match.group()
        if match.lastgroup == "space":
            if depth == 0 and ("\n" in token or "\r" in token):
                raise _NotLiteral
            continue
        depth += (token in "[(") - (token in ")]")
        tokens.append(token)
    return tokens


def _sequence_or_single(tokens: list[str], position: int, closing: str, depth: int) -> tuple[_Value, int]:
    """Parses up to `closing` ("" is the end of the text); a lone value in round brackets is itself."""
    if depth > _MAX_DEPTH:
        raise _NotLiteral
    values: list[_Value] = []
    comma = False
    while position < len(tokens) and tokens[position] != closing:
        if values and not comma:
            raise _NotLiteral
        value, position = _single(tokens, position, depth)
        values.append(value)
        comma = position < len(tokens) and tokens[position] == ","
        position += comma
    if closing and position == len(tokens):
        raise _NotLiteral
    if not closing and not values:
        raise _NotLiteral
    if closing != "]" and len(values) == 1 and not comma:
        return values[0], position + bool(closing)
    return values, position + bool(closing)


def _single(tokens: list[str], position: int, depth: int) -> tuple[_Value, int]:
    token = tokens[position]
    if token in _CLOSING:
        return _sequence_or_single(tokens, position + 1, _CLOSING[token], depth + 1)
    if token[0] in "'\"":
        return tuple(token[1:-1]), position + 1
    if token in ",)]" or len(token) > _MAX_INTEGER_CHARS:
        raise _NotLiteral
    try:
        return str(int(token, 0)), position + 1  # base 0: the rules of Python's integer literals
    except ValueError as error:
        raise _NotLiteral from error
