"""The curves of a run: metrics by name and node, and the figures drawn from them.

Pure functions from records to matplotlib figures; nothing is read or written here. What a run did
not log is left out of the figure, and a figure without data is None.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sapo_jax.metrics import Record

PASS_AT_1 = "eval/strict_pass_at_1"

# Okabe and Ito's palette, told apart with every common color vision, its yellow (too pale for lines) replaced by
# wine; the mean is drawn in black.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#882255", "#999999")
_MEAN_COLOR = "#111111"
_MOST_LISTED_NODES = 8  # more are drawn in gray and not listed in the legend
_SMOOTH_FROM_ROUNDS = 60  # from here on a running mean is drawn over the raw values
_MOST_POINTS = 1500  # of one line; a picture has fewer pixels across


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Values of one metric over rounds: rounds [n] int, values [n] float, finite."""

    rounds: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The metrics of a run by name and node.

    `nodes` lists the nodes that logged anything, rising. `curves[name][node]` is a curve; node None
    is the swarm, or the mean over nodes where the swarm logged nothing.
    """

    nodes: tuple[int, ...]
    curves: Mapping[str, Mapping[int | None, Curve]]

    def curve(self, name: str, node: int | None = None) -> Curve | None:
        return self.curves.get(name, {}).get(node)


def build_history(records: Iterable[Record]) -> History:
    """Returns the curves in `records`; of two values for one round, node and metric the later counts.

    Keeps two numbers a value while it reads, so that the report of a run of many thousand rounds stays small.
    """
    raw: dict[str, dict[int | None, tuple[array[int], array[float]]]] = {}
    nodes: set[int] = set()
    for record in records:
        if record.node is not None:
            nodes.add(record.node)
        for name, value in record.metrics.items():
            if math.isfinite(value):
                rounds, values = raw.setdefault(name, {}).setdefault(record.node, (array("q"), array("d")))
                rounds.append(record.round)
                values.append(value)
    curves: dict[str, dict[int | None, Curve]] = {}
    for name, per_node in raw.items():
        curves[name] = {node: _curve(*columns) for node, columns in per_node.items()}
        if None not in per_node:
            curves[name][None] = _mean(list(curves[name].values()))
    return History(nodes=tuple(sorted(nodes)), curves=curves)


def _curve(rounds: array[int], values: array[float]) -> Curve:
    """Returns the values in order of their rounds, the last one of each."""
    known, from_the_end = np.unique(np.array(rounds, np.int64)[::-1], return_index=True)
    return Curve(rounds=known, values=np.array(values, np.float64)[::-1][from_the_end])


def _mean(curves: Sequence[Curve]) -> Curve:
    """Returns the mean of the curves that have a value, round by round."""
    known, places = np.unique(np.concatenate([curve.rounds for curve in curves]), return_inverse=True)
    values = np.concatenate([curve.values for curve in curves])
    return Curve(rounds=known, values=np.bincount(places, values) / np.bincount(places))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Panel:
    """One set of axes: a title, its y label, and the metrics drawn in it with their labels."""

    title: str
    unit: str
    metrics: Mapping[str, str]
    is_share: bool = False  # a share of one, shown in percent
    from_zero: bool = True  # never negative: the scale starts at zero


def _rewards(history: History) -> Figure | None:
    panels = (
        _Panel(title="Own rollouts", unit="mean reward", metrics={"reward/own_mean": "mean"}),
        _Panel(title="Training set (external included)", unit="mean reward", metrics={"reward/train_mean": "mean"}),
        _Panel(title="Held-out questions", unit="mean score", metrics={"eval/score_mean": "mean"}),
    )
    return _figure(history, panels, per_node=True, share_scale=True)


def _evaluation(history: History) -> Figure | None:
    panels = (
        _Panel(title="Strict pass@1, held-out", unit="questions solved", metrics={PASS_AT_1: "mean"}, is_share=True),
        _Panel(
            title="Strict pass@8, held-out",
            unit="questions solved",
            metrics={"eval/strict_pass_at_8": "mean"},
            is_share=True,
        ),
        _Panel(title="Format rate, held-out", unit="completions", metrics={"eval/format_rate": "mean"}, is_share=True),
    )
    return _figure(history, panels, per_node=True)


def _groups(history: History) -> Figure | None:
    panels = (
        _Panel(
            title="Informative groups",
            unit="share of the groups trained on",
            metrics={"groups/informative_frac": "mean"},
            is_share=True,
        ),
        _Panel(
            title="External groups trained on", unit="groups per node and round", metrics={"groups/external": "mean"}
        ),
    )
    return _figure(history, panels, per_node=True)


def _policy(history: History) -> Figure | None:
    logprobs = {"policy/own_logprob_mean": "own text", "policy/external_logprob_mean": "external text"}
    panels = (
        _Panel(title="Entropy of the policy", unit="nats per token", metrics={"policy/entropy": "mean"}),
        _Panel(title="Log-probability of trained text", unit="nats per token", metrics=logprobs, from_zero=False),
    )
    return _figure(history, panels, per_node=False)


def _cost(history: History) -> Figure | None:
    times = {"time/sample_s": "sampling", "time/update_s": "update", "time/round_s": "whole round"}
    tokens = {"tokens/generated": "generated", "tokens/trained": "trained"}
    panels = (
        _Panel(title="Time", unit="seconds per round", metrics=times),
        _Panel(title="Tokens", unit="tokens per round", metrics=tokens),
        _Panel(
            title="Devices waiting for the host",
            unit="share of a round's time",
            metrics={"time/device_idle_frac": "mean"},
            is_share=True,
        ),
    )
    return _figure(history, panels, per_node=False)


def _specialties(history: History) -> Figure | None:
    rows = []
    for name, specialty in specialty_of_metric(history).items():
        curve = history.curve(name)
        if curve is not None:
            rows.append((specialty, curve.values[0], curve.values[-1], curve.rounds[0], curve.rounds[-1]))
    if not rows:
        return None
    rows.sort(key=lambda row: row[2])
    figure = Figure(
        figsize=(8.5, 1.3 + 0.38 * len(rows)), layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09), dpi=130
    )
    axes = figure.add_subplot()
    heights = np.arange(len(rows))
    first, last = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    axes.hlines(heights, first, last, color="#bbbbbb", linewidth=2.5, zorder=1)
    first_round, last_round = min(row[3] for row in rows), max(row[4] for row in rows)
    axes.scatter(
        first,
        heights,
        s=45,
        facecolor="white",
        edgecolor=_COLORS[0],
        linewidth=1.6,
        zorder=3,
        label=f"round {first_round}",
    )
    if last_round != first_round:
        axes.scatter(last, heights, s=45, color=_COLORS[5], zorder=2, label=f"round {last_round}")
    axes.set_yticks(heights, [row[0] for row in rows], parse_math=False)  # a name is no formula
    axes.set_xlim(left=0, right=max(0.05, 1.08 * max(first.max(), last.max())))
    axes.xaxis.set_major_formatter(_percent())
    axes.set_xlabel("strict pass@1, held-out (mean over nodes)")
    _dress(axes, "Each specialty, first and last evaluation")
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _figure(history: History, panels: Sequence[_Panel], *, per_node: bool, share_scale: bool = False) -> Figure | None:
    """Returns a row of the panels that have data, or None if none has."""
    shown = [panel for panel in panels if any(history.curve(name) is not None for name in panel.metrics)]
    if not shown:
        return None
    figure = Figure(figsize=(4.3 * len(shown), 3.4), layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09), dpi=130)
    row = figure.subplots(1, len(shown), squeeze=False, sharey=share_scale)[0]
    for axes, panel in zip(row, shown, strict=True):
        if per_node:
            _draw_nodes(axes, history, next(iter(panel.metrics)))
        else:
            _draw_metrics(axes, history, panel.metrics)
        _dress(axes, panel.title)
        _dress_rounds(axes, history, panel)
        if not share_scale or axes is row[0] or panel.unit != shown[0].unit:
            axes.set_ylabel(panel.unit)
        if panel.is_share:
            axes.yaxis.set_major_formatter(_percent())
    for axes, panel in zip(row, shown, strict=True):  # once all is drawn: setting one end fixes the other
        if panel.from_zero:
            axes.set_ylim(bottom=0)
    handles, labels = row[0].get_legend_handles_labels()
    if per_node and len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 9), frameon=False, fontsize=8)
    if not per_node:
        for axes, panel in zip(row, shown, strict=True):
            if len(panel.metrics) > 1:
                axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_nodes(axes: Axes, history: History, name: str) -> None:
    listed = len(history.nodes) <= _MOST_LISTED_NODES
    several = len(history.nodes) > 1
    for index, node in enumerate(history.nodes):
        curve = history.curve(name, node)
        if curve is not None:
            color = _COLORS[index] if listed else "#bbbbbb"
            _plot(axes, curve, color, f"node {node}" if listed else None, width=1.0, is_thin=several)
    mean = history.curve(name)
    if mean is not None and (several or not history.nodes or history.curve(name, history.nodes[0]) is None):
        _plot(axes, mean, _MEAN_COLOR, "mean", width=2.2)


def _draw_metrics(axes: Axes, history: History, metrics: Mapping[str, str]) -> None:
    for (name, label), color in zip(metrics.items(), (_COLORS[0], _COLORS[5], _COLORS[2]), strict=False):
        curve = history.curve(name)
        if curve is not None:
            _plot(axes, curve, color, label, width=1.8)


def _plot(axes: Axes, curve: Curve, color: str, label: str | None, *, width: float, is_thin: bool = False) -> None:
    """Draws one curve; a long one faint, with its running mean over it."""
    count = curve.rounds.size
    marker = "o" if count <= 20 else None
    alpha = 0.75 if is_thin else 1.0
    if count < _SMOOTH_FROM_ROUNDS:
        axes.plot(
            curve.rounds,
            curve.values,
            color=color,
            linewidth=width,
            alpha=alpha,
            label=label,
            marker=marker,
            markersize=3.5,
        )
        return
    # Smoothed first: what is left out is finer than a pixel.
    shown = np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(np.int64))
    rounds, means = curve.rounds[shown], _running_mean(curve.values)[shown]
    if not is_thin:
        axes.plot(rounds, curve.values[shown], color=color, linewidth=0.7, alpha=0.25)
    axes.plot(rounds, means, color=color, linewidth=width, alpha=alpha, label=label)


def _reach(count: int) -> int:
    """Returns how many values to each side a running mean takes in: a 20th of the curve in all."""
    return max(count // 40, 1)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over a window centered at each value, cut at the ends."""
    reach = _reach(values.size)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(values.size)
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, values.size)
    return (sums[high] - sums[low]) / (high - low)


