"""Small decoders of every family whose parameters are all random and large enough to matter."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from sapo_jax.models.architecture import FAMILIES, DecoderConfig
from sapo_jax.models.decoder import Params, abstract_params

# Tied and untied heads both appear.
CASES = [(family, tie) for family, tie in zip(FAMILIES, (True, False, True), strict=True)]


def small_config(family: str, **changes: Any) -> DecoderConfig:
    """Returns two layers of width 24; heads times head size is not the width."""
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "width": 24,
        "mlp_width": 40,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 8,
        "rope_base": 100.0,  # low, so that even short sequences turn the slow pairs visibly
        "norm_epsilon": 1e-5,
        "tie_embeddings": True,
        "qkv_bias": family == "qwen2",
        "qk_norm": family == "qwen3",
        "max_positions": 512,
    }
    return DecoderConfig(family=family, **(sizes | changes))


def random_params(config: DecoderConfig, seed: int, dtype: str = "float32") -> Params:
    """Returns random parameters: norm scales around 1, biases of order 1, kernels that keep variance."""
    generator = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        names = [entry.key for entry in path]
        noise = generator.normal(size=leaf.shape)
        if names[-1] == "scale":
            values = 1 + 0.4 * noise
        elif names[-1] == "bias":
            values = 0.7 * noise
        elif names[-1] == "embedding":
            values = noise * (2.0 / np.sqrt(config.width))  # tied: also the head
        else:
            inputs = config.heads * config.head_size if "o" in names else leaf.shape[-2 if "mlp" in names else 1]
            values = noise * (1.5 / np.sqrt(config.width if names[0] == "head" else inputs))
        return values.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))
