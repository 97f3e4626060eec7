"""The three computations of the decoder against each other, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sapo_jax.models import decoding, forward
from sapo_jax.models.architecture import FAMILIES, DecoderConfig
from sapo_jax.models.decoder import BlockForm, bind
from sapo_jax.models.decoding import COLUMNS, ColumnMlp, prepare_decoding
from sapo_jax.models.layers import Block, GatedMlp, rope_angles, wide_matmul
from tests.models.random_models import CASES, random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

TIGHT = 1e-10
Q, G, C, P = 3, 2, 4, 7
PROMPT_LENGTHS = (7, 4, 1)  # the last has no context at all


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def ragged_prompts(config: DecoderConfig, lengths: tuple[int, ...], width: int) -> tuple[np.ndarray, ...]:
    """Returns tokens, positions and mask [Q, P] of left-padded random prompts."""
    generator = np.random.default_rng(5)
    tokens = generator.integers(0, config.vocab_size, (len(lengths), width)).astype(np.int32)
    offset = width - np.array(lengths)[:, None]
    index = np.arange(width)[None]
    return tokens, np.maximum(index - offset, 0).astype(np.int32), index >= offset


def completion_inputs(config: DecoderConfig, tokens: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns inputs and positions [Q, G, C]: the last prompt token, then random completion tokens."""
    inputs = np.random.default_rng(6).integers(0, config.vocab_size, (len(tokens), G, C)).astype(np.int32)
    inputs[..., 0] = tokens[:, -1:]
    return inputs, positions[:, -1, None, None] + np.broadcast_to(np.arange(C, dtype=np.int32), inputs.shape)


def plain_logits(config: DecoderConfig, params: Any, prompts: tuple, inputs: np.ndarray, places: np.ndarray) -> Any:
    """Returns logits [Q, G, C, V] from the Q * G whole sequences."""
    tokens, positions, mask = (np.repeat(array[:, :-1], G, axis=0) for array in prompts)  # [B, P - 1]
    rows, at = inputs.reshape(-1, C), places.reshape(-1, C)
    whole = (
        np.concatenate([tokens, rows], axis=1),
        np.concatenate([positions, at], axis=1),
        np.concatenate([mask, np.ones(rows.shape, bool)], axis=1),
    )
    logits = forward.forward(config, params, *whole, dtype=jnp.float64)
    return logits[:, -C:].reshape(*inputs.shape, -1)


def shared_logits(
    config: DecoderConfig, params: Any, prompts: tuple, inputs: np.ndarray, places: np.ndarray, *, remat: bool
) -> Any:
    context = (array[:, :-1] for array in prompts)
    hidden = forward.shared_prompt_hidden(config, params, *context, inputs, places, dtype=jnp.float64, remat=remat)
    return bind(config, params).logits(hidden)


@pytest.mark.usefixtures("float64", "backend")
@pytest.mark.parametrize(("family", "tie"), CASES)
def test_shared_prompt_equals_whole_sequences_in_values_and_gradients(family: str, tie: bool) -> None:
    config = small_config(family, tie_embeddings=tie)
    params = random_params(config, 1, "float64")
    prompts = ragged_prompts(config, PROMPT_LENGTHS, P)
    inputs, places = completion_inputs(config, prompts[0], prompts[1])
    weights = np.random.default_rng(7).normal(size=(Q, G, C, config.vocab_size))

    def objective(logits_of: Any) -> Any:
        def value(params: Any) -> tuple[Any, Any]:
            logits = logits_of(config, params, prompts, inputs, places)
            return jnp.sum(weights * jax.nn.log_softmax(logits)), logits

        return jax.jit(jax.value_and_grad(value, has_aux=True))

    (_, expected), expected_gradients = objective(plain_logits)(params)
    assert np.abs(expected).max() > 1
    for remat in (False, True):
        (_, logits), gradients = objective(partial(shared_logits, remat=remat))(params)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TIGHT)
        for (path, found), wanted in zip(
            jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected_gradients), strict=True
        ):
            name = jax.tree_util.keystr(path)
            assert np.abs(wanted).max() > 1e-3, name  # every parameter takes part
            np.testing.assert_allclose(found, wanted, rtol=0, atol=TIGHT * np.abs(wanted).max(), err_msg=name)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", [Block, COLUMNS])
