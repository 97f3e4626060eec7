from __future__ import annotations

import dataclasses
import decimal

import pytest
from reasoning_gym.factory import create_dataset

from sapo_jax.tasks.catalog import CATALOGS, resolve
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scorers import RefusedDatasetError
from sapo_jax.tasks.source import GenerationError, TaskSource, UnknownTaskError
from sapo_jax.tasks.specialty import CatalogError, Specialty

NINE = tuple(s.name for s in CATALOGS["paper"])


@pytest.mark.parametrize("name", NINE)
def test_a_task_is_rebuilt_from_its_reference_by_any_source(paper_source: ReasoningGymSource, name: str):
    specialty = next(s for s in paper_source.specialties if s.name == name)
    other: TaskSource = ReasoningGymSource(resolve("paper"))
    for seed, index in ((0, 0), (2**32 - 1, 499), (123_456_789, 7)):
        ref = paper_source.ref(specialty, seed, index)
        task = paper_source.task(ref)
        assert other.task(ref) == task
        with decimal.localcontext():
            item = create_dataset(name, seed=seed, **specialty.config)[index]
        assert (task.question, task.ground_truth, task.metadata) == (item["question"], item["answer"], item["metadata"])
        assert (task.ref, task.specialty) == (ref, name)


def test_bf_prints_nothing(paper_source: ReasoningGymSource, capfd: pytest.CaptureFixture[str]):
    specialty = next(s for s in paper_source.specialties if s.name == "bf")
    paper_source.task(paper_source.ref(specialty, 77, 3))
    assert capfd.readouterr() == ("", "")


def test_references_that_are_not_ours_are_refused(paper_source: ReasoningGymSource):
    bf, gcd = paper_source.specialties[3], resolve("easy", ("gcd",))[0]
    ref = paper_source.ref(bf, 1, 2)
    for bad, message in (
        (dataclasses.replace(ref, config_digest="0" * 64), "config digest '0000"),
        (dataclasses.replace(ref, dataset="arc_1d"), "dataset 'arc_1d'"),
        (dataclasses.replace(ref, dataset="\x1b[2J" + "x" * 10_000), r"dataset '\\x1b"),
        (dataclasses.replace(ref, seed=2**32), r"seed 4294967296 is not in \[0, 4294967296\)"),
        (dataclasses.replace(ref, seed=-1), "seed -1"),
        (dataclasses.replace(ref, seed=True), "seed True"),
        (dataclasses.replace(ref, index=500), r"index 500 is not in \[0, 500\)"),
    ):
        with pytest.raises(UnknownTaskError, match=message) as caught:
            paper_source.task(bad)
        assert len(str(caught.value)) < 500
    with pytest.raises(UnknownTaskError, match="gcd"):
        paper_source.ref(gcd, 0, 0)


def test_an_item_that_the_library_cannot_build_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    source = ReasoningGymSource(resolve("easy", ("gcd",)))

    def explode(self: object, idx: int) -> dict:
        raise ZeroDivisionError(f"at {idx}")

    ref = source.ref(source.specialties[0], 5, 6)
    with monkeypatch.context() as patch:
        patch.setattr("reasoning_gym.arithmetic.gcd.GCDDataset.__getitem__", explode)
        with pytest.raises(GenerationError, match="item 6 of 'gcd' under seed 5: ZeroDivisionError: at 6"):
            source.task(ref)
    assert source.task(ref).question  # a failure is not remembered


def test_building_tasks_neither_reads_nor_changes_the_decimal_context(paper_source: ReasoningGymSource):
    """decimal_arithmetic sets a precision of five digits, and neither that nor how to round may come from outside."""
    specialty = next(s for s in paper_source.specialties if s.name == "decimal_arithmetic")
    built = []
    with decimal.localcontext() as context:
        for precision, rounding in ((3, decimal.ROUND_DOWN), (28, decimal.ROUND_HALF_EVEN)):
            context.prec, context.rounding = precision, rounding
            fresh = ReasoningGymSource((specialty,))
            built.append([fresh.task(fresh.ref(specialty, 9, index)) for index in range(20)])
            assert (context.prec, context.rounding) == (precision, rounding)
    assert built[0] == built[1]


def test_sources_refuse_ambiguous_and_unsafe_specialties():
    gcd = resolve("easy", ("gcd",))[0]
    for twin in (dataclasses.replace(gcd, name="gcd_again"), dataclasses.replace(gcd, config={"size": 400})):
        with pytest.raises(CatalogError, match="two share a name, or a dataset and its configuration"):
            ReasoningGymSource((gcd, twin))
    with pytest.raises(RefusedDatasetError, match="composite"):
        ReasoningGymSource((Specialty(name="composite", dataset="composite", config={"size": 500}),))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sapo_jax.tasks.reasoning_gym_source._TASKS_KEPT", 10)
    monkeypatch.setattr("sapo_jax.tasks.reasoning_gym_source._DATASETS_KEPT", 3)
    source = ReasoningGymSource(resolve("easy", ("gcd",)))
    tasks = [source.task(source.ref(source.specialties[0], seed, 0)) for seed in range(30)]
    assert len(source._tasks._values) == 10 and len(source._datasets._values) == 3
    assert source.task(tasks[-1].ref) is tasks[-1]
    assert source.task(tasks[0].ref) == tasks[0]
