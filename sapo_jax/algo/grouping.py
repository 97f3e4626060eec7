"""The one way between the grouped layout [Q, G, ...] and the flat layout [B, ...], B = Q * G."""

# jax leaves parts of its own signatures untyped:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import jax
import jax.numpy as jnp

from sapo_jax.algo.shapes import ShapeError


def fold_groups(grouped: jax.typing.ArrayLike) -> jax.Array:
    """Returns [Q, G, ...] as [B, ...]: completion g of question q becomes row q * G + g."""
    values = jnp.asarray(grouped)
    if values.ndim < 2:
        raise ShapeError(f"grouped has shape {values.shape}, expected [Q, G, ...]")
    questions, group_size, *rest = values.shape
    return values.reshape(questions * group_size, *rest)  # [B, ...]


def unfold_groups(rows: jax.typing.ArrayLike, *, group_size: int) -> jax.Array:
    """Returns [B, ...] as [Q, G, ...] with G = `group_size`; the inverse of `fold_groups`."""
    values = jnp.asarray(rows)
    if values.ndim < 1 or group_size < 1 or values.shape[0] % group_size:
        raise ShapeError(f"rows has shape {values.shape}, expected [B, ...] with B a multiple of {group_size} = G")
    batch, *rest = values.shape
    return values.reshape(batch // group_size, group_size, *rest)  # [Q, G, ...]