@pytest.mark.parametrize(("family", "tie"), CASES)
def test_prefill_and_decode_steps_equal_one_forward_pass(
    family: str, tie: bool, form: BlockForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "fastest_form", lambda dtype: form)
    config = small_config(family, tie_embeddings=tie)
    params = random_params(config, 2, "float64")
    prompts = ragged_prompts(config, PROMPT_LENGTHS, P)
    inputs, places = completion_inputs(config, prompts[0], prompts[1])
    expected = jax.jit(lambda params: plain_logits(config, params, prompts, inputs, places))(params)

    @jax.jit
    def through_the_cache(params: Any) -> jax.Array:
        tokens, positions, mask = (array[:, :-1] for array in prompts)
        prompt = forward.prefill(config, params, tokens, positions, mask, dtype=jnp.float64)
        cache = forward.empty_cache(config, (Q, G), C + 3, jnp.float64)  # longer than needed
        prepared = prepare_decoding(config, params, jnp.float64)
        logits = []
        for c in range(C):
            angles = rope_angles(places[:, :1, c], config.head_size, config.rope_base)
            one, cache = forward.decode_step(
                config, *prepared, inputs[..., c], angles, jnp.int32(c), prompt, mask, cache, dtype=jnp.float64
            )
            logits.append(one)
        return jnp.stack(logits, axis=2)

    np.testing.assert_allclose(through_the_cache(params), expected, rtol=0, atol=TIGHT)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_in_padding_changes_nothing(family: str) -> None:
    config = small_config(family)
    params = random_params(config, 3, "float64")
    tokens, positions, mask = ragged_prompts(config, PROMPT_LENGTHS, P)
    inputs, places = completion_inputs(config, tokens, positions)
    compute = jax.jit(partial(shared_logits, config, remat=False))
    before = compute(params, (tokens, positions, mask), inputs, places)
    other = np.where(mask, tokens, (tokens + 1) % config.vocab_size)
    after = compute(params, (other, np.where(mask, positions, 9), mask), inputs, places)
    np.testing.assert_array_equal(before, after)
    # ... while one real token of the context changes every completion of its question, and no other.
    other = tokens.copy()
    other[1, -2] = (other[1, -2] + 1) % config.vocab_size
    change = np.abs(compute(params, (other, positions, mask), inputs, places) - before).max(axis=(2, 3))
    assert (change[1] > 1e-3).all() and change[0].max() == change[2].max() == 0


@pytest.mark.usefixtures("float64")
def test_a_completion_never_sees_its_sisters_or_its_future() -> None:
    config = small_config("llama")
    params = random_params(config, 4, "float64")
    prompts = ragged_prompts(config, PROMPT_LENGTHS, P)
    inputs, places = completion_inputs(config, prompts[0], prompts[1])
    compute = jax.jit(partial(shared_logits, config, remat=False))
    before = compute(params, prompts, inputs, places)
    other = inputs.copy()
    other[1, 0, 2] = (other[1, 0, 2] + 1) % config.vocab_size
    change = np.abs(compute(params, prompts, other, places) - before).max(axis=-1)
    assert (change[1, 0, 2:] > 1e-3).all()
    change[1, 0, 2:] = 0
    assert change.max() == 0


@pytest.mark.usefixtures("float64")
def test_prompts_of_one_token_need_no_context() -> None:
    config = small_config("qwen2")
    params = random_params(config, 5, "float64")
    prompts = ragged_prompts(config, (1, 1), 1)
    inputs, places = completion_inputs(config, prompts[0], prompts[1])

    def objective(logits_of: Any) -> Any:
        def value(params: Any) -> tuple[Any, Any]:
            logits = logits_of(config, params, prompts, inputs, places)
            return jnp.sum(jnp.sin(logits)), logits

        return jax.jit(jax.grad(value, has_aux=True))(params)

    expected_gradients, expected = objective(plain_logits)
    gradients, found = objective(partial(shared_logits, remat=False))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TIGHT)
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TIGHT * np.abs(theirs).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_near_float32(family: str) -> None:
    config = small_config(family)
    params = random_params(config, 6)
    prompts = ragged_prompts(config, PROMPT_LENGTHS, P)
    exact = np.asarray(forward.forward(config, params, *prompts))[prompts[2]]
    rounded = forward.forward(config, params, *prompts, dtype=jnp.bfloat16)
    assert rounded.dtype == jnp.float32
    error = np.abs(np.asarray(rounded)[prompts[2]] - exact)
    assert 1e-5 < error.mean() / exact.std() < 0.05


def test_the_mlp_by_columns_equals_the_mlp() -> None:
    config = small_config("llama")
    mlp, columns = (form(config, nnx.Rngs(7)) for form in (GatedMlp, ColumnMlp))
    nnx.update(columns, ColumnMlp.pack(nnx.to_pure_dict(nnx.state(mlp))))
    x = jnp.asarray(np.random.default_rng(11).normal(size=(3, 2, 1, config.width)))
    np.testing.assert_allclose(columns(x), mlp(x), rtol=0, atol=1e-6)
    for form in (mlp, columns):
        for part in (form.gate, form.up, form.down):
            part.kernel = nnx.Param(part.kernel[...].astype(jnp.bfloat16))
    by_rows, by_columns = (np.asarray(form(x.astype(jnp.bfloat16)), np.float32) for form in (mlp, columns))
    np.testing.assert_allclose(by_columns, by_rows, rtol=2**-7, atol=1e-6)  # columns are rounded on the way out


