"""Token log-probs and entropies, plain and in chunks, against NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapo_jax.algo.logprobs import chunked_token_logprobs, token_logprobs_and_entropy
from sapo_jax.algo.shapes import ShapeError


def token_logprobs(logits: Any, tokens: Any, **options: Any) -> jax.Array:
    return token_logprobs_and_entropy(logits, tokens, **options)[0]


def reference(logits, tokens, temperature=1.0):
    """Log-probs and entropies in float64, straight from the definition of the softmax."""
    scaled = np.asarray(logits, np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    logprobs = np.log(np.take_along_axis(probabilities, np.asarray(tokens)[..., None], -1))[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(probabilities > 0, probabilities * np.log(probabilities), 0)
    return logprobs, -terms.sum(-1)


@pytest.mark.parametrize("jitted", [False, True])
def test_by_hand(jitted):
    # Logits 0 and log 3: probabilities 1/4 and 3/4; entropy 1/4 log 4 + 3/4 log(4/3) = 0.562335.
    function = jax.jit(token_logprobs_and_entropy) if jitted else token_logprobs_and_entropy
    logits = jnp.asarray([[0.0, np.log(3)], [0.0, np.log(3)]])
    logprobs, entropies = function(logits, jnp.asarray([0, 1]))
    np.testing.assert_allclose(logprobs, [np.log(0.25), np.log(0.75)], rtol=1e-6)
    np.testing.assert_allclose(entropies, [0.562335, 0.562335], rtol=1e-5)
    # At temperature 1/2 the odds are squared: 1/10 and 9/10.
    np.testing.assert_allclose(
        token_logprobs(logits, jnp.asarray([0, 1]), temperature=0.5), [np.log(0.1), np.log(0.9)], rtol=1e-6
    )


@pytest.mark.parametrize(("shape", "temperature"), [((), 1.0), ((5,), 0.3), ((2, 3), 1.7), ((2, 2, 3), 1.0)])
def test_equals_the_float64_reference(shape, temperature):
    generator = np.random.default_rng(len(shape))
    logits = generator.normal(scale=4, size=(*shape, 11))
    tokens = generator.integers(0, 11, shape)
    expected = reference(logits, tokens, temperature)
    with jax.enable_x64(True):
        result = token_logprobs_and_entropy(jnp.asarray(logits), jnp.asarray(tokens), temperature=temperature)
        for value, wanted in zip(result, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-12)


def test_low_precision_logits_are_reduced_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1000)), jnp.bfloat16)
    tokens = jnp.asarray([1, 2, 3])
    logprobs, entropies = token_logprobs_and_entropy(logits, tokens)
    assert logprobs.dtype == entropies.dtype == jnp.float32
    expected = reference(np.asarray(logits, np.float64), tokens)
    np.testing.assert_allclose(logprobs, expected[0], rtol=1e-5)
    np.testing.assert_allclose(entropies, expected[1], rtol=1e-5)


def test_extreme_and_impossible_logits_stay_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0], [0.0, 0.0, -jnp.inf]])
    tokens = jnp.asarray([0, 1])
    logprobs, entropies = token_logprobs_and_entropy(logits, tokens)
    np.testing.assert_allclose(logprobs, [0, np.log(0.5)], atol=1e-6)
    np.testing.assert_allclose(entropies, [0, np.log(2)], atol=1e-6)
    gradient = jax.grad(lambda x: token_logprobs(x, tokens).sum())(logits)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [-0.5, 0.5, 0]], atol=1e-6)


def test_gradient_is_onehot_minus_softmax_and_entropy_has_none():
    generator = np.random.default_rng(3)
    logits, tokens = generator.normal(size=(4, 6)), generator.integers(0, 6, 4)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda x: token_logprobs(x, jnp.asarray(tokens), temperature=0.7).sum())(
            jnp.asarray(logits)
        )
        probabilities = np.exp(reference(np.repeat(logits[:, None], 6, 1), np.tile(np.arange(6), (4, 1)), 0.7)[0])
        np.testing.assert_allclose(gradient, (np.eye(6)[tokens] - probabilities) / 0.7, atol=1e-12)
        no_gradient = jax.grad(lambda x: token_logprobs_and_entropy(x, jnp.asarray(tokens))[1].sum())(
            jnp.asarray(logits)
        )
        np.testing.assert_array_equal(no_gradient, np.zeros((4, 6)))


def chunk_case(rows=13, width=5, vocab=9):
    generator = np.random.default_rng(rows)
    return (
        jnp.asarray(generator.normal(size=(rows, width))),
        jnp.asarray(generator.normal(size=(vocab, width))),
        jnp.asarray(generator.integers(0, vocab, rows)),
        jnp.asarray(generator.normal(size=rows)),
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("chunk", "jitted"), [(1, True), (4, False), (4, True), (12, True), (13, True), (64, False)])
def test_chunks_equal_the_plain_computation_in_values_and_gradients(chunk, tied, jitted):
    with jax.enable_x64(True):
        hidden, embedding, targets, weights = chunk_case()
        head = embedding if tied else embedding.T

        def plain(hidden, head):
            logits = hidden @ (head.T if tied else head)
            logprobs, entropies = token_logprobs_and_entropy(logits, targets, temperature=0.8)
            return jnp.sum(weights * logprobs), (logprobs, entropies)

        def chunked(hidden, head):
            def logits_fn(h):
                return jnp.einsum("rd,vd->rv" if tied else "rd,dv->rv", h, head)

            logprobs, entropies = chunked_token_logprobs(logits_fn, hidden, targets, chunk=chunk, temperature=0.8)
            return jnp.sum(weights * logprobs), (logprobs, entropies)

        wrap = jax.jit if jitted else lambda f: f
        expected = jax.value_and_grad(plain, argnums=(0, 1), has_aux=True)(hidden, head)
        result = wrap(jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True))(hidden, head)
        assert result[0][1][0].shape == result[0][1][1].shape == (13,)
        for value, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-10)


def sizes_in(jaxpr):
    """Yields the shape of every value computed in `jaxpr`, sub-programs included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, "shape", ())
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from sizes_in(inner)


