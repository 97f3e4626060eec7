"""What was measured, as a page of Markdown and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.bench.workloads import PASS_POSITIONS_CPU, WORKLOADS
from scripts.peers.packages import PEERS

# In what ours and torch's forms differ.
FORMS = {
    "ours": f"in the update up to {PASS_POSITIONS_CPU:,} positions a pass on a CPU, but at least one group, elsewhere "
    "all at once (unless --ours says otherwise); activations recomputed.",
    "reference": "one `generate` of transformers for each completion index; all rows in one update, activations "
    "recomputed; in bfloat16 autocast on float32 weights (the public code casts weights and moments, too).",
    "best_torch": "one `generate` of transformers for all completions, with weights cast to the precision; eight rows "
    "a micro-batch, activations kept, autocast, fused Adam. Not compiled, and no decode loop of our own.",
}
_MEANINGS = {"W1": "sampling", "W2": "update", "W3": "scoring", "W4": "round", "W4_470": "round"}


def seconds_per_node(contender: str, runs: Sequence[dict[str, Any]], nodes: int) -> list[float]:
    """Returns the times of all timed runs of a contender; ours does the work of so many nodes in each."""
    return [seconds / (nodes if contender == "ours" else 1) for run in runs for seconds in run["seconds"]]


def middle_seconds(contender: str, runs: Sequence[dict[str, Any]], nodes: int) -> float:
    """Returns the median of the processes' median times per node: every turn counts once, however many runs it had."""
    return statistics.median(statistics.median(seconds_per_node(contender, [run], nodes)) for run in runs)


def markdown(result: dict[str, Any]) -> str:
    """Returns the tables: every contender's time beside the floor, then the ratios."""
    floors = result["floors"]
    device = next(iter(floors.values()))["device"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        f"`python {result['command']}`, {result['date']}, revision {result['revision']}, seed {result['seed']}.",
        f"On {device}: {result['machine']}; {versions}.",
        f"Dimensions of {result['model']}, random weights; ours with {result['nodes']} node(s) at a time, times are "
        "per node. What each workload is: `scripts/bench_round.py`.",
        "",
    ]
    if result["processes_done"] < result["processes_asked"]:
        lines += [f"Stopped after {result['processes_done']} of {result['processes_asked']} processes.", ""]
    for dtype, floor in floors.items():
        rates = floor["rates"]
        lines.append(
            f"Floor in {dtype}: what the work needs at XLA's {rates['flops_per_s'] / 1e9:,.0f} GFLOP/s in one large "
            f"product and {rates['bytes_per_s'] / 1e9:,.0f} GB/s over a long array."
        )
    lines += ["", "Before the first timed run a process builds its model and warms up, and compiles what it compiles."]
    lines += [
        "",
        "| workload | precision | contender | median s | least | most | tokens/s | x floor | before s | GiB |",
    ]
    lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for workload, by_dtype in result["runs"].items():
        shape = WORKLOADS[workload]
        name = f"{workload} {_MEANINGS[workload]} {shape.prompt} + {shape.completion}"
        for dtype, by_contender in by_dtype.items():
            floor_s = floors[dtype]["workloads"][workload]["seconds"]
            for contender, runs in by_contender.items():
                seconds = seconds_per_node(contender, runs, result["nodes"])
                middle = middle_seconds(contender, runs, result["nodes"])
                peak = max(run["peak_bytes"] for run in runs)
                before = statistics.median(run["before_first_s"] for run in runs)
                lines.append(
                    f"| {name} | {dtype} | {contender} | {middle:.3f} | {min(seconds):.3f} | {max(seconds):.3f} "
                    f"| {shape.tokens / middle:,.0f} | {middle / floor_s:.1f} | {before:.0f} | {peak / 2**30:.2f} |"
                )
    lines += _notes(result)
    others = sorted({other for row in result["ratios"].values() for other, value in row.items() if _is_number(value)})
    dtypes = list(floors)
    lines += [
        "",
        "How many times faster ours is than each, in the same precision and each in its faster one; in brackets the",
    ]
    lines += ["least and most of the single turns:", ""]
    lines.append("| workload | than | " + " | ".join([*dtypes, "faster one"]) + " |")
    lines.append("| --- | --- | " + " | ".join("---:" for _ in [*dtypes, ""]) + " |")
    for workload, row in result["ratios"].items():
        for other in others:
            cells = [
                f"{row[dtype][other]:.2f}{_spread(result, workload, dtype, other)}"
                if other in row.get(dtype, {})
                else ""
                for dtype in dtypes
            ]
            faster = f"{row[other]:.2f}" if other in row else ""
            lines.append(f"| {workload} | {other} | " + " | ".join([*cells, faster]) + " |")
    return "\n".join(lines) + "\n"


