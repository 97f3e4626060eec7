from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sapo_jax import statistics


def test_pass_at_k_by_hand() -> None:
    # n = 4, k = 2: 1 - C(4 - c, 2) / 6 = 0, 1 - 3/6, 1 - 1/6, 1, 1
    np.testing.assert_allclose(statistics.pass_at_k([0, 1, 2, 3, 4], 4, 2), [0, 0.5, 5 / 6, 1, 1], atol=1e-15)


@pytest.mark.parametrize(("samples", "k"), [(1, 1), (5, 1), (5, 5), (7, 3), (16, 8), (200, 64)])
def test_pass_at_k_equals_the_binomial_formula(samples: int, k: int) -> None:
    counts = np.arange(samples + 1).reshape(1, -1)
    expected = [[1 - math.comb(samples - c, k) / math.comb(samples, k) for c in range(samples + 1)]]
    np.testing.assert_allclose(statistics.pass_at_k(counts, samples, k), expected, rtol=1e-12, atol=1e-14)


def test_pass_at_k_is_the_share_of_lucky_choices() -> None:
    wins = [1, 0, 0, 1, 0, 0]
    choices = list(itertools.combinations(wins, 3))
    assert statistics.pass_at_k(2, 6, 3) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    successes = rng.binomial(16, 0.1, size=200_000)
    # Standard error of the mean is below 0.001.
    assert statistics.pass_at_k(successes, 16, 8).mean() == pytest.approx(1 - 0.9**8, abs=0.004)


@pytest.mark.parametrize(
    ("successes", "samples", "k"), [([1], 4, 0), ([1], 4, 5), ([5], 4, 1), ([-1], 4, 1), ([0.5], 4, 1)]
)
def test_pass_at_k_refuses_impossible_counts(successes: list[float], samples: int, k: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        statistics.pass_at_k(successes, samples, k)


def test_gain_of_one_stratum_has_the_error_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    before = rng.random((3, 400, 4))
    after = before + rng.normal(0.1, 0.5, size=before.shape)
    per_question = (after - before).mean(axis=(0, 2))
    gain = statistics.paired_gain(before, after, draws=8000)
    assert gain.mean == pytest.approx(per_question.mean())
    # Bootstrap of a mean: sd / sqrt(n). The error of that error at 8000 draws is 0.8 %.
    assert gain.stderr == pytest.approx(per_question.std() / math.sqrt(400), rel=0.04)


def test_gain_is_stratified_and_macro() -> None:
    # Within a specialty all questions gain alike, so only differences between specialties are left,
    # and those are not resampled.
    names = ["gcd"] * 10 + ["lcm"] * 30
    before = np.zeros((2, 40))
    after = np.where(np.array(names) == "gcd", 0.6, 0.2) * np.ones((2, 1))
    gain = statistics.paired_gain(before, after, names)
    assert gain.mean == pytest.approx(0.4)  # (0.6 + 0.2) / 2, not the pooled 0.3
    assert gain.stderr == pytest.approx(0, abs=1e-12)
    assert statistics.paired_gain(before, after).mean == pytest.approx(0.3)
    assert statistics.paired_gain(before, after).stderr > 0.02


def test_gain_of_strata_adds_variances() -> None:
    rng = np.random.default_rng(2)
    names = ["a"] * 100 + ["b"] * 25
    difference = np.concatenate([rng.normal(0, 1, 100), rng.normal(0.5, 2, 25)])
    gain = statistics.paired_gain(np.zeros((1, 125)), difference[None], names, draws=8000)
    expected = 0.5 * math.sqrt(difference[:100].var() / 100 + difference[100:].var() / 25)
    assert gain.stderr == pytest.approx(expected, rel=0.04)


def test_gain_keeps_nodes_and_pairs_questions() -> None:
    # Nodes move in opposite directions on every question: no gain and no doubt about it.
    before = np.random.default_rng(3).random((2, 50))
    after = before + np.array([[0.3], [-0.3]])
    gain = statistics.paired_gain(before, after)
    assert gain.mean == pytest.approx(0, abs=1e-12)
    assert gain.stderr == pytest.approx(0, abs=1e-12)


def test_gain_is_reproducible_and_follows_its_seed() -> None:
    rng = np.random.default_rng(4)
    before, after = rng.random((2, 30)), rng.random((2, 30))
    assert statistics.paired_gain(before, after, seed=5) == statistics.paired_gain(before, after, seed=5)
    assert statistics.paired_gain(before, after, seed=5).stderr != statistics.paired_gain(before, after, seed=6).stderr


def test_gain_refuses_what_does_not_pair() -> None:
    with pytest.raises(ValueError, match="must both be"):
        statistics.paired_gain(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="must both be"):
        statistics.paired_gain(np.zeros((2, 0)), np.zeros((2, 0)))
    with pytest.raises(ValueError, match="finite"):
        statistics.paired_gain(np.zeros((1, 2)), np.array([[0, np.nan]]))
    with pytest.raises(ValueError, match="2 specialties for 3 questions"):
        statistics.paired_gain(np.zeros((1, 3)), np.zeros((1, 3)), ["a", "b"])


def test_specialty_and_macro_means() -> None:
    values = np.array([[[1, 0], [1, 1], [0, 0]], [[0, 0], [1, 1], [0, 1]]])  # [2 nodes, 3 questions, 2 samples]
    means = statistics.specialty_means(values, ["lcm", "gcd", "lcm"])
    assert means == {"gcd": 1.0, "lcm": 0.25}
    assert statistics.macro_mean(means) == pytest.approx(0.625)
    assert statistics.macro_mean(means, ["gcd"]) == 1.0
    assert statistics.macro_mean(means, statistics.CORE_6) is None
    assert statistics.macro_mean({}) is None
    core = {name: i / 10 for i, name in enumerate(sorted(statistics.CORE_6))}
    assert statistics.macro_mean({**core, "bf": 9.0}, statistics.CORE_6) == pytest.approx(0.25)
