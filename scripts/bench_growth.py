r"""Times rounds of growing size: more nodes, larger groups, longer prompts, larger models, more rounds.

    python scripts/bench_growth.py                                     CPU, about half an hour on two cores
    python scripts/bench_growth.py --device=gpu --model=smollm2_135m --sweeps=nodes,prompt --json=growth.json

One thing grows, the rest is a round of `bench_round.py`'s W4 (8 questions of 256 tokens, 8 completions of 32) of
one node of the model. Cost is what a unit takes (a node, a completion, a prompt token, a parameter) beside what it
takes at the smallest size: 1 means in proportion. The last sweep plays many rounds in one process, where neither time
nor memory may grow.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` is not installed

from scripts.bench.floor import parameters
from scripts.bench.processes import BenchError, names_of, run_json, say
from scripts.bench.workloads import DTYPES, MODELS

SWEEPS = {
    "nodes": (1, 2, 4, 8, 16, 32, 64),
    "group_size": (2, 4, 8, 16, 32, 64),
    "prompt": (64, 128, 256, 512, 1024, 2048),
    "model": ("1m", "10m", "smollm2_135m", "qwen25_05b"),
    "rounds": (500,),
}


def main() -> None:
    """Runs the sweeps and prints a table of each; exit code 1 if a run failed."""
    options = _options()
    results: dict[str, list[dict[str, Any]]] = {}
    try:
        for sweep in options.sweeps:
            results[sweep] = rounds(options) if sweep == "rounds" else grow(options, sweep)
    except BenchError as error:
        sys.exit(f"error: {error}")
    print("\n\n".join(table(sweep, rows) for sweep, rows in results.items()))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


def grow(options: argparse.Namespace, sweep: str) -> list[dict[str, Any]]:
    """Returns one row for each size: `size`, median `seconds`, `cost` of a unit beside the first, `peak_bytes`."""
    rows: list[dict[str, Any]] = []
    for size in SWEEPS[sweep]:
        run = _round(options, f"--{sweep}={size}", f"--runs={options.runs}")
        seconds = statistics.median(run["seconds"])
        units = parameters(MODELS[size]) if isinstance(size, str) else size
        first = rows[0] if rows else {"seconds": seconds, "units": units}
        cost = (seconds / units) / (first["seconds"] / first["units"])
        rows.append({"size": size, "units": units, "seconds": seconds, "cost": cost, "peak_bytes": run["peak_bytes"]})
        say(f"{sweep} {size}: {seconds:.3f} s")
    return rows


def rounds(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the median round and the peak of memory at the beginning and at the end of many."""
    (count,) = SWEEPS["rounds"]
    few, many = (_round(options, f"--runs={runs}") for runs in (count // 10, count))
    tenth = count // 10
    parts = {f"first {tenth}": few["seconds"], f"last {tenth} of {count}": many["seconds"][-tenth:]}
    peaks = few["peak_bytes"], many["peak_bytes"]
    medians = [statistics.median(seconds) for seconds in parts.values()]
    return [
        {"size": name, "seconds": seconds, "cost": seconds / medians[0], "peak_bytes": peak}
        for name, seconds, peak in zip(parts, medians, peaks, strict=True)
    ]


def table(sweep: str, rows: list[dict[str, Any]]) -> str:
    """Returns one sweep as a table."""
    lines = [f"| {sweep} | median s | cost of a unit | peak GiB |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        peak = row["peak_bytes"] / 2**30
        lines.append(f"| {row['size']} | {row['seconds']:.3f} | {row['cost']:.2f} | {peak:.2f} |")
    return "\n".join(lines)


def _round(options: argparse.Namespace, *more: str) -> dict[str, Any]:
    common = ["--contender=ours", "--workload=W4", f"--dtype={options.dtype}", f"--device={options.device}"]
    common.append("--micro_batch_groups=1")  # at any size, so that nothing but the size changes
    return run_json("scripts.bench.contender", [*common, f"--model={options.model}", *more])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--model", choices=MODELS, default="1m", help="whose dimensions, where they do not grow")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--sweeps", type=names_of(SWEEPS), default=list(SWEEPS), help=",".join(SWEEPS))
    parser.add_argument("--runs", type=int, default=5, help="timed rounds of each size")
    parser.add_argument("--json", default="", help="file for everything measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
