from __future__ import annotations

import dataclasses
import logging
from collections import Counter

import pytest

from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.held_out import HeldOutError, held_out_tasks, is_held_out
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.source import GenerationError
from sapo_jax.tasks.specialty import Specialty
from sapo_jax.tasks.stream import SkipReason, StreamError, TaskStream, require_usable
from sapo_jax.types import Task


def stream(source: ReasoningGymSource, **changes: object) -> TaskStream:
    base = TaskStream(source=source, specialties=source.specialties, run_seed=3, node_id="a")
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def easy_source() -> ReasoningGymSource:
    return ReasoningGymSource(resolve("easy", ("gcd", "leg_counting", "lcm")))


def test_a_fifth_of_all_questions_is_held_out():
    share = sum(is_held_out(f"question {i}") for i in range(10_000)) / 10_000
    assert share == pytest.approx(0.2, abs=0.02)
    assert [i for i in range(10) if is_held_out(f"question {i}")] == [6], "all nodes split alike, of whatever version"
    assert not is_held_out("\ud800")


def test_held_out_sets_are_fixed_distinct_and_never_trained_on(easy_source: ReasoningGymSource):
    again = ReasoningGymSource(easy_source.specialties)
    trained = {task.question for task in stream(easy_source).take(0, 600).tasks}
    for specialty in easy_source.specialties:
        tasks = held_out_tasks(easy_source, specialty, 60)
        questions = {task.question for task in tasks}
        assert len(questions) == 60 and all(is_held_out(q) for q in questions)
        assert tasks == held_out_tasks(again, specialty, 60)
        assert tasks[:20] == held_out_tasks(easy_source, specialty, 20)
        assert not questions & trained
    assert not any(is_held_out(q) for q in trained)


def test_a_small_question_space_yields_fewer_held_out_questions_and_says_so(caplog: pytest.LogCaptureFixture):
    small = Specialty(name="tiny", dataset="gcd", config={"size": 500, "min_value": 1, "max_value": 6})
    source = ReasoningGymSource((small,))
    with caplog.at_level(logging.WARNING):
        tasks = held_out_tasks(source, small, 100)
    every = {f"{a}, {b}" for a in range(1, 7) for b in range(1, 7)}
    template = tasks[0].question
    numbers = template[template.index(": ") + 2 : template.index(". Give")]
    expected = {template.replace(numbers, pair) for pair in every}
    assert {task.question for task in tasks} == {q for q in expected if is_held_out(q)}
    assert f"'tiny' has only {len(tasks)} held-out questions of the 100" in caplog.text


def test_no_usable_held_out_question_is_an_error(easy_source: ReasoningGymSource):
    with pytest.raises(HeldOutError, match=r"'gcd' has no usable held-out question.*config\.tasks\.specialties"):
        held_out_tasks(easy_source, easy_source.specialties[0], 5, accept=lambda task: False)


@pytest.mark.parametrize("draw", ["composite", "stratified"])
@pytest.mark.parametrize("pool_size", [0, 4])
def test_a_stream_goes_on_from_its_counter_alone(easy_source: ReasoningGymSource, draw: str, pool_size: int):
    whole = stream(easy_source, draw=draw, pool_size=pool_size).take(0, 30)
    counter, tasks = 0, []
    for count in (1, 0, 7, 12, 10):
        part = stream(ReasoningGymSource(easy_source.specialties), draw=draw, pool_size=pool_size).take(counter, count)
        assert part.counter == counter + count == counter + len(part.tasks)
        counter, tasks = part.counter, [*tasks, *part.tasks]
    assert tuple(tasks) == whole.tasks
    assert set(whole.skipped) == {SkipReason.HELD_OUT}


def test_refusals_change_neither_specialties_nor_other_positions(easy_source: ReasoningGymSource):
    plain = stream(easy_source).take(0, 60)

    def short(task: Task) -> bool:
        return task.specialty != "gcd" or len(task.ground_truth or "") < 2

    picky = stream(easy_source).take(0, 60, accept=short)
    assert [t.specialty for t in picky.tasks] == [t.specialty for t in plain.tasks]
    assert all(short(task) for task in picky.tasks)
    assert picky.skipped[SkipReason.NOT_ACCEPTED] > 0
    assert [t for t in plain.tasks if short(t)] == [
        p for p, t in zip(picky.tasks, plain.tasks, strict=True) if short(t)
    ]


