"""The float type that reductions of this package run in."""

# jax leaves parts of its own signatures untyped:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import jax
import jax.numpy as jnp


def to_reduction_dtype(array: jax.typing.ArrayLike) -> jax.Array:
    """Returns `array` in float32, or as it is when it is float64."""
    values = jnp.asarray(array)
    return values if values.dtype == jnp.float64 else values.astype(jnp.float32)
