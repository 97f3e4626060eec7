"""From completions as text to the arrays of an update: end tokens, cuts, fillers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sapo_jax.config import LearnerConfig
from sapo_jax.learner.batching import TrainingGroup, build_batch, cut_completions, prompt_bucket
from sapo_jax.learner.step import Batch, advantages_of
from sapo_jax.text.byte_tokenizer import byte_tokenizer
from sapo_jax.text.encode import PromptTooLongError
from sapo_jax.types import Completion, FinishReason

TOKENIZER = byte_tokenizer()
END = TOKENIZER.end_id
SIZES: dict[str, Any] = {
    "questions": 2,
    "group_size": 3,
    "max_new_tokens": 4,
    "prompt_length": 5,
    "local_encoding": "text",
}


def stopped(text: str, token_ids: tuple[int, ...] | None = None) -> Completion:
    return Completion(text=text, finish_reason=FinishReason.STOP, token_ids=token_ids)


def cut(text: str, token_ids: tuple[int, ...] | None = None) -> Completion:
    return Completion(text=text, finish_reason=FinishReason.LENGTH, token_ids=token_ids)


def group(*completions: Completion, rewards: tuple[float, ...] = (), **changes: Any) -> TrainingGroup:
    settings: dict[str, Any] = {"prompt_ids": (7, 8, 9), "external": False} | changes
    return TrainingGroup(completions=completions, rewards=rewards or (0.5,) * len(completions), **settings)


def built(*groups: TrainingGroup, **changes: Any) -> Batch:
    return build_batch(groups, TOKENIZER, **(SIZES | changes))


def row(batch: Batch, q: int, g: int) -> list[int]:
    """Returns the completion tokens of a row that count; they are its first ones."""
    mask = np.asarray(batch.completion_mask)[q, g]
    assert (np.diff(mask.astype(int)) <= 0).all()
    return np.asarray(batch.completion_tokens)[q, g, mask].tolist()


def test_the_end_token_follows_what_stopped_and_nothing_else() -> None:
    batch = built(group(stopped("abc"), cut("ab"), stopped("")))
    assert row(batch, 0, 0) == [97, 98, 99, END]
    assert row(batch, 0, 1) == [97, 98]
    assert row(batch, 0, 2) == [END]
    np.testing.assert_array_equal(batch.truncated[0], [False, True, False])
    np.testing.assert_array_equal(batch.valid, [[True] * 3, [False] * 3])


def test_what_does_not_fit_is_cut_without_end_token_and_counts_as_truncated() -> None:
    batch = built(group(stopped("abcd"), stopped("abcdef"), cut("abcdef")))
    for g in range(3):
        assert row(batch, 0, g) == [97, 98, 99, 100]
    assert np.asarray(batch.truncated)[0].all()


def test_a_written_end_token_is_text() -> None:
    batch = built(group(stopped("<|im_end|>")), max_new_tokens=20)
    assert row(batch, 0, 0) == [*b"<|im_end|>", END]


def test_truncated_completions_get_no_positive_advantage() -> None:
    """Rewards 1, 1, 0: both ones lie above the mean, but the second was cut."""
    batch = built(group(stopped("a"), stopped("abcdef"), stopped("b"), rewards=(1.0, 1.0, 0.0)))
    advantages = np.asarray(advantages_of(batch, LearnerConfig(advantage_std=False)))
    np.testing.assert_allclose(advantages[0], [1 / 3, 0, -2 / 3], rtol=1e-6)
    lenient = LearnerConfig(advantage_std=False, allow_truncated_positive=True)
    np.testing.assert_allclose(np.asarray(advantages_of(batch, lenient))[0], [1 / 3, 1 / 3, -2 / 3], rtol=1e-6)


def test_sampled_tokens_are_kept_when_asked_for_and_known() -> None:
    own = stopped("ab", token_ids=(200, 201, END))
    groups = group(own, cut("ab", token_ids=(202,)), stopped("ab"))
    as_text = built(groups)
    assert [row(as_text, 0, g) for g in range(3)] == [[97, 98, END], [97, 98], [97, 98, END]]
    as_tokens = built(groups, local_encoding="tokens")
    assert [row(as_tokens, 0, g) for g in range(3)] == [[200, 201, END], [202], [97, 98, END]]
    np.testing.assert_array_equal(as_tokens.truncated[0], [False, True, False])


def test_groups_of_another_size_are_used_as_far_as_they_fit() -> None:
    small = group(stopped("a"), rewards=(0.25,))
    large = group(*[stopped(letter) for letter in "abcde"], rewards=(0.1, 0.2, 0.3, 0.4, 0.5), external=True)
    batch = built(small, large)
    np.testing.assert_array_equal(batch.valid, [[True, False, False], [True] * 3])
    np.testing.assert_allclose(batch.rewards, [[0.25, 0, 0], [0.1, 0.2, 0.3]], rtol=1e-6)
    np.testing.assert_array_equal(batch.external, [False, True])
    assert [row(batch, 1, g) for g in range(3)] == [[97, END], [98, END], [99, END]]
    assert row(batch, 0, 1) == row(batch, 0, 2) == []
    # Alone in its group, a completion is its own baseline.
    assert not np.asarray(advantages_of(batch, LearnerConfig()))[0].any()


def test_missing_groups_are_fillers_with_a_prompt_that_can_be_attended() -> None:
    batch = built(questions=2)
    assert not np.asarray(batch.valid).any() and not np.asarray(batch.completion_mask).any()
    assert not np.asarray(batch.external).any() and not np.asarray(batch.rewards).any()
    np.testing.assert_array_equal(batch.prompt_mask, [[False] * 4 + [True]] * 2)


def test_prompts_are_padded_on_the_left() -> None:
    batch = built(group(stopped("a")), group(stopped("b"), prompt_ids=(1, 2, 3, 4, 5)))
    np.testing.assert_array_equal(np.asarray(batch.prompt_tokens)[0, 2:], [7, 8, 9])
    np.testing.assert_array_equal(batch.prompt_mask, [[False, False, True, True, True], [True] * 5])
    np.testing.assert_array_equal(batch.prompt_positions, [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])


def test_shapes_do_not_depend_on_what_is_in_them() -> None:
    shapes = [
        [(leaf.shape, leaf.dtype) for leaf in batch]
        for batch in (built(), built(group(stopped("abcdefg")), group(cut("a"), stopped("b"))))
    ]
    assert shapes[0] == shapes[1]
    assert [str(dtype) for _, dtype in shapes[0]] == ["int32", "int32", "bool", "int32", "bool", "float32"] + [
        "bool"
    ] * 3


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(ValueError, match="3 groups do not fit into a batch of 2"):
        built(*[group(stopped("a"))] * 3)
    with pytest.raises(PromptTooLongError, match="prompt of 6 tokens"):
        built(group(stopped("a"), prompt_ids=(1,) * 6))
    with pytest.raises(ValueError, match="zip"):
        built(group(stopped("a"), stopped("b"), rewards=(1.0,)))


def test_completions_of_all_nodes_are_cut_to_the_longest() -> None:
    short, long = built(group(cut("a"), stopped(""))), built(group(cut("ab"), stopped("a")))
    uncut = built(group(stopped("abc")))
    for batches, length in (([short, short], 1), ([short, long], 2), ([built()], 1), ([long, uncut], 4)):
        found = cut_completions(batches, (1, 2, 4))
        for batch, before in zip(found, batches, strict=True):
            assert np.shape(batch.completion_tokens) == np.shape(batch.completion_mask) == (2, 3, length)
            np.testing.assert_array_equal(batch.completion_tokens, before.completion_tokens[..., :length])
            assert np.sum(batch.completion_mask) == np.sum(before.completion_mask)
            assert all(a is b for a, b in zip(batch[:3] + batch[5:], before[:3] + before[5:], strict=True))


def test_the_bucket_is_the_smallest_that_holds_every_prompt() -> None:
    short, long = group(stopped("a"), prompt_ids=(1,) * 8), group(stopped("a"), prompt_ids=(1,) * 9)
    assert prompt_bucket([short, short], (4, 8, 16)) == 8
    assert prompt_bucket([short, long], (4, 8, 16)) == 16
    assert prompt_bucket([], (4, 8, 16)) == 4
    with pytest.raises(PromptTooLongError):
        prompt_bucket([long], (4, 8))
