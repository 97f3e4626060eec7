"""Answers in turn: order, what is refused for waiting too long or being too much, and that new calls are let in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.calls.turns import LET_IN_S, MAX_WAITING_BYTES, QUIET_S, WAIT_S, WORK_S, Turns
from sapo_jax.swarm.wire.errors import WireReason
from tests.swarm.calls.hosts import FakeClock, run


class WorkClock(FakeClock):
    """Seconds that work takes; looking at the clock is a little work too."""

    def __call__(self) -> float:
        self.now_s += QUIET_S / 10
        return self.now_s


@dataclass
class Bench:
    """Turns on a clock that work moves; a call lets others in after `WORK_S`, and then they have to wait."""

    clock: WorkClock = field(default_factory=WorkClock)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.turns = Turns(clock=self.clock)

    def call(self, name: str, work_s: float = 1.1 * WORK_S, size_bytes: int = 10) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self.turns.take(self.work(name, work_s), size_bytes))

    def work(self, name: str, work_s: float) -> Callable[[], bytes]:
        def work() -> bytes:
            self.clock.now_s += work_s
            self.done.append(name)
            return name.encode()

        return work


def assert_busy(error: BaseException) -> None:
    assert isinstance(error, ServiceError) and error.reason is WireReason.CONCURRENCY
    assert error.retry_after_s > 0 and error.limit


def test_answers_keep_their_order_and_those_too_late_are_refused():
    async def test() -> None:
        bench = Bench()
        share = WAIT_S / 4 * 1.01
        calls = [bench.call(str(i), share) for i in range(9)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        # The first answers at once; from then on all wait, and four more fit into the time.
        assert bench.done == ["0", "1", "2", "3", "4"]
        assert results[:5] == [name.encode() for name in bench.done]
        for result in results[5:]:
            assert_busy(result)
        assert await bench.call("later") == b"later"

    run(test)


def test_a_call_that_fails_or_is_given_up_passes_its_turn_on():
    async def test() -> None:
        bench = Bench()

        def fail() -> bytes:
            raise KeyError

        await bench.call("first")
        given_up = bench.call("given up")
        failing = asyncio.ensure_future(bench.turns.take(fail, 1))
        last = bench.call("last")
        await asyncio.sleep(0)
        given_up.cancel()
        results = await asyncio.gather(given_up, failing, last, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError) and isinstance(results[1], KeyError)
        assert results[2] == b"last"

    run(test)


def test_large_requests_do_not_wait_in_numbers_and_a_single_one_is_always_taken():
    async def test() -> None:
        bench = Bench()
        await bench.call("first")
        size = MAX_WAITING_BYTES // 2
        results = await asyncio.gather(*(bench.call(str(i), 0.0, size) for i in range(4)), return_exceptions=True)
        assert results[:2] == [b"0", b"1"]
        for result in results[2:]:
            assert_busy(result)
        assert await bench.call("alone", 0.0, 2 * MAX_WAITING_BYTES) == b"alone"

    run(test)


@pytest.mark.parametrize("step_s", [0.0, LET_IN_S / 5])
def test_calls_that_come_while_one_works_are_let_in_before_the_next_but_not_without_end(step_s):
    async def test() -> None:
        bench = Bench()
        await bench.call("first")

        async def newcomers() -> None:
            for _ in range(20):
                bench.turns.arrive()
                bench.done.append("in")
                bench.clock.now_s += step_s
                await asyncio.sleep(0)

        await asyncio.gather(bench.call("second"), newcomers())
        assert bench.done.index("second") == (21 if step_s == 0.0 else 6)

    run(test)


def test_a_call_that_comes_when_others_wait_long_is_refused_before_its_body_is_read():
    async def test() -> None:
        bench = Bench()
        await bench.call("first")
        waiting = bench.call("second")
        await asyncio.sleep(0)
        bench.turns.arrive()
        bench.clock.now_s += 0.6 * WAIT_S
        with pytest.raises(ServiceError) as caught:
            bench.turns.arrive()
        assert_busy(caught.value)
        await waiting
        bench.turns.arrive()

    run(test)
