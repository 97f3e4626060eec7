"""Scores answers that the library pays in full for, though they are wrong.

Whatever else the library pays, partial credit included, is paid here too.
"""

from __future__ import annotations

import re
from fractions import Fraction

from sapo_jax.types import Task

_COIN_FLIP_TOLERANCE = 1e-4
_HUGE_EXPONENT = re.compile(r"[eE][+-]?[0-9_]{3}")  # the library expands it to a number of as many digits

_RIGHT_START_ONLY = 0.8


def score_coin_flip(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for a probability within 1e-4, else the share of leading characters that agree.

    The library takes the share of the shorter of both numbers, and so pays 1.0 for "0" whatever the
    question. Where that share is all of it, ours is of the longer one.
    """
    if extracted_answer is None or task.ground_truth is None or _HUGE_EXPONENT.search(extracted_answer):
        return 0.0
    try:
        answer = float(Fraction(extracted_answer.replace(",", "")))
    except (ValueError, ArithmeticError):
        return 0.0
    truth = float(Fraction(task.ground_truth.replace(",", "")))
    if abs(answer - truth) <= _COIN_FLIP_TOLERANCE:
        return 1.0
    texts = f"{answer:.10g}", f"{truth:.10g}"
    agree = _agreeing_start(*texts)
    shorter, longer = sorted(len(text) for text in texts)
    return agree / (shorter if agree < shorter else longer)


def score_game_of_life_halting(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for the ground truth, else 0.0; the library pays for any text at all."""
    return float(extracted_answer == task.ground_truth)


def score_spell_backward(task: Task, extracted_answer: str | None) -> float:
    """Returns 1.0 for the word in any capitals, else the share of its letters in the right place.

    An answer that goes on after all of them gets 0.8, as the library means to: there the sum of the
    shares often misses 1.0 by a rounding error, and the deduction with it.
    """
    if extracted_answer is None or task.ground_truth is None:
        return 0.0
    answer, truth = extracted_answer.lower(), task.ground_truth.lower()
    if answer == truth:
        return 1.0
    right = [mine == letter for mine, letter in zip(answer, truth, strict=False)]
    if sum(right) == len(truth):
        return _RIGHT_START_ONLY
    share = 0.0
    for _ in range(sum(right)):  # summed as the library does, to the same last bit
        share += 1 / len(truth)
    return share


def _agreeing_start(left: str, right: str) -> int:
    """Returns how many characters both texts begin with alike."""
    for position, (mine, other) in enumerate(zip(left, right, strict=False)):
        if mine != other:
            return position
    return min(len(left), len(right))
