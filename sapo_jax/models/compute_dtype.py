"""In which precision a host computes."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.layers import matmul

_ROWS = 256
_REPEATS = 5
_WORTHWHILE = 1.2  # bfloat16 has to be this much faster to be worth its rounding


def resolve_compute_dtype(requested: str, model: DecoderConfig) -> str:
    """Returns "float32", "bfloat16" or "float64": `requested`, or the choice made for "auto".

    Accelerators compute in bfloat16. On a CPU the MLP's product is timed in both, since some have
    matrix units for bfloat16 and others emulate it; record the answer, it may differ next time.
    """
    if requested != "auto":
        return requested
    if jax.default_backend() != "cpu":
        return "bfloat16"
    times = {dtype: _time_s(dtype, model) for dtype in ("float32", "bfloat16")}
    return "bfloat16" if times["float32"] > _WORTHWHILE * times["bfloat16"] else "float32"


def _time_s(dtype: str, model: DecoderConfig) -> float:
    x = jnp.ones((_ROWS, model.width), dtype)
    kernel = jnp.full((model.width, model.mlp_width), 0.5, jnp.float32)
    gradient = jax.jit(jax.grad(lambda k, x: jnp.sum(matmul(x, k).astype(jnp.float32) ** 2), argnums=(0, 1)))
    jax.block_until_ready(gradient(kernel, x))
    times = []
    for _ in range(_REPEATS):
        start_s = time.perf_counter()
        jax.block_until_ready(gradient(kernel, x))
        times.append(time.perf_counter() - start_s)
    return min(times)
