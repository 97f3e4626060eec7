"""Shape checks bind letters, and grouping keeps rows where they belong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapo_jax.algo.precision import to_reduction_dtype
from sapo_jax.algo.shapes import ShapeError, check_shapes


def test_letters_are_bound_to_sizes():
    sizes = check_shapes(rewards=(np.zeros((3, 4)), "Q G"), mask=(np.zeros((3, 4, 5)), "Q G C"), absent=(None, "X"))
    assert sizes == {"Q": 3, "G": 4, "C": 5}


def test_leading_axes_are_one_thing():
    sizes = check_shapes(tokens=(np.zeros((2, 3)), "..."), logits=(np.zeros((2, 3, 7)), "... V"))
    assert sizes == {"V": 7}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": (np.zeros((2, 3)), "Q G"), "b": (np.zeros((2, 4)), "Q G")}, r"b has shape \(2, 4\).*G = 3 as in a"),
        ({"a": (np.zeros((3,)), "Q G")}, r"a has shape \(3,\), expected \[Q, G\]"),
        ({"a": (np.zeros((2, 2)), "Q")}, r"a has shape \(2, 2\), expected \[Q\]"),
        ({"a": (np.zeros((2, 3)), "B 4")}, r"4 = 4 as in its description"),
        ({"a": (np.zeros((2, 3)), "..."), "b": (np.zeros((2, 1, 5)), "... V")}, r"\.\.\. = \(2, 3\) as in a"),
        ({"a": (np.zeros(()), "... V")}, r"a has shape \(\), expected \[\.\.\., V\]"),
        ({"a": (np.zeros((4, 5)), "N N")}, r"N = 4 as in a"),
    ],
)
def test_disagreement_is_named(arrays, message):
    with pytest.raises(ShapeError, match=message):
        check_shapes(**arrays)


def test_check_runs_at_trace_time_and_under_vmap():
    def add(a, b):
        check_shapes(a=(a, "C"), b=(b, "C"))
        return a + b

    np.testing.assert_array_equal(jax.jit(jax.vmap(add))(jnp.ones((2, 3)), jnp.ones((2, 3))), np.full((2, 3), 2.0))
    with pytest.raises(ShapeError, match="C = 3"):
        jax.eval_shape(jax.vmap(add), jnp.ones((2, 3)), jnp.ones((2, 1)))


def test_reductions_run_in_float32_unless_inputs_are_float64():
    assert to_reduction_dtype(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    assert to_reduction_dtype(jnp.ones(2, jnp.int32)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert to_reduction_dtype(jnp.ones(2, jnp.float64)).dtype == jnp.float64
