"""Reads a GGUF file: dimensions from its metadata, tensors of any dequantizable type as float32.

GGUF stores the query and key rows of the Llama family with the two halves of every RoPE pair side by
side; they are put back into the half-rotation layout of our decoder. The tokenizer in the same
metadata is built by `sapo_jax.text.gguf_tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from sapo_jax.models.architecture import FAMILIES, DecoderConfig
from sapo_jax.models.weight_table import ModelFilesError, Params, Weight, assemble, check_tensors

# What the reader raises on files that are cut short or garbled: it indexes and casts raw bytes.
_READER_ERRORS = (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError, MemoryError)


class _BoundedReader(GGUFReader):
    """GGUFReader that notices the end of the file instead of handing out short arrays."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        found = super()._get(offset, dtype, count, override_order)
        if len(found) != int(count):
            raise ValueError(f"ends inside a record at byte {offset}")
        return found


def load_gguf(path: Path) -> tuple[DecoderConfig, Params, dict[str, Any]]:
    """Returns configuration, float32 parameters and metadata (plain Python values) of a GGUF file.

    Raises:
        ModelFilesError: the file is missing, damaged, or not a decoder of the family.
    """
    if not path.is_file():
        raise ModelFilesError(f"{path}: no such file")
    try:
        reader = _BoundedReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except _READER_ERRORS as error:
        raise ModelFilesError(f"{path}: damaged, truncated or not a GGUF file ({error})") from error
    if reader.endianess.name != "LITTLE":
        raise ModelFilesError(f"{path}: big-endian GGUF files are not implemented")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}
    config = gguf_config(metadata, shapes, str(path))
    check_tensors(config, "gguf", shapes, str(path), _unreadable(tensors))

    def read(weight: Weight, name: str) -> np.ndarray:
        tensor = tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(weight.file_shape)
        return interleaved_to_halves(values, weight.rotary_heads if config.family == "llama" else 0)

    return config, assemble(config, "gguf", read, str(path)), metadata


def gguf_config(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], origin: str) -> DecoderConfig:
    """Returns the DecoderConfig that a GGUF file's metadata and tensor shapes spell out.

    Raises:
        ModelFilesError: a missing key, another architecture, or what is not implemented.
    """
    family = metadata.get("general.architecture")
    if family not in FAMILIES:
        raise ModelFilesError(
            f"{origin}: general.architecture = {family!r}: only {', '.join(FAMILIES)} are implemented"
        )

    def value(key: str, kind: type, default: Any = None) -> Any:
        found = metadata.get(f"{family}.{key}", default)
        if type(found) is not kind or not found > 0:
            raise ModelFilesError(f"{origin}: {family}.{key} = {found!r}: must be a positive {kind.__name__}")
        return found

    def must_be(key: str, *allowed: Any) -> None:
        found = metadata.get(f"{family}.{key}")
        if found is not None and found not in allowed:
            raise ModelFilesError(f"{origin}: {family}.{key} = {found!r}: only {allowed[0]!r} is implemented")

    heads = value("attention.head_count", int)
    width = value("embedding_length", int)
    head_size = value("attention.key_length", int, width // heads)
    must_be("attention.value_length", head_size)
    must_be("rope.dimension_count", head_size)
    must_be("rope.scaling.type", "none")
    must_be("attention.sliding_window", 0)
    must_be("expert_count", 0)
    embedding = shapes.get("token_embd.weight", ())
    try:
        return DecoderConfig(
            family=family,
            vocab_size=value("vocab_size", int, embedding[0] if embedding else None),
            width=width,
            mlp_width=value("feed_forward_length", int),
            layers=value("block_count", int),
            heads=heads,
            kv_heads=value("attention.head_count_kv", int, heads),
            head_size=head_size,
            rope_base=_shortest(value("rope.freq_base", float, 10_000.0)),
            norm_epsilon=_shortest(value("attention.layer_norm_rms_epsilon", float)),
            tie_embeddings="output.weight" not in shapes,
            **FAMILIES[family],
            max_positions=value("context_length", int),
        )
    except ModelFilesError:
        raise
    except ValueError as error:
        raise ModelFilesError(f"{origin}: {error}") from error


def interleaved_to_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Returns q or k rows in half-rotation order; GGUF's Llama rows alternate between the halves.

    Args:
        rows: [heads * H, ...]; row 2 i + j of a head goes to row j H / 2 + i.
        heads: 0 leaves `rows` as they are.
    """
    if not heads:
        return rows
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])  # [heads, H / 2, 2, ...]
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _shortest(value: float) -> float:
    """Returns the shortest decimal that is the same float32: metadata stores 1e-5 as 9.99999974e-06."""
    return float(str(np.float32(value)))


def _unreadable(tensors: Mapping[str, Any]) -> list[str]:
    """Returns one problem per tensor whose type cannot be turned into float32, found without reading it."""
    problems = []
    for name, tensor in tensors.items():
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[tensor.tensor_type][1]), np.uint8), tensor.tensor_type)
        except NotImplementedError:
            problems.append(f"tensor {name} has type {tensor.tensor_type.name}, which cannot be dequantized")
    return problems
