"""Whatever lengths strangers send, an update has few shapes: each new one would be a compilation."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapo_jax import lengths
from sapo_jax.config import MAX_BUCKETS, ConfigError, LearnerConfig, SamplingConfig, SapoConfig, SharingConfig
from sapo_jax.host import Host
from sapo_jax.learner.batching import TrainingGroup, build_batch, cut_completions, prompt_bucket
from sapo_jax.text.byte_tokenizer import byte_tokenizer
from sapo_jax.types import Completion, FinishReason
from tests.models.random_models import random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

BUCKETS = (8, 24, 40)
MAX_NEW = 8
CONFIG = SapoConfig(
    rounds=1,
    nodes=1,
    sampling=SamplingConfig(group_size=3, max_new_tokens=MAX_NEW, prompt_buckets=BUCKETS),
    sharing=SharingConfig(local=1, external=2),
    learner=LearnerConfig(learning_rate=1e-5, remat=False),
)


def storm(rng: np.random.Generator) -> list[TrainingGroup]:
    """Returns up to three groups: 1 to 64 completions each, of any length up to what the wire carries."""

    def completion() -> Completion:
        length = int(rng.integers(0, 40) if rng.random() < 0.8 else rng.integers(0, 65_536))
        reason = FinishReason.STOP if rng.random() < 0.5 else FinishReason.LENGTH
        return Completion(text="x" * length, finish_reason=reason)

    groups = []
    for _ in range(int(rng.integers(0, 4))):
        count = int(rng.integers(1, 65))
        groups.append(
            TrainingGroup(
                prompt_ids=tuple(range(1, int(rng.integers(2, BUCKETS[-1] + 1)))),
                completions=tuple(completion() for _ in range(count)),
                rewards=tuple(rng.random(count).tolist()),
                external=True,
            )
        )
    return groups


def test_t8_a_storm_of_lengths_compiles_no_more_than_the_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "SHORTEST", 2)
    completions = lengths.completion_buckets(MAX_NEW)
    assert completions == (2, 4, 8) and lengths.FEW == 3
    tokenizer = byte_tokenizer()
    model = small_config("qwen2", vocab_size=tokenizer.vocab_size)
    host = Host(
        CONFIG,
        model,
        random_params(model, 1),
        end_id=tokenizer.end_id,
        dtype=jnp.dtype(jnp.float32),
        nodes_per_program=1,
    )
    rng = np.random.default_rng(0)
    shapes: set[tuple[tuple[int, ...], ...]] = set()
    for _ in range(40):
        groups = storm(rng)
        batch = build_batch(
            groups,
            tokenizer,
            questions=CONFIG.train_groups,
            group_size=CONFIG.sampling.group_size,
            max_new_tokens=MAX_NEW,
            prompt_length=prompt_bucket(groups, BUCKETS),
            local_encoding="text",
        )
        (batch,) = cut_completions([batch], completions)
        shapes.add(tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch)))
        (metrics,) = host.update([batch])
        assert metrics["learner/skipped_updates_frac"] == 0
    assert len(BUCKETS) < len(shapes) <= len(BUCKETS) * len(completions)
    assert host.traces["update"] == len(shapes) and len(BUCKETS) <= MAX_BUCKETS == 8


def test_t8_more_buckets_than_that_are_refused() -> None:
    replace(CONFIG.sampling, prompt_buckets=tuple(range(1, MAX_BUCKETS + 1)))
    with pytest.raises(ConfigError, match="prompt_buckets.*at most 8"):
        replace(CONFIG.sampling, prompt_buckets=tuple(range(1, MAX_BUCKETS + 2)))
