"""The gradient transformation of the update: clip, Adam or AdamW, learning-rate schedule.

It describes one node; a host maps `init` and `update` over its node axis, so every node clips by
its own norm. The state's structure is the same for every setting, and nothing in it depends on
`rounds`: a finished run goes on with a larger one.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from sapo_jax.config import LearnerConfig

Optimizer = optax.GradientTransformation


def make_optimizer(settings: LearnerConfig, rounds: int) -> Optimizer:
    """Returns the transformation from gradients to additive parameter updates, for a run of `rounds` rounds.

    A `max_grad_norm` of 0 never clips; `adamw` decays apart from the gradient, on all parameters; a
    learning rate of 0 leaves the parameters exactly as they are.

    Reference:
        Adam, arXiv 1412.6980 algorithm 1; AdamW, arXiv 1711.05101 algorithm 2.
    """
    norm, decay = settings.max_grad_norm, settings.weight_decay
    # Parts that are off are replaced by `identity`, whose state is as empty as theirs.
    return optax.chain(
        optax.clip_by_global_norm(norm) if norm > 0 else optax.identity(),
        optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2, eps=settings.epsilon),
        optax.add_decayed_weights(decay) if decay > 0 else optax.identity(),
        optax.scale_by_learning_rate(make_schedule(settings, rounds)),
    )


def no_optimizer() -> Optimizer:
    """Returns a transformation without state, for a host that only samples."""
    return optax.identity()


def make_schedule(settings: LearnerConfig, rounds: int) -> optax.Schedule:
    """Returns the learning rate as a function of the updates already applied, of which a round has `inner_epochs`.

    All updates of one round share a rate. Rounds of the warm-up take 1/(W + 1), 2/(W + 1), ... of
    `learning_rate`, W = `warmup_rounds`. From there `constant` stays, `linear` and `cosine` fall so
    that zero is reached one round after the last: every round still learns something.
    """
    falling_rounds = max(rounds - settings.warmup_rounds, 1)

    def rate(update: Any) -> Any:
        finished = (jnp.asarray(update) // settings.inner_epochs).astype(jnp.float32)
        warmup = jnp.minimum((finished + 1) / (settings.warmup_rounds + 1), 1)
        progress = jnp.clip((finished - settings.warmup_rounds) / falling_rounds, 0, 1)
        remaining = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + jnp.cos(jnp.pi * progress)) / 2}
        return settings.learning_rate * warmup * remaining[settings.schedule]

    return rate
