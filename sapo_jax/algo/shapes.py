"""The shape check that public array functions open with."""

from __future__ import annotations

import jax
import jax.numpy as jnp


class ShapeError(ValueError):
    """An array whose shape contradicts its description or another array's."""


def check_shapes(**arrays: tuple[jax.typing.ArrayLike | None, str]) -> dict[str, int]:
    """Returns the size bound to each letter, after checking that all uses of a letter agree.

    Runs on static shapes, so it costs nothing once compiled. Example:

        sizes = check_shapes(rewards=(rewards, "Q G"), completion_valid=(completion_valid, "Q G"))

    Args:
        **arrays: for each argument's name, the array (None is skipped) and its axes separated by
            spaces: a letter or word binds that axis's size, a number demands it, and a leading
            `...` stands for any axes, the same ones wherever it is used.

    Raises:
        ShapeError: the wrong number of axes, or two sizes for one letter.
    """
    bound: dict[str, tuple[object, str]] = {}
    for name, (array, spec) in arrays.items():
        if array is None:
            continue
        shape, axes = jnp.shape(array), spec.split()
        leading = axes[:1] == ["..."]
        named = axes[leading:]
        extra = len(shape) - len(named)
        if extra < 0 or (extra > 0 and not leading):
            raise ShapeError(f"{name} has shape {shape}, expected [{', '.join(axes)}]")
        found: list[tuple[str, object]] = list(zip(named, shape[extra:], strict=True))
        if leading:
            found.append(("...", shape[:extra]))
        for axis, size in found:
            expected, source = (int(axis), "its description") if axis.isdigit() else bound.get(axis, (size, name))
            if size != expected:
                raise ShapeError(
                    f"{name} has shape {shape}, expected [{', '.join(axes)}] with {axis} = {expected} as in {source}"
                )
            bound[axis] = (size, source)
    return {axis: size for axis, (size, _) in bound.items() if isinstance(size, int)}