def test_only_kernels_are_rounded_for_decoding() -> None:
    config = small_config("qwen3", qkv_bias=True)
    rest, layers = prepare_decoding(config, random_params(config, 12), jnp.dtype(jnp.bfloat16))
    for path, leaf in jax.tree_util.tree_leaves_with_path((rest, layers)):
        name = jax.tree_util.keystr(path, simple=True)
        rounded = name.endswith("kernel")
        assert rounded or name.endswith(("bias", "scale", "embedding")), name
        assert leaf.dtype == (jnp.bfloat16 if rounded else jnp.float32), name


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wide_matmul_is_plain_autodiff_in_one_dtype(dtype: str, transposed: bool) -> None:
    with jax.enable_x64(dtype == "float64"):
        generator = np.random.default_rng(8)
        x, kernel, weights = (generator.normal(size=shape) for shape in ((3, 5, 7), (7, 4), (3, 5, 4)))
        x, kernel, weights = (jnp.asarray(array, dtype) for array in (x, kernel.T if transposed else kernel, weights))

        def objective(product: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(weights * jnp.sin(product(x, kernel)))

        def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return wide_matmul(x, kernel, transposed=transposed)

        def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.matmul(x, kernel.T if transposed else kernel)

        found = jax.jit(jax.value_and_grad(partial(objective, ours), argnums=(0, 1)))(x, kernel)
        wanted = jax.jit(jax.value_and_grad(partial(objective, plain), argnums=(0, 1)))(x, kernel)
        tolerance = 1e-5 if dtype == "float32" else 1e-13
        for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert mine.dtype == dtype
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(64, 48, 32), (33, 96, 1), (1, 16, 40), (130, 1, 8)])
def test_wide_matmul_in_bfloat16_keeps_the_masters_dtype_and_sums_in_float32(
    rows: int, inputs: int, outputs: int, transposed: bool
) -> None:
    generator = np.random.default_rng(9)
    x = jnp.asarray(generator.normal(size=(rows, inputs)), jnp.bfloat16)
    shape = (outputs, inputs) if transposed else (inputs, outputs)
    kernel = jnp.asarray(generator.normal(size=shape), jnp.float32)
    # Of numbers that bfloat16 has, so that rounding it changes nothing.
    dy = jnp.asarray(generator.normal(size=(rows, outputs)), jnp.bfloat16).astype(jnp.float32)

    def value_and_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(lambda x, kernel: wide_matmul(x, kernel, transposed=transposed), x, kernel)
        return y, *pullback(dy)

    wide_x, wide_dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    rounded = np.asarray(kernel.astype(jnp.bfloat16), np.float64)
    rounded = rounded.T if transposed else rounded
    for compute in (value_and_gradients, jax.jit(value_and_gradients)):
        y, dx, dkernel = compute(x, kernel, dy)
        assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
        dkernel = dkernel.T if transposed else dkernel
        # One rounding of the result to 8 bits for dx; nothing but float32 sums for y and the kernel.
        np.testing.assert_allclose(y, wide_x @ rounded, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.asarray(dx, np.float64), wide_dy @ rounded.T, rtol=2**-8, atol=1e-5)
        np.testing.assert_allclose(dkernel, wide_x.T @ wide_dy, rtol=1e-5, atol=1e-5)


def test_wide_matmul_in_bfloat16_does_not_stop_counting() -> None:
    # 4096 ones: a bfloat16 accumulator would stop at 256.
    many, one = jnp.ones((4096, 1), jnp.bfloat16), jnp.ones((1, 1), jnp.float32)
    assert jax.vjp(wide_matmul, many, one)[1](many.astype(jnp.float32))[1].item() == 4096
    assert wide_matmul(many.T, jnp.ones((4096, 1), jnp.float32)).item() == 4096


@pytest.mark.parametrize("transposed", [False, True])
def test_wide_matmul_maps_over_nodes(transposed: bool) -> None:
    generator = np.random.default_rng(10)
    x = jnp.asarray(generator.normal(size=(2, 5, 3)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(2, 4, 3) if transposed else (2, 3, 4)), jnp.float32)
    require_equal_alone(x, kernel, transposed, rtol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_wide_matmul_in_bfloat16_maps_over_nodes(transposed: bool) -> None:
    generator = np.random.default_rng(12)
    # Of one sign, so that no sum is small: sums in another order may round a cotangent to the other side.
    x = jnp.asarray(generator.uniform(0.5, 1.5, size=(2, 20, 12)), jnp.bfloat16)
    kernel = jnp.asarray(generator.uniform(0.5, 1.5, size=(2, 16, 12) if transposed else (2, 12, 16)), jnp.float32)
    require_equal_alone(x, kernel, transposed, rtol=1e-2)


def require_equal_alone(x: jax.Array, kernel: jax.Array, transposed: bool, *, rtol: float) -> None:
    """Gradients of nodes in one call equal those of each node."""

    def objective(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(wide_matmul(x, kernel, transposed=transposed) ** 2)

    gradients = jax.jit(jax.vmap(jax.grad(objective, argnums=(0, 1))))(x, kernel)
    for node in range(2):
        alone = jax.grad(objective, argnums=(0, 1))(x[node], kernel[node])
        for ours, theirs in zip(gradients, alone, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours[node].astype(jnp.float32), theirs.astype(jnp.float32), rtol=rtol)
