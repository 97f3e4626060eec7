"""The dimensions that tell one decoder of the family from another."""

from __future__ import annotations

from dataclasses import dataclass

# What the attention of a family has besides the common parts.
FAMILIES = {
    "llama": {"qkv_bias": False, "qk_norm": False},
    "qwen2": {"qkv_bias": True, "qk_norm": False},
    "qwen3": {"qkv_bias": False, "qk_norm": True},
}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A Llama-like decoder: RMSNorm, RoPE (half rotation), grouped heads, gated SiLU MLP.

    Attributes:
        family: llama, qwen2 (bias on q, k, v) or qwen3 (RMSNorm on each query and key head).
        rope_base: RoPE's theta.
        norm_epsilon: added to the mean square inside every RMSNorm.
        tie_embeddings: the output head is the transposed embedding.
        max_positions: longest sequence the weights were made for, in tokens.
    """

    family: str
    vocab_size: int  # V
    width: int  # D
    mlp_width: int  # F
    layers: int  # L
    heads: int  # N
    kv_heads: int  # K
    head_size: int  # H
    rope_base: float
    norm_epsilon: float
    tie_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    max_positions: int

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"model family {self.family!r} is not one of {', '.join(FAMILIES)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads = {self.kv_heads} must divide heads = {self.heads}")
        if self.head_size % 2:
            raise ValueError(f"head_size = {self.head_size} must be even: RoPE rotates pairs")
