from __future__ import annotations

import os
import signal
import threading

import pytest

from sapo_jax.signals import Stopped, StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_would_end_the_process(number: signal.Signals) -> None:
    said: list[str] = []
    heard = threading.Event()

    def announce(text: str) -> None:
        said.append(f"{text} ({threading.current_thread() is threading.main_thread()})")
        heard.set()

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with StopRequest(announce) as stop:
        assert not stop
        stop.check()
        os.kill(os.getpid(), number)
        assert stop
        with pytest.raises(Stopped):
            stop.check()
        assert {signal.getsignal(each) for each in before} == {signal.SIG_DFL}
        assert heard.wait(10)
    assert {each: signal.getsignal(each) for each in before} == before
    # Said outside the main thread: the handler may interrupt it while it holds the display's locks.
    assert said == [f"{number.name}: finishing the round, then saving; once more ends without saving (False)"]


def test_without_a_signal_nothing_is_asked() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before and not stop
