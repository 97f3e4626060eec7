"""The directory of one run: its record `config.json`, its lock, and where everything lies.

A workdir belongs to one configuration. Opening it again continues the run; only `rounds` may have
grown. `config.json` also keeps what was chosen at the start and must not change later, such as the
compute dtype that "auto" became, and the versions and machine the run started on.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import sapo_jax
from sapo_jax import config as config_lib
from sapo_jax.config import SapoConfig

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
REPORT = "report"
_LOCK_FILE = ".lock"

_DISTRIBUTIONS = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "reasoning_gym",
    "numpy",
)


class WorkdirError(ValueError):
    """A workdir that cannot be used; the message names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What `config.json` holds.

    Attributes:
        config: the configuration the run was started or last continued with.
        resolved: values chosen at the start and fixed since, such as {"compute_dtype": "float32"}.
        environment: git revision, versions, cores, platform and creation time of the start.
    """

    config: SapoConfig
    resolved: Mapping[str, Any]
    environment: Mapping[str, Any]


class Workdir:
    """An open, locked workdir. Made by `open_workdir`; close it to release the lock."""

    def __init__(self, path: Path, record: RunRecord, *, lock: IO[str], rounds_added: int = 0) -> None:
        self.path = path
        self.rounds_added = rounds_added  # by which `config.rounds` grew when the workdir was opened
        self._record = record
        self._lock = lock

    @property
    def config(self) -> SapoConfig:
        return self._record.config

    @property
    def resolved(self) -> Mapping[str, Any]:
        return self._record.resolved

    @property
    def metrics_path(self) -> Path:
        return self.path / METRICS_FILE

    @property
    def checkpoints_path(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def tensorboard_path(self) -> Path:
        return self.path / TENSORBOARD

    def fix_resolved(self, **values: Any) -> None:
        """Records JSON-ready values that hold for the rest of the run.

        Raises:
            WorkdirError: one of them is already fixed to something else.
        """
        for name, value in values.items():
            if name in self.resolved and self.resolved[name] != value:
                raise WorkdirError(
                    f"{self.path / CONFIG_FILE}: {name} is fixed to {self.resolved[name]!r} for this run, "
                    f"so it cannot become {value!r}"
                )
        if all(name in self.resolved for name in values):
            return
        self._record = replace(self._record, resolved={**self.resolved, **values})
        _write_record(self.path, self._record)

    def environment_changes(self) -> tuple[str, ...]:
        """Returns what differs from the machine and versions the run started on, a line each.

        A continued run is bit-equal to an uninterrupted one only if nothing differs.
        """
        then, now = _flatten(self._record.environment), _flatten(_environment())
        then.pop("created_time", None)
        now.pop("created_time", None)
        return tuple(
            f"{key}: {then.get(key)} at the start, {now.get(key)} now"
            for key in sorted(then.keys() | now.keys())
            if then.get(key) != now.get(key)
        )

    def close(self) -> None:
        """Releases the lock. May be called twice."""
        self._lock.close()

    def __enter__(self) -> Workdir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_workdir(path: str | Path, config: SapoConfig) -> Workdir:
    """Returns the locked workdir at `path` for `config`, made if it is not there yet.

    Raises:
        WorkdirError: not a usable directory, in use by another process, damaged, or of a run whose
            configuration differs in more than a larger `rounds`; differing keys are named.
    """
    directory = Path(path).expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _acquire(directory)
    except OSError as err:
        raise WorkdirError(f"workdir {directory}: cannot be used: {err.strerror or err}") from err
    try:
        leftovers = [name for name in (METRICS_FILE, CHECKPOINTS) if _holds_something(directory / name)]
        if (directory / CONFIG_FILE).exists():
            record = read_record(directory)
            if leftovers:
                _check_same_run(directory, record.config, config)
                added = config.rounds - record.config.rounds
                if added:
                    record = replace(record, config=config)
                    _write_record(directory, record)
                return Workdir(directory, record, lock=lock, rounds_added=added)
            # The run failed before it did anything, so there is nothing that a corrected one could mix with.
        elif leftovers:
            raise WorkdirError(
                f"workdir {directory}: holds {' and '.join(leftovers)} of a run but no {CONFIG_FILE}; "
                "choose another one"
            )
        record = RunRecord(config=config, resolved={}, environment=_environment())
        _write_record(directory, record)
        return Workdir(directory, record, lock=lock)
    except BaseException:
        lock.close()
        raise


def read_record(path: str | Path) -> RunRecord:
    """Returns the record of the run at `path` without locking it.

    Raises:
        WorkdirError: no record there, or a damaged one.
    """
    file = Path(path).expanduser() / CONFIG_FILE
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return RunRecord(
            config=config_lib.from_config_dict(raw["config"]),
            resolved=dict(raw["resolved"]),
            environment=dict(raw["environment"]),
        )
    except FileNotFoundError as err:
        raise WorkdirError(f"workdir {Path(path)}: no {CONFIG_FILE} there, so no run to read") from err
    except OSError as err:
        raise WorkdirError(f"{file}: cannot be read: {err.strerror or err}") from err
    except config_lib.ConfigError as err:
        raise WorkdirError(f"{file}: written by another version of this program: {err}") from err
    except (ValueError, KeyError, TypeError) as err:
        raise WorkdirError(f"{file}: damaged: {err}") from err


def config_differences(first: SapoConfig, second: SapoConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the dotted keys in which two configurations differ, with both values."""
    one, two = _flatten(config_lib.to_dict(first)), _flatten(config_lib.to_dict(second))
    return {key: (one[key], two[key]) for key in one if one[key] != two[key]}


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes `content` to `path` so that a reader sees the old content or the new, never a part.

    Raises:
        OSError: it cannot be written, for example on a full disk; names `path`, which is unchanged.
    """
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes private files
        os.replace(name, path)
    except BaseException as err:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(err, OSError):
            raise OSError(err.errno, err.strerror, str(path)) from err
        raise


def _acquire(directory: Path) -> IO[str]:
    lock = open(directory / _LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the run lasts)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise WorkdirError(f"workdir {directory}: in use by another process (id {holder})") from err
    lock.truncate(0)
    with contextlib.suppress(OSError):  # on a full disk only others would miss who it is
        os.write(lock.fileno(), str(os.getpid()).encode())
    return lock


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _check_same_run(directory: Path, recorded: SapoConfig, wanted: SapoConfig) -> None:
    different = config_differences(recorded, wanted)
    if wanted.rounds > recorded.rounds:
        del different["rounds"]
    if different:
        lines = "".join(f"\n  config.{key}: {was!r} there, {now!r} here" for key, (was, now) in different.items())
        raise WorkdirError(
            f"workdir {directory}: belongs to a run of another configuration; only config.rounds may grow.{lines}"
        )


def _write_record(directory: Path, record: RunRecord) -> None:
    raw = {
        "config": config_lib.to_dict(record.config),
        "resolved": dict(record.resolved),
        "environment": dict(record.environment),
    }
    try:
        replace_file(directory / CONFIG_FILE, json.dumps(raw, indent=2) + "\n")
    except OSError as err:
        raise WorkdirError(f"{directory / CONFIG_FILE}: cannot be written: {err.strerror or err}") from err


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _environment() -> dict[str, Any]:
    versions: dict[str, str | None] = {"python": platform.python_version(), "sapo_jax": sapo_jax.__version__}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "created_time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_revision": _git_revision(),
        "versions": versions,
        "cores": _cores(),
        "platform": platform.platform(),
    }


def _cores() -> int:
    """Returns the cores this process may use: results on CPU depend on their number."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git_revision() -> str | None:
    """Returns the commit of this package's checkout, "+changes" appended if files differ from it.

    None if the package is not in a checkout of its own, for example installed below somebody
    else's repository.
    """
    package = Path(sapo_jax.__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
