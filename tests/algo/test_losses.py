"""The loss and its gradient: by hand, against NumPy in float64, against torch, and by properties."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sapo_jax.algo.advantages import group_advantages
from sapo_jax.algo.logprobs import token_logprobs_and_entropy
from sapo_jax.algo.losses import clipped_objective, kl_penalty, log_ratios, loss_denominator, policy_loss
from sapo_jax.algo.shapes import ShapeError
from tests.algo.test_logprobs import token_logprobs

CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}
LOW, HIGH = 0.2, 0.28


def random_batch(seed, rows=5, length=4, vocab=6):
    """A ragged batch in float64: every row has its own completion length, one of them 0."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=1.5, size=(rows, length, vocab))
    tokens = generator.integers(0, vocab, (rows, length))
    logprobs, _ = softmax_scores(logits, tokens)
    lengths = generator.integers(1, length + 1, rows)
    lengths[0] = 0
    return {
        "logits": logits,
        "tokens": tokens,
        "old": logprobs + generator.normal(scale=0.4, size=logprobs.shape),
        "ref": logprobs + generator.normal(scale=0.6, size=logprobs.shape),
        "advantages": generator.normal(size=rows),
        "mask": np.arange(length)[None, :] < lengths[:, None],
        "external": generator.random(rows) < 0.5,
    }


