from __future__ import annotations

import dataclasses

import pytest
from reasoning_gym.factory import DATASETS

from sapo_jax.tasks.audit import WITHOUT_GROUND_TRUTH, ScoredBy, audit
from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scorers import OWN, REFUSED, REPAIRED
from sapo_jax.tasks.specialty import HASH_SEED_DEPENDENT


def test_every_dataset_is_audited_once():
    datasets = audit()
    assert [dataset.name for dataset in datasets] == sorted(DATASETS)
    assert {d.name for d in datasets if not d.allowed} == set(REFUSED)
    assert {d.name for d in datasets if d.scored_by is ScoredBy.OWN} == set(OWN)
    assert {d.name for d in datasets if d.scored_by is ScoredBy.REPAIRED} == set(REPAIRED)
    assert all(value not in ("", None) for dataset in datasets for value in dataclasses.astuple(dataset))


def test_the_tables_name_datasets_of_the_library_and_do_not_overlap():
    tables = [set(OWN), set(REFUSED), set(REPAIRED)]
    assert sum(map(len, tables)) == len(set().union(*tables))
    assert set().union(*tables, HASH_SEED_DEPENDENT, WITHOUT_GROUND_TRUTH) <= set(DATASETS)


@pytest.mark.parametrize("dataset", [*sorted(WITHOUT_GROUND_TRUTH), "gcd", "countdown", "n_queens", "jugs"])
def test_tasks_have_a_ground_truth_where_the_table_says_so(dataset: str):
    (specialty,) = resolve("easy", (dataset,))
    source = ReasoningGymSource((specialty,))
    has_ground_truth = bool(source.task(source.ref(specialty, 1, 0)).ground_truth)
    assert has_ground_truth == (dataset not in WITHOUT_GROUND_TRUTH)
