"""The torch side of the workloads, in two forms: `FORMS` in scripts/bench/report.py says what each does.

Both keep float32 masters, and both compute a prompt once for each of its completions, as `generate` and padded
batches do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params
from scripts.bench.workloads import Checked, Inputs, Kind, Workload
from scripts.torch_baseline import update as learning
from scripts.torch_baseline.model import build_model
from scripts.torch_baseline.sampling import sample_batched, sample_reference


def build(
    workload: Workload,
    config: DecoderConfig,
    params: Params,
    inputs: Inputs,
    *,
    dtype: str,
    device: str,
    is_reference: bool,
) -> Callable[[], Checked]:
    """Returns a function that does the work once and returns what can be checked of it."""
    place, kind = torch.device(device), getattr(torch, dtype)
    model = build_model(config, params, place)
    optimizer = learning.make_optimizer(model, fused=not is_reference)
    prompts = torch.from_numpy(inputs.prompts).long().to(place)
    rewards = torch.from_numpy(inputs.rewards).to(place)
    given = torch.from_numpy(inputs.completions).long().to(place)
    rows = learning.make_rows(prompts, given, rewards)

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast(place.type, dtype=kind, enabled=kind is not torch.float32)

    def sample(completion: int = workload.completion) -> torch.Tensor:
        if is_reference:
            with autocast():
                return sample_reference(model, prompts, workload.group_size, completion)
        return sample_batched(model, prompts, workload.group_size, completion, kind)

    def update(rows: learning.Rows) -> Checked:
        apply = learning.update_reference if is_reference else learning.update_batched
        return apply(model, optimizer, rows, workload.completion, kind)

    if workload.kind in (Kind.SAMPLE, Kind.ROUND):
        sample(2)
    if workload.kind is not Kind.SAMPLE:
        learning.warm_up(model, rows, workload.completion, kind)
    if workload.kind is Kind.SAMPLE:
        return lambda: {"tokens": float(sample().numel())}
    if workload.kind is Kind.UPDATE:
        return lambda: update(rows)
    if workload.kind is Kind.SCORE:
        micro_rows = 0 if is_reference else learning.MICRO_ROWS
        return lambda: learning.score(model, rows, workload.completion, kind, micro_rows)
    return lambda: update(learning.make_rows(prompts, sample(), rewards))