def softmax_scores(logits, tokens):
    """Returns the log-probs of `tokens` and all probabilities, in NumPy float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, tokens[..., None], -1)[..., 0]
    return np.log(chosen), probabilities


def reference_loss(logits, batch, denominator, kl_coef):
    """The loss, one token at a time, from its definition."""
    logprobs, _ = softmax_scores(logits, batch["tokens"])
    total = 0.0
    for b in range(logprobs.shape[0]):
        for t in range(logprobs.shape[1]):
            if not batch["mask"][b, t]:
                continue
            ratio = np.exp(logprobs[b, t] - batch["old"][b, t])
            advantage = batch["advantages"][b]
            objective = min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)
            d = batch["ref"][b, t] - logprobs[b, t]
            total += objective - kl_coef * (np.exp(d) - d - 1)
    return -total / denominator


def reference_gradient(batch, denominator, kl_coef):
    """The loss by the logits, by the chain rule written out: d objective = x A unless the clip holds it."""
    logprobs, probabilities = softmax_scores(batch["logits"], batch["tokens"])
    ratio = np.exp(logprobs - batch["old"])
    advantage = batch["advantages"][:, None]
    held = ((advantage > 0) & (ratio > 1 + HIGH)) | ((advantage < 0) & (ratio < 1 - LOW))
    d_objective = np.where(held, 0, ratio * advantage)
    d_kl = 1 - np.exp(batch["ref"] - logprobs)
    d_logprobs = -np.where(batch["mask"], d_objective - kl_coef * d_kl, 0) / denominator
    onehot = np.eye(batch["logits"].shape[-1])[batch["tokens"]]
    return d_logprobs[..., None] * (onehot - probabilities)


def loss_of_logits(logits, batch, denominator, kl_coef=0.0):
    arrays = {name: jnp.asarray(batch[name]) for name in ("tokens", "old", "ref", "advantages", "mask", "external")}
    return policy_loss(
        token_logprobs(logits, arrays["tokens"]),
        arrays["advantages"],
        arrays["mask"],
        old_logprobs=arrays["old"],
        ref_logprobs=arrays["ref"],
        external=arrays["external"],
        denominator=denominator,
        kl_coef=kl_coef,
        **CLIP,
    )


@pytest.mark.parametrize("jitted", [False, True])
def test_objective_by_hand(jitted):
    # Ratios 2, 0.5, 1.1 and a masked one. With A = 1: min(2, 1.28), min(0.5, 0.8), min(1.1, 1.1).
    # With A = -1: min(-2, -1.28), min(-0.5, -0.8), -1.1.
    function = functools.partial(clipped_objective, **CLIP)
    function = jax.jit(function) if jitted else function
    logprobs = jnp.log(jnp.asarray([[2.0, 0.5, 1.1, 3.0]] * 2))
    mask = jnp.asarray([[True, True, True, False]] * 2)
    result = function(logprobs, jnp.zeros((2, 4)), jnp.asarray([1.0, -1.0]), mask)
    np.testing.assert_allclose(result, [[1.28, 0.5, 1.1, 0], [-2, -0.8, -1.1, 0]], rtol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
def test_kl_by_hand(jitted):
    # d = log 2: 2 - log 2 - 1 = 0.306853; d = -log 2: 0.5 + log 2 - 1 = 0.193147; d = 0: 0.
    function = jax.jit(kl_penalty) if jitted else kl_penalty
    ref = jnp.log(jnp.asarray([[2.0, 0.5, 1.0, 9.0]]))
    result = function(jnp.zeros((1, 4)), ref, jnp.asarray([[True, True, True, False]]))
    np.testing.assert_allclose(result, [[0.306853, 0.193147, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
def test_denominators(jitted):
    mask = jnp.asarray([[True, True, False], [True, False, False], [False, False, False]])
    valid = jnp.asarray([True, True, False])
    for normalizer, expected in (("tokens", 3.0), ("constant", 2 * 16.0)):
        function = functools.partial(loss_denominator, normalizer=normalizer, max_new_tokens=16)
        result = (jax.jit(function) if jitted else function)(mask, valid)
        assert result.dtype == jnp.float32
        np.testing.assert_array_equal(result, expected)
    empty = loss_denominator(jnp.zeros((2, 3), bool), jnp.zeros(2, bool), normalizer="tokens", max_new_tokens=16)
    np.testing.assert_array_equal(empty, 1.0)  # a batch with nothing in it has loss 0, not nan
    with pytest.raises(ValueError, match="'mean'.*tokens, constant"):
        loss_denominator(mask, valid, normalizer="mean", max_new_tokens=16)


@pytest.mark.parametrize(("seed", "jitted"), [(0, False), (1, True), (2, True), (3, True)])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_loss_and_gradient_equal_the_float64_reference(seed, jitted, kl_coef):
    batch = random_batch(seed)
    denominator = float(batch["mask"].sum())
    function = jax.value_and_grad(
        lambda logits: loss_of_logits(logits, batch, denominator, kl_coef)[0],
    )
    with jax.enable_x64(True):
        loss, gradient = (jax.jit(function) if jitted else function)(jnp.asarray(batch["logits"]))
    np.testing.assert_allclose(loss, reference_loss(batch["logits"], batch, denominator, kl_coef), rtol=1e-11)
    analytic = reference_gradient(batch, denominator, kl_coef)
    np.testing.assert_allclose(gradient, analytic, rtol=1e-10, atol=1e-13)

    step = 1e-6
    numeric = np.zeros_like(analytic)
    for index in np.ndindex(*analytic.shape):
        shift = np.zeros_like(analytic)
        shift[index] = step
        above = reference_loss(batch["logits"] + shift, batch, denominator, kl_coef)
        below = reference_loss(batch["logits"] - shift, batch, denominator, kl_coef)
        numeric[index] = (above - below) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_equals_the_reference_where_every_branch_of_the_clip_occurs(seed):
    batch = random_batch(seed, rows=40)
    ratio = np.exp(softmax_scores(batch["logits"], batch["tokens"])[0] - batch["old"])
    positive = np.broadcast_to(batch["advantages"][:, None] > 0, ratio.shape)
    for sign in (positive, ~positive):
        for region in (ratio > 1 + HIGH, ratio < 1 - LOW, (ratio <= 1 + HIGH) & (ratio >= 1 - LOW)):
            assert (batch["mask"] & sign & region).sum() >= 3
    denominator = float(batch["mask"].sum())
    with jax.enable_x64(True):
        gradient = jax.grad(lambda logits: loss_of_logits(logits, batch, denominator)[0])(jnp.asarray(batch["logits"]))
    np.testing.assert_allclose(gradient, reference_gradient(batch, denominator, 0.0), rtol=1e-10, atol=1e-13)


def torch_loss(logits, tokens, rewards, mask, old, group_size):
    """The published update (advantages, clipped objective, token mean) in torch, from its description."""
    groups = rewards.view(-1, group_size)
    mean, std = groups.mean(dim=1, keepdim=True), groups.std(dim=1, keepdim=True)
    advantages = ((groups - mean) / (std + 1e-8)).view(-1, 1)
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    ratio = torch.exp(logprobs - (logprobs.detach() if old is None else old))
    objective = torch.minimum(ratio * advantages, torch.clamp(ratio, 1 - LOW, 1 + HIGH) * advantages)
    return -(objective * mask).sum() / mask.sum()


@pytest.mark.parametrize("with_old", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 2e-5)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_published_torch_formula(seed, dtype, tolerance, with_old):
    batch = random_batch(seed, rows=8, length=5, vocab=7)
    rewards = np.random.default_rng(seed).choice([0.0, 0.05, 1.0], (2, 4)).astype(dtype)
    rewards[1, 0], rewards[1, 1] = 1.0, 0.0  # at least one informative group
    logits = torch.tensor(batch["logits"].astype(dtype), requires_grad=True)
    old = torch.tensor(batch["old"].astype(dtype)) if with_old else None
    mask = torch.tensor(batch["mask"].astype(dtype))
    expected = torch_loss(logits, torch.tensor(batch["tokens"]), torch.tensor(rewards), mask, old, 4)
    expected.backward()
    assert logits.grad is not None

    with jax.enable_x64(dtype == "float64"):
        mask = jnp.asarray(batch["mask"])

        def loss(logits):
            return policy_loss(
                token_logprobs(logits, jnp.asarray(batch["tokens"])),
                group_advantages(jnp.asarray(rewards), use_std=True).reshape(-1),
                mask,
                old_logprobs=jnp.asarray(batch["old"].astype(dtype)) if with_old else None,
                denominator=loss_denominator(mask, mask.any(axis=1), normalizer="tokens", max_new_tokens=5),
                **CLIP,
            )[0]

        value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(batch["logits"].astype(dtype)))
    np.testing.assert_allclose(value, expected.item(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=tolerance, atol=tolerance)


def test_ratio_is_one_when_old_logprobs_are_taken_here():
    batch = random_batch(7)
    with jax.enable_x64(True):
        logprobs = token_logprobs(jnp.asarray(batch["logits"]), jnp.asarray(batch["tokens"]))
        run = functools.partial(
            policy_loss,
            advantages=jnp.asarray(batch["advantages"]),
            loss_mask=jnp.asarray(batch["mask"]),
            denominator=10.0,
            **CLIP,
        )
        tokens = batch["mask"].sum()
        for old in (None, logprobs):
            (loss, metrics), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(logprobs, old_logprobs=old)
            assert metrics["policy/ratio_mean"] == (tokens, tokens)
            assert metrics["policy/clip_frac"] == (0, tokens)
            assert metrics["policy/kl_to_old"] == (0, tokens)
            # The gradient of advantage-weighted log-likelihood; the value is the masked advantage.
            weighted = batch["mask"] * batch["advantages"][:, None] / 10
            np.testing.assert_allclose(gradient, -weighted, rtol=1e-12)
            np.testing.assert_allclose(loss, -weighted.sum(), rtol=1e-12)


@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
def test_micro_batches_add_up_to_the_batch(kl_coef):
    batch = random_batch(11, rows=6)
    denominator = float(batch["mask"].sum())

    def loss(logits, start, stop):
        part = {name: value[start:stop] for name, value in batch.items()}
        return loss_of_logits(logits[start:stop], part, denominator, kl_coef)

    with jax.enable_x64(True):
        logits = jnp.asarray(batch["logits"])
        run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=(1, 2))
        (whole_loss, whole_metrics), whole_gradient = run(logits, 0, 6)
        parts = [run(logits, start, start + 2) for start in (0, 2, 4)]
        add = functools.partial(jax.tree.map, lambda *values: sum(values))
        ((sum_loss, sum_metrics), sum_gradient) = add(*parts)
    np.testing.assert_allclose(sum_loss, whole_loss, rtol=1e-12)
    np.testing.assert_allclose(sum_gradient, whole_gradient, rtol=1e-12, atol=1e-15)
    assert sum_metrics.keys() == whole_metrics.keys()
    for name, pair in whole_metrics.items():
        np.testing.assert_allclose(sum_metrics[name], pair, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("garbage", [5.0, -1e30, np.nan, np.inf])
def test_what_is_masked_changes_nothing(garbage):
    batch = random_batch(3)
    clean = {name: jnp.asarray(value) for name, value in batch.items()}
    padding = ~clean["mask"]

    def run(logprobs, old, ref, entropies):
        return policy_loss(
            logprobs,
            clean["advantages"],
            clean["mask"],
            old_logprobs=old,
            ref_logprobs=ref,
            entropies=entropies,
            external=clean["external"],
            denominator=9.0,
            kl_coef=0.1,
            **CLIP,
        )

    logprobs = token_logprobs(clean["logits"], clean["tokens"])
    arrays = (logprobs, clean["old"], clean["ref"], jnp.ones_like(logprobs))
    dirty = tuple(jnp.where(padding, garbage, array) for array in arrays)
    run = jax.jit(jax.value_and_grad(run, has_aux=True))
    expected, result = run(*arrays), run(*dirty)
    for value, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_pad_tokens_change_neither_loss_nor_gradient():
    batch = random_batch(4)
    other = {**batch, "tokens": np.where(batch["mask"], batch["tokens"], (batch["tokens"] + 1) % 6)}
    run = jax.jit(jax.value_and_grad(lambda logits, b: loss_of_logits(logits, b, 7.0, 0.1)[0]))
    expected, result = (run(jnp.asarray(batch["logits"]), b) for b in (batch, other))
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], expected[1])


def test_runaway_log_ratios_stay_finite():
    logprobs = jnp.asarray([[0.0, -200.0], [0.0, -200.0]])
    old = jnp.asarray([[-200.0, 0.0], [-200.0, 0.0]])
    mask = jnp.ones((2, 2), bool)
    np.testing.assert_array_equal(log_ratios(logprobs, old, mask), [[20, -20], [20, -20]])

    def run(logprobs):
        return policy_loss(
            logprobs,
            jnp.asarray([-1.0, 0.0]),
            mask,
            old_logprobs=old,
            ref_logprobs=old,
            kl_coef=0.1,
            denominator=4.0,
            **CLIP,
        )

    for leaf in jax.tree.leaves(jax.jit(jax.value_and_grad(run, has_aux=True))(logprobs)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("jitted", [False, True])
def test_metrics_by_hand_and_by_source(jitted):
    # Row 0 is our own, row 1 external. Ratios: 2 (clipped, A > 0), 1 | 0.5 (clipped, A < 0), 2 (not
    # clipped: the bound does not hold a rising ratio under A < 0); row 1's third token is masked.
    logprobs = jnp.log(jnp.asarray([[0.5, 0.25, 0.0001], [0.25, 0.0005, 0.9]]))
    ratio = jnp.asarray([[2.0, 1.0, 1.0], [0.5, 2.0, 7.0]])
    mask = jnp.asarray([[True, True, True], [True, True, False]])

    def run(logprobs, old, entropies, external):
        return policy_loss(
            logprobs,
            jnp.asarray([1.0, -1.0]),
            mask,
            old_logprobs=old,
            entropies=entropies,
            external=external,
            denominator=5.0,
            **CLIP,
        )

    entropies = jnp.asarray([[1.0, 2.0, 3.0], [10.0, 20.0, 99.0]])
    external = jnp.asarray([False, True])
    run = jax.jit(run) if jitted else run
    loss, metrics = run(logprobs, logprobs - jnp.log(ratio), entropies, external)
    # Objectives 1.28, 1, 1 and -0.8, -2.
    np.testing.assert_allclose(loss, -(1.28 + 1 + 1 - 0.8 - 2) / 5, rtol=1e-5)
    log = np.log
    expected = {
        "policy/ratio_mean": (6.5, 5),
        "policy/clip_frac": (2, 5),
        # ratio - log ratio - 1 for 2, 0.5 and 2.
        "policy/kl_to_old": ((1 - log(2)) + (log(2) - 0.5) + (1 - log(2)), 5),
        "policy/own_logprob_mean": (log(0.5) + log(0.25) + log(0.0001), 3),
        "policy/external_logprob_mean": (log(0.25) + log(0.0005), 2),
        "policy/own_rare_token_frac": (1, 3),
        "policy/external_rare_token_frac": (1, 2),
        "policy/entropy": (6, 3),
        "policy/external_entropy": (30, 2),
    }
    assert metrics.keys() == expected.keys()
    for name, pair in expected.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5, err_msg=name)
    _, silo = run(logprobs, logprobs, entropies, None)
    np.testing.assert_allclose(silo["policy/entropy"], (36, 5))
    np.testing.assert_array_equal(silo["policy/external_entropy"], (0, 0))


def test_grouped_and_flat_layouts_agree():
    batch = random_batch(2, rows=6)
    logprobs, entropies = token_logprobs_and_entropy(jnp.asarray(batch["logits"]), jnp.asarray(batch["tokens"]))
    flat = (logprobs, jnp.asarray(batch["advantages"]), jnp.asarray(batch["mask"]))
    grouped = tuple(x.reshape(2, 3, *x.shape[1:]) for x in flat)
    run = functools.partial(policy_loss, denominator=4.0, **CLIP)
    expected = run(*flat, entropies=entropies, external=jnp.asarray(batch["external"]))
    result = run(*grouped, entropies=entropies.reshape(2, 3, -1), external=jnp.asarray(batch["external"]).reshape(2, 3))
    for value, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-6)


def test_gradient_reaches_logprobs_only():
    batch = random_batch(1)
    logprobs = token_logprobs(jnp.asarray(batch["logits"]), jnp.asarray(batch["tokens"]))

    def run(others):
        old, ref, advantages = others
        return policy_loss(
            logprobs,
            advantages,
            jnp.asarray(batch["mask"]),
            old_logprobs=old,
            ref_logprobs=ref,
            kl_coef=0.5,
            denominator=3.0,
            **CLIP,
        )[0]

    others = tuple(jnp.asarray(batch[name], jnp.float32) for name in ("old", "ref", "advantages"))
    for gradient in jax.grad(run)(others):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_bad_input_is_refused():
    logprobs, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(ShapeError, match="advantages"):
        policy_loss(logprobs, jnp.zeros((2, 1)), mask, denominator=1.0, **CLIP)
    with pytest.raises(ShapeError, match="loss_mask"):
        policy_loss(logprobs, jnp.zeros(2), mask[:, :2], denominator=1.0, **CLIP)
    with pytest.raises(ShapeError, match="denominator"):
        policy_loss(logprobs, jnp.zeros(2), mask, denominator=jnp.ones(2), **CLIP)
    with pytest.raises(ValueError, match="kl_coef = 0.1 needs ref_logprobs"):
        policy_loss(logprobs, jnp.zeros(2), mask, denominator=1.0, kl_coef=0.1, **CLIP)
