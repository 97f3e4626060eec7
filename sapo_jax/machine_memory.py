"""How much memory the machine has for this process: its own, or less where a control group limits it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")

# A control group's limit and what it uses of it, in the folder of each version.
_FIRST_VERSION = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
_SECOND_VERSION = "sys/fs/cgroup", "memory.max", "memory.current"


def total_bytes() -> int | None:
    """Returns the most memory that this process could have; None if nothing says so."""
    limits = [limit for limit, _ in _groups()]
    with contextlib.suppress(OSError, ValueError, KeyError):
        limits.append(_machine("MemTotal"))
    return min(limits, default=None)


def free_bytes() -> int:
    """Returns how much memory this process may still take; 0 if the machine does not say."""
    try:
        free = _machine("MemAvailable")
    except (OSError, ValueError, KeyError):
        return 0
    return min([free, *(limit - used for limit, used in _groups())])


def _machine(name: str) -> int:
    """Returns an entry of the machine's memory in bytes."""
    lines = (line.split(":") for line in (_ROOT / "proc/meminfo").read_text().splitlines())
    return 1024 * int(dict(lines)[name].split()[0])


def _groups() -> Iterator[tuple[int, int]]:
    """Yields limit and use of every control group above this process that has a limit, in bytes."""
    try:
        lines = (_ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, named = line.partition(":")
        controllers, separator, group = named.partition(":")
        is_first_version = "memory" in controllers.split(",")
        if not separator or (controllers and not is_first_version):
            continue
        top, limit_name, use_name = _FIRST_VERSION if is_first_version else _SECOND_VERSION
        place = PurePosixPath(group.lstrip("/"))
        # A container may see its own group as the root, so not every folder on the way is there.
        for part in (place, *place.parents):
            folder = _ROOT / top / part
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                yield int((folder / limit_name).read_text()), _number(folder / use_name)


def _number(path: Path) -> int:
    """Returns the number in a file, 0 if it cannot be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
