"""The model of `transformers` with our weights in it."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params
from sapo_jax.models.hf_config import config_json
from sapo_jax.models.weight_table import disassemble

_CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def build_model(config: DecoderConfig, params: Params, device: torch.device) -> Any:
    """Returns the `...ForCausalLM` of these dimensions with `params` (one node's) as float32 weights."""
    make_config, make_model = _CLASSES[config.family]
    raw = config_json(config, bos_id=None, eos_id=0, pad_id=0)
    raw["pad_token_id"] = None  # the embedding of a pad token would get no gradient, and here every id is a token
    model = make_model(make_config(**raw))
    tensors = {name: torch.from_numpy(tensor.copy()) for name, tensor in disassemble(config, params)}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:  # a tied head is no weight of its own
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.generation_config.eos_token_id = None  # `generate` falls back to it, and every completion runs to the limit
    return model.to(device)
