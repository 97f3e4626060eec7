from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
from reasoning_gym.factory import create_dataset

from sapo_jax.statistics import CORE_6
from sapo_jax.tasks.catalog import CATALOGS, resolve
from sapo_jax.tasks.scorers import REFUSED
from sapo_jax.tasks.specialty import CatalogError, Specialty

NINE = (
    "arc_1d",
    "basic_arithmetic",
    "base_conversion",
    "bf",
    "binary_matrix",
    "calendar_arithmetic",
    "decimal_arithmetic",
    "fraction_simplification",
    "propositional_logic",
)


# The published recipe, value by value.
PAPER = {
    "arc_1d": {"min_size": 10, "max_size": 30, "num_train": 3},
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 6,
        "min_digits": 1,
        "max_digits": 4,
        "operators": ["+", "-", "*", "/"],
        "allow_parentheses": True,
        "allow_negation": True,
        "format_style": "natural",
        "whitespace": "single",
    },
    "base_conversion": {"min_base": 2, "max_base": 16, "min_value": 0, "max_value": 1000},
    "bf": {"difficulty": 1},
    "binary_matrix": {"min_n": 3, "max_n": 10, "p_zero": 0.25},
    "calendar_arithmetic": {
        "year": 2023,
        "offset_upper_bound": 100,
        "leap_year_range": 200,
        "tasks": ["count_days", "weekday_of_date", "is_leap_year", "recurring_event_day"],
    },
    "decimal_arithmetic": {
        "min_terms": 2,
        "max_terms": 6,
        "min_num_decimal_places": 1,
        "max_num_decimal_places": 3,
        "precision": 5,
    },
    "fraction_simplification": {
        "min_value": 1,
        "max_value": 100,
        "min_factor": 2,
        "max_factor": 100,
        "styles": ["plain", "latex_frac", "latex_dfrac"],
    },
    "propositional_logic": {
        "min_vars": 2,
        "max_vars": 4,
        "min_statements": 2,
        "max_statements": 4,
        "min_complexity": 1,
        "max_complexity": 3,
    },
}

SIMPLE = {"allow_parentheses": False, "allow_negation": False, "format_style": "simple"}
LEVEL_1 = {
    "arc_1d": {"min_size": 8, "max_size": 10, "num_train": 1},
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 2,
        "operators": ["+", "-"],
        **SIMPLE,
    },
    "base_conversion": {"min_base": 2, "max_base": 10, "min_value": 0, "max_value": 63},
    "bf": {"difficulty": 1},
    "binary_matrix": {"min_n": 3, "max_n": 4, "p_zero": 0.3},
    "calendar_arithmetic": {"year": 2023, "tasks": ["weekday_of_date"]},
    "decimal_arithmetic": {
        "min_terms": 2,
        "max_terms": 2,
        "min_num_decimal_places": 1,
        "max_num_decimal_places": 1,
        "precision": 5,
    },
    "fraction_simplification": {
        "min_value": 1,
        "max_value": 20,
        "min_factor": 2,
        "max_factor": 9,
        "styles": ["plain"],
    },
    "propositional_logic": {
        "min_vars": 2,
        "max_vars": 3,
        "min_statements": 2,
        "max_statements": 3,
        "min_complexity": 1,
        "max_complexity": 2,
    },
}
# The levels around it change these; what they lack is level 1.
LEVEL_0 = {
    "arc_1d": {"min_size": 8, "max_size": 8, "num_train": 1},
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 1,
        "operators": ["+", "-"],
        **SIMPLE,
    },
    "base_conversion": {"min_base": 2, "max_base": 4, "min_value": 0, "max_value": 31},
    "binary_matrix": {"min_n": 3, "max_n": 3, "p_zero": 0.5},
    "fraction_simplification": {"min_value": 1, "max_value": 9, "min_factor": 2, "max_factor": 5, "styles": ["plain"]},
}
LEVEL_2 = {
    "arc_1d": {"min_size": 10, "max_size": 14, "num_train": 2},
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 3,
        "min_digits": 1,
        "max_digits": 2,
        "operators": ["+", "-", "*"],
        **SIMPLE,
    },
    "base_conversion": {"min_base": 2, "max_base": 16, "min_value": 0, "max_value": 255},
    "binary_matrix": {"min_n": 3, "max_n": 6, "p_zero": 0.25},
    "calendar_arithmetic": {
        "year": 2023,
        "tasks": ["weekday_of_date", "weekday_offset", "is_leap_year"],
        "offset_upper_bound": 30,
        "leap_year_range": 100,
    },
    "decimal_arithmetic": {
        "min_terms": 2,
        "max_terms": 3,
        "min_num_decimal_places": 1,
        "max_num_decimal_places": 2,
        "precision": 5,
    },
    "fraction_simplification": {
        "min_value": 1,
        "max_value": 50,
        "min_factor": 2,
        "max_factor": 30,
        "styles": ["plain"],
    },
    "propositional_logic": {
        "min_vars": 2,
        "max_vars": 4,
        "min_statements": 2,
        "max_statements": 4,
        "min_complexity": 1,
        "max_complexity": 2,
    },
}
CONFIGURATIONS = {
    "paper": PAPER,
    "rg_mini_l0": LEVEL_1 | LEVEL_0,
    "rg_mini_l1": LEVEL_1,
    "rg_mini_l2": LEVEL_1 | LEVEL_2,
}


