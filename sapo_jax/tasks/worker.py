"""A scorer process: `python -m sapo_jax.tasks.worker PARENT`, started by `worker_process.py` alone.

Its standard input is a socket that carries the frames of both directions. The first message says
which specialties there are, each further one asks for the judgment of one group. The answers come in
order, with an empty frame in between whenever the work got on: once the task is rebuilt, and while
completions are scored. Nothing it prints can get between frames, since its output leads nowhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sapo_jax.tasks.confinement import allow_cpu, confine, follow_parent
from sapo_jax.tasks.frames import ALIVE, encode, read_messages
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.specialty import Specialty
from sapo_jax.tasks.verifier import ScoreError, judge
from sapo_jax.types import TaskRef

# Each specialty's first task is built and scored before the worker is ready, as far as time allows:
# libraries import lazily, and the first completion should not pay for it from its budget.
_WARM_UP_S = 5.0

# An empty frame is worth its cost only if this part of a completion's budget has passed since the last frame.
_ALIVE_FRAC = 0.05


def main() -> None:
    """Serves until the parent closes its end."""
    follow_parent(int(sys.argv[1]))
    pipe = _take_input()
    messages = read_messages(lambda count: os.read(pipe, count))
    setup = next(messages)
    source = ReasoningGymSource([Specialty(**fields) for fields in setup["specialties"]])
    _warm_up(source)
    _discard_output()
    confine()
    with contextlib.suppress(ConnectionError):  # the parent is gone
        answering = _Answering(pipe, source, setup["completion_budget_s"], setup["group_budget_s"])
        answering.send(encode({"ready": True}))
        for request in messages:
            answering.serve(request)


class _Answering:
    """Judges groups and writes what comes of it to the pipe."""

    def __init__(self, pipe: int, source: ReasoningGymSource, completion_budget_s: float, group_budget_s: float):
        self._pipe = pipe
        self._source = source
        self._alive_s = _ALIVE_FRAC * completion_budget_s
        self._group_budget_s = group_budget_s
        self._sent_s = 0.0  # when the last frame was sent
        self._rebuilt = False

    def serve(self, request: Mapping[str, Any]) -> None:
        allow_cpu(self._group_budget_s)
        self._rebuilt = False
        self.send(encode(self._judgment(request)))

    def send(self, frame: bytes) -> None:
        view = memoryview(frame)
        while view:
            view = view[os.write(self._pipe, view) :]
        self._sent_s = time.monotonic()

    def _judgment(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        dataset, config_digest, seed, index = request["task_ref"]
        ref = TaskRef(dataset=dataset, config_digest=config_digest, seed=seed, index=index)
        texts: Sequence[str] = request["texts"]
        try:
            task, scores = judge(self._source, ref, texts, held_out=request["held_out"], advance=self._advance)
        except ScoreError as error:
            return {"reason": error.reason.value, "detail": str(error)}
        return {"question": task.question, "ground_truth": task.ground_truth, "scores": scores}

    def _advance(self) -> None:
        # The first call ends the rebuilding, which has the whole group's budget; the parent must know.
        if not self._rebuilt or time.monotonic() - self._sent_s >= self._alive_s:
            self.send(ALIVE)
        self._rebuilt = True


def _take_input() -> int:
    """Returns a descriptor of the pipe; whoever reads standard input from now on finds it empty."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def _discard_output() -> None:
    """Closes the log of the start: what libraries print while they score interests nobody."""
    sys.stderr.flush()
    os.dup2(1, 2)  # standard output leads nowhere from the start


def _warm_up(source: ReasoningGymSource) -> None:
    end_s = time.monotonic() + _WARM_UP_S
    for specialty in source.specialties:
        if time.monotonic() >= end_s:
            return
        with contextlib.suppress(ScoreError):
            judge(source, source.ref(specialty, 0, 0), ["<answer>0</answer>"], held_out=True)


if __name__ == "__main__":
    main()
