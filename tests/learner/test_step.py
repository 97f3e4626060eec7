"""The update against a plain computation: whole sequences, the loss written out, float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sapo_jax.config import LearnerConfig
from sapo_jax.learner.step import Batch, TrainState, advantages_of, init_state, update
from sapo_jax.models import forward
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params, abstract_params
from sapo_jax.models.node_axis import over_nodes
from sapo_jax.models.sharding import batch_sharding, make_mesh, param_shardings
from tests.models.random_models import CASES, random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

TIGHT = 1e-10
Q, G, C, P = 4, 3, 5, 6
MODEL = small_config("qwen2")
SETTINGS = LearnerConfig(remat=False, logit_chunk_tokens=7)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def random_batch(seed: int = 0, rewards_dtype: str = "float64") -> Batch:
    """Ragged prompts and completions; group 1 is not informative, group 3 has a row less."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, P + 1, (Q, 1))
    index = np.arange(P)[None]
    completion_lengths = generator.integers(1, C + 1, (Q, G, 1))
    completion_lengths[0, 0] = C
    rewards = generator.random((Q, G)).astype(rewards_dtype)
    rewards[1] = rewards[1, 0]
    valid = np.ones((Q, G), bool)
    valid[3, 2] = False
    completion_lengths[3, 2] = 0
    truncated = np.zeros((Q, G), bool)
    truncated[0] = True
    arrays: Any = {
        "prompt_tokens": generator.integers(0, MODEL.vocab_size, (Q, P)).astype(np.int32),
        "prompt_positions": np.maximum(index - (P - lengths), 0).astype(np.int32),
        "prompt_mask": index >= P - lengths,
        "completion_tokens": generator.integers(0, MODEL.vocab_size, (Q, G, C)).astype(np.int32),
        "completion_mask": np.arange(C)[None, None] < completion_lengths,
        "rewards": rewards,
        "valid": valid,
        "truncated": truncated,
        "external": np.array([False, False, True, True]),
    }
    return Batch(**arrays)


def plain_logprobs(model: DecoderConfig, params: Params, batch: Batch, temperature: float) -> jax.Array:
    """Returns log-probs [Q, G, C] from Q * G whole sequences through the plain forward pass."""
    prompt = [
        np.repeat(np.asarray(array), G, axis=0)
        for array in (batch.prompt_tokens, batch.prompt_positions, batch.prompt_mask)
    ]
    written = np.asarray(batch.completion_tokens).reshape(-1, C)
    later = prompt[1][:, -1:] + 1 + np.arange(C, dtype=np.int32)
    whole = (
        np.concatenate([prompt[0], written], axis=1),
        np.concatenate([prompt[1], later], axis=1),
        np.concatenate([prompt[2], np.asarray(batch.completion_mask).reshape(-1, C)], axis=1),
    )
    logits = forward.forward(model, params, *whole, dtype=jnp.result_type(float))[:, P - 1 : -1] / temperature
    logprobs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logprobs, written[..., None], axis=-1)[..., 0].reshape(Q, G, C)


def hand_advantages(batch: Batch, settings: LearnerConfig) -> np.ndarray:
    result = np.zeros((Q, G))
    for q in range(Q):
        rows = np.flatnonzero(batch.valid[q])
        rewards = np.asarray(batch.rewards)[q, rows]
        if len(rows) < 2 or np.ptp(rewards) == 0:
            continue
        scale = max(rewards.std(ddof=1), settings.advantage_std_floor) + 1e-8 if settings.advantage_std else 1
        result[q, rows] = (rewards - rewards.mean()) / scale
    if not settings.allow_truncated_positive:
        result = np.where(batch.truncated, np.minimum(result, 0), result)
    return result


def hand_loss(
    model: DecoderConfig,
    params: Params,
    batch: Batch,
    settings: LearnerConfig,
    temperature: float,
    old: Any = None,
    reference: Any = None,
) -> jax.Array:
    logprobs = plain_logprobs(model, params, batch, temperature)
    ratio = jnp.exp(logprobs - jax.lax.stop_gradient(logprobs if old is None else old))
    advantages = jnp.asarray(hand_advantages(batch, settings))[..., None]
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    objective = jnp.minimum(ratio * advantages, clipped * advantages)
    if settings.kl_coef:
        difference = reference - logprobs
        objective = objective - settings.kl_coef * (jnp.exp(difference) - difference - 1)
    mask = np.asarray(batch.completion_mask)
    divisor = mask.sum() if settings.loss_normalizer == "tokens" else np.asarray(batch.valid).sum() * C
    return -jnp.sum(jnp.where(mask, objective, 0)) / divisor


