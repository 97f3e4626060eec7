"""What is timed: four pieces of one round, with the numbers that everybody gets.

Eight questions with eight completions each, as in the paper. Every prompt has full length and every
completion runs to the limit, so the work is known exactly. Weights are random, at the dimensions of a
real model: time does not depend on what they say.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params, abstract_params
from sapo_jax.models.layers import INIT_STDDEV

SMOLLM2_135M = DecoderConfig(
    family="llama",
    vocab_size=49152,
    width=576,
    mlp_width=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_size=64,
    rope_base=1e5,
    norm_epsilon=1e-5,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    max_positions=8192,
)
QWEN25_05B = DecoderConfig(
    family="qwen2",
    vocab_size=151936,
    width=896,
    mlp_width=4864,
    layers=24,
    heads=14,
    kv_heads=2,
    head_size=64,
    rope_base=1e6,
    norm_epsilon=1e-6,
    tie_embeddings=True,
    qkv_bias=True,
    qk_norm=False,
    max_positions=32768,
)
TINY = DecoderConfig(
    family="llama",
    vocab_size=512,
    width=64,
    mlp_width=128,
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=16,
    rope_base=1e4,
    norm_epsilon=1e-5,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    max_positions=1024,
)
MODELS = {
    "tiny": TINY,
    "1m": dataclasses.replace(TINY, width=128, mlp_width=384, layers=4, head_size=32, max_positions=4096),
    "10m": dataclasses.replace(TINY, width=256, mlp_width=768, layers=12, heads=8, head_size=32, max_positions=4096),
    "smollm2_135m": SMOLLM2_135M,
    "qwen25_05b": QWEN25_05B,
}

DTYPES = ("float32", "bfloat16")
PASS_POSITIONS_CPU = 1200  # that one pass of our update takes, but at least one group; elsewhere all


class Kind(enum.Enum):
    """Which part of a round."""

    SAMPLE = "sample"
    UPDATE = "update"
    SCORE = "score"
    ROUND = "round"  # sampling, then the update on what was sampled


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One piece of work of one node: P prompt tokens, C completion tokens, Q questions, G completions each."""

    kind: Kind
    prompt: int
    completion: int
    questions: int = 8
    group_size: int = 8

    @property
    def rows(self) -> int:
        """Q * G."""
        return self.questions * self.group_size

    @property
    def tokens(self) -> int:
        """Sampled tokens; for an update or a scoring, all tokens of its sequences."""
        is_whole = self.kind in (Kind.UPDATE, Kind.SCORE)
        return self.rows * (self.completion + (self.prompt if is_whole else 0))

    def positions(self, *, is_prompt_shared: bool) -> int:
        """Positions that one pass over all sequences computes: a prompt once, or once for each of its completions."""
        if not is_prompt_shared:
            return self.rows * (self.prompt + self.completion)
        return self.questions * (self.prompt - 1) + self.rows * self.completion


WORKLOADS = {
    "W1": Workload(kind=Kind.SAMPLE, prompt=128, completion=128),
    "W2": Workload(kind=Kind.UPDATE, prompt=128, completion=128),
    "W3": Workload(kind=Kind.SCORE, prompt=128, completion=128),
    "W4": Workload(kind=Kind.ROUND, prompt=256, completion=32),
    "W4_470": Workload(kind=Kind.ROUND, prompt=470, completion=32),
}


class Inputs(NamedTuple):
    """prompts [Q, P] int32, completions [Q, G, C] int32, rewards [Q, G] float32: half of each group is right."""

    prompts: np.ndarray
    completions: np.ndarray
    rewards: np.ndarray


# What can be checked of a piece of work: numbers by name, or log-probs of the tokens of one completion.
Checked = dict[str, float | list[float]]


def make_inputs(workload: Workload, vocab_size: int, seed: int) -> Inputs:
    """Returns what everybody gets; sampling uses the prompts alone, a round what it has sampled itself."""
    rng = np.random.default_rng([seed, 1])
    q, g = workload.questions, workload.group_size
    rewards = np.stack([rng.permutation(np.arange(g) % 2) for _ in range(q)])
    return Inputs(
        prompts=rng.integers(vocab_size, size=(q, workload.prompt), dtype=np.int32),
        completions=rng.integers(vocab_size, size=(q, g, workload.completion), dtype=np.int32),
        rewards=rewards.astype(np.float32),
    )


def make_params(config: DecoderConfig, seed: int) -> Params:
    """Returns random weights as float32 numpy arrays, biases and norm scales included."""
    rng = np.random.default_rng([seed, 2])

    def leaf(path: Any, shape: Any) -> np.ndarray:
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return around + INIT_STDDEV * rng.standard_normal(shape.shape, np.float32)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def select_device(device: str) -> None:
    """Makes JAX use "cpu" or "gpu"; ends the process with one line if there is no such device."""
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    else:  # float32 products of GPUs are not those of TensorFloat-32, as in torch
        jax.config.update("jax_default_matmul_precision", "float32")
    if jax.default_backend() != device:
        sys.exit(f"--device={device}: no such device here, found {jax.default_backend()}")