def _spread(result: dict[str, Any], workload: str, dtype: str, other: str) -> str:
    """Returns the least and the most ratio of a turn, in which both had one process; "" if there was one turn."""
    by_contender = result["runs"][workload][dtype]
    turns = list(zip(by_contender[other], by_contender["ours"], strict=False))
    found = [
        middle_seconds(other, [theirs], result["nodes"]) / middle_seconds("ours", [ours], result["nodes"])
        for theirs, ours in turns
    ]
    return f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""


def _notes(result: dict[str, Any]) -> list[str]:
    """Returns in what the work of each contender differs."""
    lines = []
    for workload in result["runs"]:
        shared, repeated = (WORKLOADS[workload].positions(is_prompt_shared=shared) for shared in (True, False))
        lines.append(f"{workload} {shared:,} and {repeated:,}")
    notes = FORMS | {name: peer.note for name, peer in PEERS.items()}
    return [
        "",
        "Ours computes a prompt once for all its completions, the others once for each, so a pass over all sequences "
        f"has different numbers of positions: {'; '.join(lines)}.",
        *(line for name in _contenders(result) if name in notes for line in ("", f"{name}: {notes[name]}")),
    ]


def picture(result: dict[str, Any], path: Path) -> None:
    """Draws the roofline: FLOP/s of every contender over the FLOPs that a workload asks for each byte."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dtypes = list(result["floors"])
    figure, all_axes = pyplot.subplots(1, len(dtypes), figsize=(5.5 * len(dtypes), 4.5), squeeze=False, sharey=True)
    markers = dict(zip(_contenders(result), "osv^D", strict=False))
    for axes, dtype in zip(all_axes[0], dtypes, strict=True):
        floor = result["floors"][dtype]
        rates = floor["rates"]
        needs = {name: work["flops"] / work["bytes"] for name, work in floor["workloads"].items()}
        left, right = min(needs.values()) / 3, max(needs.values()) * 3
        ridge = rates["flops_per_s"] / rates["bytes_per_s"]
        xs = sorted({left, *([ridge] if left < ridge < right else []), right})
        axes.plot(xs, [min(rates["flops_per_s"], x * rates["bytes_per_s"]) for x in xs], color="black", linewidth=1)
        for workload, by_dtype in result["runs"].items():
            for contender, runs in by_dtype.get(dtype, {}).items():
                middle = middle_seconds(contender, runs, result["nodes"])
                rate = floor["workloads"][workload]["flops"] / middle
                colour = f"C{list(result['runs']).index(workload)}"
                axes.plot(needs[workload], rate, markers[contender], color=colour, label=f"{workload} {contender}")
        axes.set(xscale="log", yscale="log", xlabel="FLOPs asked for, a byte", title=dtype)
    all_axes[0][0].set_ylabel("FLOP/s done of those asked for")
    all_axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)


def _contenders(result: dict[str, Any]) -> list[str]:
    found = {name: None for by_dtype in result["runs"].values() for each in by_dtype.values() for name in each}
    return list(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
