"""The parts of a decoder layer as Flax NNX modules; every parameter names its logical axes.

Kernels are float32 masters; products run in the dtype of the activations and accumulate in at
least float32, forward and backward. What follows a product starts from its float32 sums: numbers
are rounded to the activations' dtype where they are stored or enter the next product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sapo_jax.models.architecture import DecoderConfig

INIT_STDDEV = 0.02

# attend(q, k, v) -> (context, whatever the caller wants kept of this layer)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which products of numbers of `dtype` are summed: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def wide_matmul(x: jax.Array, kernel: jax.Array, *, transposed: bool = False) -> jax.Array:
    """Returns `x @ kernel` as accumulated: factors in the dtype of `x`, sums in at least float32.

    The kernel's gradient keeps the kernel's own (master) dtype. Plain autodiff of a bfloat16
    product would multiply float32 cotangents with bfloat16 kernels, which matrix units refuse.

    Args:
        x: [..., D] activations.
        kernel: [D, F] master weights.
        transposed: the kernel is [F, D], and the result `x @ kernel.T`.
    """
    return _differentiable_product(x, kernel, transposed)


def _product(x: jax.Array, kernel: jax.Array, transposed: bool) -> jax.Array:
    spec = "...d,fd->...f" if transposed else "...d,df->...f"
    return jnp.einsum(spec, x, kernel.astype(x.dtype), preferred_element_type=accumulator(x.dtype))


def _product_forward(
    x: jax.Array, kernel: jax.Array, transposed: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel, transposed), (x, kernel)


def _product_backward(
    transposed: bool, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dy = dy.astype(x.dtype)
    dx = _product(dy, kernel, not transposed).astype(x.dtype)
    left, right = (dy, x) if transposed else (x, dy)
    return dx, _sum_of_outer_products(left, right).astype(kernel.dtype)


_differentiable_product = jax.custom_vjp(_product, nondiff_argnums=(2,))
_differentiable_product.defvjp(_product_forward, _product_backward)


def _sum_of_outer_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the sum over all rows of the products of `a` [..., D] and `b` [..., F]: [D, F], at least float32."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    wide = accumulator(a.dtype)
    if jax.default_backend() == "cpu" and a.dtype == jnp.bfloat16:
        # XLA's CPU back end multiplies bfloat16 numbers only if the left factor lies by rows, and widens all others.
        # The barrier keeps it from taking the transposition back, the flat shape from choosing a layout by columns.
        turned = lax.optimization_barrier(a.T.reshape(-1)).reshape(a.shape[::-1])
        return jnp.matmul(turned, b, preferred_element_type=wide)
    return jnp.einsum("bd,bf->df", a, b, preferred_element_type=wide)


def rows_of(x: jax.Array) -> jax.Array:
    """Returns `x` in the form in which sums over its last axis are fastest: on a CPU [rows, D], elsewhere as it is.

    XLA's CPU back end spreads sums over cores by the first axis alone, which may have size 1. On a mesh of
    accelerators, axes that are split must stay apart.
    """
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if jax.default_backend() == "cpu" else x


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in at least float32."""

    def __init__(self, size: int, epsilon: float, axis: str) -> None:
        self.scale = nnx.Param(jnp.ones((size,)), axes=(axis,))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = rows_of(x).astype(accumulator(x.dtype))
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        normed = (wide * lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype)
        return (normed * trailing(self.scale[...].astype(x.dtype), normed.ndim)).reshape(x.shape)


class Projection(nnx.Module):
    """A linear map from `inputs` axes (contracted) to `outputs` axes, with an optional bias; see `wide_matmul`."""

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        rngs: nnx.Rngs,
        *,
        bias: bool = False,
    ) -> None:
        shape = (*inputs.values(), *outputs.values())
        kernel = INIT_STDDEV * jax.random.normal(rngs.params(), shape)
        self.kernel = nnx.Param(kernel, axes=(*inputs, *outputs))
        if bias:
            self.bias = nnx.Param(jnp.zeros(tuple(outputs.values())), axes=tuple(outputs))
        self.inputs = len(inputs)
        self.has_bias = bias

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        lead, out = x.shape[: x.ndim - self.inputs], kernel.shape[self.inputs :]
        rows = math.prod(kernel.shape[: self.inputs])
        y = wide_matmul(x.reshape(*lead, rows), kernel.reshape(rows, -1)).reshape(*lead, *out)
        return y + trailing(self.bias[...].astype(y.dtype), y.ndim) if self.has_bias else y


