"""The one table of weights: their place in our tree, their names in model files, and how shapes differ.

Import from safetensors, import from GGUF and export all read it. It knows nothing of files: a
caller says which tensors it found and how to read one; `assemble` checks and stacks them,
`disassemble` is the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sapo_jax.models.architecture import DecoderConfig

Naming = Literal["hf", "gguf"]
Params = dict[str, Any]  # nested dict of float32 arrays, leaves of "blocks" lead with the layer axis


class ModelFilesError(ValueError):
    """Model files that cannot be used or written; the message names the file and what is wrong with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """One parameter of the decoder (of every layer, when the names hold `{layer}`).

    Attributes:
        path: keys into our tree.
        hf: name in Hugging Face safetensors.
        gguf: name in GGUF files.
        split: shape of the file's tensor once its head axis is split in (heads, H).
        order: transposition that turns the split tensor into ours.
        file_shape: shape of the file's tensor.
        rotary_heads: heads whose rows GGUF stores interleaved for the Llama family; 0: none.
    """

    path: tuple[str, ...]
    hf: str
    gguf: str
    split: tuple[int, ...]
    order: tuple[int, ...]
    file_shape: tuple[int, ...]
    rotary_heads: int = 0

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.hf

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in our tree, layer axis left out."""
        return tuple(self.split[axis] for axis in self.order)

    def name(self, naming: Naming, layer: int) -> str:
        return (self.hf if naming == "hf" else self.gguf).format(layer=layer)

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        """Returns our array ([*shape], float32) for the file's tensor ([*file_shape])."""
        return tensor.reshape(self.split).transpose(self.order)

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Returns the file's tensor ([*file_shape], C-contiguous) for our array ([*shape])."""
        return np.ascontiguousarray(array.transpose(np.argsort(self.order)).reshape(self.file_shape))


def weight_table(config: DecoderConfig) -> tuple[Weight, ...]:
    """Returns every weight of the decoder that `config` describes, in the order of the forward pass."""
    v, d, f = config.vocab_size, config.width, config.mlp_width
    n, k, h = config.heads, config.kv_heads, config.head_size
    rows: list[Weight] = []

    def add(path: str, hf: str, gguf: str, split: tuple[int, ...], order: Sequence[int], **extra: Any) -> None:
        extra.setdefault("file_shape", split)
        rows.append(Weight(path=tuple(path.split("/")), hf=hf, gguf=gguf, split=split, order=tuple(order), **extra))

    def layer(path: str, hf: str, gguf: str, split: tuple[int, ...], order: Sequence[int], **extra: Any) -> None:
        add(f"blocks/{path}", f"model.layers.{{layer}}.{hf}", f"blk.{{layer}}.{gguf}", split, order, **extra)

    add("embed/embedding", "model.embed_tokens.weight", "token_embd.weight", (v, d), (0, 1))
    layer("attn_norm/scale", "input_layernorm.weight", "attn_norm.weight", (d,), (0,))
    for key, heads, turned in (("q", n, n), ("k", k, k), ("v", k, 0)):
        hf, gguf = f"self_attn.{key}_proj", f"attn_{key}"
        shared = {"rotary_heads": turned}
        layer(
            f"attn/{key}/kernel", f"{hf}.weight", f"{gguf}.weight", (heads, h, d), (2, 0, 1),
            file_shape=(heads * h, d), **shared,
        )  # fmt: skip
        if config.qkv_bias:
            layer(
                f"attn/{key}/bias", f"{hf}.bias", f"{gguf}.bias", (heads, h), (0, 1), file_shape=(heads * h,), **shared
            )
    if config.qk_norm:
        for key in ("q", "k"):
            layer(f"attn/{key}_norm/scale", f"self_attn.{key}_norm.weight", f"attn_{key}_norm.weight", (h,), (0,))
    layer("attn/o/kernel", "self_attn.o_proj.weight", "attn_output.weight", (d, n, h), (1, 2, 0), file_shape=(d, n * h))
    layer("mlp_norm/scale", "post_attention_layernorm.weight", "ffn_norm.weight", (d,), (0,))
    for key, split in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f))):
        layer(f"mlp/{key}/kernel", f"mlp.{key}_proj.weight", f"ffn_{key}.weight", split, (1, 0))
    add("final_norm/scale", "model.norm.weight", "output_norm.weight", (d,), (0,))
    if not config.tie_embeddings:
        add("head/kernel", "lm_head.weight", "output.weight", (v, d), (1, 0))
    return tuple(rows)


