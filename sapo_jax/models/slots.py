"""Writing into a cache inside a compiled loop, in place."""

from __future__ import annotations

import jax
from jax import lax


def write_slot(slots: jax.Array, x: jax.Array, step: jax.Array, *, axis: int) -> jax.Array:
    """Returns `slots` with `x`, which has size 1 there, at index `step` of a negative `axis`.

    Mapped over nodes it stays one update of a slice, since the step is the same for all; JAX's own rule makes it a
    scatter, for which XLA copies the slots.
    """

    @jax.custom_batching.custom_vmap
    def write(slots: jax.Array, x: jax.Array, step: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(slots, x.astype(slots.dtype), step, slots.ndim + axis)

    @write.def_vmap
    def _(size: int, mapped: list[bool], slots: jax.Array, x: jax.Array, step: jax.Array) -> tuple[jax.Array, bool]:
        if mapped != [True, True, False]:
            raise ValueError("slots and what is written have a node axis, the step has none")
        return write(slots, x, step), True

    return write(slots, x, step)
