"""The workloads in TRL's `GRPOTrainer`.

A round and an update are steps of the trainer's own loop. For an update, `rollout_func` hands over the given
completions instead of sampling; sampling and scoring alone have no public name, so the methods are called that the
loop calls. Settings are those of the torch baseline: no KL penalty, the same clip and Adam, one group a micro-batch,
activations kept. The end token has an id beyond the vocabulary, so every completion runs to the limit.

What differs, and is left as TRL does it:

- it computes the entropy of every completion token, which the loss here has no use for;
- with bfloat16 all is autocast on float32 weights, sampling too, which casts them at every decode step;
- it divides advantages by the deviation + 1e-4, others by less, so gradient norms differ by 2e-4;
- its loop does not report log-probs: they are computed apart and outside the time, before the first update only.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params
from scripts.bench.workloads import Inputs, Kind, Workload
from scripts.peers.steps import Steps
from scripts.torch_baseline.model import build_model
from scripts.torch_baseline.update import CLIP_HIGH, CLIP_LOW, LEARNING_RATE

END = "<end>"
ENDLESS = 10**9  # optimizer steps, so that the loop never ends by itself


def build(
    workload: Workload, config: DecoderConfig, params: Params, inputs: Inputs, *, dtype: str, device: str, seed: int
) -> Callable[[], dict[str, float]]:
    """Returns a function that does the work once and returns what can be checked of it."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # `rollout_func` is called experimental
    model = build_model(config, params, torch.device(device))
    trainer = _make_trainer(workload, model, _tokenizer(config.vocab_size), inputs, dtype, device, seed)
    if workload.kind in (Kind.UPDATE, Kind.ROUND):
        return _stepped(trainer, workload, inputs)
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)  # as the loop does: autocast
    trainer.model.train()
    if workload.kind is Kind.SCORE:
        return lambda: {"logprob_mean": _logprob_mean(trainer, workload, inputs)}
    prompts = [text for text in _texts(inputs.prompts) for _ in range(workload.group_size)]
    return lambda: {"tokens": float(sum(len(ids) for ids in trainer._generate(prompts)[1]))}


def _stepped(trainer: Any, workload: Workload, inputs: Inputs) -> Callable[[], dict[str, float]]:
    seen = _Seen()
    trainer.add_callback(seen)

    def loop(pause: Callable[[], None]) -> None:
        seen.before_step = pause
        trainer.train()

    steps = Steps(loop)
    start = {"logprob_mean": _logprob_mean(trainer, workload, inputs)} if workload.kind is Kind.UPDATE else {}

    def run() -> dict[str, float]:
        steps.step()
        found = {**start, "grad_norm": seen.grad_norm}
        start.clear()
        return found

    return run


class _Seen(TrainerCallback):
    """Pauses before each step, and keeps the gradient norm that the trainer logs after it."""

    before_step: Callable[[], None]
    grad_norm: float

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.grad_norm = float((logs or {})["grad_norm"])


def _make_trainer(
    workload: Workload, model: Any, tokenizer: Any, inputs: Inputs, dtype: str, device: str, seed: int
) -> Any:
    """Returns a `GRPOTrainer` that takes all questions in each step, in order."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    settings = GRPOConfig(
        output_dir=tempfile.gettempdir(),  # nothing is saved
        use_cpu=device == "cpu",
        bf16=dtype == "bfloat16",
        seed=seed,
        per_device_train_batch_size=workload.group_size,
        gradient_accumulation_steps=workload.questions,
        num_generations=workload.group_size,
        max_completion_length=workload.completion,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        loss_type="grpo",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        gradient_checkpointing=False,  # TRL turns it on by itself
        shuffle_dataset=False,
        max_steps=ENDLESS,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rewards = inputs.rewards.reshape(-1).tolist()

    def reward(prompts: list[str], **_: Any) -> list[float]:
        return rewards

    def given(prompts: list[str], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": np.repeat(inputs.prompts, workload.group_size, axis=0).tolist(),
            "completion_ids": inputs.completions.reshape(-1, workload.completion).tolist(),
            "logprobs": None,
        }

    trainer = GRPOTrainer(
        model,
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": _texts(inputs.prompts)}),
        processing_class=tokenizer,
        rollout_func=given if workload.kind is Kind.UPDATE else None,
    )
    trainer.remove_callback(PrinterCallback)  # standard output is for the result
    return trainer


def _logprob_mean(trainer: Any, workload: Workload, inputs: Inputs) -> float:
    prompts = np.repeat(inputs.prompts, workload.group_size, axis=0)
    completions = inputs.completions.reshape(-1, workload.completion)
    sequences = torch.from_numpy(np.concatenate([prompts, completions], axis=1)).long().to(trainer.model.device)
    with torch.no_grad():
        logprobs, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model_wrapped,
            sequences,
            torch.ones_like(sequences),
            workload.completion,
            batch_size=workload.group_size,
        )
    return float(logprobs.mean())


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose words are the numbers of the ids, and whose end token is no id of the model."""
    words = {str(token): token for token in range(vocab_size)} | {END: vocab_size}
    tokenizer = Tokenizer(WordLevel(words, unk_token=END))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def _texts(prompts: np.ndarray) -> list[str]:
    return [" ".join(map(str, row)) for row in prompts.tolist()]
