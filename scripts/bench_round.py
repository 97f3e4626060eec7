r"""Times sampling, update, scoring and a whole round: ours and torch's, in turn, in one run.

    python scripts/bench_round.py                                     CPU, all workloads, two hours on two cores
    python scripts/bench_round.py --workloads=W4 --repeats=1 --json=bench.json
    python scripts/bench_round.py --device=gpu --nodes=8 --runs=10 --write=BENCHMARKS.md

Workloads, one node unless `--nodes` says otherwise (8 questions, 8 completions each, SmolLM2-135M's
dimensions, random weights): W1 sampling, prompt 128, 128 new tokens; W2 the update on 128 + 128 tokens;
W3 their log-probs; W4 a round, prompt 256, 32 new tokens; W4_470 the same with prompts of 470.

Contenders: ours; reference, which is how the paper's public code does it in torch; best_torch, which is
torch done well; and, when asked for, the libraries trl and tunix (scripts/peers says what each does otherwise,
and the table repeats it). All get the same weights, prompts and completions, and their log-probs and gradient norms
must agree. Each run is a process of its own, and contenders take turns, so what the machine does meanwhile
falls on all. Ratios are times per node: above 1 ours is faster. Stopped by Ctrl-C or a termination signal, it reports
what it has measured so far.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import platform
import signal
import statistics
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` is not installed

from scripts.bench.contender import CONTENDERS, USUAL
from scripts.bench.processes import BenchError, names_of, run_json, say
from scripts.bench.report import markdown, picture, seconds_per_node
from scripts.bench.workloads import DTYPES, MODELS, WORKLOADS
from scripts.peers.packages import missing

# How far log-probs and gradient norms may differ between implementations, relative.
AGREEMENT = {"float32": 1e-3, "bfloat16": 5e-2}
COMPILED = {"ours", "tunix"}  # whose first run is no measure on a CPU either


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
                done += 1
    except KeyboardInterrupt:
        if not runs:
            raise BenchError("stopped before anything was measured") from None
    require_agreement(runs)
    return {
        "command": " ".join(["scripts/bench_round.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
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
            (dtype, contender): statistics.median(seconds_per_node(contender, each, nodes))
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


def require_agreement(runs: dict[str, Any]) -> None:
    """Raises BenchError if two contenders at the same work found different numbers."""
    for workload, by_dtype in runs.items():
        if WORKLOADS[workload].kind.value not in ("update", "score"):
            continue  # what was sampled differs
        for dtype, by_contender in by_dtype.items():
            checks = {contender: each[0]["checked"] for contender, each in by_contender.items()}
            for name in {name: None for check in checks.values() for name in check}:
                values = {contender: check[name] for contender, check in checks.items() if name in check}
                low, high = min(values.values()), max(values.values())
                is_finite = all(map(math.isfinite, values.values()))
                if not is_finite or high - low > AGREEMENT[dtype] * max(abs(low), abs(high)):
                    raise BenchError(f"{workload} {dtype}: {name} differs by more than {AGREEMENT[dtype]}: {values}")


def _contend(options: argparse.Namespace, workload: str, dtype: str, contender: str) -> dict[str, Any]:
    arguments = [f"--contender={contender}", f"--workload={workload}", f"--dtype={dtype}"]
    arguments += [f"--model={options.model}", f"--device={options.device}", f"--seed={options.seed}"]
    arguments += [f"--runs={options.runs}"]
    if contender == "ours":
        arguments += [f"--nodes={options.nodes}", *options.ours]
    elif options.device == "cpu" and contender not in COMPILED:
        arguments += ["--warm_runs=0"]
    return run_json("scripts.bench.contender", arguments)


def _floor(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    arguments = [f"--dtype={dtype}", f"--device={options.device}", f"--model={options.model}"]
    return run_json("scripts.bench.floor", [*arguments, *(f"--workload={name}" for name in options.workloads)])


def _machine() -> dict[str, str]:
    return {"system": platform.platform(), "python": platform.python_version(), **dict(_versions())}


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
    parser.add_argument("--repeats", type=int, default=3, help="processes of each contender")
    parser.add_argument("--runs", type=int, default=1, help="timed runs in each process")
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
