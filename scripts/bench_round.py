r"""Times sampling, update, scoring and a whole round: ours and torch's, in turn, in one run.

    python scripts/bench_round.py                             CPU, all workloads; an hour and a half on two cores
    python scripts/bench_round.py --workloads=W4 --repeats=1 --json=bench.json
    python scripts/bench_round.py --device=gpu --nodes=8 --runs=10 --write=BENCHMARKS.md

Workloads, one node unless `--nodes` says otherwise (8 questions, 8 completions each, SmolLM2-135M's
dimensions, random weights): W1 sampling, prompt 128, 128 new tokens; W2 the update on 128 + 128 tokens;
W3 their log-probs; W4 a round, prompt 256, 32 new tokens; W4_470 the same with prompts of 470.

Contenders: ours; reference, which is how the paper's public code does it in torch; best_torch, which is
torch as its users write it (one `generate`, micro-batches, bfloat16 where it helps); and, when asked for, the
libraries trl and tunix. The table says what each does otherwise: above all, only ours computes a prompt once for
all its completions. All get the same weights, prompts and completions, and log-probs, gradient norms and what an
update changes must agree. Each has a process of its own, the same least time to be measured in, and contenders take
turns, so what the machine does meanwhile falls on all. Ratios are times per node: above 1 ours is faster. Stopped by
Ctrl-C or a termination signal, it reports what it has measured so far.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import signal
import statistics
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` is not installed

from scripts.bench.contender import CONTENDERS, USUAL
from scripts.bench.processes import BenchError, names_of, run_json, say
from scripts.bench.report import markdown, middle_seconds, picture
from scripts.bench.workloads import DTYPES, MODELS, WORKLOADS, Kind
from scripts.measured_on import machine, revision
from scripts.peers.packages import missing

# How far numbers may differ between implementations, relative; log-probs of tokens, relative to their deviation.
AGREEMENT = {"float32": 1e-3, "bfloat16": 5e-2}
# One step of Adam at a rate of 1e-6 from 1.0, rounded to float32 (1.2e-7): is there a step, and is it one of Adam's?
MOVED = 0.1
COMPILED = {"ours", "tunix"}  # whose first run is no measure; torch's two forms warm up while they prepare


def main() -> None:
    """Runs all, prints the table, writes the files; exit code 1 if somebody failed or disagreed."""
    options = _options()
    for stop in (signal.SIGINT, signal.SIGTERM):  # in the background, too, where a shell has the first one ignored
        signal.signal(stop, signal.default_int_handler)
    try:
        result = measure(options)
    except BenchError as error:
        sys.exit(f"error: {error}")
    text = markdown(result)
    print(text)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.write:
        Path(options.write).write_text(text)
    if options.picture:
        picture(result, Path(options.picture))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns everything that was measured, JSON-ready: `runs`, `ratios`, `floors`, and what it depends on."""
    for contender in options.contenders:
        if lack := missing(contender):
            raise BenchError(lack)
    if set(options.contenders) - COMPILED and find_spec("torch") is None:
        raise BenchError("no torch here, which the others need: pip install -e '.[baseline]' -c constraints.txt")
    floors = {dtype: _floor(options, dtype) for dtype in options.dtypes}  # also says whether there is such a device
    cases = list(itertools.product(options.workloads, options.dtypes, options.contenders))
    runs: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    done = 0
    try:
        for repeat in range(options.repeats):
            for workload, dtype, contender in cases:
                say(f"{repeat + 1}/{options.repeats} {workload} {dtype} {contender}")
                run = _contend(options, workload, dtype, contender)
                say(f"  {statistics.median(run['seconds']):.3f} s, {run['peak_bytes'] / 2**30:.2f} GiB")
                runs.setdefault(workload, {}).setdefault(dtype, {}).setdefault(contender, []).append(run)
                require_agreement(workload, dtype, runs[workload][dtype])
                done += 1
    except KeyboardInterrupt:
        if not runs:
            raise BenchError("stopped before anything was measured") from None
    return {
        "command": " ".join(["scripts/bench_round.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "revision": revision(),
        "machine": machine(),
        "versions": dict(_versions()),
        "model": options.model,
        "nodes": options.nodes,
        "seed": options.seed,
        "processes_done": done,
        "processes_asked": options.repeats * len(cases),
        "runs": runs,
        "floors": floors,
        "ratios": ratios(runs, options.nodes),
    }


def ratios(runs: dict[str, Any], nodes: int) -> dict[str, Any]:
    """Returns [workload][dtype][other] = the other's median time over ours per node; also `fastest` over dtypes."""
    found: dict[str, Any] = {}
    for workload, by_dtype in runs.items():
        medians = {
            (dtype, contender): middle_seconds(contender, each, nodes)
            for dtype, by_contender in by_dtype.items()
            for contender, each in by_contender.items()
        }
        others = {contender for _, contender in medians} - {"ours"}
        found[workload] = {
            dtype: {other: medians[dtype, other] / medians[dtype, "ours"] for other in others}
            for dtype in by_dtype
            if (dtype, "ours") in medians
        }
        ours = min((s for (_, contender), s in medians.items() if contender == "ours"), default=math.nan)
        for other in others:
            found[workload][other] = min(s for (_, contender), s in medians.items() if contender == other) / ours
    return found


def require_agreement(workload: str, dtype: str, by_contender: dict[str, list[dict[str, Any]]]) -> None:
    """Raises BenchError if the last process of one contender found other numbers than that of another."""
    if WORKLOADS[workload].kind is Kind.ROUND:
        return  # each has learned from what it sampled itself
    last = {contender: each[-1]["checked"] for contender, each in by_contender.items()}
    for name in {name: None for checked in last.values() for name in checked}:
        values = {contender: np.atleast_1d(checked[name]) for contender, checked in last.items() if name in checked}
        all_values = np.stack(list(values.values()))
        apart = np.max(np.ptp(all_values, axis=0))
        size = np.std(all_values[0]) if all_values.shape[1] > 1 else np.max(np.abs(all_values))
        limit = MOVED if name == "moved" else AGREEMENT[dtype]
        if not np.isfinite(all_values).all() or apart > limit * size:
            few = {contender: value[:4].tolist() for contender, value in values.items()}
            raise BenchError(
                f"{workload} {dtype}: {name} differs by {apart:.2g}, more than {limit} of {size:.2g}: {few}"
            )


def _contend(options: argparse.Namespace, workload: str, dtype: str, contender: str) -> dict[str, Any]:
    arguments = [f"--contender={contender}", f"--workload={workload}", f"--dtype={dtype}"]
    arguments += [f"--model={options.model}", f"--device={options.device}", f"--seed={options.seed}"]
    arguments += [f"--runs={options.runs}", f"--seconds={options.seconds}"]
    if contender == "ours":
        arguments += [f"--nodes={options.nodes}", *options.ours]
    elif options.device == "cpu" and contender not in COMPILED:
        arguments += ["--warm_runs=0"]
    return run_json("scripts.bench.contender", arguments)


def _floor(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    arguments = [f"--dtype={dtype}", f"--device={options.device}", f"--model={options.model}"]
    return run_json("scripts.bench.floor", [*arguments, *(f"--workload={name}" for name in options.workloads)])


def _versions() -> Iterator[tuple[str, str]]:
    for package in ("jax", "flax", "torch", "transformers", "numpy", "trl", "google-tunix"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--model", choices=MODELS, default="smollm2_135m", help="whose dimensions")
    parser.add_argument("--nodes", type=int, default=1, help="of ours, at the same time")
    parser.add_argument("--workloads", type=names_of(WORKLOADS), default=list(WORKLOADS), help=",".join(WORKLOADS))
    parser.add_argument("--contenders", type=names_of(CONTENDERS), default=list(USUAL), help=",".join(CONTENDERS))
    parser.add_argument("--dtypes", type=names_of(DTYPES), default=list(DTYPES), help=",".join(DTYPES))
    parser.add_argument("--repeats", type=int, default=2, help="processes of each contender")
    parser.add_argument("--runs", type=int, default=1, help="timed runs in each process, at least")
    parser.add_argument("--seconds", type=float, default=20.0, help="timed in each process, at least: as many runs")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    parser.add_argument("--json", default="", help="file for everything measured")
    parser.add_argument("--write", default="", help="file for the table")
    parser.add_argument("--picture", default="", help="file for the roofline (PNG)")
    parser.add_argument(
        "--ours", type=str.split, default=[], help="more options of ours, see scripts/bench/contender.py"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
