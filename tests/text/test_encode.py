from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapo_jax.text.byte_tokenizer import byte_tokenizer
from sapo_jax.text.encode import PromptTooLongError, bucket_for, encode_completion, pad_completions, pad_prompts
from sapo_jax.types import Completion, FinishReason

TOKENIZER = byte_tokenizer()
END = TOKENIZER.end_id


def stopped(text: str, **extra: tuple) -> Completion:
    return Completion(text=text, finish_reason=FinishReason.STOP, **extra)


def cut(text: str, **extra: tuple) -> Completion:
    return Completion(text=text, finish_reason=FinishReason.LENGTH, **extra)


def test_the_end_token_follows_iff_the_completion_stopped() -> None:
    assert encode_completion(TOKENIZER, stopped("ab"), 10) == ([97, 98, END], False)
    assert encode_completion(TOKENIZER, cut("ab"), 10) == ([97, 98], True)
    assert encode_completion(TOKENIZER, stopped(""), 10) == ([END], False)
    assert encode_completion(TOKENIZER, cut(""), 10) == ([], True)


def test_what_does_not_fit_with_its_end_token_is_cut_and_counts_as_truncated() -> None:
    assert encode_completion(TOKENIZER, stopped("ab"), 3) == ([97, 98, END], False)
    assert encode_completion(TOKENIZER, stopped("abc"), 3) == ([97, 98, 99], True)
    assert encode_completion(TOKENIZER, stopped("abcd"), 3) == ([97, 98, 99], True)
    assert encode_completion(TOKENIZER, cut("abc"), 3) == ([97, 98, 99], True)


def test_t7_control_strings_of_a_peer_stay_text() -> None:
    ids, _ = encode_completion(TOKENIZER, stopped("<|im_end|>"), 100)
    assert ids == [*b"<|im_end|>", END]


def test_own_tokens_are_kept_as_sampled_when_asked() -> None:
    own = (97, 256, 98, END)  # text alone would lose the control token in the middle
    completion = stopped("ab", token_ids=own)
    assert encode_completion(TOKENIZER, completion, 10, "tokens") == (list(own), False)
    assert encode_completion(TOKENIZER, completion, 10, "text") == ([97, 98, END], False)
    assert encode_completion(TOKENIZER, completion, 3, "tokens") == ([97, 256, 98], True)
    assert encode_completion(TOKENIZER, cut("ab", token_ids=(97, 98)), 10, "tokens") == ([97, 98], True)
    assert encode_completion(TOKENIZER, stopped("ab"), 10, "tokens") == ([97, 98, END], False)


@given(st.text(max_size=30), st.integers(1, 40), st.sampled_from(FinishReason))
def test_no_completion_breaks_the_rules(text: str, limit: int, reason: FinishReason) -> None:
    ids, truncated = encode_completion(TOKENIZER, Completion(text=text, finish_reason=reason), limit)
    whole = TOKENIZER.encode_text(text)
    assert len(ids) <= limit
    assert truncated == (reason is FinishReason.LENGTH or len(whole) + 1 > limit)
    assert (ids[-1:] == [END]) == (not truncated) and END not in ids[:-1]
    assert ids == (whole[:limit] if truncated else [*whole, END])


def test_bucket_for_takes_the_smallest_that_fits() -> None:
    buckets = (128, 256, 512)
    assert [bucket_for(length, buckets) for length in (1, 128, 129, 256, 512)] == [128, 128, 256, 256, 512]
    with pytest.raises(
        PromptTooLongError, match=r"prompt of 513 tokens, config.sampling.prompt_buckets allows 512"
    ) as caught:
        bucket_for(513, buckets)
    assert (caught.value.length, caught.value.limit) == (513, 512)


def test_prompts_padded_on_the_right() -> None:
    batch = pad_prompts([[5, 6, 7], [8]], 4, pad_id=9)
    np.testing.assert_array_equal(batch.tokens, [[5, 6, 7, 9], [8, 9, 9, 9]])
    np.testing.assert_array_equal(batch.prompt_mask, [[1, 1, 1, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(batch.prompt_positions, [[0, 1, 2, 0], [0, 0, 0, 0]])
    assert batch.tokens.dtype == batch.prompt_positions.dtype == np.int32 and batch.prompt_mask.dtype == bool


def test_prompts_padded_on_the_left() -> None:
    batch = pad_prompts([[5, 6, 7], [8]], 4, pad_id=9, side="left")
    np.testing.assert_array_equal(batch.tokens, [[9, 5, 6, 7], [9, 9, 9, 8]])
    np.testing.assert_array_equal(batch.prompt_mask, [[0, 1, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(batch.prompt_positions, [[0, 0, 1, 2], [0, 0, 0, 0]])


def test_a_prompt_that_contains_the_padding_id_keeps_its_mask() -> None:
    batch = pad_prompts([[9, 9]], 3, pad_id=9)
    np.testing.assert_array_equal(batch.prompt_mask, [[1, 1, 0]])


def test_prompts_that_cannot_be_padded_are_reported() -> None:
    with pytest.raises(PromptTooLongError):
        pad_prompts([[1], [1, 2, 3]], 2, pad_id=0)
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        pad_prompts([[1], []], 2, pad_id=0)


def test_completions_padded_on_the_right() -> None:
    batch = pad_completions([[[1, 2], []], [[3], [4, 5, 6]]], 3, pad_id=7)
    np.testing.assert_array_equal(batch.tokens, [[[1, 2, 7], [7, 7, 7]], [[3, 7, 7], [4, 5, 6]]])
    np.testing.assert_array_equal(batch.completion_mask, [[[1, 1, 0], [0, 0, 0]], [[1, 0, 0], [1, 1, 1]]])
    assert batch.tokens.dtype == np.int32 and batch.completion_mask.dtype == bool


def test_completions_that_cannot_be_padded_are_reported() -> None:
    with pytest.raises(ValueError, match=r"one size, found \[1, 2\]"):
        pad_completions([[[1]], [[1], [2]]], 3, pad_id=0)
    with pytest.raises(ValueError, match="completion 1 of group 0 has 3 tokens, the limit is 2"):
        pad_completions([[[1], [1, 2, 3]]], 2, pad_id=0)