def by_name(catalog: str) -> dict[str, Specialty]:
    return {s.name: s for s in resolve(catalog)}


@pytest.mark.parametrize("catalog", sorted(CATALOGS))
def test_every_catalog_is_accepted_by_the_library(catalog: str):
    specialties = resolve(catalog)
    assert len({s.name for s in specialties}) == len({s.digest for s in specialties}) == len(specialties)
    if catalog != "easy":
        assert tuple(s.name for s in specialties) == NINE


@pytest.mark.parametrize("catalog", CONFIGURATIONS)
def test_every_specialty_is_configured_as_published(catalog: str):
    found = {s.name: (s.dataset, dict(s.config)) for s in CATALOGS[catalog]}
    assert found == {name: (name, {"size": 500, **config}) for name, config in CONFIGURATIONS[catalog].items()}


@pytest.mark.parametrize("catalog", CONFIGURATIONS)
def test_configurations_reach_the_datasets(catalog: str):
    for name, specialty in by_name(catalog).items():
        config = create_dataset(name, seed=0, **specialty.config).config
        reached = {key: getattr(config, key) for key in CONFIGURATIONS[catalog][name]}
        assert reached == CONFIGURATIONS[catalog][name]


def test_a_level_that_lacks_a_specialty_has_the_one_of_level_1():
    l0, l1, l2 = by_name("rg_mini_l0"), by_name("rg_mini_l1"), by_name("rg_mini_l2")
    for name in ("bf", "calendar_arithmetic", "decimal_arithmetic", "propositional_logic"):
        assert l0[name] == l1[name]
    assert l2["bf"] == l1["bf"]
    for name in ("arc_1d", "basic_arithmetic", "base_conversion", "binary_matrix", "fraction_simplification"):
        assert len({l0[name].digest, l1[name].digest, l2[name].digest}) == 3


def test_core_6_names_are_in_the_paper_catalog():
    assert set(CORE_6) < set(NINE)


def test_digest_covers_dataset_configuration_and_library_version(monkeypatch: pytest.MonkeyPatch):
    specialty = by_name("paper")["bf"]
    content = {"config": {"difficulty": 1, "size": 500}, "dataset": "bf"}
    content["reasoning_gym"] = importlib.metadata.version("reasoning_gym")
    expected = hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
    assert specialty.digest == expected
    assert dataclasses.replace(specialty, name="other").digest == expected
    assert dataclasses.replace(specialty, config={"difficulty": 1, "size": 501}).digest != expected
    assert dataclasses.replace(specialty, dataset="gcd").digest != expected
    monkeypatch.setattr("sapo_jax.tasks.specialty.library_version", lambda: "0.0.0")
    assert specialty.digest != expected


