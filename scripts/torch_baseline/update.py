"""The GRPO update in torch: loss of SAPO's public code, on whole sequences."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from scripts.bench.workloads import Checked

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
LEARNING_RATE = 1e-6
MICRO_ROWS = 8


class Rows(NamedTuple):
    """sequences [B, P + C] int64, and advantages [B] float32; the last C tokens are the completion."""

    sequences: torch.Tensor
    advantages: torch.Tensor


def make_rows(prompts: torch.Tensor, completions: torch.Tensor, rewards: torch.Tensor) -> Rows:
    """Returns the rows of prompts [Q, P], completions [Q, G, C] and rewards [Q, G]."""
    q, g, _ = completions.shape
    repeated = prompts[:, None].expand(q, g, prompts.shape[1])
    sequences = torch.cat([repeated, completions], dim=2).reshape(q * g, -1)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = centred / (rewards.std(dim=1, keepdim=True) + 1e-8)
    return Rows(sequences, advantages.reshape(-1))


def warm_up(model: Any, rows: Rows, completion: int, dtype: torch.dtype) -> None:
    """Runs one micro-batch forward and backward and forgets it: first uses of kernels take longer."""
    _logprobs(model, rows.sequences[:MICRO_ROWS], completion, dtype).mean().backward()
    model.zero_grad(set_to_none=True)


def make_optimizer(model: Any, *, fused: bool) -> torch.optim.Optimizer:
    """Returns Adam over all weights."""
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=fused)


def completion_logprobs(model: Any, sequences: torch.Tensor, completion: int) -> torch.Tensor:
    """Returns [B, C] log-probs of the completion tokens; logits exist at their positions only."""
    attention_mask = torch.ones_like(sequences)
    out = model(sequences, attention_mask=attention_mask, logits_to_keep=completion + 1, use_cache=False)
    logits = out.logits[:, :-1].float()
    targets = sequences[:, -completion:]
    return -torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none"
    ).reshape(targets.shape)


def update_reference(
    model: Any, optimizer: torch.optim.Optimizer, rows: Rows, completion: int, dtype: torch.dtype
) -> Checked:
    """Applies one update with all rows at once, activations recomputed, as the public code does; returns checks."""
    model.activation_checkpointing_enable()
    return _update(model, optimizer, rows, completion, dtype, micro_rows=len(rows.advantages))


def update_batched(
    model: Any, optimizer: torch.optim.Optimizer, rows: Rows, completion: int, dtype: torch.dtype
) -> Checked:
    """Applies the same update in micro-batches that keep their activations; returns checks."""
    return _update(model, optimizer, rows, completion, dtype, micro_rows=MICRO_ROWS)


@torch.no_grad()
def score(model: Any, rows: Rows, completion: int, dtype: torch.dtype, micro_rows: int) -> Checked:
    """Computes the log-probs of all completions; returns checks."""
    parts = [
        _logprobs(model, sequences, completion, dtype)
        for sequences in rows.sequences.split(micro_rows or len(rows.sequences))
    ]
    return {"logprob_mean": float(torch.cat(parts).mean()), "logprobs": parts[0][0].tolist()}


def _update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    completion: int,
    dtype: torch.dtype,
    *,
    micro_rows: int,
) -> Checked:
    model.train()
    scale = model.model.norm.weight
    before = scale.detach().clone()
    optimizer.zero_grad(set_to_none=True)
    denominator = rows.sequences.shape[0] * completion
    logprob_sum = torch.zeros((), device=rows.sequences.device)
    for sequences, advantages in zip(rows.sequences.split(micro_rows), rows.advantages.split(micro_rows), strict=True):
        logprobs = _logprobs(model, sequences, completion, dtype)
        ratio = torch.exp(logprobs - logprobs.detach())
        weighted = ratio * advantages[:, None]
        clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantages[:, None]
        (-torch.minimum(weighted, clipped).sum() / denominator).backward()
        logprob_sum += logprobs.detach().sum()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    optimizer.step()
    return {
        "logprob_mean": float(logprob_sum) / denominator,
        "grad_norm": float(norm),
        "moved": float((scale.detach() - before).abs().sum()),
    }


def _logprobs(model: Any, sequences: torch.Tensor, completion: int, dtype: torch.dtype) -> torch.Tensor:
    """As `completion_logprobs`, with products in `dtype` and masters in float32."""
    with torch.autocast(sequences.device.type, dtype=dtype, enabled=dtype is not torch.float32):
        return completion_logprobs(model, sequences, completion)
