"""What the host does while the devices work, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from sapo_jax import node as node_module
from sapo_jax import wiring
from sapo_jax.config import SapoConfig, SharingConfig
from sapo_jax.host import SampledRow
from sapo_jax.learner.step import Batch
from sapo_jax.node import Node, play_round
from sapo_jax.tasks.stream import StreamError
from sapo_jax.tasks.verifier import InProcessVerifier
from sapo_jax.types import Rejection, Rollout, ScoredRollout
from tests.fakes import RuleHost, build_prompter, build_tasks, small_config

SAMPLE_S, VERIFY_S, UPDATE_S = 3.0, 0.25, 4.0


class _Time:
    """A clock that the fakes below move on."""

    def __init__(self) -> None:
        self.now_s = self.busy_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def work(self, seconds: float) -> None:
        self.now_s += seconds
        self.busy_s += seconds


class _TwoPrograms(RuleHost):
    """Has a program for each node, and writes down when something is dispatched and when it is read."""

    time = _Time()

    def start_sample(self, *args: Any, **kwargs: Any) -> Iterator[list[list[list[SampledRow]]]]:
        rows = self.sample(*args, **kwargs)

        def read() -> Iterator[list[list[list[SampledRow]]]]:
            for node, own in enumerate(rows):
                self.time.work(SAMPLE_S)
                self.events.append(f"read node-{node}")
                yield [own]

        return read()

    def start_update(self, batches: Sequence[Batch]) -> Iterator[dict[str, float]]:
        results = self.update(batches)

        def read() -> Iterator[dict[str, float]]:
            self.time.work(UPDATE_S)
            self.events.append("read metrics")
            yield from results

        return read()

    def busy_s(self) -> float:
        return self.time.busy_s


class _Noting(InProcessVerifier):
    """Writes down whose rollouts it is given, and takes its time."""

    def __init__(self, source: Any, events: list[str], time: _Time) -> None:
        super().__init__(source)
        self._events, self._time = events, time

    def verify(self, rollouts: Sequence[Rollout], *, lane: str = "own") -> list[ScoredRollout | Rejection]:
        self._events.append("verify " + " ".join(sorted({rollout.node_id for rollout in rollouts})))
        self._time.now_s += VERIFY_S
        return super().verify(rollouts, lane=lane)


def _rule(node: int, question: str, g: int) -> tuple[str, bool]:
    return (f"<answer>{'Yes' if g % 2 else 'No'}</answer>", g < 3)


def _swarm(config: SapoConfig, kind: type[RuleHost] = RuleHost) -> tuple[list[Node], Any]:
    tasks = build_tasks(config)
    prompter = build_prompter(config, tasks)
    host = kind(config, prompter, _rule)
    if isinstance(host, _TwoPrograms):
        host.time = _Time()
        verifier = _Noting(tasks.source, host.events, host.time)
        tasks = wiring.TaskSide(specialties=tasks.specialties, source=tasks.source, verifier=verifier)
    return wiring.build_nodes(config, prompter, tasks, wiring.memory_hub(config)), host


def _same(first: Any, second: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), first, second))


def test_a_program_is_scored_before_the_next_is_read_and_tasks_are_drawn_during_the_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes, host = _swarm(small_config(), _TwoPrograms)
    draw = type(nodes[0]._stream).take

    def take(self: Any, *args: Any) -> Any:
        host.events.append(f"draw {self.node_id}")
        return draw(self, *args)

    monkeypatch.setattr(type(nodes[0]._stream), "take", take)
    play_round(nodes, host, 1)
    sampling = ["sample", "read node-0", "verify node-0", "read node-1", "verify node-1"]
    learning = ["update", "draw node-0", "draw node-1", "read metrics"]
    assert host.events == ["draw node-0", "draw node-1", *sampling, *learning]
    host.events.clear()
    play_round(nodes, host, 2)
    assert host.events == [*sampling, *learning]  # nothing is drawn before the devices have work


def test_one_program_or_several_make_the_same_rounds() -> None:
    config = small_config()
    (nodes, host), (others, other) = _swarm(config), _swarm(config, _TwoPrograms)
    for round in (1, 2, 3):
        one, two = play_round(nodes, host, round), play_round(others, other, round)
        assert _same(host.batches[-1], other.batches[-1])
        for first, second in zip(one, two, strict=True):
            assert {k: v for k, v in first.items() if k[:5] != "time/"} == {
                k: v for k, v in second.items() if k[:5] != "time/"
            }
    assert sum(metrics["groups/external"] for metrics in one) > 0  # else the exchange played no part


def test_the_devices_wait_while_nothing_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, host = _swarm(small_config(), _TwoPrograms)
    monkeypatch.setattr(node_module, "time", SimpleNamespace(perf_counter=host.time.perf_counter))
    for round in (1, 2):
        for metrics in play_round(nodes, host, round):
            # Here nothing samples while the first node is judged, so both times to judge are waiting.
            assert metrics["time/device_idle_frac"] == pytest.approx(2 * VERIFY_S / (2 * SAMPLE_S + 0.5 + UPDATE_S))
            # What was judged before the last completions were read belongs to the time of sampling.
            assert metrics["time/sample_s"] == 2 * SAMPLE_S + VERIFY_S
            assert metrics["time/verify_s"] == VERIFY_S and metrics["time/update_s"] == UPDATE_S
            assert metrics["time/round_s"] == 2 * SAMPLE_S + 2 * VERIFY_S + UPDATE_S


def test_what_was_drawn_ahead_is_neither_saved_nor_counted_before_its_round() -> None:
    config = small_config(sharing=SharingConfig(local=20, external=0))  # questions enough for some that are held out
    (node, *_), _ = _swarm(config)
    (other, *_), _ = _swarm(config)
    node.draw()
    other.draw()
    before = node.to_json()
    node.draw_ahead()
    assert node._ahead is not None and node._ahead.skipped  # else there is nothing to count too early
    assert node.to_json() == before == other.to_json()
    assert node.round_metrics([], []) == other.round_metrics([], [])
    assert node.draw() == other.draw() and node.draw() == other.draw()
    assert node.to_json() == other.to_json() != before
    assert node.round_metrics([], []) == other.round_metrics([], [])


def test_a_restored_node_forgets_what_was_drawn_ahead() -> None:
    (node, *_), host = _swarm(small_config())
    begun = node.to_json()
    first = node.draw()
    node.draw_ahead()
    node.restore_json(begun, lambda ref: pytest.fail("nothing is in the pool"))
    assert node.draw() == first


def test_an_error_of_the_stream_comes_in_the_round_that_wants_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    (node, *_), _ = _swarm(small_config())
    node.draw()

    def take(*args: Any) -> Any:
        raise StreamError("no usable training question")

    monkeypatch.setattr(type(node._stream), "take", take)
    before = node.to_json()
    node.draw_ahead()
    with pytest.raises(StreamError, match="no usable"):
        node.draw()
    assert node.to_json() == before
