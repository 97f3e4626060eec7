"""A copy of device arrays in the memory of this process, where there is room for one."""

from __future__ import annotations

from typing import Any

import jax

from sapo_jax.machine_memory import free_bytes

# Free memory that a copy needs, in its own sizes: the copy, and as much for whoever handles it piece by piece.
_ROOM = 2


def copy_to_memory(arrays: Any) -> Any | None:
    """Returns a pytree of jax arrays as numpy arrays, None where memory is short.

    The arrays may be donated to another program afterwards. (On a CPU nothing is copied before that, and jax
    makes the copy instead of donating what numpy looks at.) Leaves that are numpy arrays already stay as they
    are: whoever hands them over does not change them.
    """
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array))
    return None if _ROOM * needed > free_bytes() else jax.device_get(arrays)
