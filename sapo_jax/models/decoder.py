"""One decoder for Llama, Qwen2(.5) and Qwen3: parameters described by NNX, used as a plain tree.

`init_params`, `abstract_params` and `logical_axes` are three views of one description. Layers are
stacked on a leading axis and scanned. The functions that compute (`forward.py`) are pure in
`(params, arrays)`; `bind` turns a tree back into the module inside them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.layers import INIT_STDDEV, Block, Projection, RMSNorm, wide_matmul

Params = dict[str, Any]  # nested dict of float32 arrays; `blocks` leaves lead with the layer axis

LayerBody = Callable[[Block, Any], tuple[Any, Any]]
BlockForm = Callable[[DecoderConfig, nnx.Rngs], Block]


class Decoder(nnx.Module):
    """Embedding, L stacked blocks, final norm and the output head (tied or not)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, form: BlockForm = Block) -> None:
        embedding = INIT_STDDEV * jax.random.normal(rngs.params(), (config.vocab_size, config.width))
        self.embed = nnx.Dict(embedding=nnx.Param(embedding, axes=("vocab", "embed")))
        self.blocks = _stacked_blocks(config, rngs, form)
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
        tied = self.config.tie_embeddings
        kernel = self.embed["embedding"][...] if tied else self.head.kernel[...]
        # Not rounded to the compute dtype: in bfloat16 close logits would tie.
        return wide_matmul(normed, kernel, transposed=tied)

    def scan_blocks(self, body: LayerBody, carry: Any, *, remat: bool = False) -> tuple[Any, Any]:
        """Runs `body(block, carry) -> (carry, output)` through the layers by one scan.

        With `remat`, a layer's activations are recomputed in the backward pass instead of kept.
        """
        graph, stacked = nnx.split(self.blocks)

        def step(carry: Any, state: Any) -> tuple[Any, Any]:
            return body(nnx.merge(graph, state), carry)

        return jax.lax.scan(jax.checkpoint(step) if remat else step, carry, stacked)


def _stacked_blocks(config: DecoderConfig, rngs: nnx.Rngs, form: BlockForm) -> Block:
    """Returns a Block whose parameters carry a leading layer axis (axis name `layer`)."""

    def state_of(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(form(config, nnx.Rngs(key))))

    keys = jax.random.split(rngs.params(), config.layers)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: form(config, nnx.Rngs(0))))
    stacked = jax.vmap(state_of)(keys)
    named = jax.tree.map(
        lambda variable, value: nnx.Param(value, axes=("layer", *variable.get_metadata("axes"))),
        shapes,
        nnx.State(stacked),
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    return nnx.merge(graph, named)


@lru_cache(maxsize=32)
def description(config: DecoderConfig, form: BlockForm) -> tuple[Any, Any]:
    """Returns the module without numbers: its graph and its state of shapes, for `nnx.merge`."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), form)))


def bind(config: DecoderConfig, params: Params) -> Decoder:
    """Returns the module over `params`; cheap, meant to be called inside pure functions."""
    graph, _ = description(config, Block)
    return nnx.merge(graph, nnx.State(params))


def abstract_params(config: DecoderConfig) -> Params:
    """Returns the tree of `jax.ShapeDtypeStruct`, one node."""
    return nnx.to_pure_dict(description(config, Block)[1])


def logical_axes(config: DecoderConfig) -> Params:
    """Returns the tree of axis-name tuples, one name per dimension of each parameter."""
    state = description(config, Block)[1]
    named = jax.tree.map(
        lambda variable: variable.get_metadata("axes"),
        state,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    return nnx.to_pure_dict(named)


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Returns random float32 parameters: normal(0, 0.02) kernels, zero biases, unit norms."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(key))))