def test_only_one_chunk_of_logits_exists_forward_and_backward():
    hidden, head, targets, _ = chunk_case(rows=12, vocab=97)

    def loss(hidden, head):
        return chunked_token_logprobs(lambda h: h @ head.T, hidden, targets, chunk=4)[0].sum()

    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, head).jaxpr
    with_vocab = {shape for shape in sizes_in(program) if 97 in shape and shape not in {(97, 5), (5, 97)}}
    assert (4, 97) in with_vocab  # else the walk above missed the loop bodies
    assert all(np.prod(shape) <= 4 * 97 for shape in with_vocab), with_vocab


def test_one_chunk_has_no_loop():
    hidden, head, targets, _ = chunk_case()
    program = str(
        jax.make_jaxpr(lambda h, w: chunked_token_logprobs(lambda x: x @ w.T, h, targets, chunk=13))(hidden, head)
    )
    assert "scan" not in program


def test_chunks_under_vmap_over_nodes():
    generator = np.random.default_rng(0)
    hidden = jnp.asarray(generator.normal(size=(3, 7, 5)), jnp.float32)
    head = jnp.asarray(generator.normal(size=(3, 9, 5)), jnp.float32)
    targets = jnp.asarray(generator.integers(0, 9, (3, 7)))

    def one(hidden, head, targets):
        return chunked_token_logprobs(lambda h: h @ head.T, hidden, targets, chunk=2)[0]

    mapped = jax.vmap(one)(hidden, head, targets)
    for node in range(3):
        np.testing.assert_allclose(mapped[node], one(hidden[node], head[node], targets[node]), rtol=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(ShapeError, match="logits"):
        token_logprobs(jnp.zeros((2, 3, 5)), jnp.zeros((2, 4), jnp.int32))
    with pytest.raises(ShapeError, match="targets"):
        chunked_token_logprobs(lambda h: h, jnp.zeros((4, 3)), jnp.zeros(5, jnp.int32), chunk=2)
    with pytest.raises(ValueError, match="chunk = 0"):
        chunked_token_logprobs(lambda h: h, jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), chunk=0)
