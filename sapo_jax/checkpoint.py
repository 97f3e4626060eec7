"""Checkpoints: device arrays and host state of one round, saved together or not at all.

Owns the directory `checkpoints/` of a workdir. Orbax writes each checkpoint under a temporary name
and renames it once everything is on disk, so a killed or failed save leaves the earlier ones as
they were. This module adds what a resumed run needs besides: a description of every array, checked
before restoring, the retention rule (the last N and the best), and one clear error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from sapo_jax.errors import first_line
from sapo_jax.memory_copy import copy_to_memory

_ARRAYS = "arrays"  # the two items of a checkpoint
_HOST = "host"
_PART_SUFFIX = ".orbax-checkpoint-tmp"  # ends the name of a directory that is being written
_SHOWN = 5  # how many differing arrays an error names


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names its directory."""


class Restored(NamedTuple):
    """What `Checkpointer.restore` returns."""

    round: int
    arrays: Any
    host_state: dict[str, Any]


class Checkpointer:
    """The checkpoints of one directory; `save` returns when the data is on disk, or is copied to be written.

    A write in the background needs a copy, since the learner donates its state to the next update.
    One write is under way at a time; until it ends, the other methods know nothing of its round.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_last: int = 2,
        keep_best: bool = True,
        read_only: bool = False,
        background: bool = False,
    ) -> None:
        """Opens `directory` and removes what an interrupted save left there.

        Args:
            directory: made if missing, unless `read_only`.
            keep_last: newest checkpoints that are kept, at least 1.
            keep_best: also keep the one with the highest `best_metric`.
            read_only: change nothing; safe beside a run that is writing there.
            background: write in a thread what `save` is given, where memory holds a copy of it. What fails there
                is raised by the next `save`, `restore`, `wait` or `close`.

        Raises:
            ValueError: `keep_last` below 1.
            CheckpointError: the directory cannot be opened.
        """
        if keep_last < 1:
            raise ValueError(f"keep_last = {keep_last}: must be at least 1")
        self._directory = Path(directory).absolute()
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._read_only = read_only
        # Without handlers it reads what is said about a checkpoint and nothing of its items: describing the
        # arrays takes memory that tensorstore 0.1.86 never frees (Spec.to_json), megabytes with every save.
        self._step_reader = ocp.CompositeCheckpointHandler()
        if read_only and not self._directory.is_dir():
            raise CheckpointError(f"{self._directory}: no such checkpoint directory")
        self._manager = self._open()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._writing: Future[None] | None = None

    @property
    def directory(self) -> Path:
        return self._directory

    def save(self, round: int, arrays: Any, host_state: Mapping[str, Any], best_metric: float | None = None) -> None:
        """Writes one checkpoint, then drops those that are neither recent nor the best.

        A round that is already saved is left as it is.

        Args:
            round: rounds done; the checkpoint's name.
            arrays: any pytree of arrays.
            host_state: JSON-ready values (string keys; tuples come back as lists).
            best_metric: higher is better; None or a non-finite number never counts as best.

        Raises:
            TypeError: `host_state` is not JSON-ready.
            CheckpointError: the write, or one before it in the background, failed, for example on a full disk;
                earlier checkpoints are intact.
        """
        if self._read_only:
            raise CheckpointError(f"{self._directory}: opened read-only, round {round} was not saved")
        self.wait()
        try:
            state = json.loads(json.dumps(host_state))  # as it is now, whatever becomes of it during the write
        except TypeError as err:
            raise TypeError(f"host_state of round {round} is not JSON-ready: {err}") from err
        if round in self.rounds():
            return
        record = {"round": round, "leaves": _describe(arrays), "state": state}
        metric = None if best_metric is None or not math.isfinite(best_metric) else float(best_metric)
        copy = None if self._writer is None else copy_to_memory(arrays)
        if self._writer is None or copy is None:
            self._write(round, arrays, record, metric)
        else:
            self._writing = self._writer.submit(self._write, round, copy, record, metric)

    def restore(self, round: int | None, target: Any, *, partial: bool = False) -> Restored:
        """Returns the checkpoint of `round`, or the latest if None.

        Args:
            round: rounds done when it was saved.
            target: arrays or `jax.ShapeDtypeStruct`s of the saved structure. Each array comes back
                with its target's sharding, on the first device if it has none; numpy stays numpy.
            partial: `target` may leave out dict entries, which are then not read.

        Raises:
            CheckpointError: no such checkpoint, an unreadable one, or one that does not fit
                `target`; the arrays that differ are named.
        """
        self.wait()
        found = self.latest_round() if round is None else round
        if found is None or found not in self.rounds():
            saved = ", ".join(map(str, self.rounds())) or "none"
            raise CheckpointError(
                f"{self._directory}: no {'' if round is None else f'round {round} '}checkpoint (saved rounds: {saved})"
            )
        record = self._read(found, _HOST, ocp.args.JsonRestore())
        problems = _differences(record["leaves"], _describe(target), partial)
        if problems:
            more = f"; {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            listed = "; ".join(problems[:_SHOWN]) + more
            raise CheckpointError(f"{self._directory / str(found)}: does not fit this model: {listed}")
        abstract = jax.tree.map(_abstract, target)
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        arguments = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=partial)
        arrays = self._read(found, _ARRAYS, arguments)
        return Restored(round=found, arrays=arrays, host_state=record["state"])

    def rounds(self) -> tuple[int, ...]:
        """Returns the rounds of the complete checkpoints, rising."""
        return tuple(sorted(r for r in self._manager.all_steps() if self._metadata(r) is not None))

    def damaged_rounds(self) -> tuple[int, ...]:
        """Returns the rounds whose checkpoint is there in parts only, rising."""
        return tuple(sorted(set(self._manager.all_steps()) - set(self.rounds())))

    def latest_round(self) -> int | None:
        """Returns the newest complete checkpoint's round, or None."""
        return max(self.rounds(), default=None)

    def best_round(self) -> int | None:
        """Returns the round with the highest metric (the newest of equals), or None if none has one."""
        scored = [
            (m["best_metric"], r) for r in self.rounds() if (m := self._metadata(r)) and m["best_metric"] is not None
        ]
        return max(scored)[1] if scored else None

    def wait(self) -> None:
        """Returns when nothing is being written; raises the CheckpointError of a write in the background."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Frees what is held, after `wait`."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, round: int, arrays: Any, record: Mapping[str, Any], metric: float | None) -> None:
        try:
            if round in self._manager.all_steps():  # an incomplete one of this name is in the way
                self._manager.delete(round)
            with _quiet_logs():
                self._manager.save(
                    round,
                    args=ocp.args.Composite(**{_ARRAYS: ocp.args.PyTreeSave(arrays), _HOST: ocp.args.JsonSave(record)}),
                    custom_metadata={"best_metric": metric},
                    force=True,
                )
                self._manager.wait_until_finished()
            self._prune()
        except Exception as err:  # orbax and tensorstore raise every kind, plain Exception included
            raise CheckpointError(self._save_failure(round, arrays, err)) from err

    def _open(self) -> ocp.CheckpointManager:
        try:
            if not self._read_only:
                self._directory.mkdir(parents=True, exist_ok=True)
                for part in self._directory.glob(f"*{_PART_SUFFIX}*"):  # orbax would do so too, but later
                    shutil.rmtree(part)
            with _quiet_logs():
                options = ocp.CheckpointManagerOptions(
                    create=False,
                    read_only=self._read_only,
                    cleanup_tmp_directories=not self._read_only,
                    enable_async_checkpointing=False,
                    multiprocessing_options=_this_process_alone(),
                )
                # Trained float32 weights compress by 8 % only, and zstd makes saving three times slower.
                arrays = ocp.PyTreeCheckpointHandler(
                    use_compression=False, multiprocessing_options=_this_process_alone()
                )
                handlers = {
                    _ARRAYS: arrays,
                    _HOST: ocp.JsonCheckpointHandler(multiprocessing_options=_this_process_alone()),
                }
                return ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)
        except (OSError, ValueError) as err:
            raise CheckpointError(f"{self._directory}: cannot be opened for checkpoints: {first_line(err)}") from err

    def _read(self, round: int, item: str, arguments: Any) -> Any:
        try:
            with _quiet_logs():
                return self._manager.restore(round, args=ocp.args.Composite(**{item: arguments}))[item]
        except Exception as err:  # orbax and tensorstore raise every kind, plain Exception included
            raise CheckpointError(f"{self._directory / str(round)}: unreadable checkpoint: {first_line(err)}") from err

    def _metadata(self, round: int) -> dict[str, Any] | None:
        """Returns the custom metadata of a complete checkpoint, None for an incomplete one.

        Renaming is atomic, but a deletion that was killed or a copy that was cut short leaves a
        directory of the final name with parts missing.
        """
        path = self._directory / str(round)
        if not (path / _ARRAYS).is_dir() or not (path / _HOST).is_dir():
            return None
        try:
            with _quiet_logs():
                metadata = self._step_reader.metadata(path)  # pyright: ignore[reportArgumentType] # any path will do
        except (OSError, ValueError, KeyError):
            return None
        if metadata.commit_timestamp_nsecs is None:
            return None
        return {"best_metric": None, **(metadata.custom_metadata or {})}

    def _prune(self) -> None:
        rounds = self.rounds()
        kept = set(rounds[-self._keep_last :])
        best = self.best_round()
        if self._keep_best and best is not None:
            kept.add(best)
        for round in rounds:
            if round not in kept:
                self._manager.delete(round)

    def _save_failure(self, round: int, arrays: Any, err: Exception) -> str:
        needed = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(arrays))
        with contextlib.suppress(CheckpointError):
            self._manager = self._open()  # removes the part that was written, which frees its space
        saved = ", ".join(map(str, self.rounds())) or "none"
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self._directory).free
            return (
                f"{self._directory}: saving round {round} failed ({first_line(err)}); it needs about "
                f"{needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free; intact checkpoints: {saved}"
            )
        return f"{self._directory}: saving round {round} failed ({first_line(err)})"


def _this_process_alone() -> ocp.options.MultiprocessingOptions:
    """Returns options for checkpoints that one process writes and reads, also where it is one of a group."""
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})


def _describe(tree: Any) -> dict[str, str]:
    """Returns the path of every leaf with its dtype and shape, such as "float32[2,3]"."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else np.asarray(leaf)
        described[jax.tree_util.keystr(path)] = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    return described


def _differences(saved: Mapping[str, str], wanted: Mapping[str, str], partial: bool) -> list[str]:
    lines = [f"{path} is {wanted[path]} here and not in the checkpoint" for path in wanted if path not in saved]
    lines += [
        f"{path} is {wanted[path]} here and {saved[path]} in the checkpoint"
        for path in wanted
        if path in saved and saved[path] != wanted[path]
    ]
    if not partial:
        lines += [f"{path} is only in the checkpoint" for path in saved if path not in wanted]
    return lines


def _abstract(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Silences absl below CRITICAL: orbax logs each failure as a page of tracebacks before it raises it."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
