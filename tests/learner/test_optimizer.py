"""The optimizer against hand-computed numbers and torch, alone and mapped over nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from sapo_jax.config import LearnerConfig
from sapo_jax.learner.optimizer import make_optimizer, make_schedule

SETTINGS = LearnerConfig(learning_rate=0.1)
ROUNDS = 10


def optimizer(*, rounds=ROUNDS, **settings):
    return make_optimizer(replace(SETTINGS, **settings), rounds)


def gradients_of(steps, seed=0):
    generator = np.random.default_rng(seed)
    return [
        {"w": generator.normal(size=(3, 2)) * 10.0 ** generator.integers(-3, 2), "b": generator.normal(size=2)}
        for _ in range(steps)
    ]


def run(settings, params, gradients):
    transform = optimizer(**settings)
    state = transform.init(params)

    @jax.jit
    def update(params, state, gradient):
        change, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    for gradient in gradients:
        params, state = update(params, state, gradient)
    return params, state


def test_two_adam_updates_by_hand():
    # lr 0.1, betas 0.5 and 0.75, epsilon 1. Gradient 2: m = 1, v = 1; corrected m = 1 / 0.5 = 2,
    # v = 1 / 0.25 = 4; change -0.1 * 2 / (2 + 1) = -1/15. Gradient 0 next: m = 0.5, v = 0.75;
    # corrected m = 0.5 / 0.75 = 2/3, v = 0.75 / 0.4375 = 12/7; change -0.1 * (2/3) / (1.309307 + 1).
    settings = {"beta1": 0.5, "beta2": 0.75, "epsilon": 1.0}
    once, _ = run(settings, jnp.asarray([1.0]), [jnp.asarray([2.0])])
    np.testing.assert_allclose(once, [1 - 1 / 15], rtol=1e-6)
    twice, _ = run(settings, jnp.asarray([1.0]), [jnp.asarray([2.0]), jnp.asarray([0.0])])
    np.testing.assert_allclose(twice, [1 - 1 / 15 - 0.1 * (2 / 3) / (1.309307 + 1)], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "make_torch"),
    [
        ({}, lambda p: torch.optim.Adam(p, lr=0.1)),
        (
            {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-4},
            lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), eps=1e-4),
        ),
        (
            {"optimizer": "adamw", "weight_decay": 0.3},
            lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
        ),
        ({"max_grad_norm": 0.5}, lambda p: torch.optim.Adam(p, lr=0.1)),
    ],
)
def test_equals_torch_over_several_updates(settings, make_torch):
    generator = np.random.default_rng(1)
    start = {"w": generator.normal(size=(3, 2)), "b": generator.normal(size=2)}
    gradients = gradients_of(6)
    mirror = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    theirs = make_torch(list(mirror.values()))
    for gradient in gradients:
        for name, parameter in mirror.items():
            parameter.grad = torch.tensor(gradient[name])
        if "max_grad_norm" in settings:
            torch.nn.utils.clip_grad_norm_(list(mirror.values()), settings["max_grad_norm"])
        theirs.step()
    with jax.enable_x64(True):
        params, _ = run(settings, jax.tree.map(jnp.asarray, start), [jax.tree.map(jnp.asarray, g) for g in gradients])
        for name, parameter in mirror.items():
            # The rate is float32; torch adds 1e-6 to the norm before it divides.
            tolerance = 1e-5 if "max_grad_norm" in settings else 1e-7
            np.testing.assert_allclose(params[name], parameter.detach().numpy(), rtol=tolerance)


def test_clip_by_hand():
    # Norm 5 clipped to 1 gives (0.6, 0.8); epsilon 1, betas 0: change -0.1 * g / (g + 1).
    settings = {"beta1": 0.0, "beta2": 0.0, "epsilon": 1.0, "max_grad_norm": 1.0}
    params, _ = run(settings, jnp.zeros(2), [jnp.asarray([3.0, 4.0])])
    np.testing.assert_allclose(params, [-0.1 * 0.6 / 1.6, -0.1 * 0.8 / 1.8], rtol=1e-6)
    below, _ = run(settings, jnp.zeros(2), [jnp.asarray([0.3, 0.4])])
    np.testing.assert_allclose(below, [-0.1 * 0.3 / 1.3, -0.1 * 0.4 / 1.4], rtol=1e-6)


def test_rate_zero_leaves_parameters_alone():
    start = {"w": jnp.asarray([0.1, -3.0, 1e-30])}
    settings = {"learning_rate": 0.0, "optimizer": "adamw", "weight_decay": 0.1}
    params, _ = run(settings, start, [{"w": jnp.asarray([1.0, -2.0, 3.0])}] * 3)
    np.testing.assert_array_equal(params["w"], start["w"])


def rates(updates, *, rounds=ROUNDS, **settings):
    schedule = make_schedule(replace(SETTINGS, **settings), rounds)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(updates)))


def test_schedules_by_hand():
    np.testing.assert_allclose(rates(3), [0.1, 0.1, 0.1], rtol=1e-6)
    # Warm-up of 3 rounds: quarters; then 4 rounds from 0.1 towards 0 at round 7.
    warm = [0.025, 0.05, 0.075]
    np.testing.assert_allclose(rates(5, warmup_rounds=3), [*warm, 0.1, 0.1], rtol=1e-6)
    linear = rates(9, schedule="linear", warmup_rounds=3, rounds=7)
    np.testing.assert_allclose(linear, [*warm, 0.1, 0.075, 0.05, 0.025, 0, 0], rtol=1e-6)
    # cos at 0, pi/4, pi/2, 3 pi/4: (1 + cos) / 2 = 1, 0.853553, 0.5, 0.146447.
    cosine = rates(6, schedule="cosine", rounds=4)
    np.testing.assert_allclose(cosine, [0.1, 0.0853553, 0.05, 0.0146447, 0, 0], rtol=1e-5, atol=1e-9)


def test_updates_of_one_round_share_a_rate():
    np.testing.assert_allclose(
        rates(6, schedule="linear", rounds=2, inner_epochs=3), [0.1, 0.1, 0.1, 0.05, 0.05, 0.05], rtol=1e-6
    )


def test_the_schedule_reaches_the_update():
    # With betas 0 and epsilon 0 every change is -rate * sign(gradient).
    settings = {"beta1": 0.0, "beta2": 0.0, "epsilon": 1e-30, "schedule": "linear", "rounds": 2}
    params, _ = run(settings, jnp.zeros(1), [jnp.ones(1)] * 3)
    np.testing.assert_allclose(params, [-(0.1 + 0.05 + 0)], rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"rounds": 1000},
        {"rounds": 0},
        {"schedule": "cosine", "warmup_rounds": 5},
        {"max_grad_norm": 1.0},
        {"optimizer": "adamw", "weight_decay": 0.1},
    ],
)
def test_state_has_one_structure(settings):
    params = {"w": jnp.zeros((2, 3))}
    default = optimizer().init(params)
    other = optimizer(**settings).init(params)
    assert jax.tree.structure(other) == jax.tree.structure(default)
    assert jax.tree.map(jnp.shape, other) == jax.tree.map(jnp.shape, default)


def test_a_finished_run_goes_on_with_more_rounds():
    gradients = [jnp.asarray([float(g)]) for g in (1, -2, 3)]
    params, state = run({"schedule": "linear", "rounds": 2}, jnp.zeros(1), gradients[:2])
    longer = optimizer(schedule="linear", rounds=4)
    change: Any = longer.update(gradients[2], state, params)[0]
    # Moments do not depend on the rate; the third update of four has half of the highest one left.
    halved = optimizer(learning_rate=0.05)
    expected: Any = halved.update(gradients[2], state, params)[0]
    np.testing.assert_allclose(change, expected, rtol=1e-6)
    assert float(change[0]) < -1e-3


def test_every_node_of_a_host_clips_by_its_own_norm():
    transform = optimizer(max_grad_norm=1.0, epsilon=1.0, beta1=0.0, beta2=0.0)
    params = {"w": jnp.zeros((2, 2))}  # [M, 2]
    gradients = {"w": jnp.asarray([[3.0, 4.0], [0.3, 0.4]])}
    state = jax.vmap(transform.init)(params)
    assert jax.tree.leaves(state)[0].shape[0] == 2
    change, _ = jax.jit(jax.vmap(transform.update))(gradients, state, params)
    for node in range(2):
        alone = {"w": gradients["w"][node]}
        expected: Any = transform.update(alone, transform.init(alone), alone)[0]
        np.testing.assert_allclose(change["w"][node], expected["w"], rtol=1e-6)
    np.testing.assert_allclose(change["w"][1], [-0.1 * 0.3 / 1.3, -0.1 * 0.4 / 1.4], rtol=1e-6)
