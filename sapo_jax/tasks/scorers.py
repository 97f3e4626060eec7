"""Which program scores which dataset, none of which ever runs an answer as code.

ReasoningGym's scorers with their *default* configuration, as the published recipe uses them (a
dataset's own configuration would, for example, accept decimals off by 0.1), except for:
- `OWN`: datasets with a scorer of ours, because the library's runs text as code or has faults that
  cannot be repaired around it;
- `REPAIRED`: datasets of which some answers never reach the library's scorer, or whose scorer may
  fail on a malformed one;
- `REFUSED`: datasets that are not scored at all.

Faults that need a forged question, ground truth or metadata are left alone: tasks are always rebuilt
by whoever scores them, so the text of the answer is all that a stranger controls.
"""

from __future__ import annotations

import decimal
import functools
import re
from collections.abc import Callable
from typing import Any

from reasoning_gym.factory import get_score_answer_fn

from sapo_jax.tasks.calendar_arithmetic_scorer import score_calendar_arithmetic
from sapo_jax.tasks.integration_scorer import score_integration
from sapo_jax.tasks.lenient_scorers import score_coin_flip, score_game_of_life_halting, score_spell_backward
from sapo_jax.tasks.literal_scorers import (
    score_binary_matrix,
    score_n_queens,
    score_spiral_matrix,
    score_string_insertion,
)
from sapo_jax.tasks.number_game_scorer import score_countdown, score_puzzle24
from sapo_jax.tasks.number_scorers import score_bitwise_arithmetic, score_number_sorting
from sapo_jax.tasks.polynomial_multiplication_scorer import score_polynomial_multiplication
from sapo_jax.tasks.propositional_logic_scorer import score_propositional_logic
from sapo_jax.types import Task

Scorer = Callable[[Task, str | None], float]

# Longer answers score 0: no honest one comes near, and several scorers are slow on long text.
MAX_ANSWER_CHARS = 16 * 1024

REFUSED = {"composite": "it mixes other datasets; name those instead"}

_RUNS_ANSWER = "the library runs the answer as Python code"
_RUNS_TASK = "the library runs text of the task as Python code"
_SYMPY_ANSWER = "the library gives the answer to SymPy's parser, which runs it as code"

# Dataset -> our scorer, and why the library's is not used.
OWN: dict[str, tuple[Scorer, str]] = {
    "binary_matrix": (score_binary_matrix, _RUNS_ANSWER),
    "bitwise_arithmetic": (score_bitwise_arithmetic, _RUNS_TASK),
    "calendar_arithmetic": (score_calendar_arithmetic, "the library pays up to 148 and overflows"),
    "coin_flip": (score_coin_flip, "the library pays in full for 0, and expands huge exponents"),
    "countdown": (score_countdown, _SYMPY_ANSWER),
    "game_of_life_halting": (score_game_of_life_halting, "the library pays for any text at all"),
    "intermediate_integration": (score_integration, _SYMPY_ANSWER),
    "n_queens": (score_n_queens, _RUNS_ANSWER),
    "number_sorting": (score_number_sorting, _RUNS_TASK),
    "polynomial_multiplication": (score_polynomial_multiplication, _SYMPY_ANSWER),
    "propositional_logic": (score_propositional_logic, "the library's work and recursion have no bound"),
    "puzzle24": (score_puzzle24, _SYMPY_ANSWER),
    "simple_integration": (score_integration, _SYMPY_ANSWER),
    "spell_backward": (score_spell_backward, "the library pays in full, or more, for a right start"),
    "spiral_matrix": (score_spiral_matrix, _RUNS_ANSWER),
    "string_insertion": (score_string_insertion, _RUNS_ANSWER),
}


def _holds(pattern: str) -> Callable[[Task, str], bool]:
    return lambda task, answer: re.search(pattern, answer, re.IGNORECASE) is not None


def _is_laborious(task: Task, answer: str) -> bool:
    """Returns whether comparing two JSON trees, node by node and character by character, takes seconds."""
    truth = task.ground_truth or ""
    nodes = [1 + len(re.findall(r"[\[{,]", text)) for text in (answer, truth)]
    return answer.strip() != truth.strip() and (
        nodes[0] * nodes[1] > _MAX_NODE_PAIRS or len(answer) * len(truth) > _MAX_CHARACTER_PAIRS
    )


_MAX_NODE_PAIRS = 4_000
_MAX_CHARACTER_PAIRS = 1_000_000

# Dataset -> which answers score 0 before the library sees them (None: it may fail on some), and why.
REPAIRED: dict[str, tuple[Callable[[Task, str], bool] | None, str]] = {
    "boxnet": (None, "the library fails on malformed answers"),
    "codeio": (_is_laborious, "the library's work has no bound, and it fails on deeply nested answers"),
    "complex_arithmetic": (_holds("nan"), "the library pays in full for nan"),
    "game_of_life": (None, "the library fails on answers that are no lists"),
    "prime_factorization": (None, "the library fails on factors that are no integers"),
    "rubiks_cube": (_holds(r"\d{3}"), "the library repeats a move as often as it says"),
    "rush_hour": (_holds(r"\d{3}"), "the library steps through moves of any length"),
}


class RefusedDatasetError(ValueError):
    """A dataset whose answers cannot be scored safely."""


def refuse_unsafe(dataset: str) -> None:
    """Raises RefusedDatasetError, with the reason, if no safe scorer exists for `dataset`."""
    if dataset in REFUSED:
        raise RefusedDatasetError(f"dataset {dataset!r} is refused: {REFUSED[dataset]}")


def score_answer(task: Task, extracted_answer: str | None) -> float:
    """Returns the score of an extracted answer (None: no answer tags) as the scorer gives it.

    The value is not checked here: some library scorers can leave [0, 1].

    Raises:
        RefusedDatasetError: before anything looks at the answer.
        Exception: whatever a library scorer fails with.
    """
    dataset = task.ref.dataset
    refuse_unsafe(dataset)
    if extracted_answer is not None and len(extracted_answer) > MAX_ANSWER_CHARS:
        return 0.0
    if dataset in OWN:
        return OWN[dataset][0](task, extracted_answer)
    worthless = REPAIRED[dataset][0] if dataset in REPAIRED else None
    if worthless is not None and extracted_answer is not None and worthless(task, extracted_answer):
        return 0.0
    entry = {"question": task.question, "answer": task.ground_truth, "metadata": task.metadata}
    try:
        # Some datasets set the precision of the thread's decimal context and leave it so; scores
        # must not depend on which task was made last.
        with decimal.localcontext(decimal.Context()):
            return float(_library_scorer(dataset)(extracted_answer, entry))
    except Exception:
        if dataset in REPAIRED:
            return 0.0
        raise


@functools.cache
def _library_scorer(dataset: str) -> Callable[..., Any]:
    return get_score_answer_fn(dataset)
