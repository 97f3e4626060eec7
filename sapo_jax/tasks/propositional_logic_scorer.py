"""Scores `propositional_logic` answers with bounded work, by truth tables packed into integers.

Values equal the library's: 1.0 for a conclusion that follows, 0.25 if it is trivial (a tautology,
or a single variable), 0.05 for a formula that does not follow, 0.0 for text that is no formula or
uses capital letters that are no variables of the task. The library recurses as deep as the answer
nests and lists 2^n assignments one by one; here answers beyond the bounds below score 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sapo_jax.types import Task

_MAX_CHARS = 1024
_MAX_DEPTH = 128
_MAX_VARIABLES = 16  # of premises and answer together; one truth table is 2^16 bits

_AND, _OR, _NOT, _IMPLIES, _IFF = "∧", "∨", "¬", "→", "↔"
_LOOSEST_FIRST = (_IFF, _IMPLIES, _OR, _AND)
_CAPITAL = re.compile(r"[A-Z]")


class _NotFormula(Exception):
    """The text is no formula, or one beyond the bounds."""


@dataclass(frozen=True, slots=True)
class _Formula:
    """An operator over one or two formulas, or a variable when `operator` is empty."""

    operator: str
    variable: str = ""
    operands: tuple[_Formula, ...] = ()


def score_propositional_logic(task: Task, extracted_answer: str | None) -> float:
    """Returns the score of a conclusion for the premises of `task`."""
    if extracted_answer is None or len(extracted_answer) > _MAX_CHARS:
        return 0.0
    if not set(_CAPITAL.findall(extracted_answer)) <= set(task.metadata["variables"]):
        return 0.0
    try:
        conclusion = _parse(extracted_answer, 0)
        premises = [_parse(premise, 0) for premise in task.metadata["premises"]]
        if not _follows(premises, conclusion):
            return 0.05
        return 0.25 if _is_trivial(conclusion) else 1.0
    except _NotFormula:
        return 0.0


def _follows(premises: list[_Formula], conclusion: _Formula) -> bool:
    tables, every = _variable_tables([*premises, conclusion])
    possible = every
    for premise in premises:
        possible &= _truth_table(premise, tables, every)
    return possible & ~_truth_table(conclusion, tables, every) == 0


def _is_trivial(formula: _Formula) -> bool:
    if not formula.operator:
        return True
    tables, every = _variable_tables([formula])
    return _truth_table(formula, tables, every) == every


def _variable_tables(formulas: list[_Formula]) -> tuple[dict[str, int], int]:
    """Returns one truth table per variable (bit i: its value in assignment i) and the all-true one."""
    names = sorted(set().union(*(_variables(f) for f in formulas)))
    if len(names) > _MAX_VARIABLES:
        raise _NotFormula
    every = (1 << (1 << len(names))) - 1
    # Variable j is true in assignments whose bit j is set: blocks of 2^j zeros, then 2^j ones.
    return {name: every // ((1 << (1 << j)) + 1) << (1 << j) for j, name in enumerate(names)}, every


def _variables(formula: _Formula) -> set[str]:
    if not formula.operator:
        return {formula.variable}
    return set().union(*(_variables(operand) for operand in formula.operands))


def _truth_table(formula: _Formula, tables: dict[str, int], every: int) -> int:
    if not formula.operator:
        return tables[formula.variable]
    values = [_truth_table(operand, tables, every) for operand in formula.operands]
    if formula.operator == _NOT:
        return every ^ values[0]
    left, right = values
    if formula.operator == _AND:
        return left & right
    if formula.operator == _OR:
        return left | right
    if formula.operator == _IMPLIES:
        return (every ^ left) | right
    return every ^ left ^ right


def _parse(text: str, depth: int) -> _Formula:
    """Parses as the library does: split at the rightmost of the loosest operators outside brackets.

    Text without an operator is a variable, whatever it says, brackets that do not match included.
    """
    if depth > _MAX_DEPTH:
        raise _NotFormula
    text = text.strip()
    if not text:
        raise _NotFormula
    if _is_enclosed(text):
        return _parse(text[1:-1], depth + 1)
    position = _split_position(text)
    if position is not None:
        operands = (_parse(text[:position], depth + 1), _parse(text[position + 1 :], depth + 1))
        return _Formula(text[position], operands=operands)
    if text[0] == _NOT:
        return _Formula(_NOT, operands=(_parse(text[1:], depth + 1),))
    return _Formula("", variable=text)


def _is_enclosed(text: str) -> bool:
    if len(text) < 2 or text[0] != "(" or text[-1] != ")":
        return False
    level = 0
    for character in text[1:-1]:
        level += (character == "(") - (character == ")")
        if level < 0:
            return False
    return level == 0


def _split_position(text: str) -> int | None:
    rightmost: dict[str, int] = {}
    level = 0
    for position in range(len(text) - 1, -1, -1):
        character = text[position]
        if character == ")":
            level += 1
        elif character == "(":
            level -= 1
        elif level == 0 and character in _LOOSEST_FIRST:
            rightmost.setdefault(character, position)
    return next((rightmost[operator] for operator in _LOOSEST_FIRST if operator in rightmost), None)
