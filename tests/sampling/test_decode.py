"""The sampler against plain forward passes, the learner's log-probs and its own distribution."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sapo_jax import lengths
from sapo_jax.learner.step import Batch, batch_logprobs
from sapo_jax.models import forward
from sapo_jax.models.architecture import FAMILIES, DecoderConfig
from sapo_jax.models.decoder import Params
from sapo_jax.sampling import decode
from sapo_jax.sampling.decode import GREEDY, Prompts, Samples, sample
from sapo_jax.sampling.draw import Weights, draw
from tests.models.random_models import random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

END = 5
LENGTHS = ((6, 2, 4), (1, 6, 3))  # prompt tokens of each question of each node


def stacked_params(config: DecoderConfig, nodes: int = 2) -> Params:
    rows = [random_params(config, 20 + node) for node in range(nodes)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def of_node(tree: Any, node: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[node], tree)


def ragged_prompts(config: DecoderConfig, lengths: Any = LENGTHS) -> Prompts:
    width = np.max(lengths)
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (*np.shape(lengths), width)).astype(np.int32)
    offset = width - np.array(lengths)[..., None]
    index = np.arange(width)[None, None]
    return Prompts(tokens, index >= offset, np.maximum(index - offset, 0).astype(np.int32))  # type: ignore[arg-type]


@cache
def compiled(config: DecoderConfig, _backend: str, **settings: Any) -> Any:
    return jax.jit(partial(sample, config, **settings))


def drawn(config: DecoderConfig, params: Params, prompts: Prompts, seeds: Any, temperature: float, **settings: Any):
    compute = compiled(config, jax.default_backend(), **({"end_id": END} | settings))
    samples = compute(params, prompts, jnp.asarray(seeds, jnp.uint32), jnp.float32(temperature))
    return jax.tree.map(np.asarray, samples)


def as_batch(prompts: Prompts, samples: Samples, node: int) -> Batch:
    """Returns what the learner is given for a node's own samples."""
    lengths = samples.lengths[node]
    mask = np.arange(samples.tokens.shape[-1]) < np.asarray(lengths)[..., None]
    nothing = np.zeros(lengths.shape)
    arrays: Any = (
        prompts.tokens[node],
        prompts.positions[node],
        prompts.mask[node],
        samples.tokens[node],
        mask,
        nothing,
        nothing == 0,
        nothing == 1,
        nothing[:, 0] == 1,
    )
    return Batch(*arrays)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_the_learner_computes_on_the_same_tokens(family: str) -> None:
    config = small_config(family)
    params, prompts = stacked_params(config), ragged_prompts(config)
    seen, ended = {}, 0
    for temperature in (1.0, 0.7):
        samples = drawn(config, params, prompts, [1, 2], temperature, group_size=12, max_new_tokens=6)
        learner = jax.jit(partial(batch_logprobs, config, temperature=temperature, logit_chunk_tokens=5))
        for node in range(2):
            batch = as_batch(prompts, samples, node)
            logprobs, _ = learner(of_node(params, node), batch)
            mask = np.asarray(batch.completion_mask)
            ended += not mask.all()
            np.testing.assert_allclose(samples.logprobs[node][mask], np.asarray(logprobs)[mask], rtol=0, atol=2e-5)
        seen[temperature] = samples.logprobs
    assert np.abs(seen[1.0] - seen[0.7]).max() > 0.1 and ended


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("nodes", [1, 2])
def test_log_probs_in_bfloat16_are_the_learners_but_for_rounding(nodes: int) -> None:
    config = small_config("qwen2")
    params, prompts = jax.tree.map(lambda leaf: leaf[:nodes], (stacked_params(config), ragged_prompts(config)))
    settings = {"group_size": 12, "max_new_tokens": 6, "dtype": jnp.bfloat16}
    samples = drawn(config, params, prompts, [1, 2][:nodes], 1.0, **settings)
    exact, rounded = (
        jax.jit(partial(batch_logprobs, config, temperature=1.0, logit_chunk_tokens=5, dtype=dtype))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    for node in range(nodes):
        batch = as_batch(prompts, samples, node)
        mask = np.asarray(batch.completion_mask)
        wanted, learners = (np.asarray(score(of_node(params, node), batch)[0])[mask] for score in (exact, rounded))
        error, learners_error = np.abs(samples.logprobs[node][mask] - wanted), np.abs(learners - wanted)
        assert 0 < error.mean() < 1.5 * learners_error.mean()
        assert error.max() < 2 * learners_error.max()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_takes_the_argmax_of_a_plain_forward_pass(family: str) -> None:
    config = small_config(family)
    params, prompts = stacked_params(config), ragged_prompts(config)
    samples = drawn(config, params, prompts, [1, 2], GREEDY, group_size=2, max_new_tokens=6, end_id=-1)
    np.testing.assert_array_equal(samples.tokens[:, :, 0], samples.tokens[:, :, 1])
    assert len(np.unique(samples.tokens)) > 5
    plain = jax.jit(partial(forward.forward, config))
    for node in range(2):
        tokens, mask, positions = (np.asarray(array[node]) for array in prompts)
        written = samples.tokens[node][:, 0]  # [Q, C]
        later = positions[:, -1:] + 1 + np.arange(6)
        whole = (
            np.concatenate([tokens, written], axis=1),
            np.concatenate([positions, later], axis=1),
            np.concatenate([mask, np.ones(written.shape, bool)], axis=1),
        )
        logits = np.asarray(plain(of_node(params, node), *whole))[:, tokens.shape[1] - 1 : -1]
        np.testing.assert_array_equal(logits.argmax(-1), written)
        expected = np.asarray(jax.nn.log_softmax(logits))
        expected = np.take_along_axis(expected, written[..., None], -1)[..., 0]
        np.testing.assert_allclose(samples.logprobs[node][:, 0], expected, rtol=0, atol=2e-5)


def test_the_end_token_ends_a_row_and_the_limit_cuts_it() -> None:
    config = small_config("llama", vocab_size=8)
    params, prompts = stacked_params(config), ragged_prompts(config)
    samples = drawn(config, params, prompts, [3, 4], 1.5, group_size=16, max_new_tokens=6)
    stopped = 0
    for index in np.ndindex(samples.lengths.shape):
        length, tokens, logprobs = samples.lengths[index], samples.tokens[index], samples.logprobs[index]
        assert END not in tokens[: length - 1]
        assert samples.stopped[index] == (tokens[length - 1] == END)
        assert samples.stopped[index] or length == 6
        assert (tokens[length:] == END).all() and (logprobs[length:] == 0).all()
        assert (logprobs[:length] < 0).all()
        stopped += samples.stopped[index]
    assert 20 < stopped < samples.stopped.size - 20
    # An end token in the very last place still counts as an end.
    at_limit = (samples.lengths == 6) & samples.stopped
    assert at_limit.any()


def test_the_loop_ends_with_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step draws once; a callback counts the draws that are really computed."""
    config = small_config("llama", vocab_size=8)
    params, prompts = stacked_params(config), ragged_prompts(config)
    draws: list[None] = []

    def counted(weights: Weights, uniforms: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: draws.append(None))
        return draw(weights, uniforms)

    monkeypatch.setattr(decode, "draw", counted)
    limit = 200
    compute = jax.jit(partial(sample, config, end_id=END, group_size=3, max_new_tokens=limit))
    # So hot that all eight tokens are about as likely, the end token among them.
    samples = compute(params, prompts, jnp.array([3, 4], jnp.uint32), jnp.float32(100))
    jax.effects_barrier()
    longest = int(samples.lengths.max())
    assert samples.stopped.all() and samples.lengths.min() < longest < limit / 2
    assert len(draws) == longest


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_growing_cache_changes_nothing(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("llama", vocab_size=24)
    params, prompts = jax.tree.map(lambda leaf: leaf[:nodes], (stacked_params(config), ragged_prompts(config)))
    found = []
    for shortest in (11, 2):
        monkeypatch.setattr(lengths, "SHORTEST", shortest)
        compute = jax.jit(partial(sample, config, end_id=END, group_size=6, max_new_tokens=11))
        found.append(compute(params, prompts, jnp.arange(nodes, dtype=jnp.uint32), jnp.float32(1)))
    assert lengths.completion_buckets(11) == (3, 6, 11)
    whole, grown = found
    assert whole.lengths.min() < 6 < whole.lengths.max()
    np.testing.assert_array_equal(whole.tokens, grown.tokens)
    np.testing.assert_array_equal(whole.stopped, grown.stopped)
    np.testing.assert_allclose(whole.logprobs, grown.logprobs, rtol=0, atol=2e-5)


def test_a_row_that_ended_does_not_disturb_the_others() -> None:
    """The same draws with an end token that never comes: rows agree up to where they ended."""
    config = small_config("qwen3", vocab_size=8)
    params, prompts = stacked_params(config), ragged_prompts(config)
    ending = drawn(config, params, prompts, [5, 6], 1.0, group_size=6, max_new_tokens=8)
    endless = drawn(config, params, prompts, [5, 6], 1.0, group_size=6, max_new_tokens=8, end_id=-1)
    assert (endless.lengths == 8).all() and not endless.stopped.any()
    assert len(np.unique(ending.lengths)) > 3
    mask = np.arange(8) < ending.lengths[..., None]
    np.testing.assert_array_equal(ending.tokens[mask], endless.tokens[mask])
    np.testing.assert_allclose(ending.logprobs[mask], endless.logprobs[mask], rtol=0, atol=1e-6)


def test_equal_seeds_give_equal_samples_and_nodes_are_independent_of_their_company() -> None:
    config = small_config("qwen2")
    params, prompts = stacked_params(config), ragged_prompts(config)
    settings: Any = {"group_size": 3, "max_new_tokens": 5}
    both = drawn(config, params, prompts, [7, 8], 1.0, **settings)
    again = drawn(config, params, prompts, [7, 8], 1.0, **settings)
    for first, second in zip(both, again, strict=True):
        np.testing.assert_array_equal(first, second)
    for node, seed in enumerate((7, 8)):
        rows = slice(node, node + 1)
        alone = drawn(
            config, jax.tree.map(lambda x, r=rows: x[r], params), of_rows(prompts, rows), [seed], 1.0, **settings
        )
        np.testing.assert_array_equal(alone.tokens[0], both.tokens[node])
        np.testing.assert_array_equal(alone.lengths[0], both.lengths[node])
        np.testing.assert_allclose(alone.logprobs[0], both.logprobs[node], rtol=0, atol=1e-5)
    other = drawn(config, params, prompts, [7, 9], 1.0, **settings)
    np.testing.assert_array_equal(other.tokens[0], both.tokens[0])
    assert (other.tokens[1] != both.tokens[1]).mean() > 0.3
    # The same weights, prompts and seed on both nodes: the same draws.
    twins = jax.tree.map(lambda x: np.stack([x[0], x[0]]), params)
    same = drawn(config, twins, jax.tree.map(lambda x: np.stack([x[0], x[0]]), prompts), [7, 7], 1.0, **settings)
    np.testing.assert_array_equal(same.tokens[0], same.tokens[1])
    np.testing.assert_array_equal(same.tokens[0], both.tokens[0])


def of_rows(prompts: Prompts, rows: slice) -> Prompts:
    return Prompts(*(array[rows] for array in prompts))


@pytest.mark.parametrize(
    ("temperature", "settings"), [(1.0, {}), (0.7, {}), (1.3, {"top_k": 3}), (1.0, {"top_p": 0.8})]
)
def test_frequencies_of_two_tokens_in_a_row(temperature: float, settings: dict[str, Any]) -> None:
    """All pairs of a vocabulary of seven, expected from plain forward passes."""
    vocab, draws = 7, 3000
    config = small_config("llama", vocab_size=vocab)
    params, prompts = stacked_params(config), ragged_prompts(config, ((4, 2), (3, 4)))
    samples = drawn(
        config, params, prompts, [1, 2], temperature, group_size=draws, max_new_tokens=2, end_id=-1, **settings
    )
    plain = jax.jit(partial(forward.forward, config))
    for node, question in np.ndindex(2, 2):
        tokens, mask, positions = (np.asarray(array[node, question]) for array in prompts)
        rows = np.concatenate([np.tile(tokens, (vocab, 1)), np.arange(vocab)[:, None]], axis=1)
        places = np.tile(np.append(positions, positions[-1] + 1), (vocab, 1))
        real = np.tile(np.append(mask, True), (vocab, 1))
        logits = np.asarray(plain(of_node(params, node), rows, places, real), np.float64) / temperature
        tempered = softmax(logits)
        first, second = (
            truncated(tempered[0, -2], **settings),
            np.stack([truncated(p, **settings) for p in tempered[:, -1]]),
        )
        expected = (first[:, None] * second).ravel() * draws
        pairs = samples.tokens[node, question] @ np.array([vocab, 1])
        found = np.bincount(pairs, minlength=vocab * vocab)
        assert found[expected == 0].sum() == 0
        rare = expected < 8
        found = np.append(found[~rare], found[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        expected = expected + 1e-9
        assert scipy.stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-3
        # What is reported is the tempered probability, not the truncated one.
        reported = np.log(tempered[0, -2])[samples.tokens[node, question, :, 0]]
        np.testing.assert_allclose(samples.logprobs[node, question, :, 0], reported, rtol=0, atol=2e-5)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def truncated(probabilities: np.ndarray, *, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    ranked = np.argsort(-probabilities)
    count = top_k or int(np.searchsorted(np.cumsum(probabilities[ranked]), top_p)) + 1
    kept = np.zeros_like(probabilities)
    kept[ranked[:count]] = probabilities[ranked[:count]]
    return kept / kept.sum()
