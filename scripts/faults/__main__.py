r"""Measures what the swarm withstands: hostile input, dead peers, kills, partitions, overload, time.

    make faults
    python -m scripts.faults --parts=kill,churn --seed=3
    python -m scripts.faults --scale=0.05 --out=runs/try

Runs the parts one after the other, each in a process of its own, and writes a table of the figures
against their targets to `--out` after every part. A part that was already measured there at the same
revision, scale and seed is not measured again. Exit code 1 says that a figure missed its target or
a part failed. Timings mean something on an otherwise idle machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.faults.figures import ROOT, Figure, Setting, read_figures, table, write_figures
from scripts.measured_on import machine, revision

TABLE, FIGURES, MEASURED_AS = "faults.md", "figures.json", "measured_as.json"
PARTS: Mapping[str, str] = {
    "fuzz": "a million hostile messages",
    "verifier": "completions that attack the scorers",
    "selection": "fairness over publishers, floods and replays",
    "publish": "speed of taking groups in, and ten times too many",
    "step": "training with dead, slow and silent peers",
    "kill": "kill -9 of publisher and receiver",
    "skew": "clocks a day off",
    "churn": "eight processes, one killed every minute",
    "partition": "half the swarm cut off for a minute",
    "soak": "twenty minutes of training: memory, descriptors, threads",
}
PART_LIMIT_S = 40 * 60.0
STOP_S = 30.0  # for a part to end its processes after Ctrl-C


def say(text: str) -> None:
    """Prints a line with the time of day."""
    print(f"{datetime.datetime.now():%H:%M:%S}  {text}", flush=True)


def measure_here(part: str, out: Path, *, scale: float, seed: int) -> None:
    """Measures one part in this process and leaves its figures in its folder."""
    module = importlib.import_module(f"scripts.faults.{part}")
    workdir = out / part / "work"
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    setting = Setting(scale=scale, seed=seed, workdir=workdir, say=lambda text: say(f"{part}: {text}"))
    write_figures(out / part / FIGURES, module.measure(setting))


def measure_apart(part: str, out: Path, *, scale: float, seed: int) -> bool:
    """Measures one part in a process of its own; returns whether it came to its end.

    Whatever the part leaves running is ended with it.
    """
    command = [sys.executable, "-m", "scripts.faults", f"--measure={part}"]
    command += [f"--scale={scale}", f"--seed={seed}", f"--out={out}"]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            return process.wait(PART_LIMIT_S) == 0
        except subprocess.TimeoutExpired:
            say(f"{part}: not done after {PART_LIMIT_S / 60:.0f} min, given up")
            return False
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def is_exact(revision: str) -> bool:
    """Returns whether a revision names exactly the code that ran."""
    return revision != "unknown" and not revision.endswith("+")


def report(out: Path, measured: Mapping[str, str], failed: Sequence[str]) -> str:
    """Writes and returns the table of everything measured so far."""
    rows: list[tuple[str, Figure]] = []
    for part in PARTS:
        if part in failed:
            rows.append((part, Figure(name="the part came to its end", value=0, at_least=1, at_most=1)))
        elif part in measured:
            rows += [(part, figure) for figure in read_figures(out / part / FIGURES)]
    lines = [f"Measured on {machine()}.", "", *(f"- {part}: {how}" for part, how in measured.items()), ""]
    text = "\n".join(lines) + "\n" + table(rows)
    (out / TABLE).write_text("# What the swarm withstands\n\n" + text)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, measures the parts and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which of them, in order (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the work; below 1 for trying out only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"), help="folder (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure parts again that were measured before")
    parser.add_argument("--measure", choices=tuple(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    parts = [part for part in options.parts.split(",") if part]
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        parser.error(f"--parts: unknown {', '.join(unknown) or 'nothing'}; there are {', '.join(PARTS)}")
    if not 0 < options.scale <= 1:
        parser.error(f"--scale: {options.scale} is not above 0 and at most 1")
    out: Path = options.out.resolve()
    if options.measure:
        measure_here(options.measure, out, scale=options.scale, seed=options.seed)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the part's processes as Ctrl-C does
    measured_revision = revision()
    measured: dict[str, str] = {}
    failed: list[str] = []
    for part in parts:
        folder = out / part
        folder.mkdir(parents=True, exist_ok=True)
        key = {"revision": measured_revision, "scale": options.scale, "seed": options.seed}
        past = json.loads((folder / MEASURED_AS).read_text()) if (folder / MEASURED_AS).exists() else {}
        if not options.again and is_exact(measured_revision) and key.items() <= past.items():
            say(f"{part}: was measured on {past['date']}, kept")
        else:
            say(f"{part}: {PARTS[part]}")
            (folder / MEASURED_AS).unlink(missing_ok=True)
            start_s = time.monotonic()
            if not measure_apart(part, out, scale=options.scale, seed=options.seed):
                failed.append(part)
                report(out, measured, failed)
                continue
            past = {**key, "date": f"{datetime.date.today()}", "minutes": round((time.monotonic() - start_s) / 60, 1)}
            (folder / MEASURED_AS).write_text(json.dumps(past) + "\n")
        measured[part] = (
            f"revision {past['revision']}, {past['date']}, seed {past['seed']}, {past['minutes']} minutes"
            + ("" if past["scale"] == 1 else f", only {past['scale']:g} of the work: NOT a measurement")
        )
        report(out, measured, failed)
    text = report(out, measured, failed)
    print(text, flush=True)
    print(f"written to {out / TABLE}")
    missed = [figure for part in parts if part in measured for figure in read_figures(out / part / FIGURES)]
    missed = [figure for figure in missed if figure.is_judged and not figure.is_met]
    if failed or missed:
        raise SystemExit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
        raise SystemExit(0)
    raise SystemExit(130)
