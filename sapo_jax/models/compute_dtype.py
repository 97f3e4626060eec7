"""In which precision a host computes."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.layers import wide_matmul

_ROWS = 512
_REPEATS = 10
_WORTHWHILE = 1.5  # bfloat16 has to be this much faster to be worth its rounding


def resolve_compute_dtype(requested: str, model: DecoderConfig) -> str:
    """Returns "float32" or "bfloat16": `requested`, or the choice made for "auto".

    Accelerators compute in bfloat16. On a CPU the MLP's product is timed in both, since some have
    matrix units for bfloat16 and others emulate it; record the answer, it may differ next time.
    """
    if requested != "auto":
        return requested
    if jax.default_backend() != "cpu":
        return "bfloat16"
    seconds = {"float32": float("inf"), "bfloat16": float("inf")}
    programs = {dtype: _product_and_gradient(dtype, model) for dtype in seconds}
    for _ in range(_REPEATS):  # in turns, so that a busy moment of the machine meets both
        for dtype, program in programs.items():
            start_s = time.perf_counter()
            jax.block_until_ready(program())
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start_s)
    return "bfloat16" if seconds["float32"] > _WORTHWHILE * seconds["bfloat16"] else "float32"


def _product_and_gradient(dtype: str, model: DecoderConfig) -> Callable[[], tuple[jax.Array, jax.Array]]:
    """Returns a compiled computation of the kind that fills an update."""
    x = jnp.ones((_ROWS, model.width), dtype)
    kernel = jnp.full((model.width, model.mlp_width), 0.5, jnp.float32)
    gradient = jax.jit(jax.grad(lambda k, x: jnp.sum(wide_matmul(x, k) ** 2), argnums=(0, 1)))
    jax.block_until_ready(gradient(kernel, x))
    return lambda: gradient(kernel, x)
