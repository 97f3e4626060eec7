"""What a person sees while a run works: a live display, or plain lines where there is no terminal.

Whatever takes time is a stage with a name. The display always shows which stage is waiting and for
how long, so a slow run can be told from a stuck one.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

# Label and metric name of the numbers shown: those of a round, and with them what the last evaluation found. A round's
# line has only the former, for an evaluation prints its own.
_OF_ROUND = (("own reward", "reward/own_mean"), ("train reward", "reward/train_mean"))
_SHOWN = (*_OF_ROUND, ("held-out pass@1", "eval/strict_pass_at_1"))
_EVALUATED = (
    ("pass@1", "eval/strict_pass_at_1"),
    ("pass@8", "eval/strict_pass_at_8"),
    ("score", "eval/score_mean"),
    ("format", "eval/format_rate"),
)
_RATE_WINDOW = 50  # recent rounds that the estimate of the time left is made from


@dataclass(slots=True)
class Stage:
    """One named piece of work in progress. Made by `Progress.stage`."""

    name: str
    total: int | None
    start_s: float
    done: int = 0

    def advance(self, count: int = 1) -> None:
        self.done += count

    @property
    def label(self) -> str:
        return self.name if self.total is None else f"{self.name} {self.done}/{self.total}"


class Progress:
    """Shows rounds, rewards, speed and the current stage. A context manager.

    On a terminal one display is redrawn in place. Elsewhere one line is printed per round, but not
    more often than every `line_every_s`, and one when a stage has been silent for `quiet_s`.
    """

    def __init__(
        self,
        rounds: int,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        line_every_s: float = 5.0,
        quiet_s: float = 30.0,
    ) -> None:
        """Args:
        rounds: rounds of the whole run.
        console: where to draw; standard output if None.
        clock: seconds, rising.
        """
        self._rounds = rounds
        self._done = 0
        self._console = console or Console()
        self._clock = clock
        self._line_every_s = line_every_s
        self._quiet_s = quiet_s
        self._start_s = clock()
        self._last_line_s = -math.inf
        self._round_ends: deque[float] = deque(maxlen=_RATE_WINDOW + 1)
        self._shown: dict[str, float] = {}
        self._stages: list[Stage] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        self._spinner = Spinner("dots")

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)
            live.start()
            self._live = live
        else:
            thread = threading.Thread(target=self._watch, name="progress", daemon=True)
            thread.start()
            self._thread = thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, *, announce: bool = True) -> Iterator[Stage]:
        """Shows `name` as the work in progress inside the block; stages nest.

        Args:
            name: what is being done, such as "loading weights".
            total: steps, if they are counted with `Stage.advance`.
            announce: print a plain line at the start. Off for what every round repeats.
        """
        stage = Stage(name=name, total=total, start_s=self._clock())
        with self._lock:
            self._stages.append(stage)
        if announce and self._live is None:
            self.print(f"{self._stage_path()} ...")
        try:
            yield stage
        finally:
            with self._lock:
                self._stages.remove(stage)

    def resume_at(self, round: int) -> None:
        """Shows `round` as the rounds already done, for a run that learns it after the display started."""
        self._done = round

    def round_done(self, round: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of the swarm after a round.

        Args:
            round: rounds done, in [1, rounds].
            metrics: by name; those shown are rewards, held-out pass@1, and tokens per second from
                `tokens/generated` and `time/round_s`. What is missing keeps its last value.
        """
        self._done = round
        self._round_ends.append(self._clock())
        self._show(metrics)
        if self._live is None and (self._clock() - self._last_line_s >= self._line_every_s or round >= self._rounds):
            self.print(self._round_line())

    def evaluated(self, round: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a held-out evaluation and prints them as a line that stays."""
        self._show(metrics)
        numbers = "  ".join(f"{label} {metrics[name]:.3f}" for label, name in _EVALUATED if name in metrics)
        self.print(f"held-out after {round} rounds  {numbers}")

    def print(self, text: str) -> None:
        """Prints a line that stays, above the live display if there is one."""
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._last_line_s = self._clock()

    def time_left_s(self) -> float | None:
        """Returns the estimated seconds to the last round, or None before there is a rate.

        The gaps between recent rounds are averaged, evaluations and saving included. The first round,
        which compiles, says nothing about the others.
        """
        ends = list(self._round_ends)
        if len(ends) < 2:
            return None
        return (ends[-1] - ends[0]) / (len(ends) - 1) * (self._rounds - self._done)

    def _show(self, metrics: Mapping[str, float]) -> None:
        known = {name: float(metrics[name]) for _, name in _SHOWN if name in metrics}
        if metrics.get("time/round_s", 0) > 0 and "tokens/generated" in metrics:
            known["tokens_per_s"] = metrics["tokens/generated"] / metrics["time/round_s"]
        self._shown = {**self._shown, **known}

    def _numbers(self, names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        shown = self._shown
        pairs = [(label, f"{shown[name]:.3f}") for label, name in names if name in shown]
        if "tokens_per_s" in shown:
            pairs.append(("tokens/s", f"{shown['tokens_per_s']:,.0f}"))
        pairs.append(("elapsed", _duration(self._clock() - self._start_s)))
        left = self.time_left_s()
        if left is not None and self._done < self._rounds:
            pairs.append(("left", _duration(left)))
        return pairs

    def _round_line(self) -> str:
        width = len(str(self._rounds))
        numbers = "  ".join(f"{label} {value}" for label, value in self._numbers(_OF_ROUND))
        return f"round {self._done:>{width}}/{self._rounds}  {numbers}"

    def _stage_path(self) -> str:
        with self._lock:
            return " > ".join(stage.label for stage in self._stages)

    def _watch(self) -> None:
        while not self._stop.wait(min(self._quiet_s, 1.0)):
            self._tick()

    def _tick(self) -> None:
        """Prints the waiting stage if nothing was printed for `quiet_s`."""
        now = self._clock()
        with self._lock:
            start_s = self._stages[-1].start_s if self._stages else None
        if start_s is not None and now - max(self._last_line_s, start_s) >= self._quiet_s:
            self.print(f"round {self._done}/{self._rounds}  still {self._stage_path()} ({_duration(now - start_s)})")

    def _render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text("rounds", style="bold"),
            ProgressBar(total=max(self._rounds, 1), completed=self._done, width=40),
            Text(f"{self._done}/{self._rounds}"),
        )
        numbers = Table.grid(padding=(0, 3))
        pairs = self._numbers(_SHOWN)
        numbers.add_row(*(Text(label, style="dim") for label, _ in pairs))
        numbers.add_row(*(Text(value, style="bold") for _, value in pairs))
        with self._lock:
            start_s = self._stages[-1].start_s if self._stages else None
        if start_s is None:
            return Group(bar, numbers)
        self._spinner.update(text=Text(f"{self._stage_path()}  {_duration(self._clock() - start_s)}", style="cyan"))
        return Group(bar, numbers, self._spinner)


def _duration(seconds: float) -> str:
    """Returns seconds as "7 s", "3:05" (minutes) or "2:03:05" (hours)."""
    whole = int(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
