"""Sampling in torch: G completions of every prompt, by `generate`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import GenerationConfig


def sample_reference(model: Any, prompts: torch.Tensor, group_size: int, new_tokens: int) -> torch.Tensor:
    """Returns completions [Q, G, C]: one call of `generate` for each completion index.

    So does the public code of the paper (genrl's GRPO trainer); every call computes all prompts again.
    """
    return torch.stack([_generate(model, prompts, 1, new_tokens) for _ in range(group_size)], dim=1)


def sample_batched(
    model: Any, prompts: torch.Tensor, group_size: int, new_tokens: int, dtype: torch.dtype
) -> torch.Tensor:
    """Returns completions [Q, G, C]: all in one call, with weights of `dtype`."""
    if dtype is not torch.float32:
        model = copy.deepcopy(model).to(dtype)  # weights change in every round, so the copy is part of the work
    rows = _generate(model, prompts, group_size, new_tokens)
    return rows.reshape(prompts.shape[0], group_size, new_tokens)


@torch.no_grad()
def _generate(model: Any, prompts: torch.Tensor, each: int, new_tokens: int) -> torch.Tensor:
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new_tokens,
        num_return_sequences=each,
        pad_token_id=0,  # asked for, never used: there is no end token
    )
    was_training = model.training
    model.eval()
    rows = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=settings)
    model.train(was_training)
    return rows[:, prompts.shape[1] :]