def hand_gradient(params: Params, batch: Batch, settings: LearnerConfig, temperature: float, **others: Any) -> Params:
    model = others.pop("model", MODEL)
    return jax.jit(jax.grad(lambda p: hand_loss(model, p, batch, settings, temperature, **others)))(params)


def stepped(
    params: Params,
    batch: Batch,
    settings: LearnerConfig = SETTINGS,
    *,
    model: DecoderConfig = MODEL,
    temperature: float = 1.0,
    rate: float = 1.0,
    reference: Params | None = None,
    dtype: Any = jnp.float64,
    advantages: Any = None,
) -> tuple[Params, dict[str, Any]]:
    """Returns the parameters after gradient descent with `rate`, and the metrics as (sum, count)."""
    optimizer, compute = compiled(settings, model, temperature, rate, dtype, jax.default_backend())
    state, metrics = compute(init_state(params, optimizer), batch, reference, advantages=advantages)
    return state.params, metrics


@cache
def compiled(
    settings: LearnerConfig, model: DecoderConfig, temperature: float, rate: float, dtype: Any, _backend: str
) -> tuple[optax.GradientTransformation, Any]:
    optimizer = optax.sgd(rate)
    compute = partial(
        update,
        model=model,
        settings=settings,
        optimizer=optimizer,
        temperature=temperature,
        max_new_tokens=C,
        dtype=dtype,
    )
    return optimizer, jax.jit(compute)


def assert_close(found: Params, expected: Params, tolerance: float = TIGHT) -> None:
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        atol = tolerance * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def moved(params: Params, gradient: Params, rate: float = 1.0) -> Params:
    return jax.tree.map(lambda p, g: np.asarray(p - rate * g), params, gradient)


VARIANTS = {
    "paper": (SETTINGS, 1.0),
    "cool": (
        replace(SETTINGS, remat=True, logit_chunk_tokens=1000, advantage_std_floor=0.3, allow_truncated_positive=True),
        0.7,
    ),
    "dr_grpo": (replace(SETTINGS, advantage_std=False, loss_normalizer="constant"), 1.0),
    "kl": (replace(SETTINGS, kl_coef=0.3), 1.0),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_is_that_of_the_plain_computation(variant: str) -> None:
    settings, temperature = VARIANTS[variant]
    params, batch = random_params(MODEL, 1, "float64"), random_batch()
    reference = others = None
    if settings.kl_coef:
        reference = random_params(MODEL, 2, "float64")
        reference = jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, params, reference)
        others = plain_logprobs(MODEL, reference, batch, temperature)
    gradient = hand_gradient(params, batch, settings, temperature, reference=others)
    new, metrics = stepped(params, batch, settings, temperature=temperature, reference=reference)
    norm = float(optax.tree.norm(gradient))
    assert norm > 0.1
    # The change is compared, not the result: it is the gradient itself.
    change = jax.tree.map(lambda p, n: np.asarray(p - n), params, new)
    assert_close(change, gradient)
    total, count = metrics["learner/grad_norm"]
    assert (float(total), float(count)) == (pytest.approx(norm, rel=1e-6), 1)
    informative, present = metrics["groups/informative_frac"]
    # Group 0 was cut by the limit: what is left of it are the negative advantages.
    assert (float(informative), float(present)) == (3, 4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("family", "tie"), CASES)
def test_the_gradient_of_every_family(family: str, tie: bool) -> None:
    model = small_config(family, tie_embeddings=tie)
    params, batch = random_params(model, 3, "float64"), random_batch(1)
    new, _ = stepped(params, batch, model=model)
    change = jax.tree.map(lambda p, n: np.asarray(p - n), params, new)
    assert_close(change, hand_gradient(params, batch, SETTINGS, 1.0, model=model))


