"""What a part of the fault tier measures: figures, each beside the target it is held against."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository, where parts start their processes


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured, as the table says it.
        value: the number.
        unit: of value and bounds; empty for counts.
        at_most: the target is met up to this; None: no upper bound.
        at_least: the target is met from this on; None: no lower bound. Neither: reported, not judged.
        detail: how it was measured, in a few words: counts, interval, seed.
    """

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    detail: str = ""

    @property
    def is_judged(self) -> bool:
        """Whether it has a target."""
        return self.at_least is not None or self.at_most is not None

    @property
    def is_met(self) -> bool:
        """Whether the value keeps within its bounds; one that is not a number never does."""
        above = self.at_least is None or self.value >= self.at_least
        below = self.at_most is None or self.value <= self.at_most
        return self.value == self.value and above and below

    @property
    def target(self) -> str:
        """The bounds in words."""
        if self.at_least is not None and self.at_least == self.at_most:
            return f"exactly {_number(self.at_least)}"
        parts = [f"at least {_number(self.at_least)}"] if self.at_least is not None else []
        parts += [f"at most {_number(self.at_most)}"] if self.at_most is not None else []
        return ", ".join(parts) or "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How a part is to be measured.

    Attributes:
        scale: share of the full amount of work, in (0, 1]; below 1 only for trying a part out.
        seed: of every random choice.
        workdir: an empty directory for whatever the part writes; kept afterwards.
        say: prints one line of progress.
    """

    scale: float
    seed: int
    workdir: Path
    say: Callable[[str], None]

    def scaled(self, amount: int, least: int = 1) -> int:
        """Returns `amount` times the scale, at least `least`."""
        return max(least, round(amount * self.scale))


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Writes figures as JSON."""
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")


def read_figures(path: Path) -> list[Figure]:
    """Reads what `write_figures` wrote."""
    return [Figure(**each) for each in json.loads(path.read_text())]


def table(figures: Sequence[tuple[str, Figure]]) -> str:
    """Returns a Markdown table of (part, figure)."""
    rows = [("part", "figure", "measured", "target", "", "how"), ("---", "---", "---:", "---:", "---", "---")]
    for part, figure in figures:
        verdict = ("met" if figure.is_met else "MISSED") if figure.is_judged else ""
        measured = f"{_number(figure.value)} {figure.unit}".strip()
        rows.append((part, figure.name, measured, figure.target if figure.is_judged else "", verdict, figure.detail))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value % 1 == 0 else f"{value:.3g}"
