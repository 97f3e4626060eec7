from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sapo_jax import device_clock
from sapo_jax.device_clock import DeviceClock


class _Results:
    """What a program makes: ready, or failed, at a moment of the fake time that whoever waits for it sees pass."""

    def __init__(self, time: SimpleNamespace, ready_s: float, error: Exception | None = None) -> None:
        self._time, self._ready_s, self._error = time, ready_s, error

    def block_until_ready(self) -> None:
        self._time.now_s = max(self._time.now_s, self._ready_s)
        if self._error is not None:
            raise self._error


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = SimpleNamespace(now_s=0.0)
    fake.perf_counter = lambda: fake.now_s
    monkeypatch.setattr(device_clock, "time", fake)
    return fake


@pytest.mark.parametrize(
    ("spans", "busy_s"),
    [
        ([], 0.0),
        ([(1.0, 5.0)], 4.0),
        ([(1.0, 5.0), (7.0, 8.0)], 5.0),  # one after the other, with a gap
        ([(1.0, 5.0), (2.0, 9.0)], 8.0),  # dispatched ahead
        ([(1.0, 5.0), (2.0, 3.0)], 4.0),  # ready before the one that was dispatched earlier
        ([(1.0, 5.0), (2.0, 4.0), (4.5, 6.0), (8.0, 9.0)], 6.0),
    ],
)
def test_time_in_which_something_was_pending_counts_once(
    time: SimpleNamespace, spans: list[tuple[float, float]], busy_s: float
) -> None:
    clock = DeviceClock()
    for began_s, ready_s in spans:
        clock.watch(began_s, [_Results(time, ready_s)])
    assert clock.busy_s() == busy_s
    assert clock.busy_s() == busy_s  # looking at it changes nothing


def test_looking_in_between_adds_up_to_the_same(time: SimpleNamespace) -> None:
    clock, looks = DeviceClock(), []
    for began_s, ready_s in ((1.0, 5.0), (2.0, 9.0), (8.0, 10.0), (20.0, 21.0)):
        clock.watch(began_s, _Results(time, ready_s))
        looks.append(clock.busy_s())
    assert looks == [4.0, 8.0, 9.0, 10.0]


def test_a_program_that_fails_was_pending_until_then(time: SimpleNamespace) -> None:
    clock = DeviceClock()
    clock.watch(1.0, _Results(time, 3.0, RuntimeError("out of memory")))
    clock.watch(4.0, _Results(time, 6.0))
    assert clock.busy_s() == 4.0


def test_a_real_program_is_pending_from_before_its_dispatch(time: SimpleNamespace) -> None:
    """One that calls Python is computed by the thread that dispatches it."""

    def take_five_seconds(x: np.ndarray) -> np.ndarray:
        time.now_s += 5.0
        return x

    program = jax.jit(lambda x: jax.pure_callback(take_five_seconds, jax.ShapeDtypeStruct((), np.float32), x))
    clock = DeviceClock()
    time.now_s = began_s = 1.0
    clock.watch(began_s, program(np.float32(3)))
    assert clock.busy_s() == 5.0