@pytest.mark.usefixtures("float64")
def test_two_inner_epochs_are_two_updates_with_the_first_log_probs_as_old_ones() -> None:
    settings = replace(SETTINGS, inner_epochs=2)
    params, batch, rate = random_params(MODEL, 4, "float64"), random_batch(2), 0.02
    old = plain_logprobs(MODEL, params, batch, 1.0)
    first = moved(params, hand_gradient(params, batch, settings, 1.0, old=old), rate)
    second = moved(first, hand_gradient(first, batch, settings, 1.0, old=old), rate)
    new, metrics = stepped(params, batch, settings, rate=rate)
    assert_close(new, second)
    clipped, count = metrics["policy/clip_frac"]
    assert 0 < float(clipped) < 0.5 * float(count)  # of both epochs; in the first, nothing is clipped
    # Old log-probs taken anew would never clip and go elsewhere.
    anew = moved(first, hand_gradient(first, batch, settings, 1.0), rate)
    assert max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(anew), jax.tree.leaves(second), strict=True)) > 1e-4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("changes", [{}, {"inner_epochs": 2}, {"inner_epochs": 2, "kl_coef": 0.2}])
def test_micro_batches_change_nothing(changes: dict[str, Any]) -> None:
    params, batch = random_params(MODEL, 5, "float64"), random_batch(3)
    reference, rate = (random_params(MODEL, 6, "float64"), 0.01) if changes else (None, 1.0)
    results = [
        stepped(params, batch, replace(SETTINGS, micro_batch_groups=groups, **changes), rate=rate, reference=reference)[
            0
        ]
        for groups in ((0, 1) if changes else (0, 1, 2))
    ]
    assert np.abs(results[0]["embed"]["embedding"] - params["embed"]["embedding"]).max() > 1e-4
    for result in results[1:]:
        assert_close(result, results[0], 1e-13)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("budget", "groups"), [(2 * (P - 1 + G * C), 2), (4 * (P - 1 + G * C) - 1, 2), (10**6, 4)])
def test_micro_batches_by_tokens_are_those_by_groups(budget: int, groups: int) -> None:
    params, batch = random_params(MODEL, 5, "float64"), random_batch(3)
    assert SETTINGS.groups_per_pass(Q, P - 1 + G * C) == Q
    assert replace(SETTINGS, micro_batch_tokens=budget).groups_per_pass(Q, P - 1 + G * C) == groups
    found, metrics = stepped(params, batch, replace(SETTINGS, micro_batch_tokens=budget))
    wanted, others = stepped(params, batch, replace(SETTINGS, micro_batch_groups=groups))
    assert_close(found, wanted, 0)
    assert metrics == others


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("normalizer", ["tokens", "constant"])
def test_the_length_that_completions_are_padded_to_changes_nothing(normalizer: str) -> None:
    settings = replace(SETTINGS, loss_normalizer=normalizer)
    params, batch = random_params(MODEL, 14, "float64"), random_batch(11)
    added = ((0, 0), (0, 0), (0, 3))
    longer = batch._replace(
        completion_tokens=np.pad(batch.completion_tokens, added, constant_values=3),
        completion_mask=np.pad(batch.completion_mask, added),
    )
    assert_close(stepped(params, longer, settings)[0], stepped(params, batch, settings)[0], 1e-13)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("normalizer", "kl_coef"), [("tokens", 0.0), ("constant", 0.3)])
def test_rows_and_groups_that_only_fill_the_shape_change_nothing(normalizer: str, kl_coef: float) -> None:
    settings = replace(SETTINGS, loss_normalizer=normalizer, kl_coef=kl_coef)
    params, batch = random_params(MODEL, 7, "float64"), random_batch(4)
    reference = random_params(MODEL, 8, "float64") if kl_coef else None

    def filled(array: np.ndarray, name: str) -> np.ndarray:
        """Two more rows a group and two more groups, full of what must not count."""
        garbage = {"valid": False, "completion_mask": False, "rewards": 50.0, "prompt_mask": False}.get(name, 1)
        grouped = not name.startswith("prompt") and name != "external"
        widths = [(0, 2), *([(0, 2)] if grouped else []), *[(0, 0)] * (array.ndim - 1 - grouped)]
        result = np.pad(array, widths, constant_values=garbage)
        if name == "prompt_mask":
            result[Q:, -1] = True
        return result

    larger = Batch(*(filled(np.asarray(array), name) for name, array in batch._asdict().items()))  # type: ignore[arg-type]
    assert larger.completion_tokens.shape == (Q + 2, G + 2, C)
    expected, metrics = stepped(params, batch, settings, reference=reference)
    found, sums = stepped(params, larger, replace(settings, micro_batch_groups=2), reference=reference)
    assert_close(found, expected, 1e-13)
    assert sums["groups/informative_frac"] == metrics["groups/informative_frac"]


