"""From scored rollouts to the fixed-shape arrays of one update, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sapo_jax.learner.step import Batch
from sapo_jax.text.encode import bucket_for, encode_completion, pad_completions, pad_prompts
from sapo_jax.text.tokenizer import Tokenizer
from sapo_jax.types import Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingGroup:
    """One rollout ready to be laid out: the receiver's prompt, the texts and the receiver's rewards."""

    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    rewards: tuple[float, ...]
    external: bool


def build_batch(
    groups: Sequence[TrainingGroup],
    tokenizer: Tokenizer,
    *,
    questions: int,
    group_size: int,
    max_new_tokens: int,
    prompt_length: int,
    local_encoding: str,
) -> Batch:
    """Returns the numpy `Batch` of `groups`, filled up to [Q, G, C] = [questions, group_size, max_new_tokens].

    A group of more than `group_size` completions is used as far as it fits; of fewer, the rest of
    its rows is marked as not valid. Missing groups are rows that are not valid at all.

    Args:
        prompt_length: P, at least the longest prompt; see `prompt_bucket`.
        local_encoding: "text" or "tokens", see `encode_completion`.

    Raises:
        ValueError: more groups than `questions`.
    """
    if len(groups) > questions:
        raise ValueError(f"{len(groups)} groups do not fit into a batch of {questions}")
    pad = tokenizer.pad_id
    rewards = np.zeros((questions, group_size), np.float32)
    valid = np.zeros((questions, group_size), bool)
    truncated = np.zeros((questions, group_size), bool)
    external = np.zeros((questions,), bool)
    rows: list[list[list[int]]] = [[[] for _ in range(group_size)] for _ in range(questions)]
    for q, group in enumerate(groups):
        external[q] = group.external
        for g, (completion, reward) in enumerate(zip(group.completions, group.rewards, strict=True)):
            if g == group_size:
                break
            rows[q][g], truncated[q, g] = encode_completion(tokenizer, completion, max_new_tokens, local_encoding)
            rewards[q, g], valid[q, g] = reward, True
    # A filler prompt is one pad token that counts as real, so that no softmax is over nothing.
    prompts = [list(group.prompt_ids) for group in groups] + [[pad]] * (questions - len(groups))
    encoded = pad_prompts(prompts, prompt_length, pad_id=pad, side="left")
    completions = pad_completions(rows, max_new_tokens, pad_id=pad)
    return Batch(
        prompt_tokens=encoded.tokens,
        prompt_positions=encoded.prompt_positions,
        prompt_mask=encoded.prompt_mask,
        completion_tokens=completions.tokens,
        completion_mask=completions.completion_mask,
        rewards=rewards,
        valid=valid,
        truncated=truncated,
        external=external,
    )


def cut_completions(batches: Sequence[Batch], buckets: Sequence[int]) -> list[Batch]:
    """Returns `batches` with C cut to the smallest of the rising `buckets` that holds every completion of all."""
    longest = max(int(np.sum(batch.completion_mask, axis=-1).max(initial=0)) for batch in batches)
    length = bucket_for(longest, buckets)
    return [
        batch._replace(
            completion_tokens=batch.completion_tokens[..., :length], completion_mask=batch.completion_mask[..., :length]
        )
        for batch in batches
    ]


def prompt_bucket(groups: Sequence[TrainingGroup], buckets: Sequence[int]) -> int:
    """Returns the smallest bucket that holds every prompt of `groups`."""
    return bucket_for(max((len(group.prompt_ids) for group in groups), default=1), buckets)
