"""The decoder in the form that single tokens of few rows meet: the same numbers, for less work in each step.

Layers lie one by one instead of in stacks, kernels have the compute dtype, and some are transposed where that is read
faster. None of it is for gradients.
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
from sapo_jax.models.layers import Block, GatedMlp, accumulator


class ColumnMlp(GatedMlp):
    """The MLP over transposed kernels, with activations as columns between the products.

    XLA's CPU back end multiplies a few rows by bfloat16 kernels a third faster when the kernel is the left factor.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1])  # [B, D]
        gate, up, down = (part.kernel[...] for part in (self.gate, self.up, self.down))  # [F, D], [F, D], [D, F]
        dot = partial(lax.dot_general, preferred_element_type=accumulator(x.dtype))
        by_row = (((1,), (1,)), ((), ()))
        hidden = jax.nn.silu(dot(gate, rows, by_row)) * dot(up, rows, by_row)  # [F, B]
        # Rounded before it is turned: XLA would take the turn into the product, and has none of that form.
        return dot(down, hidden.astype(x.dtype), (((1,), (0,)), ((), ()))).astype(x.dtype).T.reshape(x.shape)

    @staticmethod
    def pack(mlp: Params) -> Params:
        """Returns this form of the parameters of `GatedMlp`."""
        return jax.tree.map(jnp.transpose, mlp)


COLUMNS = partial(Block, mlp=ColumnMlp)


def fastest_form(dtype: jnp.dtype) -> BlockForm:
    """Returns the form of layers whose kernels are of `dtype`: in float32 they are no faster as left factors."""
    return COLUMNS if jax.default_backend() == "cpu" and dtype == jnp.bfloat16 else Block


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
    if fastest_form(dtype) is COLUMNS:
        layers = [layer | {"mlp": ColumnMlp.pack(layer["mlp"])} for layer in layers]
    return converted(rest), layers


def bind_decoding(config: DecoderConfig, params: Params, layers: Sequence[Params]) -> tuple[Decoder, list[Block]]:
    """Returns the module and its blocks over what `prepare_decoding` made."""
    form = fastest_form(params["head"]["kernel"].dtype)
    graph, shapes = description(replace(config, tie_embeddings=False), form)
    blocks = nnx.to_pure_dict(shapes)["blocks"]  # shapes only; the blocks in use are those of `layers`
    model = nnx.merge(graph, nnx.State(params | {"blocks": blocks}))
    block_graph, _ = nnx.split(model.blocks)
    return model, [nnx.merge(block_graph, nnx.State(layer)) for layer in layers]