@pytest.mark.usefixtures("float64")
def test_what_stands_in_padding_changes_nothing() -> None:
    params, batch = random_params(MODEL, 9, "float64"), random_batch(5)
    prompt_mask, mask = np.asarray(batch.prompt_mask), np.asarray(batch.completion_mask)
    assert not prompt_mask.all() and not mask.all()
    other = batch._replace(
        prompt_tokens=np.where(prompt_mask, batch.prompt_tokens, 17),
        completion_tokens=np.where(mask, batch.completion_tokens, 23),
    )
    expected, sums = stepped(params, batch)
    found, other_sums = stepped(params, other)
    assert_close(found, expected, 0)
    assert sums == other_sums


def test_truncated_completions_never_get_a_positive_advantage_unless_allowed() -> None:
    batch = random_batch(6, "float32")
    advantages = np.asarray(advantages_of(batch, SETTINGS))
    allowed = np.asarray(advantages_of(batch, replace(SETTINGS, allow_truncated_positive=True)))
    assert (allowed[0] > 0).any() and (advantages[0] <= 0).all()
    np.testing.assert_array_equal(advantages[1:], allowed[1:])
    np.testing.assert_array_equal(advantages[0], np.minimum(allowed[0], 0))


@pytest.mark.usefixtures("float64")
def test_given_advantages_of_one_are_supervised_learning() -> None:
    params, batch = random_params(MODEL, 10, "float64"), random_batch(7)
    mask = np.asarray(batch.completion_mask)

    def cross_entropy(params: Params) -> jax.Array:
        return -jnp.sum(jnp.where(mask, plain_logprobs(MODEL, params, batch, 1.0), 0)) / mask.sum()

    new, _ = stepped(params, batch, advantages=jnp.asarray(batch.valid, jnp.float64))
    assert_close(new, moved(params, jax.jit(jax.grad(cross_entropy))(params)))


