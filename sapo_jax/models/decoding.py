"""The decoder in the form that single tokens of few rows meet: the same numbers, for less work in each step.

Layers lie one by one instead of in stacks, kernels have the compute dtype, and on a CPU they are packed or
transposed as its products read them fastest. None of it is for gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import BlockForm, Decoder, Params, description
from sapo_jax.models.layers import Attention, Block, GatedMlp, Projection


class PackedAttention(Attention):
    """Attention with one product for queries, keys and values."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs)
        heads = {"heads": config.heads + 2 * config.kv_heads, "head_size": config.head_size}
        self.qkv = Projection({"embed": config.width}, heads, rngs, bias=config.qkv_bias)
        del self.q, self.k, self.v
        self.ends = config.heads, config.heads + config.kv_heads

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = jnp.split(self.qkv(x), self.ends, axis=-2)
        return q, k, v

    @staticmethod
    def packed(attention: Params) -> Params:
        """Returns this form of the parameters of `Attention`."""
        others = {name: part for name, part in attention.items() if name not in ("q", "k", "v")}
        parts = (attention[name] for name in ("q", "k", "v"))
        return others | {"qkv": jax.tree.map(lambda *heads: jnp.concatenate(heads, axis=-2), *parts)}


class ColumnMlp(GatedMlp):
    """The MLP over transposed kernels, with activations as columns between the products.

    XLA's CPU back end multiplies a few rows by bfloat16 kernels a third faster when the kernel is the left factor.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1])  # [B, D]
        gate, up, down = (part.kernel[...] for part in (self.gate, self.up, self.down))  # [F, D], [F, D], [D, F]
        dot = partial(lax.dot_general, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
        by_row = (((1,), (1,)), ((), ()))
        hidden = jax.nn.silu(dot(gate, rows, by_row)) * dot(up, rows, by_row)  # [F, B]
        # Rounded before it is turned: XLA would take the turn into the product, and has none of that form.
        return dot(down, hidden.astype(x.dtype), (((1,), (0,)), ((), ()))).astype(x.dtype).T.reshape(x.shape)

    @staticmethod
    def packed(mlp: Params) -> Params:
        """Returns this form of the parameters of `GatedMlp`."""
        return jax.tree.map(jnp.transpose, mlp)


_PACKED = partial(Block, attention=PackedAttention)
_PACKED_COLUMNS = partial(Block, attention=PackedAttention, mlp=ColumnMlp)


def _form(dtype: jnp.dtype) -> BlockForm:
    """Returns the fastest form on this backend: float32 kernels are no faster as left factors."""
    if jax.default_backend() != "cpu":
        return Block  # where heads may lie on several devices, and XLA joins products that share a factor by itself
    return _PACKED_COLUMNS if dtype == jnp.bfloat16 else _PACKED


def prepare_decoding(config: DecoderConfig, params: Params, dtype: jnp.dtype) -> tuple[Params, list[Params]]:
    """Returns parameters and the L layers one by one, for `bind_decoding`.

    Kernels are of `dtype` once instead of in every step, and a tied head is a kernel of its own, transposed. The
    parameters hold no blocks.
    """

    def convert(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        # Only the factors of products: biases and scales meet sums, which are wider, and of embeddings few are read.
        return x.astype(dtype) if path[-1].key == "kernel" else x

    converted = partial(jax.tree_util.tree_map_with_path, convert)
    rest = {name: part for name, part in params.items() if name != "blocks"}
    if config.tie_embeddings:
        rest["head"] = {"kernel": rest["embed"]["embedding"].astype(dtype).T}
    layers = [converted(jax.tree.map(itemgetter(layer), params["blocks"])) for layer in range(config.layers)]
    form = _form(dtype)
    if form is not Block:
        layers = [layer | {"attn": PackedAttention.packed(layer["attn"])} for layer in layers]
    if form is _PACKED_COLUMNS:
        layers = [layer | {"mlp": ColumnMlp.packed(layer["mlp"])} for layer in layers]
    return converted(rest), layers


def bind_decoding(config: DecoderConfig, params: Params, layers: Sequence[Params]) -> tuple[Decoder, list[Block]]:
    """Returns the module and its blocks over what `prepare_decoding` made."""
    form = _form(params["head"]["kernel"].dtype)
    graph, shapes = description(replace(config, tie_embeddings=False), form)
    blocks = nnx.to_pure_dict(shapes)["blocks"]  # shapes only; the blocks in use are those of `layers`
    model = nnx.merge(graph, nnx.State(params | {"blocks": blocks}))
    block_graph, _ = nnx.split(model.blocks)
    return model, [nnx.merge(block_graph, nnx.State(layer)) for layer in layers]
