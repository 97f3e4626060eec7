"""Answers such as models give, and what the library's own scorers say of them."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from typing import Any

from reasoning_gym.factory import get_score_answer_fn

from sapo_jax.seeding import hash_seed
from sapo_jax.tasks.examples import answer_text
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.types import Task

TASKS = 100
OPERATORS = "∧∨¬→↔"


def library_score(task: Task, answer: str | None) -> float:
    # A new scorer with default configuration is what the published recipe makes for every answer.
    return library_scorer(task.ref.dataset)(answer, entry(task))


def entry(task: Task) -> dict:
    return {"question": task.question, "answer": task.ground_truth, "metadata": task.metadata}


@functools.cache
def library_scorer(dataset: str) -> Callable[..., Any]:
    return get_score_answer_fn(dataset)


def draw_tasks(source: ReasoningGymSource, name: str, seed: int = 0) -> list[Task]:
    specialty = next(s for s in source.specialties if s.name == name)
    return [source.task(source.ref(specialty, hash_seed("parity", name, seed), i)) for i in range(TASKS)]


def as_literal(text: str, rng: random.Random) -> str:
    """A matrix text as the Python literals that models write instead."""
    open_, close = rng.choice(["[]", "()"])
    quote = rng.choice(["", "", '"', "'"])
    cell = "," + rng.choice(["", " ", "  "])
    row = "," + rng.choice(["", " ", "\n", "\n "])
    end = rng.choice(["", "", ","])
    rows = [open_ + cell.join(quote + c + quote for c in line.split()) + end + close for line in text.split("\n")]
    outer = rng.choice(["[]", "()", "[]", ("", "")])
    body = (row if outer[0] else ", ").join(rows)
    return rng.choice(["", " "]) + outer[0] + body + end + outer[1]


def formula(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(["P", "Q", "R", "S", "T", "p", "it rains", ""])
    if rng.random() < 0.25:
        return "¬" + rng.choice(["", " "]) + formula(rng, depth - 1)
    text = f"{formula(rng, depth - 1)} {rng.choice(OPERATORS)} {formula(rng, depth - 1)}"
    return f"({text})" if rng.random() < 0.6 else text


def perturb(text: str, rng: random.Random) -> str:
    """One or two small faults: a character changed, dropped, doubled or added."""
    for _ in range(rng.randint(1, 2)):
        i = rng.randrange(len(text) + 1)
        new = rng.choice("0123456789 ,.-+/$()[]{}\\\nabcxPQRS" + OPERATORS)
        text = rng.choice([text[:i] + new + text[i + 1 :], text[:i] + text[i + 1 :], text[:i] + new + text[i:]])
    return text


def general_answer(tasks: list[Task], task: Task, rng: random.Random) -> str | None:
    """One answer such as a model gives: right, for another question, slightly or badly wrong."""
    right = answer_text(task) or ""
    kind = rng.randrange(12)
    if kind == 0:
        return right
    if kind == 1:
        return answer_text(rng.choice(tasks))
    if kind in (2, 3):
        return perturb(right, rng)
    if kind == 4:
        return rng.choice([None, "", " ", "I do not know", "yes", "42", "nan", "inf", "-0", "1e3", "½", "٣", "_1"])
    if kind == 5:
        decorations = [
            "The answer is {}",
            "{}.",
            "${}$",
            "{}\n",
            "\\frac{{{}}}{{2}}",
            "**{}**",
            "[{}]",
            "({})",
            "{} {}",
        ]
        return rng.choice(decorations).format(right, right)
    if kind == 6:
        return rng.choice([right.lower(), right.upper(), right.title(), right.replace(" ", ""), right + " " * 3])
    if kind in (7, 8):
        return as_literal(rng.choice([right, right, perturb(right, rng)]), rng)
    if kind == 9:
        return str(rng.randint(-20, 120))
    if kind == 10:
        return rng.choice(
            [str(rng.uniform(-50, 50)), f"{rng.randint(1, 99)}/{rng.randint(0, 99)}", "Monday", "sunday", "No"]
        )
    return formula(rng, rng.randint(1, 4))


def expression_answer(tasks: list[Task], task: Task, rng: random.Random) -> str | None:
    """One answer to a question whose answer is an expression: notations, faults, other formulas.

    Faults never lengthen a number: the library would work on a power of it for hours.
    """
    right = answer_text(task) or ""
    atoms = _NUMBERS + (["abs(3)", "3!"] if "numbers" in task.metadata else _FORMULAS)
    kind = rng.randrange(11)
    if kind < 2:
        return right
    if kind == 2:
        return answer_text(rng.choice(tasks))
    if kind == 3:
        return _perturb_expression(right, rng)
    if kind == 4:
        return rng.choice([None, "", " ", "I do not know", "yes", "42", "24", "x", "C", "-0", "1e3", "½", "٣", "_1"])
    if kind == 5:
        return rng.choice(_DECORATIONS).format(right)
    if kind == 6:
        pairs = [
            ("*", " * "),
            ("**", "^"),
            ("*", ""),
            (" ", ""),
            ("/2", "*0.5"),
            ("**(3/2)", "**1.5"),
            ("sqrt", "Sqrt"),
        ]
        pairs += [("exp(x)", "E**x"), ("exp(x)", "e**x"), ("log", "ln"), ("log(", "log(abs("), ("x", "X"), ("+ C", "")]
        return right.replace(*rng.choice(pairs))
    if kind == 7:  # the terms in another order
        terms = right.replace(" - ", " + -").split(" + ")
        rng.shuffle(terms)
        return " + ".join(terms)
    if kind == 8:
        return f"{right} {rng.choice('+-*/')} {_expression(rng, atoms, rng.randint(0, 2))}"
    if kind == 9:
        return _expression(rng, atoms, rng.randint(1, 3))
    numbers = [str(number) for number in task.metadata.get("numbers", (1, 2, 3, 4))]
    rng.shuffle(numbers)
    text = numbers[0]
    for number in numbers[1:]:
        text = f"({text}{rng.choice(['+', '-', '*', '/', ' + ', ' - '])}{number})"
    return text


_NUMBERS = ["2", "3", "10", "24", "1/2", "0.5", ".25", "1_0", "0x1f", "012", "pi", "E", "sqrt(4)"]
_FORMULAS = ["x", "X", "C", "y", "e", "S", "id", "sin(x)", "cos(2*x)", "exp(x)", "log(x)", "ln(3*x)"]
_FORMULAS += ["E**x", "2**x", "sqrt(x)"]
_DECORATIONS = [
    "The answer is {}",
    "{}.",
    "{},",
    "${}$",
    "\\frac{{{}}}{{2}}",
    "[{}]",
    "({})",
    "(\n{}\n)",
    "-({})",
    "2*({})/2",
    "({})*1.0",
    "{} + c + 5",
    "{} - C",
    "{} + N",
    "{} = 5",
    "F(x) = {}",
    "{} # done",
    "{}\n{0}",
]
_DECORATIONS = [decoration.replace("{}", "{0}") for decoration in _DECORATIONS]


def _perturb_expression(text: str, rng: random.Random) -> str:
    i = rng.randrange(len(text))
    if text[i].isdigit():
        return text[:i] + rng.choice("0123456789x)(+") + text[i + 1 :]
    if text[i] == "/":  # what stood beside it would be one number
        return text[:i] + "*" + text[i + 1 :]
    new = rng.choice(" ,+-()[]{}\\\nxXyCeE=#$")
    return rng.choice([text[:i] + new + text[i:], text[:i] + new + text[i + 1 :]])


def _expression(rng: random.Random, atoms: list[str], depth: int) -> str:
    if depth == 0:
        return rng.choice(atoms)
    text = _expression(rng, atoms, depth - 1)
    if rng.random() < 0.3:
        return f"({text})"
    if rng.random() < 0.2:
        return f"-{text}"
    # No powers: the library would work on towers of them without end.
    return text + rng.choice(["+", "-", "*", "/", " + ", " - ", " * ", " "]) + _expression(rng, atoms, depth - 1)


def list_answer(tasks: list[Task], task: Task, rng: random.Random) -> str | None:
    """One answer to a question whose answer is a list, a word or a board, often as a Python list."""
    right = answer_text(task) or ""
    kind = rng.randrange(4)
    if kind == 0:
        return general_answer(tasks, task, rng)
    if kind == 1:
        return as_literal(rng.choice([right, right, perturb(right, rng)]), rng)
    quote = rng.choice(["'", '"', '"', ""])
    if right.startswith("["):  # number_sorting
        numbers = re.findall(r"[-\d.]+", right)
        i = rng.randrange(len(numbers))
        numbers[i] = rng.choice([numbers[i], str(float(numbers[i]) + rng.uniform(-1.5, 1.5)), "x", "1e1"])
        return "[" + rng.choice([",", ", "]).join(quote + number + quote for number in numbers) + "]"
    if kind == 2 and "\n" in right:  # a board
        rows = [rng.choice([row, row.replace(" ", ""), row.split(), (row,)]) for row in right.split("\n")]
        return str(rng.choice([rows, tuple(rows), perturb(str(rows), rng)]))
    items = right.split() if " " in right else list(right)
    text = f", {rng.choice(['', ' '])}".join(quote + item + quote for item in items)
    return rng.choice(["[{}]", "({})", "{}", "[{},]", "{} "]).format(text)


def bitwise_answer(tasks: list[Task], task: Task, rng: random.Random) -> str | None:
    """One answer to a question whose answer is an integer in hexadecimal."""
    if rng.random() < 0.5:
        return general_answer(tasks, task, rng)
    number = int(task.ground_truth or "", 0) + rng.choice([0, 0, 0, 1, -1])
    formats = ["{:#x}", "{:#X}", "{}", "{:#b}", "{:#o}", "{:x}", "{:_}", " {}", "+{}", "{}.0", "{:#x}h"]
    return rng.choice(formats).format(number)