def trailing(x: jax.Array, rank: int) -> jax.Array:
    """Returns `x` with leading axes of size 1 up to `rank`: broadcasting is spelled out everywhere."""
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


def rope_angles(positions: jax.Array, head_size: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine of the rotary angles, each [..., H / 2] float32 or wider.

    Args:
        positions: [...] int32 token positions.

    Reference: arXiv 2104.09864, half-rotation layout.
    """
    wide = accumulator(jnp.result_type(float))
    frequencies = base ** (-jnp.arange(0, head_size, 2, dtype=wide) / head_size)
    # Not as a product of matrices: TPUs round the factors of those, and of positions above 256 little would be left.
    angles = positions.astype(wide)[..., None] * trailing(frequencies, positions.ndim + 1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Returns heads `x` [..., S, heads, H] rotated by angles [..., S, H / 2]."""
    halves = x.astype(accumulator(x.dtype)).reshape(*x.shape[:-1], 2, -1)  # [..., heads, 2, H / 2]
    cosine, sine = cosine[..., None, None, :], jnp.stack([-sine, sine], axis=-2)[..., None, :, :]
    # Not as a concatenation of the turned halves: XLA's CPU back end writes those one number at a time.
    return (halves * cosine + jnp.flip(halves, axis=-2) * sine).astype(x.dtype).reshape(x.shape)


class Attention(nnx.Module):
    """Query, key, value and output projections; how tokens see each other is the caller's `attend`."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        embed, head = {"embed": config.width}, {"head_size": config.head_size}
        queries, keys = {"heads": config.heads} | head, {"kv_heads": config.kv_heads} | head
        self.q = Projection(embed, queries, rngs, bias=config.qkv_bias)
        self.k = Projection(embed, keys, rngs, bias=config.qkv_bias)
        self.v = Projection(embed, keys, rngs, bias=config.qkv_bias)
        self.o = Projection(queries, embed, rngs)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_size, config.norm_epsilon, "head_size")
            self.k_norm = RMSNorm(config.head_size, config.norm_epsilon, "head_size")
        self.qk_norm = config.qk_norm

    def __call__(self, x: jax.Array, angles: tuple[jax.Array, jax.Array], attend: Attend) -> tuple[jax.Array, Any]:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (head.astype(x.dtype) for head in (rotate(q, *angles), rotate(k, *angles), v))
        context, kept = attend(q, k, v)
        return self.o(context), kept


class GatedMlp(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        embed, mlp = {"embed": config.width}, {"mlp": config.mlp_width}
        self.gate = Projection(embed, mlp, rngs)
        self.up = Projection(embed, mlp, rngs)
        self.down = Projection(mlp, embed, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down((jax.nn.silu(self.gate(x)) * self.up(x)).astype(x.dtype))


class Block(nnx.Module):
    """One decoder layer with pre-norm residuals."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, mlp: type[GatedMlp] = GatedMlp) -> None:
        self.attn_norm = RMSNorm(config.width, config.norm_epsilon, "embed")
        self.attn = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon, "embed")
        self.mlp = mlp(config, rngs)

    def __call__(self, x: jax.Array, angles: tuple[jax.Array, jax.Array], attend: Attend) -> tuple[jax.Array, Any]:
        """Returns [..., S, D] hidden states and what `attend` kept; `angles` are of the S positions."""
        attended, kept = self.attn(self.attn_norm(x), angles, attend)
        x = (x + attended).astype(x.dtype)
        return (x + self.mlp(self.mlp_norm(x))).astype(x.dtype), kept