def test_resolve_keeps_the_asked_order_and_adds_library_defaults():
    specialties = resolve("easy", ("lcm", "gcd"))
    assert [s.name for s in specialties] == ["lcm", "gcd"]
    assert specialties[0].config == {"size": 500}
    assert specialties[1] == by_name("easy")["gcd"] and len(specialties[1].config) > 1


def test_a_dataset_takes_settings_as_json():
    (specialty,) = resolve("easy", ['gcd:{"min_value": 2, "max_value": 9}'])
    assert (specialty.name, specialty.dataset) == ("gcd", "gcd")
    assert specialty.config == {"size": 500, "min_value": 2, "max_value": 9}
    assert specialty.digest != resolve("paper", ["gcd"])[0].digest


@pytest.mark.parametrize("entry", ["gcd:", "gcd:{", "gcd:[1]", 'gcd:{"seed": 1}', 'gcd:{"no_such_setting": 1}'])
def test_bad_settings_of_a_dataset_are_one_clear_error(entry: str):
    with pytest.raises(CatalogError, match="gcd"):
        resolve("easy", [entry])


def test_unknown_names_are_reported_with_key_and_close_matches():
    with pytest.raises(CatalogError, match=r"config\.tasks\.specialties.*'chain_sums'.*'chain_sum' or 'chain_sum_"):
        resolve("easy", ("gcd", "chain_sums"))
    with pytest.raises(CatalogError, match=r"config\.tasks\.catalog = 'papr'.*'paper'"):
        resolve("papr")
    with pytest.raises(CatalogError, match=r"config\.tasks\.catalog = 'zzz'.*known: paper, easy"):
        resolve("zzz")


@pytest.mark.parametrize("dataset", sorted(REFUSED))
def test_datasets_that_execute_text_are_refused_with_the_reason(dataset: str):
    with pytest.raises(CatalogError, match=rf"config\.tasks\.specialties.*'{dataset}' is refused: "):
        resolve("paper", (dataset,))


def test_a_configuration_that_the_library_refuses_is_named(monkeypatch: pytest.MonkeyPatch):
    bad = Specialty(name="bf", dataset="bf", config={"size": 500, "difficulty": 9})
    monkeypatch.setitem(CATALOGS, "bad", (bad,))  # type: ignore[arg-type]
    with pytest.raises(CatalogError, match="specialty 'bf'.*difficulty.*less than 4"):
        resolve("bad")


@pytest.mark.parametrize(("hash_seed", "accepted"), [("0", True), ("1", False), ("random", False)])
def test_datasets_that_depend_on_string_hashing_need_the_fixed_one(hash_seed: str, accepted: bool):
    code = (
        "from sapo_jax.tasks.catalog import resolve\n"
        "from sapo_jax.tasks.specialty import CatalogError, require_reproducible\n"
        "require_reproducible(resolve('easy'))\n"
        "try: require_reproducible(resolve('easy', ('gcd', 'ransom_note', 'word_ladder')))\n"
        "except CatalogError as error: print(error)"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    if accepted:
        assert result.stdout == ""
    else:
        assert "config.tasks.specialties: the questions of 'ransom_note', 'word_ladder'" in result.stdout
        assert "PYTHONHASHSEED=0" in result.stdout and "gcd" not in result.stdout


def test_tasks_never_import_jax():
    code = (
        "import sys, pkgutil, importlib, sapo_jax.tasks as t\n"
        "[importlib.import_module(f'sapo_jax.tasks.{m.name}') for m in pkgutil.iter_modules(t.__path__)]\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
