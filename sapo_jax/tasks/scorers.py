"""Which program scores which dataset, none of which ever runs an answer as code.

ReasoningGym's scorers with their *default* configuration, as the published recipe uses them (a
dataset's own configuration would, for example, accept decimals off by 0.1), except for:
- datasets with a scorer of ours: `binary_matrix`, `calendar_arithmetic`, `propositional_logic`;
- datasets whose library scorer executes text, which are refused;
- a few known faults, repaired below.
"""

from __future__ import annotations

import decimal
import functools
import re
from collections.abc import Callable
from typing import Any

from reasoning_gym.factory import get_score_answer_fn

from sapo_jax.tasks.binary_matrix_scorer import score_binary_matrix
from sapo_jax.tasks.calendar_arithmetic_scorer import score_calendar_arithmetic
from sapo_jax.tasks.propositional_logic_scorer import score_propositional_logic
from sapo_jax.types import Task

Scorer = Callable[[Task, str | None], float]

# Longer answers score 0: no honest one comes near, and several scorers are slow on long text.
MAX_ANSWER_CHARS = 16 * 1024

_RUNS_ANSWER = "the library's scorer runs the answer as Python code"
_SYMPY_ANSWER = "the library's scorer gives the answer to SymPy's parser, which runs it as code"
REFUSED = {
    "bitwise_arithmetic": "the library's scorer runs text of the task as Python code",
    "composite": "it mixes other datasets; name those instead",
    "countdown": _SYMPY_ANSWER,
    "intermediate_integration": _SYMPY_ANSWER,
    "n_queens": _RUNS_ANSWER,
    "number_sorting": "the library's scorer runs text of the task as Python code",
    "polynomial_multiplication": _SYMPY_ANSWER,
    "puzzle24": _SYMPY_ANSWER,
    "simple_integration": _SYMPY_ANSWER,
    "spiral_matrix": _RUNS_ANSWER,
    "string_insertion": _RUNS_ANSWER,
}

_OWN: dict[str, Scorer] = {
    "binary_matrix": score_binary_matrix,
    "calendar_arithmetic": score_calendar_arithmetic,
    "propositional_logic": score_propositional_logic,
}

# Answers that make the library work without end (numbers it expands, repeats or steps through) or
# that it takes for right whatever the question (nan).
_WORTHLESS = {
    "coin_flip": re.compile(r"[eE][+-]?\d{3}"),
    "complex_arithmetic": re.compile(r"nan", re.IGNORECASE),
    "rubiks_cube": re.compile(r"\d{3}"),
    "rush_hour": re.compile(r"\d{3}"),
}

# The scorers of these raise on some malformed answers instead of paying nothing.
_RAISE_ON_MALFORMED = frozenset({"boxnet", "codeio", "complex_arithmetic", "prime_factorization"})


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
    if dataset in _OWN:
        return _OWN[dataset](task, extracted_answer)
    if dataset == "game_of_life_halting":  # the library pays for any text at all
        return float(extracted_answer == task.ground_truth)
    worthless = _WORTHLESS.get(dataset)
    if worthless is not None and extracted_answer is not None and worthless.search(extracted_answer):
        return 0.0
    entry = {"question": task.question, "answer": task.ground_truth, "metadata": task.metadata}
    try:
        # Some datasets set the precision of the thread's decimal context and leave it so; scores
        # must not depend on which task was made last.
        with decimal.localcontext(decimal.Context()):
            return float(_library_scorer(dataset)(extracted_answer, entry))
    except Exception:
        if dataset in _RAISE_ON_MALFORMED:
            return 0.0
        raise


@functools.cache
def _library_scorer(dataset: str) -> Callable[..., Any]:
    return get_score_answer_fn(dataset)
