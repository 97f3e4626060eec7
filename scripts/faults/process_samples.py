"""What processes hold over time, read from /proc: resident memory, descriptors, threads, children."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

PROC = Path("/proc")
ELASTIC_POOLS = frozenset({"ts_pool_worker"})  # of the library that writes checkpoints: gone again when idle


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One look at one process.

    Attributes:
        at_s: seconds since the first look of the series.
        process: its name in the series.
        rss_mib: resident memory of the process itself.
        descriptors: open files, sockets and pipes.
        threads: of the process, without those of `ELASTIC_POOLS`.
        children: processes below it, at any depth.
        children_rss_mib: their resident memory, added up.
    """

    at_s: float
    process: str
    rss_mib: float
    descriptors: int
    threads: int
    children: int
    children_rss_mib: float


def look(process: str, pid: int, at_s: float) -> Sample:
    """Returns what a running process holds now; raises ProcessLookupError if it has ended."""
    try:
        status = _status(pid)
        descriptors = len(list((PROC / str(pid) / "fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError, KeyError) as error:  # a zombie has no memory to show
        raise ProcessLookupError(f"{process}: process {pid} has ended") from error
    children_rss: list[float] = []
    for child in descendants(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, KeyError):
            children_rss.append(_mib(_status(child)))
    return Sample(
        at_s=at_s,
        process=process,
        rss_mib=_mib(status),
        descriptors=descriptors,
        threads=_threads(pid),
        children=len(children_rss),
        children_rss_mib=sum(children_rss),
    )


def rss_mib(pid: int) -> float:
    """Returns the resident memory of a running process; raises ProcessLookupError if it has ended."""
    return look("", pid, 0.0).rss_mib


def peak_mib(pid: int) -> float:
    """Returns the most memory that a running process has held so far; raises ProcessLookupError if it has ended."""
    try:
        return int(_status(pid)["VmHWM"].split()[0]) / 1024
    except (FileNotFoundError, KeyError) as error:
        raise ProcessLookupError(f"process {pid} has ended") from error


def descendants(pid: int) -> list[int]:
    """Returns the processes below `pid`, at any depth."""
    below: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pid_above = int(_stat(int(folder.name))[1])
                below.setdefault(pid_above, []).append(int(folder.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def began(pid: int) -> str | None:
    """Returns when a process started, in clock ticks, which tells two of one id apart; None if it has ended."""
    try:
        stat = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if stat[0] == "Z" else stat[19]


def started_by(pid: int) -> set[tuple[int, str]]:
    """Returns the processes below `pid`, at any depth, each with the time of its start: ids are used again."""
    return {(child, start) for child in descendants(pid) if (start := began(child)) is not None}


def still_there(processes: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """Returns those of `started_by` that have not ended."""
    return {(pid, start) for pid, start in processes if began(pid) == start}


def cpu_s(pid: int) -> float:
    """Returns the CPU time in seconds that a process has used, without its children."""
    return sum(map(int, _stat(pid)[11:13])) / os.sysconf("SC_CLK_TCK")


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Writes a series as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [each.name for each in fields(Sample)])
        writer.writeheader()
        writer.writerows(asdict(sample) for sample in samples)


def quantile(samples: Sequence[Sample], from_s: float, to_s: float, what: str, share: float) -> float:
    """Returns a quantile of one column over the samples of an interval; NaN without any."""
    values = [getattr(sample, what) for sample in samples if from_s <= sample.at_s <= to_s]
    return float(np.quantile(values, share)) if values else float("nan")


def drift(samples: Sequence[Sample], from_s: float, what: str) -> float:
    """Returns by how much one column has risen since `from_s`: the median slope between two looks, times the span.

    For counts: pools of threads and connections grow and shrink by a few all the time, which moves
    a median now and then, but no more slopes up than down. NaN without two looks.
    """
    since = [sample for sample in samples if sample.at_s >= from_s]
    slopes = [
        (getattr(later, what) - getattr(earlier, what)) / (later.at_s - earlier.at_s)
        for earlier, later in itertools.combinations(since, 2)
    ]
    return float(statistics.median(slopes)) * (since[-1].at_s - since[0].at_s) if slopes else float("nan")


def _stat(pid: int) -> list[str]:
    """Returns what /proc says of a process in one line, from its state on."""
    # The name in brackets before it may hold anything, spaces and brackets included.
    return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _status(pid: int) -> dict[str, str]:
    lines = (PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status["VmRSS"]  # noqa: B018 (absent of a process that has ended and was not waited for)
    return status


def _threads(pid: int) -> int:
    names: list[str] = []
    for task in (PROC / str(pid) / "task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            names.append((task / "comm").read_text(errors="replace").strip())
    return sum(name not in ELASTIC_POOLS for name in names)


def _mib(status: dict[str, str]) -> float:
    return int(status["VmRSS"].split()[0]) / 1024
