"""Trackers: where the numbers of a run go, and how they are read back.

A metric is named `area/name_unit`; a line of `metrics.jsonl` holds the metrics of one round of one
node, or of the swarm where `node` is null. The file is the record of a run: the report, plots and
scripts read nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol, SupportsFloat

from sapo_jax.workdir import replace_file


@contextlib.contextmanager
def _as_if_not_installed(name: str) -> Iterator[None]:
    """Lets what is imported inside the block do without a library, unless that is loaded already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


# Where torch is installed, tensorboardX loads it, for tensors that it is never given here: seconds of every start.
with _as_if_not_installed("torch"):
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import scalar

FROM = "groups/from/"  # begins the names of the counts of external rollouts by who made them

_RESERVED = ("round", "node")
_FLUSH_EVERY_S = 10.0  # how far TensorBoard may lag behind


class MetricsError(ValueError):
    """A metrics file that cannot be read; the message names file and line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One logged line: the metrics of a node, or of the swarm where `node` is None."""

    round: int
    node: int | None
    metrics: Mapping[str, float]


class Tracker(Protocol):
    """Takes the metrics of a run as they come.

    `node` is the node's index in its host, None for the swarm. Several calls with the same round
    and node are fine as long as they carry different metrics.
    """

    def log(self, round: int, node: int | None, metrics: Mapping[str, SupportsFloat]) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """Appends a JSON object a line; every line is on its way to the disk when `log` returns."""

    def __init__(self, path: str | Path, first_round: int = 0) -> None:
        """Opens `path` and drops its lines from `first_round` on.

        Args:
            path: made if it is not there; its directory must be.
            first_round: the first round this run is going to log. A run killed after its last
                checkpoint has logged rounds that are now repeated.

        Raises:
            MetricsError: the file holds something else than metrics.
            OSError: it cannot be written; names the file.
        """
        self._path = Path(path)
        if self._path.is_file():
            kept = [record for record in read_metrics(self._path) if record.round < first_round]
            replace_file(self._path, "".join(map(_line, kept)))
        self._file: IO[str] = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run lasts)

    def log(self, round: int, node: int | None, metrics: Mapping[str, SupportsFloat]) -> None:
        line = _line(_record(round, node, metrics))
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as err:
            raise OSError(err.errno, err.strerror, str(self._path)) from err

    def close(self) -> None:
        self._file.close()


class TensorBoardTracker:
    """Writes TensorBoard events, a run `swarm` and a run `node_NN` for each node below `directory`.

    Writing happens inside `log`. (The library's own writer queues events for a thread; when a full
    disk ends that thread, the queue fills and whoever logs waits forever.)
    """

    def __init__(self, directory: str | Path, first_round: int = 0) -> None:
        """Args as in `JsonlTracker`: events of an earlier process from `first_round` on are purged."""
        self._directory = Path(directory)
        self._first_round = first_round
        self._writers: dict[int | None, RecordWriter] = {}
        self._flushed_s = time.monotonic()

    def log(self, round: int, node: int | None, metrics: Mapping[str, SupportsFloat]) -> None:
        record = _record(round, node, metrics)
        values = [value for name, number in record.metrics.items() for value in scalar(name, number).value]
        with self._naming_directory():
            writer = self._writer(node)
            writer.write(_event(step=round, summary={"value": values}))
            if time.monotonic() - self._flushed_s >= _FLUSH_EVERY_S:  # flushing waits for the disk
                self._flushed_s = time.monotonic()
                for each in self._writers.values():
                    each.flush()

    def close(self) -> None:
        writers = list(self._writers.values())
        self._writers.clear()
        with self._naming_directory(), contextlib.ExitStack() as stack:
            for writer in writers:  # all of them, even if one fails
                stack.callback(writer.close)

    def _writer(self, node: int | None) -> RecordWriter:
        if node not in self._writers:
            directory = self._directory / ("swarm" if node is None else f"node_{node:02d}")
            directory.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time_ns() // 10**9}.{platform.node()}.{os.getpid()}"
            writer = self._writers[node] = RecordWriter(str(directory / name))
            writer.write(_event(file_version="brain.Event:2"))
            # What an earlier process logged from this round on is void.
            writer.write(_event(step=self._first_round, session_log=SessionLog(status=SessionLog.START)))
        return self._writers[node]

    @contextlib.contextmanager
    def _naming_directory(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise OSError(err.errno, err.strerror, str(self._directory)) from err


class CompositeTracker:
    """Hands everything to several trackers, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, round: int, node: int | None, metrics: Mapping[str, SupportsFloat]) -> None:
        for tracker in self._trackers:
            tracker.log(round, node, metrics)

    def close(self) -> None:
        errors = []
        for tracker in self._trackers:
            try:
                tracker.close()
            except OSError as err:  # the others hold files too
                errors.append(err)
        if errors:
            raise errors[0]


def read_metrics(path: str | Path) -> list[Record]:
    """Returns the records of a `metrics.jsonl`, in file order; null becomes NaN.

    A last line that was cut while it was written is left out.

    Raises:
        MetricsError: another line is not one of ours.
        OSError: the file cannot be read.
    """
    return list(stream_metrics(path))


def stream_metrics(path: str | Path) -> Iterator[Record]:
    """Yields what `read_metrics` returns, one record at a time; a long run has hundreds of megabytes of them."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n") and line.strip():
                yield parse_line(line, f"{path}, line {number}")


def parse_line(line: str | bytes, where: str) -> Record:
    """Returns the record of one line of a `metrics.jsonl`; raises MetricsError, which says `where` it stands."""
    try:
        raw = json.loads(line)
        round, node = raw.pop("round"), raw.pop("node")
        return _record(round, node, {name: math.nan if value is None else value for name, value in raw.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise MetricsError(f"{where}: not a line of metrics: {err}") from err


def _record(round: int, node: int | None, metrics: Mapping[str, SupportsFloat]) -> Record:
    for name in _RESERVED:
        if name in metrics:
            raise ValueError(f"metric {name!r}: the name is taken by the line's own field")
    values = {name: float(value) for name, value in metrics.items()}
    return Record(round=int(round), node=None if node is None else int(node), metrics=MappingProxyType(values))


def _event(**fields: Any) -> bytes:
    return Event(wall_time=time.time(), **fields).SerializeToString()


def _line(record: Record) -> str:
    # JSON has no NaN or infinity; null keeps a column numeric for whoever reads it.
    values = {name: value if math.isfinite(value) else None for name, value in record.metrics.items()}
    return json.dumps({"round": record.round, "node": record.node, **values}, allow_nan=False) + "\n"