def _dress_rounds(axes: Axes, history: History, panel: _Panel) -> None:
    curves = [curve for name in panel.metrics if (curve := history.curve(name)) is not None]
    longest = max(curve.rounds.size for curve in curves)
    smoothed = f", running mean over {2 * _reach(longest) + 1}" if longest >= _SMOOTH_FROM_ROUNDS else ""
    axes.set_xlabel(f"round{smoothed}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    if longest == 1:
        only = int(curves[0].rounds[0])
        axes.set_xlim(only - 1, only + 1)


def _percent() -> FuncFormatter:
    """Returns a new formatter: one that is kept keeps the last figure it was used in."""
    return FuncFormatter(lambda share, _: f"{100 * share:.3g}%")


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10.5, loc="left", fontweight="bold")
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom")
        axes.spines[side].set_color("#888888")


def specialty_of_metric(history: History) -> dict[str, str]:
    """Returns the metrics `eval/<specialty>/strict_pass_at_1` and their specialties."""
    parts = {name: name.split("/") for name in history.curves}
    return {
        name: part[1]
        for name, part in sorted(parts.items())
        if len(part) == 3 and part[0] == "eval" and part[2] == "strict_pass_at_1"
    }


FIGURES: Mapping[str, Callable[[History], Figure | None]] = {
    "evaluation": _evaluation,
    "rewards": _rewards,
    "specialties": _specialties,
    "groups": _groups,
    "policy": _policy,
    "cost": _cost,
}
