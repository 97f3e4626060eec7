"""Generated GGUF files of the three families, written tensor by tensor with the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from transformers import PreTrainedTokenizerFast

from tests.models.hf_folders import CHAT_TEMPLATE

GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def gguf_name(hf_name: str) -> str:
    for old, new in GGUF_NAMES.items():
        hf_name = hf_name.replace(old, new)
    return hf_name


def tokenizer_metadata(fast: PreTrainedTokenizerFast, pre: str, vocab_size: int) -> dict[str, Any]:
    """Returns `tokenizer.ggml.*` for a byte-level BPE tokenizer, padded with unused tokens as converters do."""
    import json

    model = json.loads(fast.backend_tokenizer.to_str())["model"]
    texts = {id: token for token, id in fast.get_vocab().items()}
    added = fast.added_tokens_decoder
    tokens = [texts.get(id, f"[PAD{id}]") for id in range(vocab_size)]
    kinds = [
        5 if id not in texts else 1 if id not in added else 3 if added[id].special else 4 for id in range(vocab_size)
    ]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": fast.eos_token_id,
        "tokenizer.ggml.padding_token_id": fast.pad_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def model_metadata(config: Any) -> dict[str, Any]:
    """Returns the `FAMILY.*` keys for a transformers config."""
    family = config.model_type
    keys = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    if family == "qwen3":
        keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    return {f"{family}.{key}": value for key, value in keys.items()}


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Returns Llama q or k rows as llama.cpp's converter stores them, one row at a time."""
    size = rows.shape[0] // heads
    out = np.empty_like(rows)
    for head in range(heads):
        for pair in range(size // 2):
            out[head * size + 2 * pair] = rows[head * size + pair]
            out[head * size + 2 * pair + 1] = rows[head * size + size // 2 + pair]
    return out


def write_gguf(
    path: Path,
    family: str,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    types: Mapping[str, Type] | None = None,
) -> None:
    """Writes a GGUF file.

    Args:
        tensors: GGUF names to arrays as they shall be stored (rows of Llama q and k interleaved).
        metadata: key to int, float, bool, str or list.
        types: name to storage type of float arrays; float32 for those not named.
    """
    writer = gguf.GGUFWriter(path, family)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, list(value))
    for name, array in tensors.items():
        kind = (types or {}).get(name, Type.F32)
        if array.dtype == np.int32:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
