"""Supervised steps before round 0 that teach a model from random weights the answer format.

Targets are well-formed answers of other questions of the same specialty (and a share of true ones),
so format is learned and, with no true ones, no knowledge. A supervised step is a policy-gradient
step in which every target has advantage one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sapo_jax.config import SapoConfig
from sapo_jax.host import Host
from sapo_jax.learner.batching import TrainingGroup, build_batch, cut_completions
from sapo_jax.learner.step import Batch
from sapo_jax.lengths import completion_buckets
from sapo_jax.prompting import Prompter
from sapo_jax.seeding import generator
from sapo_jax.tasks.examples import answer_text
from sapo_jax.tasks.stream import TaskStream
from sapo_jax.text.chat import answer_turn
from sapo_jax.text.encode import encode_completion
from sapo_jax.types import Completion, FinishReason, Task


def cold_start(
    host: Host,
    prompter: Prompter,
    streams: Sequence[TaskStream],
    config: SapoConfig,
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Applies `config.cold_start.steps` supervised steps to every node; round 0 begins there.

    Args:
        streams: one per node, apart from those the rounds draw from.
        advance: told how many steps are done, after each.
    """
    settings = config.cold_start
    positions = [0] * len(streams)
    for step in range(settings.steps):
        batches = []
        for node, stream in enumerate(streams):
            drawn = stream.take(positions[node], settings.batch_rows, prompter.fits)
            positions[node] = drawn.counter
            rng = generator(config.seed, "cold start", node, step)
            batches.append(_batch(drawn.tasks, prompter, config, rng))
        host.supervise(cut_completions(batches, completion_buckets(config.sampling.max_new_tokens)))
        advance(1)
    host.begin()


def _batch(tasks: Sequence[Task], prompter: Prompter, config: SapoConfig, rng: np.random.Generator) -> Batch:
    groups = []
    for task in tasks:
        others = [other for other in tasks if other.specialty == task.specialty and other is not task]
        is_true = rng.random() < config.cold_start.true_frac
        if not is_true and not others:
            continue  # no other answer to show, and the true one would be knowledge
        source = task if is_true else others[rng.integers(len(others))]
        target = Completion(text=answer_turn(answer_text(source) or ""), finish_reason=FinishReason.STOP)
        if encode_completion(prompter.tokenizer, target, config.sampling.max_new_tokens)[1]:
            continue  # longer than a completion may be: its end would not be taught
        groups.append(
            TrainingGroup(prompt_ids=prompter.encode(task), completions=(target,), rewards=(1.0,), external=False)
        )
    return build_batch(
        groups,
        prompter.tokenizer,
        questions=config.cold_start.batch_rows,
        group_size=1,
        max_new_tokens=config.sampling.max_new_tokens,
        prompt_length=config.sampling.max_prompt_tokens,
        local_encoding="text",
    )
