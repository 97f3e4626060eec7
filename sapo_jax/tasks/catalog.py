"""The catalogs, as data, and which specialties a run asked for.

`paper` holds the nine specialties of the controlled study (arXiv 2509.08721, section 5) as its
published recipe configures them, without the recipe's per-dataset seeds. `rg_mini_l0/l1/l2` are the
same nine with easier settings for small models. `easy` has short questions and answers that a 135M
instruct model solves in part.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from reasoning_gym.factory import DATASETS, create_dataset

from sapo_jax.tasks.scorers import RefusedDatasetError, refuse_unsafe
from sapo_jax.tasks.specialty import DATASET_SIZE, CatalogError, Specialty


def _specialty(dataset: str, name: str = "", **config: Any) -> Specialty:
    return Specialty(name=name or dataset, dataset=dataset, config={"size": DATASET_SIZE, **config})


_PAPER = (
    _specialty("arc_1d", min_size=10, max_size=30, num_train=3),
    _specialty(
        "basic_arithmetic",
        min_terms=2,
        max_terms=6,
        min_digits=1,
        max_digits=4,
        operators=["+", "-", "*", "/"],
        allow_parentheses=True,
        allow_negation=True,
        format_style="natural",
        whitespace="single",
    ),
    _specialty("base_conversion", min_base=2, max_base=16, min_value=0, max_value=1000),
    _specialty("bf", difficulty=1),
    _specialty("binary_matrix", min_n=3, max_n=10, p_zero=0.25),
    _specialty(
        "calendar_arithmetic",
        year=2023,
        offset_upper_bound=100,
        leap_year_range=200,
        tasks=["count_days", "weekday_of_date", "is_leap_year", "recurring_event_day"],
    ),
    _specialty(
        "decimal_arithmetic",
        min_terms=2,
        max_terms=6,
        min_num_decimal_places=1,
        max_num_decimal_places=3,
        precision=5,
    ),
    _specialty(
        "fraction_simplification",
        min_value=1,
        max_value=100,
        min_factor=2,
        max_factor=100,
        styles=["plain", "latex_frac", "latex_dfrac"],
    ),
    _specialty(
        "propositional_logic",
        min_vars=2,
        max_vars=4,
        min_statements=2,
        max_statements=4,
        min_complexity=1,
        max_complexity=3,
    ),
)


def _mini_arithmetic(max_terms: int, max_digits: int, operators: str) -> Specialty:
    return _specialty(
        "basic_arithmetic",
        min_terms=2,
        max_terms=max_terms,
        min_digits=1,
        max_digits=max_digits,
        operators=list(operators),
        allow_parentheses=False,
        allow_negation=False,
        format_style="simple",
    )


def _mini_decimal(max_terms: int, max_decimals: int) -> Specialty:
    return _specialty(
        "decimal_arithmetic",
        min_terms=2,
        max_terms=max_terms,
        min_num_decimal_places=1,
        max_num_decimal_places=max_decimals,
        precision=5,
    )


def _mini_fraction(max_value: int, max_factor: int) -> Specialty:
    return _specialty(
        "fraction_simplification",
        min_value=1,
        max_value=max_value,
        min_factor=2,
        max_factor=max_factor,
        styles=["plain"],
    )


def _mini_logic(max_vars: int, max_statements: int) -> Specialty:
    return _specialty(
        "propositional_logic",
        min_vars=2,
        max_vars=max_vars,
        min_statements=2,
        max_statements=max_statements,
        min_complexity=1,
        max_complexity=2,
    )


_MINI_L1 = (
    _specialty("arc_1d", min_size=8, max_size=10, num_train=1),
    _mini_arithmetic(2, 2, "+-"),
    _specialty("base_conversion", min_base=2, max_base=10, min_value=0, max_value=63),
    _specialty("bf", difficulty=1),
    _specialty("binary_matrix", min_n=3, max_n=4, p_zero=0.3),
    _specialty("calendar_arithmetic", year=2023, tasks=["weekday_of_date"]),
    _mini_decimal(2, 1),
    _mini_fraction(20, 9),
    _mini_logic(3, 3),
)


def _mini_level(*changed: Specialty) -> tuple[Specialty, ...]:
    """Returns level 1 with `changed` in place of the same names; what a level lacks stays level 1."""
    by_name = {s.name: s for s in changed}
    return tuple(by_name.get(s.name, s) for s in _MINI_L1)


# bf, calendar_arithmetic, decimal_arithmetic and propositional_logic have nothing easier than level
# 1 that still has enough distinct questions.
_MINI_L0 = _mini_level(
    _specialty("arc_1d", min_size=8, max_size=8, num_train=1),
    _mini_arithmetic(2, 1, "+-"),
    _specialty("base_conversion", min_base=2, max_base=4, min_value=0, max_value=31),
    _specialty("binary_matrix", min_n=3, max_n=3, p_zero=0.5),
    _mini_fraction(9, 5),
)

# bf has one difficulty without loops; the next one is out of reach of any small model.
_MINI_L2 = _mini_level(
    _specialty("arc_1d", min_size=10, max_size=14, num_train=2),
    _mini_arithmetic(3, 2, "+-*"),
    _specialty("base_conversion", min_base=2, max_base=16, min_value=0, max_value=255),
    _specialty("binary_matrix", min_n=3, max_n=6, p_zero=0.25),
    _specialty(
        "calendar_arithmetic",
        year=2023,
        tasks=["weekday_of_date", "weekday_offset", "is_leap_year"],
        offset_upper_bound=30,
        leap_year_range=100,
    ),
    _mini_decimal(3, 2),
    _mini_fraction(50, 30),
    _mini_logic(4, 4),
)

_EASY = (
    _specialty("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1),
    _specialty("chain_sum", name="chain_sum_2_digits", min_terms=2, max_terms=2, min_digits=2, max_digits=2),
    _specialty("gcd", min_value=2, max_value=40),
    _specialty("products", min_terms=2, max_terms=2, min_digits=1, max_digits=1),
    _specialty("leg_counting", min_animals=1, max_animals=2, min_instances=1, max_instances=4),
    _specialty("syllogism", inversion_probability=1.0),
    _specialty("spell_backward", min_word_len=3, max_word_len=4),
    _specialty("calendar_arithmetic", name="leap_year", year=2023, tasks=["is_leap_year"], leap_year_range=2000),
)

CATALOGS: Mapping[str, tuple[Specialty, ...]] = {
    "paper": _PAPER,
    "easy": _EASY,
    "rg_mini_l0": _MINI_L0,
    "rg_mini_l1": _MINI_L1,
    "rg_mini_l2": _MINI_L2,
}


def resolve(catalog: str, specialties: Sequence[str] = ()) -> tuple[Specialty, ...]:
    """Returns the specialties that a run asked for, in the order asked.

    Args:
        catalog: name in `CATALOGS`.
        specialties: names of the catalog, or of any other ReasoningGym dataset, which then has the
            library's default configuration; `NAME:{...}` gives a dataset the settings of a JSON
            object, for example `gcd:{"max_value": 40}`. Empty means the whole catalog.

    Raises:
        CatalogError: an unknown name (with close matches), a dataset whose scorer is unsafe, or a
            configuration that the library refuses.
    """
    if catalog not in CATALOGS:
        raise CatalogError(f"config.tasks.catalog = {catalog!r}: unknown; {_suggest(catalog, CATALOGS)}")
    known = {s.name: s for s in CATALOGS[catalog]}
    chosen = tuple(known[name] if name in known else _from_library(name, known) for name in specialties or known)
    for specialty in chosen:
        _check(specialty)
    return chosen


def _from_library(entry: str, known: Mapping[str, Specialty]) -> Specialty:
    """Returns the specialty of a `DATASET` or `DATASET:{JSON settings}` that is in no catalog."""
    name, colon, text = entry.partition(":")
    if name not in DATASETS:
        raise CatalogError(f"config.tasks.specialties: unknown {name!r}; {_suggest(name, sorted({*known, *DATASETS}))}")
    settings = {}
    if colon:
        try:
            settings = json.loads(text)
        except json.JSONDecodeError as error:
            raise CatalogError(f"config.tasks.specialties: {entry!r}: settings are not JSON: {error}") from error
        if not isinstance(settings, dict) or "seed" in settings:
            raise CatalogError(f"config.tasks.specialties: {entry!r}: settings must be a JSON object without a seed")
    return Specialty(name=name, dataset=name, config={"size": DATASET_SIZE, **settings})


def _check(specialty: Specialty) -> None:
    try:
        refuse_unsafe(specialty.dataset)
    except RefusedDatasetError as error:
        raise CatalogError(f"config.tasks.specialties: {error}") from error
    try:
        create_dataset(specialty.dataset, seed=0, **specialty.config)
    except Exception as error:  # the library checks with assertions and many kinds of errors
        raise CatalogError(
            f"specialty {specialty.name!r}: ReasoningGym refuses {dict(specialty.config)}: {error}"
        ) from error


def _suggest(name: str, choices: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(choices), n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    listed = list(choices)
    return f"known: {', '.join(listed[:12])}{', ...' if len(listed) > 12 else ''}"
