"""config.json to DecoderConfig and back, in the spellings of transformers 4 and 5.

Whatever would change the forward pass and is not implemented is refused by key, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sapo_jax.models.architecture import FAMILIES, DecoderConfig
from sapo_jax.models.weight_table import ModelFilesError

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_MAX_POSITIONS = {"llama": 2048, "qwen2": 32768, "qwen3": 32768}  # transformers' defaults for an absent key


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in `path`.

    Raises:
        ModelFilesError: the file is missing, is not JSON, repeats a key, or is not an object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise ModelFilesError(f"{path}: repeats the keys {sorted({n for n in names if names.count(n) > 1})}")
        return found

    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError as error:
        raise ModelFilesError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelFilesError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelFilesError(f"{path}: must hold a JSON object, holds a {type(value).__name__}")
    return value


def decoder_config(raw: Mapping[str, Any], origin: str) -> DecoderConfig:
    """Returns the DecoderConfig that a config.json spells out.

    Args:
        raw: the parsed file.
        origin: its path, for messages.

    Raises:
        ModelFilesError: a missing or mistyped key, or one that asks for what is not implemented.
    """
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise _refusal(origin, "model_type", family, f"only {', '.join(FAMILIES)} are implemented")
    _refuse_unimplemented(raw, family, origin)

    def integer(key: str, default: int | None = None) -> int:
        value = raw.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise _refusal(origin, key, value, "must be a positive integer")
        return value

    heads = integer("num_attention_heads")
    width = integer("hidden_size")
    # Llama and Qwen2 may leave these out; for Qwen3 the head size is a free choice that the file must state.
    head_size = integer("head_dim", None if family == "qwen3" else width // heads)
    kv_heads = integer("num_key_value_heads", heads if family == "llama" else None)
    try:
        return DecoderConfig(
            family=family,
            vocab_size=integer("vocab_size"),
            width=width,
            mlp_width=integer("intermediate_size"),
            layers=integer("num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            rope_base=_rope_base(raw, origin),
            norm_epsilon=_positive(raw.get("rms_norm_eps", 1e-6), "rms_norm_eps", origin),
            tie_embeddings=_flag(raw, "tie_word_embeddings", origin),
            **FAMILIES[family],
            max_positions=integer("max_position_embeddings", _MAX_POSITIONS[family]),
        )
    except ModelFilesError:
        raise
    except ValueError as error:
        raise ModelFilesError(f"{origin}: {error}") from error


def config_json(config: DecoderConfig, *, bos_id: int | None, eos_id: int, pad_id: int) -> dict[str, Any]:
    """Returns the config.json that transformers 4 and 5 read back as `config`."""
    raw: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        # transformers 5 moved theta into a dict; it still reads the older pair, which everything else reads too.
        "rope_theta": config.rope_base,
        "rope_scaling": None,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    if config.family == "llama":
        raw |= {"attention_bias": False, "mlp_bias": False}
    if config.family == "qwen3":
        raw |= {"attention_bias": False}
    if config.family in ("qwen2", "qwen3"):
        raw |= {"use_sliding_window": False, "sliding_window": None}
    return raw


def _refuse_unimplemented(raw: Mapping[str, Any], family: str, origin: str) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise _refusal(origin, "hidden_act", activation, "only silu is implemented")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if _flag(raw, key, origin):
            raise _refusal(origin, key, True, "is not implemented")
    if family == "llama" and raw.get("sliding_window") is not None:
        raise _refusal(origin, "sliding_window", raw["sliding_window"], "is not implemented")
    kinds = raw.get("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        raise _refusal(origin, "layer_types", kinds, "only full_attention is implemented")
    if raw.get("quantization_config"):
        raise _refusal(
            origin, "quantization_config", raw["quantization_config"], "quantized weights are not implemented"
        )
    if raw.get("partial_rotary_factor", 1) not in (None, 1):
        raise _refusal(origin, "partial_rotary_factor", raw["partial_rotary_factor"], "must be 1")


def _rope_base(raw: Mapping[str, Any], origin: str) -> float:
    """Returns RoPE's theta from either spelling, refusing any scaling and two spellings that disagree."""
    found = {} if raw.get("rope_theta") is None else {"rope_theta": raw["rope_theta"]}
    for key in ("rope_parameters", "rope_scaling"):
        rope = raw.get(key)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            raise _refusal(origin, key, rope, "must be an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise _refusal(origin, f"{key}.rope_type", kind, "only default is implemented")
        if rope.get("partial_rotary_factor", 1) not in (None, 1):
            raise _refusal(origin, f"{key}.partial_rotary_factor", rope["partial_rotary_factor"], "must be 1")
        unknown = sorted(set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
        if unknown:
            raise _refusal(origin, f"{key}.{unknown[0]}", rope[unknown[0]], "is not implemented")
        if rope.get("rope_theta") is not None:
            found[f"{key}.rope_theta"] = rope["rope_theta"]
    values = {key: _positive(value, key, origin) for key, value in found.items()}
    if len(set(values.values())) > 1:
        raise ModelFilesError(f"{origin}: RoPE bases disagree: {values}")
    return next(iter(values.values()), 10_000.0)


def _positive(value: Any, key: str, origin: str) -> float:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise _refusal(origin, key, value, "must be a positive number")
    return float(value)


def _flag(raw: Mapping[str, Any], key: str, origin: str) -> bool:
    value = raw.get(key)
    if value not in (None, True, False):
        raise _refusal(origin, key, value, "must be true or false")
    return bool(value)


def _refusal(origin: str, key: str, value: Any, rule: str) -> ModelFilesError:
    return ModelFilesError(f"{origin}: {key} = {value!r}: {rule}")
