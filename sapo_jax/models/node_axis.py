"""Mapping functions of one node over the leading node axis of a host's arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def over_nodes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` mapped over axis 0 of every argument and result leaf.

    A single node is squeezed instead of mapped: `vmap` turns `lax.cond` into computing both
    branches, which one node on a CPU would pay for without need.
    """

    def mapped(*args: Any) -> Any:
        nodes = jax.tree.leaves(args)[0].shape[0]
        if nodes > 1:
            return jax.vmap(function)(*args)
        squeezed = jax.tree.map(lambda x: x[0], args)
        return jax.tree.map(lambda x: x[None], function(*squeezed))

    return mapped
