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


def make_optimizer(
    *,
    learning_rate: float,
    schedule: str,
    warmup_rounds: int,
    rounds: int,
    inner_epochs: int,
    optimizer: str,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    max_grad_norm: float,
) -> Optimizer:
    """Returns the transformation from gradients to additive parameter updates.

    Args:
        learning_rate: the highest rate; 0 leaves the parameters exactly as they are.
        schedule: see `make_schedule`.
        warmup_rounds: see `make_schedule`.
        rounds: see `make_schedule`.
        inner_epochs: see `make_schedule`.
        optimizer: `adam`, or `adamw` (decay apart from the gradient, on all parameters).
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the square root of the bias-corrected second moment.
        weight_decay: for `adamw`: a parameter shrinks by rate * weight_decay of itself.
        max_grad_norm: gradients with a larger global norm are scaled down to it; 0: never.

    Raises:
        ValueError: an unknown `optimizer` or `schedule`, or `weight_decay` with `adam`.

    Reference:
        Adam, arXiv 1412.6980 algorithm 1; AdamW, arXiv 1711.05101 algorithm 2.
    """
    if optimizer not in ("adam", "adamw"):
        raise ValueError(f"optimizer = {optimizer!r}: must be one of adam, adamw")
    if weight_decay != 0 and optimizer != "adamw":
        raise ValueError(f"weight_decay = {weight_decay} needs adamw, optimizer is {optimizer!r}")
    # Parts that are off are replaced by `identity`, whose state is as empty as theirs.
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm) if max_grad_norm > 0 else optax.identity(),
        optax.scale_by_adam(b1=beta1, b2=beta2, eps=epsilon),
        optax.add_decayed_weights(weight_decay) if weight_decay > 0 else optax.identity(),
        optax.scale_by_learning_rate(
            make_schedule(
                learning_rate=learning_rate,
                schedule=schedule,
                warmup_rounds=warmup_rounds,
                rounds=rounds,
                inner_epochs=inner_epochs,
            )
        ),
    )


def optimizer_for(settings: LearnerConfig, rounds: int) -> Optimizer:
    """Returns the transformation that `config.learner` describes for a run of `rounds` rounds."""
    return make_optimizer(
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_rounds=settings.warmup_rounds,
        rounds=rounds,
        inner_epochs=settings.inner_epochs,
        optimizer=settings.optimizer,
        beta1=settings.beta1,
        beta2=settings.beta2,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )


def no_optimizer() -> Optimizer:
    """Returns a transformation without state, for a host that only samples."""
    return optax.identity()


def make_schedule(
    *, learning_rate: float, schedule: str, warmup_rounds: int, rounds: int, inner_epochs: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the updates already applied.

    All updates of one round share a rate. Rounds of the warm-up take 1/(W + 1), 2/(W + 1), ... of
    `learning_rate`, W = `warmup_rounds`. From there `constant` stays, `linear` and `cosine` fall so
    that zero is reached one round after the last: every round still learns something.

    Args:
        learning_rate: the highest rate.
        schedule: `constant`, `linear` or `cosine`.
        warmup_rounds: rounds below the highest rate.
        rounds: rounds of the run, T; past them a falling rate is zero.
        inner_epochs: updates per round.

    Raises:
        ValueError: an unknown `schedule`, or a count out of range.
    """
    if schedule not in ("constant", "linear", "cosine"):
        raise ValueError(f"schedule = {schedule!r}: must be one of constant, linear, cosine")
    if warmup_rounds < 0 or rounds < 0 or inner_epochs < 1:
        raise ValueError(
            f"warmup_rounds = {warmup_rounds} and rounds = {rounds} must be at least 0, "
            f"inner_epochs = {inner_epochs} at least 1"
        )
    falling_rounds = max(rounds - warmup_rounds, 1)

    def rate(update: Any) -> Any:
        finished = (jnp.asarray(update) // inner_epochs).astype(jnp.float32)
        warmup = jnp.minimum((finished + 1) / (warmup_rounds + 1), 1)
        progress = jnp.clip((finished - warmup_rounds) / falling_rounds, 0, 1)
        if schedule == "constant":
            remaining = 1.0
        elif schedule == "linear":
            remaining = 1 - progress
        else:
            remaining = (1 + jnp.cos(jnp.pi * progress)) / 2
        return learning_rate * warmup * remaining

    return rate