def check_tensors(
    config: DecoderConfig,
    naming: Naming,
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
    also: Iterable[str] = (),
) -> None:
    """Refuses a set of tensors that is not exactly the decoder's.

    Args:
        config: dimensions of the decoder.
        naming: whose names `shapes` uses.
        shapes: what was found, name to shape.
        origin: the file or folder, for the message.
        also: problems the caller found itself; they join the list.

    Raises:
        ModelFilesError: lists every unknown, missing and mis-shaped tensor.
    """
    expected = {
        weight.name(naming, layer): weight.file_shape
        for weight in weight_table(config)
        for layer in range(config.layers if weight.per_layer else 1)
    }
    problems = list(also)
    problems += [f"unknown tensor {name} {list(shapes[name])}" for name in sorted(set(shapes) - set(expected))]
    problems += [f"missing tensor {name} {list(expected[name])}" for name in sorted(set(expected) - set(shapes))]
    problems += [
        f"tensor {name} has shape {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    refuse(problems, f"{origin}: does not hold the weights of a {config.family} decoder")


def refuse(problems: Sequence[str], headline: str) -> None:
    """Raises ModelFilesError with all `problems` under `headline`; does nothing when there are none."""
    if problems:
        raise ModelFilesError(f"{headline} ({len(problems)} problems):\n" + "\n".join(f"  - {p}" for p in problems))


def assemble(config: DecoderConfig, naming: Naming, read: Callable[[Weight, str], np.ndarray], origin: str) -> Params:
    """Returns our parameter tree, reading each tensor of the table once, layers stacked in place.

    Args:
        config: dimensions of the decoder.
        naming: whose names `read` is asked for.
        read: gives the tensor of a weight under its name in the file, [*file_shape] of any float type.
        origin: the file or folder, for the message.

    Raises:
        ModelFilesError: lists the tensors that hold NaN or infinity.
    """
    params: Params = {}
    broken: list[str] = []
    for weight in weight_table(config):
        layers = config.layers if weight.per_layer else 1
        stacked = np.empty((layers, *weight.shape), np.float32)
        for layer in range(layers):
            name = weight.name(naming, layer)
            stacked[layer] = weight.from_file(read(weight, name))
            if not np.isfinite(stacked[layer]).all():
                broken.append(f"tensor {name} holds values that are not finite")
        node = params
        for key in weight.path[:-1]:
            node = node.setdefault(key, {})
        node[weight.path[-1]] = stacked if weight.per_layer else stacked[0]
    refuse(broken, f"{origin}: damaged weights")
    return params


def disassemble(config: DecoderConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (Hugging Face name, tensor [*file_shape]) for every weight, in table order.

    Raises:
        ModelFilesError: `params` lacks a weight or one has another shape.
    """
    for weight in weight_table(config):
        node: Any = params
        for key in weight.path:
            node = node.get(key) if isinstance(node, dict) else None
        path = "/".join(weight.path)
        if node is None:
            raise ModelFilesError(f"params/{path}: missing")
        expected = (config.layers, *weight.shape) if weight.per_layer else weight.shape
        array = np.asarray(node)
        if array.shape != expected:
            raise ModelFilesError(f"params/{path}: has shape {list(array.shape)}, expected {list(expected)}")
        for layer in range(config.layers if weight.per_layer else 1):
            yield weight.name("hf", layer), weight.to_file(array[layer] if weight.per_layer else array)
