"""Which scorer processes there are: idle ones by lane, spares, and one thread that replaces what was lost.

Spares are kept warm, since a process takes seconds to start. What is said to a process is not known here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from sapo_jax.tasks.worker_process import WorkerDiedError, WorkerProcess

_START_ATTEMPTS = 3  # in a row, once one start has succeeded; before, a failure is believed at once


class ScorerStartError(RuntimeError):
    """No scorer process can be started, so nothing can be judged; the message names the cause."""


class ScoringPoolClosedError(RuntimeError):
    """The pool was used after it was closed."""


class Lane:
    """The processes of one lane; `turn` is held during a call, the rest is guarded by the supply."""

    def __init__(self, size: int):
        self.turn = threading.Lock()
        self.idle: list[WorkerProcess] = []
        self.owned = 0  # idle and busy ones
        self.busy_s = 0.0
        self._size = size

    @property
    def missing(self) -> int:
        return self._size - self.owned


class WorkerSupply:
    """Owns the scorer processes; thread-safe."""

    def __init__(self, start_worker: Callable[[], WorkerProcess], *, lanes: Sequence[str], per_lane: int, spares: int):
        """Begins to start processes and returns at once.

        Args:
            start_worker: starts one; called in a thread of the supply's own.
            lanes: names for the lanes.
            per_lane: processes of each lane.
            spares: processes that stand by to replace a lost one, for all lanes together.
        """
        self._start_worker = start_worker
        self._lanes = {name: Lane(per_lane) for name in lanes}
        self._spares_wanted = spares
        self._changed = threading.Condition()  # guards everything below
        self._spares: list[WorkerProcess] = []
        self._workers: set[WorkerProcess] = set()  # all there are, starting and busy ones included
        self._started_once = False
        self._failure: ScorerStartError | None = None
        self._closed = False
        self._kills = 0
        self._start_cost_s = 0.0  # CPU time that the latest start took
        # One thread starts all processes and outlives them: on Linux a child dies with the thread that made it.
        self._starter = threading.Thread(target=self._keep_complete, name="scorer starts", daemon=True)
        self._starter.start()

    @property
    def kills(self) -> int:
        """Processes that were lost so far: killed at a budget, or ended by themselves."""
        with self._changed:
            return self._kills

    def busy_s(self, lane: str) -> float:
        """Returns the CPU time [s] that the processes of `lane` have used to judge, new ones for lost ones included."""
        with self._changed:
            return self.lane(lane).busy_s

    def wait_complete(self) -> None:
        """Returns when every lane has its processes.

        Raises:
            ScorerStartError: no process can be started.
            ScoringPoolClosedError: after `close`, or during this call.
        """
        with self._changed:
            self.check_open()
            while any(lane.missing for lane in self._lanes.values()):
                self._check_usable()
                self._changed.wait()

    def close(self) -> None:
        """Ends all processes; whoever waits for one gets ScoringPoolClosedError."""
        with self._changed:
            self._closed = True
            for worker in self._workers:
                worker.end()
            self._changed.notify_all()
        self._starter.join()
        for lane in self._lanes.values():
            with lane.turn:  # a call that is still under way reaps its own
                pass
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def lane(self, name: str) -> Lane:
        """Returns a lane; raises ValueError if there is none of this name."""
        if name not in self._lanes:
            raise ValueError(f"lane {name!r}: must be one of {', '.join(self._lanes)}")
        return self._lanes[name]

    def take(self, lane: Lane) -> WorkerProcess:
        """Returns an idle process of `lane`; waits until there is one."""
        while (worker := self.take_idle(lane)) is None:
            with self._changed:
                if not lane.idle and not self._spares:
                    self._check_usable()
                    self._changed.wait()
        return worker

    def take_idle(self, lane: Lane) -> WorkerProcess | None:
        """Returns an idle process of `lane`, or a spare if the lane lacks one; None if there is neither."""
        with self._changed:
            self.check_open()
            while lane.idle or (lane.missing and self._spares):
                if not lane.idle:
                    lane.idle.append(self._spares.pop(0))
                    lane.owned += 1
                    self._changed.notify_all()
                worker = lane.idle.pop()
                if worker.is_alive:
                    return worker
                self._lose(lane, worker)  # ended while it had nothing to do, by the system's memory killer for one
            return None

    def give_back(self, lane: Lane, worker: WorkerProcess, *, used_s: float, is_lost: bool) -> None:
        """Takes a process back that has used `used_s` of CPU time; a lost one is killed and replaced."""
        with self._changed:
            lane.busy_s += used_s
            if is_lost:
                self._lose(lane, worker)
            else:
                lane.idle.append(worker)

    def check_open(self) -> None:
        """Raises ScoringPoolClosedError after `close`."""
        if self._closed:
            raise ScoringPoolClosedError("the scoring pool is closed")

    def _lose(self, lane: Lane, worker: WorkerProcess) -> None:
        worker.kill()
        self._workers.discard(worker)
        lane.owned -= 1
        lane.busy_s += self._start_cost_s  # of the process that will take its place
        self._kills += 1
        self._changed.notify_all()

    def _check_usable(self) -> None:
        self.check_open()
        if self._failure is not None:
            raise self._failure

    def _keep_complete(self) -> None:
        """Starts processes wherever some are missing, until the pool is closed."""
        attempts = _START_ATTEMPTS
        while count := self._await_gap():
            try:
                self._start(count)
                attempts = _START_ATTEMPTS
            except (WorkerDiedError, OSError) as error:
                attempts -= 1
                with self._changed:
                    if not attempts or not self._started_once:
                        self._failure = ScorerStartError(f"no scorer process can be started: {error}")
                        self._changed.notify_all()

    def _await_gap(self) -> int:
        """Returns how many processes to start next, 0 when the pool is closed."""
        with self._changed:
            while not self._closed:
                missing = sum(lane.missing for lane in self._lanes.values())
                if len(self._spares) < self._spares_wanted:
                    missing = missing or 1  # spares come after what is waited for, one by one
                if missing and self._failure is None:
                    return missing
                self._changed.wait()
            return 0

    def _start(self, count: int) -> None:
        """Starts `count` processes side by side and places each one when it is ready.

        Raises:
            WorkerDiedError: one of them is of no use.
            OSError: the system starts none.
        """
        starting: list[WorkerProcess] = []
        try:
            for _ in range(count):
                worker = self._start_worker()
                starting.append(worker)
                with self._changed:
                    self._workers.add(worker)
                    if self._closed:
                        worker.end()
            while starting:
                starting[0].wait_ready()
                worker = starting.pop(0)
                self._place(worker, start_cost_s=worker.cpu_s())
        finally:
            for worker in starting:
                worker.kill()
                with self._changed:
                    self._workers.discard(worker)

    def _place(self, worker: WorkerProcess, start_cost_s: float) -> None:
        with self._changed:
            self._started_once = True
            self._start_cost_s = start_cost_s
            lane = next((lane for lane in self._lanes.values() if lane.missing), None)
            if lane is None:
                self._spares.append(worker)
            else:
                lane.idle.append(worker)
                lane.owned += 1
            self._changed.notify_all()
