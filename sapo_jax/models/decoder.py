"""One decoder for Llama, Qwen2(.5) and Qwen3: parameters described by NNX, used as a plain tree.

`init_params`, `abstract_params` and `logical_axes` are three views of one description. Layers are
stacked on a leading axis and scanned. The functions that compute (`forward.py`) are pure in
`(params, arrays)`; `bind` turns a tree back into the module inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.layers import INIT_STDDEV, Block, ColumnMlp, GatedMlp, Projection, RMSNorm, wide_matmul

FACTORS = ("kernel", "embedding")  # parameters that enter products, which round them to the compute dtype

Params = dict[str, Any]  # nested dict of float32 arrays; `blocks` leaves lead with the layer axis

LayerBody = Callable[[Block, Any, Any], tuple[Any, Any]]


class Decoder(nnx.Module):
    """Embedding, L stacked blocks, final norm and the output head (tied or not)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, mlp: type[GatedMlp] = GatedMlp) -> None:
        embedding = INIT_STDDEV * jax.random.normal(rngs.params(), (config.vocab_size, config.width))
        self.embed = nnx.Dict(embedding=nnx.Param(embedding, axes=("vocab", "embed")))
        self.blocks = _stacked_blocks(config, rngs, mlp)
        self.final_norm = RMSNorm(config.width, config.norm_epsilon, "embed")
        if not config.tie_embeddings:
            self.head = Projection({"embed": config.width}, {"vocab": config.vocab_size}, rngs)
        self.config = config

    def embed_tokens(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Returns [..., D] in `dtype` for `tokens` [...] int32."""
        return self.embed["embedding"][...][tokens].astype(dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns [..., V] float32 (or wider) logits of hidden states [..., D] that left the blocks."""
        normed = self.final_norm(hidden)
        # Not rounded to the compute dtype: in bfloat16 close logits would tie.
        kernel = self.embed["embedding"][...].T if self.config.tie_embeddings else self.head.kernel[...]
        return wide_matmul(normed, kernel)

    def scan_blocks(self, body: LayerBody, carry: Any, layer_inputs: Any, *, remat: bool = False) -> tuple[Any, Any]:
        """Runs `body(block, carry, layer_input) -> (carry, output)` through the layers by one scan.

        With `remat`, a layer's activations are recomputed in the backward pass instead of kept.
        """
        graph, stacked = nnx.split(self.blocks)

        def step(carry: Any, layer: tuple[Any, Any]) -> tuple[Any, Any]:
            state, layer_input = layer
            return body(nnx.merge(graph, state), carry, layer_input)

        return jax.lax.scan(jax.checkpoint(step) if remat else step, carry, (stacked, layer_inputs))


def _stacked_blocks(config: DecoderConfig, rngs: nnx.Rngs, mlp: type[GatedMlp]) -> Block:
    """Returns a Block whose parameters carry a leading layer axis (axis name `layer`)."""

    def state_of(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(Block(config, nnx.Rngs(key), mlp)))

    keys = jax.random.split(rngs.params(), config.layers)
    abstract = nnx.eval_shape(lambda: Block(config, nnx.Rngs(0), mlp))
    graph, description = nnx.split(abstract)
    stacked = jax.vmap(state_of)(keys)
    named = jax.tree.map(
        lambda variable, value: nnx.Param(value, axes=("layer", *variable.get_metadata("axes"))),
        description,
        nnx.State(stacked),
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    return nnx.merge(graph, named)


@lru_cache(maxsize=32)
def _description(config: DecoderConfig, mlp: type[GatedMlp] = GatedMlp) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), mlp)))


def bind(config: DecoderConfig, params: Params) -> Decoder:
    """Returns the module over `params`; cheap, meant to be called inside pure functions."""
    graph, _ = _description(config)
    return nnx.merge(graph, nnx.State(params))


def prepare_decoding(config: DecoderConfig, params: Params, dtype: jnp.dtype) -> tuple[Params, list[Params]]:
    """Returns parameters and the L layers one by one, which decode the same with less work a step.

    Kernels are of `dtype` once instead of in every step, a tied head is a kernel of its own, transposed, and kernels
    of the MLP have the form that `_decoding_mlp` reads. The parameters hold no blocks.
    """

    def converted(tree: Params) -> Params:
        # Only the factors of products: biases and scales meet sums, which are wider.
        return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(dtype) if path[-1].key in FACTORS else x, tree)

    layers = [converted(jax.tree.map(itemgetter(layer), params["blocks"])) for layer in range(config.layers)]
    rest = converted({name: part for name, part in params.items() if name != "blocks"})
    if config.tie_embeddings:
        rest["head"] = {"kernel": rest["embed"]["embedding"].T}
    if _decoding_mlp(dtype) is ColumnMlp:
        layers = [layer | {"mlp": jax.tree.map(jnp.transpose, layer["mlp"])} for layer in layers]
    return rest, layers


def _decoding_mlp(dtype: jnp.dtype) -> type[GatedMlp]:
    """Returns the faster form of the MLP for few rows: float32 kernels are no faster as left factors."""
    return ColumnMlp if jax.default_backend() == "cpu" and dtype == jnp.bfloat16 else GatedMlp


def bind_decoding(config: DecoderConfig, params: Params, layers: Sequence[Params]) -> tuple[Decoder, list[Block]]:
    """Returns the module and its blocks over what `prepare_decoding` made."""
    mlp = _decoding_mlp(params["embed"]["embedding"].dtype)
    graph, description = _description(replace(config, tie_embeddings=False), mlp)
    blocks = nnx.to_pure_dict(description)["blocks"]  # shapes only; the blocks in use are those of `layers`
    model = nnx.merge(graph, nnx.State(params | {"blocks": blocks}))
    block_graph, _ = nnx.split(model.blocks)
    return model, [nnx.merge(block_graph, nnx.State(layer)) for layer in layers]


def abstract_params(config: DecoderConfig) -> Params:
    """Returns the tree of `jax.ShapeDtypeStruct`, one node."""
    return nnx.to_pure_dict(_description(config)[1])


def logical_axes(config: DecoderConfig) -> Params:
    """Returns the tree of axis-name tuples, one name per dimension of each parameter."""
    state = _description(config)[1]
    named = jax.tree.map(
        lambda variable: variable.get_metadata("axes"),
        state,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    return nnx.to_pure_dict(named)


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Returns random float32 parameters: normal(0, 0.02) kernels, zero biases, unit norms."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(key))))
