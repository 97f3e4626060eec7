"""The last words of a run: what was learned, where the curves are, what to do next."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from sapo_jax.metrics import read_metrics
from sapo_jax.workdir import METRICS_FILE

_ROWS = (
    ("strict pass@1", "eval/strict_pass_at_1"),
    ("strict pass@8", "eval/strict_pass_at_8"),
    ("mean score", "eval/score_mean"),
    ("format rate", "eval/format_rate"),
)


def describe(workdir: Path, done: int, rounds: int, pictures: Sequence[Path]) -> str:
    """Returns the closing text of a run that has `done` of `rounds` rounds behind it."""
    evaluations = {
        record.round: record.metrics
        for record in read_metrics(workdir / METRICS_FILE)
        if record.node is None and "eval/strict_pass_at_1" in record.metrics
    }
    lines = [f"{done} of {rounds} rounds done."]
    if len(evaluations) > 1:
        first, last = min(evaluations), max(evaluations)
        before, after = evaluations[first], evaluations[last]
        lines.append(f"held-out questions, mean over nodes    round {first:>5}    round {last:>5}")
        for label, name in _ROWS:
            if name in before and name in after:
                lines.append(f"  {label:<36} {before[name]:>11.3f} {after[name]:>14.3f}")
        lines.append("  strict pass@1 of each specialty")
        for name in after:
            area, _, rest = name.partition("/")
            specialty, _, measure = rest.rpartition("/")
            if area == "eval" and specialty and measure == "strict_pass_at_1" and name in before:
                lines.append(f"    {specialty:<34} {before[name]:>11.3f} {after[name]:>14.3f}")
        gain, error = after["eval/strict_pass_at_1_gain"], after["eval/strict_pass_at_1_gain_stderr"]
        lines.append(f"gain of strict pass@1: {gain:+.3f} +- {error:.3f} (bootstrap over questions, paired)")
        if last < done:
            lines.append(f"rounds after {last}: not evaluated yet")
    python = python_command()
    lines.append("curves:")
    lines += [f"  {path}" for path in pictures]
    lines += [
        "next:",
        f"  open {workdir / 'report' / 'index.html'} in a browser",
        f"  {python} -m sapo_jax.sample --workdir={workdir}              see answers of the trained nodes",
        f"  {python} -m sapo_jax.evaluate --workdir={workdir}            evaluate a checkpoint again",
        f"  {python} -m sapo_jax.export --workdir={workdir} --out=DIR    a folder that transformers loads",
    ]
    if done < rounds:
        place = f"go on after round {done}, which is saved" if done else "go on from here"
        lines.append(f"  the same command again                     {place}")
    else:
        lines.append("  the same command with a larger --config.rounds     train on")
    return "\n".join(lines)


def python_command() -> str:
    """Returns how a shell calls this interpreter: `python` where that is this one, else its path."""
    found = shutil.which("python")
    own = Path(sys.executable)
    if found is not None and Path(found).absolute().parent == own.absolute().parent:
        return "python"
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)
