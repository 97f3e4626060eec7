"""Group-relative advantages against hand-worked cases, a loop in NumPy, and their properties."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapo_jax.algo.advantages import drop_truncated_positives, group_advantages, informative_groups
from sapo_jax.algo.shapes import ShapeError


def reference_advantages(rewards, valid, *, use_std, std_floor, epsilon=1e-8):
    """One group and one completion at a time, float64, from the definition."""
    result = np.zeros(rewards.shape, np.float64)
    for q in range(rewards.shape[0]):
        members = [g for g in range(rewards.shape[1]) if valid[q, g]]
        values = [float(rewards[q, g]) for g in members]
        if len(values) < 2 or all(v == values[0] for v in values):
            continue
        mean = sum(values) / len(values)
        scale = 1.0
        if use_std:
            deviation = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
            scale = max(deviation, std_floor) + epsilon
        for g, v in zip(members, values, strict=True):
            result[q, g] = (v - mean) / scale
    return result


def advantages(rewards, valid=None, *, jitted=False, **options):
    function = functools.partial(group_advantages, **options)
    return np.asarray((jax.jit(function) if jitted else function)(jnp.asarray(rewards), valid))


@pytest.mark.parametrize("jitted", [False, True])
def test_one_right_of_eight(jitted):
    # Mean 1/8; deviations 7/8 and -1/8 (seven times); variance (49 + 7) / 64 / 7 = 1/8, so
    # std = 0.353553 and the advantages are 7/8 / std = 2.474874 and -1/8 / std = -0.353553.
    rewards = [[1, 0, 0, 0, 0, 0, 0, 0]]
    result = advantages(rewards, jitted=jitted, use_std=True)
    np.testing.assert_allclose(result, [[2.474874] + [-0.353553] * 7], rtol=1e-5)
    np.testing.assert_allclose(advantages(rewards, jitted=jitted, use_std=False), [[7 / 8] + [-1 / 8] * 7], rtol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
def test_pair_and_ragged_group(jitted):
    # G = 2: deviations +-1/2, std (G - 1) = sqrt(1/2), so +-0.707107.
    # Second group: valid 1, 0, 0.5 with mean 0.5 and std 0.5; the invalid 9 is not seen.
    rewards = [[1, 0, 7, 7], [1, 0, 9, 0.5]]
    valid = jnp.asarray([[True, True, False, False], [True, True, False, True]])
    result = advantages(rewards, valid, jitted=jitted, use_std=True)
    np.testing.assert_allclose(result, [[0.707107, -0.707107, 0, 0], [1, -1, 0, 0]], atol=1e-6)


def test_std_floor_caps_the_reward_for_mere_format():
    # 0.05 against seven 0.01: std 0.014142 makes 0.035 / 0.014142 = 2.47 of it; a floor of 0.1, 0.35.
    rewards = [[0.05] + [0.01] * 7]
    np.testing.assert_allclose(advantages(rewards, use_std=True)[0, 0], 2.4749, rtol=1e-3)
    np.testing.assert_allclose(advantages(rewards, use_std=True, std_floor=0.1)[0, 0], 0.35, rtol=1e-4)


@pytest.mark.parametrize("use_std", [False, True])
@pytest.mark.parametrize("group_size", [2, 3, 7, 10])
def test_equal_rewards_give_exact_zeros(use_std, group_size):
    rewards = np.repeat(np.array([[0.0], [0.1], [1 / 3], [0.7], [1.0]], np.float32), group_size, axis=1)
    np.testing.assert_array_equal(advantages(rewards, jitted=True, use_std=use_std), np.zeros((5, group_size)))


def test_equal_rewards_are_recognised_where_the_float_mean_misses_them():
    # The case that the exactness rule exists for: without it epsilon = 1e-8 magnifies one rounding.
    rewards = np.full((9, 10), 0.1, np.float32)
    valid = np.arange(10)[None, :] < np.arange(2, 11)[:, None]
    means = np.asarray(jnp.sum(jnp.where(valid, rewards, 0), axis=1) / jnp.sum(valid, axis=1))
    assert (means != np.float32(0.1)).any()
    np.testing.assert_array_equal(advantages(rewards, jnp.asarray(valid), use_std=True), np.zeros((9, 10)))


@pytest.mark.parametrize("use_std", [False, True])
def test_groups_of_less_than_two_are_zero(use_std):
    valid = jnp.asarray([[True, False, False], [False, False, False]])
    rewards = [[0.9, np.nan, 0.2], [np.nan, 1, 0]]
    np.testing.assert_array_equal(advantages(rewards, valid, use_std=use_std), np.zeros((2, 3)))
    np.testing.assert_array_equal(advantages([[0.9]], use_std=use_std), [[0]])


def random_case(seed, groups=200, group_size=6):
    """Groups of 0 to `group_size` valid completions; few distinct rewards, so many groups are equal."""
    generator = np.random.default_rng(seed)
    shape = (groups, group_size)
    rewards = generator.choice([0.0, 0.01, 0.05, 0.1, 1.0, generator.random()], shape)
    rewards = np.where(generator.random((groups, 1)) < 0.2, 0.1, rewards)
    return rewards, generator.random(shape) < generator.random((groups, 1))


@pytest.mark.parametrize("options", [{"use_std": True}, {"use_std": True, "std_floor": 0.1}, {"use_std": False}])
def test_equals_the_float64_reference_on_random_ragged_groups(options):
    with jax.enable_x64(True):
        for group_size in (1, 2, 8):
            rewards, valid = random_case(group_size, group_size=group_size)
            expected = reference_advantages(rewards, valid, **{"std_floor": 0.0, **options})
            result = advantages(rewards, jnp.asarray(valid), **options, jitted=True)
            assert result.dtype == np.float64
            np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("use_std", [False, True])
def test_properties(use_std):
    rewards, valid = random_case(1)
    order = np.random.default_rng(2).permutation(rewards.shape[1])
    with jax.enable_x64(True):
        run = jax.jit(functools.partial(group_advantages, use_std=use_std))
        result = np.asarray(run(rewards, valid))
        assert (np.abs(result).sum(axis=1) > 0).sum() > 50
        np.testing.assert_allclose(result.sum(axis=1), 0, atol=1e-12)
        np.testing.assert_allclose(run(rewards + 3.0, valid), result, atol=1e-9)
        np.testing.assert_allclose(run(rewards[:, order], valid[:, order]), result[:, order], atol=1e-12)
        np.testing.assert_array_equal(result[~valid], 0)
        np.testing.assert_allclose(run(rewards * 5, valid), result * (1 if use_std else 5), atol=1e-5)


def test_a_group_never_sees_another():
    rewards = np.array([[1.0, 0, 0, 1], [0.2, 0.4, 0.1, 0.9]])
    alone = advantages(rewards[1:], use_std=True)
    np.testing.assert_allclose(advantages(rewards, use_std=True)[1:], alone, rtol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
def test_truncated_text_keeps_blame_and_loses_praise(jitted):
    function = jax.jit(drop_truncated_positives) if jitted else drop_truncated_positives
    result = function(jnp.asarray([[1.5, -0.5, 2.0, -1.0]]), jnp.asarray([[True, True, False, False]]))
    np.testing.assert_array_equal(result, [[0, -0.5, 2.0, -1.0]])


@pytest.mark.parametrize("jitted", [False, True])
def test_informative_groups(jitted):
    function = jax.jit(informative_groups) if jitted else informative_groups
    np.testing.assert_array_equal(function(jnp.asarray([[0.0, 0], [0.5, -0.5], [0, 1e-6]])), [False, True, True])


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match="completion_valid"):
        group_advantages(jnp.zeros((2, 3)), jnp.ones((2, 4), bool), use_std=True)
    with pytest.raises(ShapeError, match="rewards"):
        group_advantages(jnp.zeros(3), use_std=True)
    with pytest.raises(ShapeError, match="truncated"):
        drop_truncated_positives(jnp.zeros((2, 3)), jnp.ones((2,), bool))


def test_each_node_of_a_host_is_independent():
    generator = np.random.default_rng(5)
    rewards = jnp.asarray(generator.random((3, 2, 4)), jnp.float32)
    mapped = jax.vmap(lambda r: group_advantages(r, use_std=True))(rewards)
    for node in range(3):
        np.testing.assert_allclose(mapped[node], group_advantages(rewards[node], use_std=True), rtol=1e-6)
