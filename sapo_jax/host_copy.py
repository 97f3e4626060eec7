"""A copy of device arrays in the memory of this process, where there is room for one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax

# Free memory that a copy needs, in its own sizes: the copy, and as much for whoever handles it piece by piece.
_ROOM = 2
_MEMORY = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")


def copy_to_host(arrays: Any) -> Any | None:
    """Returns a pytree of jax arrays as numpy arrays, None where memory is short.

    The arrays may be donated to another program afterwards. (On a CPU nothing is copied before that, and jax
    makes the copy instead of donating what numpy looks at.) Leaves that are numpy arrays already stay as they
    are: whoever hands them over does not change them.
    """
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array))
    return None if _ROOM * needed > free_memory_bytes() else jax.device_get(arrays)


def free_memory_bytes() -> int:
    """Returns how much memory this process may still take, of the machine and of its container; 0 if unknown."""
    free = 0
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = (line.split(":") for line in _MEMORY.read_text().splitlines())
        free = 1024 * int({name: value for name, value in lines}["MemAvailable"].split()[0])
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limit, used = (int((_CONTAINER / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return free
