"""From logical axis names to devices: one table of rules over a (node, data, fsdp, tensor) mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sapo_jax.config import ConfigError
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import abstract_params, logical_axes

MESH_AXES = ("node", "data", "fsdp", "tensor")

# Logical axis -> mesh axis; axes that are not listed (layer, head_size) stay whole.
RULES: Mapping[str, str] = {
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


def make_mesh(*, node: int = 1, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Returns a mesh over the first node * data * fsdp * tensor devices.

    Raises:
        ConfigError: there are fewer devices than that.
    """
    sizes = (node, data, fsdp, tensor)
    needed, devices = int(np.prod(sizes)), jax.devices()
    if needed > len(devices):
        raise ConfigError(
            f"config.host.mesh_node * mesh_data * mesh_fsdp * mesh_tensor = {needed}: "
            f"this process has {len(devices)} {devices[0].platform} device(s)"
        )
    return Mesh(np.array(devices[:needed]).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def param_shardings(config: DecoderConfig, mesh: Mesh) -> dict[str, Any]:
    """Returns the sharding of every parameter with its leading node axis, [M, ...].

    A dimension that its mesh axis does not divide (three key heads over two devices) stays whole.
    """

    def sharding(shape: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> NamedSharding:
        parts: list[str | None] = ["node"]
        for size, axis in zip(shape.shape, axes, strict=True):
            target = RULES.get(axis)
            free = target is not None and target not in parts and size % mesh.shape[target] == 0
            parts.append(target if free else None)
        return NamedSharding(mesh, PartitionSpec(*parts))

    return jax.tree.map(sharding, abstract_params(config), logical_axes(config))


def like_params(tree: Any, shardings: dict[str, Any], mesh: Mesh) -> Any:
    """Returns shardings for `tree`: subtrees shaped like the parameters take theirs, the rest is per node.

    Optimizer states hold copies of the parameter tree (moments) beside counters [M].
    """
    pattern = jax.tree.structure(shardings)
    per_node = NamedSharding(mesh, PartitionSpec("node"))

    def is_params(subtree: Any) -> bool:
        return jax.tree.structure(subtree) == pattern

    return jax.tree.map(
        lambda subtree: shardings if is_params(subtree) else per_node,
        tree,
        is_leaf=is_params,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batch arrays [M, Q, ...]: nodes over `node`, questions over `data`."""
    return NamedSharding(mesh, PartitionSpec("node", "data"))
