"""The literals that models write as lists: parsed by a grammar of ours, never run as code.

Nested lists and tuples of integers and plain strings, written as in Python and with the meaning
they have there. Names, calls, arithmetic, comprehensions, comments, escapes and string prefixes are
outside the grammar, and so is what exceeds the bounds below.
"""

from __future__ import annotations

import re

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

Literal = int | str | list["Literal"] | tuple["Literal", ...]


class NotLiteralError(ValueError):
    """Text outside the grammar, or beyond its bounds."""


def parse_literal(text: str) -> Literal:
    """Returns the value that `text` has as a Python literal.

    Raises:
        NotLiteralError: it is none of the supported ones, or one beyond the bounds.
    """
    if len(text) > _MAX_CHARS:
        raise NotLiteralError("too long")
    # Python, too, skips blanks around an expression, but no new line outside brackets inside it.
    tokens = _tokens(text.strip(" \t\r\n"))
    value, position = _sequence_or_single(tokens, 0, closing="", depth=0)
    if position != len(tokens):
        raise NotLiteralError("text after the end")
    return value


def parse_sequence(text: str) -> list[Literal]:
    """Returns the items that iterating over the literal `text` gives; of a string, its characters.

    Raises:
        NotLiteralError: it is not such a literal, or a single integer.
    """
    return items_of(parse_literal(text))


def items_of(value: Literal) -> list[Literal]:
    """Returns what iterating over `value` gives.

    Raises:
        NotLiteralError: it is an integer.
    """
    if isinstance(value, int):
        raise NotLiteralError("an integer has no items")
    return list(value)


def _tokens(text: str) -> list[str]:
    tokens = []
    position = depth = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotLiteralError("no such token")
        position = match.end()
        token = match.group()
        if match.lastgroup == "space":
            if depth == 0 and ("\n" in token or "\r" in token):
                raise NotLiteralError("a new line outside brackets")
            continue
        depth += (token in "[(") - (token in ")]")
        tokens.append(token)
    return tokens


def _sequence_or_single(tokens: list[str], position: int, closing: str, depth: int) -> tuple[Literal, int]:
    """Parses up to `closing` ("" is the end of the text); a lone value in round brackets is itself."""
    if depth > _MAX_DEPTH:
        raise NotLiteralError("nested too deeply")
    values: list[Literal] = []
    comma = False
    while position < len(tokens) and tokens[position] != closing:
        if values and not comma:
            raise NotLiteralError("no comma between two values")
        value, position = _single(tokens, position, depth)
        values.append(value)
        comma = position < len(tokens) and tokens[position] == ","
        position += comma
    if closing and position == len(tokens):
        raise NotLiteralError("a bracket is not closed")
    if not closing and not values:
        raise NotLiteralError("empty")
    end = position + bool(closing)
    if closing == "]":
        return values, end
    if len(values) == 1 and not comma:
        return values[0], end
    return tuple(values), end


def _single(tokens: list[str], position: int, depth: int) -> tuple[Literal, int]:
    token = tokens[position]
    if token in _CLOSING:
        return _sequence_or_single(tokens, position + 1, _CLOSING[token], depth + 1)
    if token[0] in "'\"":
        return token[1:-1], position + 1
    if token in ",)]" or len(token) > _MAX_INTEGER_CHARS:
        raise NotLiteralError("no value")
    try:
        return int(token, 0), position + 1  # base 0: the rules of Python's integer literals
    except ValueError as error:
        raise NotLiteralError("no integer") from error