def nodes_of(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


@pytest.mark.usefixtures("float64")
def test_nodes_computed_together_are_nodes_computed_alone() -> None:
    optimizer = optax.adam(0.01)
    one = partial(
        update,
        model=MODEL,
        settings=replace(SETTINGS, micro_batch_groups=2, inner_epochs=2),
        optimizer=optimizer,
        temperature=0.9,
        max_new_tokens=C,
        dtype=jnp.float64,
    )
    states = [init_state(random_params(MODEL, seed, "float64"), optimizer) for seed in (11, 12)]
    batches = [random_batch(8), random_batch(9)]
    compute = jax.jit(over_nodes(one))
    together, sums = compute(nodes_of(states), nodes_of(batches), None)
    for node in range(2):
        alone, own_sums = compute(nodes_of(states[node : node + 1]), nodes_of(batches[node : node + 1]), None)
        assert_close(jax.tree.map(lambda x, n=node: x[n], together.params), jax.tree.map(lambda x: x[0], alone.params))
        assert together.updates[node] == alone.updates[0] == 2
        for name, (total, count) in own_sums.items():
            np.testing.assert_allclose(sums[name][0][node], total[0], rtol=1e-6, atol=1e-9, err_msg=name)
            assert sums[name][1][node] == count[0]


def test_a_gradient_that_is_not_finite_skips_the_update_of_its_node_alone() -> None:
    optimizer = optax.adam(0.01)
    one = partial(update, model=MODEL, settings=SETTINGS, optimizer=optimizer, temperature=1.0, max_new_tokens=C)
    healthy = init_state(random_params(MODEL, 13), optimizer)
    broken = init_state(random_params(MODEL, 14), optimizer)
    broken.params["blocks"]["mlp"]["up"]["kernel"][0, 0, 0] = np.inf
    batch = random_batch(10, "float32")
    compute = jax.jit(over_nodes(one))
    new, sums = compute(nodes_of([broken, healthy]), nodes_of([batch, batch]), None)
    for before, after in zip(jax.tree.leaves(broken), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(after[0], before)
    np.testing.assert_array_equal(new.updates, [0, 1])
    np.testing.assert_array_equal(sums["learner/skipped_updates_frac"][0], [1, 0])
    np.testing.assert_array_equal(sums["learner/skipped_updates_frac"][1], [1, 1])
    np.testing.assert_array_equal(sums["learner/grad_norm"][1], [0, 1])
    assert np.isfinite(sums["learner/grad_norm"][0]).all()
    alone, _ = compute(nodes_of([healthy]), nodes_of([batch]), None)
    assert_close(jax.tree.map(lambda x: x[1], new.params), jax.tree.map(lambda x: x[0], alone.params), 1e-5)
    assert np.abs(new.params["embed"]["embedding"][1] - healthy.params["embed"]["embedding"]).max() > 1e-3


def test_a_donated_state_is_reused() -> None:
    optimizer = optax.sgd(0.01, momentum=0.9)
    one = partial(update, model=MODEL, settings=SETTINGS, optimizer=optimizer, temperature=1.0, max_new_tokens=C)
    batch = random_batch(11, "float32")
    first = jax.device_put(init_state(random_params(MODEL, 15), optimizer))
    kept = jax.tree.map(jnp.copy, first)
    donating = jax.jit(one, donate_argnums=0)
    second, _ = donating(first, batch, None)
    third, _ = donating(second, batch, None)
    assert all(leaf.is_deleted() for state in (first, second) for leaf in jax.tree.leaves(state))
    plain = jax.jit(one)
    expected: TrainState = plain(plain(kept, batch, None)[0], batch, None)[0]
    assert int(third.updates) == 2
    assert_close(third.params, expected.params, 1e-5)


@pytest.mark.usefixtures("backend")
def test_bfloat16_computes_the_same_update_roughly_and_keeps_float32_masters() -> None:
    params, batch = random_params(MODEL, 16), random_batch(12, "float32")
    exact, _ = stepped(params, batch, dtype=jnp.float32)
    rounded, _ = stepped(params, batch, dtype=jnp.bfloat16)
    changes = []
    for new in (exact, rounded):
        assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
        pairs = zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True)
        changes.append(np.concatenate([np.ravel(after - before) for after, before in pairs]))
    cosine = changes[0] @ changes[1] / np.linalg.norm(changes[0]) / np.linalg.norm(changes[1])
    assert cosine > 0.99
    assert np.abs(changes[0] - changes[1]).max() > 0


@pytest.mark.parametrize(("micro_groups", "chunk"), [(2, 1000), (4, 16)])
def test_a_data_axis_divides_every_pass_and_every_chunk_of_logits(micro_groups: int, chunk: int) -> None:
    """Not only the arrays: a pass or a chunk that lies on one device alone would be computed by both."""
    model = small_config("llama", vocab_size=1024, width=64, mlp_width=256)
    optimizer = optax.sgd(0.1)
    settings = LearnerConfig(micro_batch_groups=micro_groups, logit_chunk_tokens=chunk)
    one = partial(
        update, model=model, settings=settings, optimizer=optimizer, temperature=1.0, max_new_tokens=16, reference=None
    )
    batch = Batch(
        *(jax.ShapeDtypeStruct((1, 4, 16), dtype) for dtype in (jnp.int32, jnp.int32, jnp.bool_)),
        *(jax.ShapeDtypeStruct((1, 4, 2, 16), dtype) for dtype in (jnp.int32, jnp.bool_)),
        *(jax.ShapeDtypeStruct((1, 4, 2), dtype) for dtype in (jnp.float32, jnp.bool_, jnp.bool_)),
        jax.ShapeDtypeStruct((1, 4), jnp.bool_),
    )
    operations = []
    for devices in (1, 2):
        mesh = make_mesh(data=devices)
        placed = jax.tree.map(
            lambda x, mesh=mesh: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), batch
        )
        params = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct((1, *x.shape), x.dtype, sharding=s),
            abstract_params(model),
            param_shardings(model, mesh),
        )
        state = jax.eval_shape(over_nodes(partial(init_state, optimizer=optimizer)), params)._replace(params=params)
        costs: Any = jax.jit(over_nodes(one)).lower(state, placed).compile().cost_analysis()
        operations.append(costs["flops"])
    assert operations[1] < 0.55 * operations[0]