def test_draws_mix_specialties_as_asked(easy_source: ReasoningGymSource):
    names = [s.name for s in easy_source.specialties]
    stratified = stream(easy_source, draw="stratified").take(4, 9)
    assert [t.specialty for t in stratified.tasks] == [names[(4 + i) % 3] for i in range(9)]
    counts = Counter(t.specialty for t in stream(easy_source).take(0, 900).tasks)
    assert set(counts) == set(names) and all(250 < n < 350 for n in counts.values())


def test_nodes_share_a_stream_only_if_asked(easy_source: ReasoningGymSource):
    def questions(**changes: object) -> list[str]:
        return [t.question for t in stream(easy_source, **changes).take(0, 20).tasks]

    assert questions(node_id="a") != questions(node_id="b")
    assert questions(node_id="a", stream="shared") == questions(node_id="b", stream="shared")
    assert questions(node_id="shared") != questions(stream="shared")
    assert questions(run_seed=4) != questions(run_seed=3)


def test_fresh_questions_are_nearly_all_distinct():
    source = ReasoningGymSource(resolve("paper", ("base_conversion", "arc_1d")))
    drawn = [t.question for node in "abc" for t in stream(source, node_id=node).take(0, 200).tasks]
    assert len(set(drawn)) > 590


def test_a_pool_has_a_fixed_number_of_questions_for_all_nodes(easy_source: ReasoningGymSource):
    seen: dict[str, dict[str, set[str]]] = {}
    for node in ("a", "b"):
        pools: dict[str, set[str]] = {s.name: set() for s in easy_source.specialties}
        for task in stream(easy_source, node_id=node, pool_size=5).take(0, 300).tasks:
            pools[task.specialty].add(task.question)
        seen[node] = pools
    assert seen["a"] == seen["b"]
    assert all(4 <= len(pool) <= 5 for pool in seen["a"].values())


class Flaky(ReasoningGymSource):
    """Cannot build any item with an even index."""

    def task(self, ref):
        if ref.index % 2 == 0:
            raise GenerationError("even")
        return super().task(ref)


def test_items_that_cannot_be_built_are_skipped_and_counted(easy_source: ReasoningGymSource):
    source = Flaky(easy_source.specialties)
    drawn = stream(source).take(0, 40)
    assert len(drawn.tasks) == 40 and drawn.skipped[SkipReason.FAILED] >= 40
    assert all(t.ref.index % 2 for t in drawn.tasks)
    assert len(held_out_tasks(source, source.specialties[0], 10)) == 10


def test_a_specialty_without_usable_questions_is_named(easy_source: ReasoningGymSource):
    with pytest.raises(StreamError, match=r"'(gcd|leg_counting|lcm)'.*200 tries \(.*not_accepted \d+"):
        stream(easy_source).take(0, 1, accept=lambda task: False)


def test_a_specialty_of_mostly_overlong_prompts_is_refused_at_the_start(easy_source: ReasoningGymSource):
    fracs = require_usable(easy_source, easy_source.specialties, lambda task: True)
    assert fracs == {"gcd": 1.0, "leg_counting": 1.0, "lcm": 1.0}
    with pytest.raises(StreamError, match=r"'leg_counting': 40 of 40 questions.*prompt_buckets"):
        require_usable(easy_source, easy_source.specialties, lambda task: task.specialty != "leg_counting")


def test_bad_settings_are_refused(easy_source: ReasoningGymSource):
    for changes, key in (
        ({"draw": "both"}, "draw"),
        ({"stream": "x"}, "stream"),
        ({"specialties": ()}, "specialties"),
        ({"pool_size": -1}, "pool_size"),
    ):
        with pytest.raises(ValueError, match=rf"config\.tasks\.{key}"):
            stream(easy_source, **changes)
