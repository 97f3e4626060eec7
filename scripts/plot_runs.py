"""Draws several runs in one picture: held-out strict pass@1 and the three rewards, means over nodes.

    python scripts/plot_runs.py runs/a runs/b --out=curves.png [--labels "8/0,4/4"] [--smooth=25]

Reads nothing but `metrics.jsonl` of each workdir. Only the held-out panels compare runs fairly: the
reward of a training set contains the external rollouts that were selected for it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sapo_jax.figures import PASS_AT_1, History, build_history
from sapo_jax.metrics import MetricsError, read_metrics
from sapo_jax.workdir import METRICS_FILE

MOST_RUNS = 10  # colors that a legend can tell apart

PANELS: Mapping[str, str] = {
    PASS_AT_1: "Held-out, strict pass@1",
    "eval/score_mean": "Held-out, mean score",
    "reward/own_mean": "Own rollouts, mean reward",
    "reward/train_mean": "Training set, mean reward",
}


def read_runs(workdirs: Sequence[Path], labels: Sequence[str] = ()) -> dict[str, History]:
    """Returns the history of each run by its label: as given, else as much of its path as is unique.

    Raises:
        ValueError: too many runs, a label too many, too few or given twice, or a broken metrics file.
        OSError: a workdir without readable metrics.
    """
    if len(workdirs) > MOST_RUNS:
        raise ValueError(f"{len(workdirs)} runs: one picture shows at most {MOST_RUNS}")
    names = list(labels) or short_names(workdirs)
    if len(names) != len(workdirs) or len(set(names)) != len(names):
        raise ValueError(f"labels {', '.join(names)}: must be {len(workdirs)} different ones, one a workdir")
    return {
        name: build_history(read_metrics(workdir / METRICS_FILE)) for name, workdir in zip(names, workdirs, strict=True)
    }


def short_names(workdirs: Sequence[Path]) -> list[str]:
    """Returns for each path its last parts, as many as tell all of them apart."""
    parts = [Path(os.path.abspath(workdir)).parts for workdir in workdirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{', '.join(map(str, workdirs))}: a workdir is given twice")


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean over `window` values around each (one more if even), fewer at the ends."""
    reach = window // 2
    return np.array([values[max(i - reach, 0) : i + reach + 1].mean() for i in range(values.size)])


def draw(runs: Mapping[str, History], smooth: int = 1) -> Figure:
    """Returns the figure of `runs`; a panel without data of any run says so.

    Args:
        runs: by the label the legend gives them.
        smooth: rounds of the running mean over training rewards; evaluations are drawn as they are.
    """
    figure = Figure(figsize=(10, 7), layout="constrained", dpi=130)
    for axes, (metric, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for index, (label, history) in enumerate(runs.items()):
            curve = history.curve(metric)
            if curve is None:
                continue
            is_evaluation = metric.startswith("eval/")
            values = curve.values if is_evaluation else running_mean(curve.values, smooth)
            axes.plot(
                curve.rounds, values, color=f"C{index}", label=label, marker="o" if is_evaluation else None, ms=3.5
            )
        if not axes.lines:
            axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color="gray")
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel("round" if metric.startswith("eval/") or smooth < 2 else f"round, running mean over {smooth}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.grid(color="#e4e4e4")
    handles = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(runs), 5), frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, draws and writes the picture; exits with 1 if a run cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path, help="directories of runs")
    parser.add_argument("--out", type=Path, default=Path("runs.png"), help="the picture (default: %(default)s)")
    parser.add_argument("--labels", default="", help="names for the legend, comma-separated (default: from the paths)")
    parser.add_argument("--smooth", type=int, default=1, help="rounds of the running mean over training rewards")
    options = parser.parse_args(arguments)
    if options.smooth < 1:
        parser.error(f"--smooth={options.smooth}: must be at least 1")
    labels = options.labels.split(",") if options.labels else ()
    try:
        draw(read_runs(options.workdirs, labels), options.smooth).savefig(options.out)
    except (ValueError, MetricsError, OSError) as error:
        sys.exit(f"error: {error}")
    print(options.out)


if __name__ == "__main__":
    main()
