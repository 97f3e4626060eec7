"""Token ids to padded arrays, with masks and positions made here once and passed on.

Also the one rule for end tokens: a completion that ended by itself gets our own end token, whoever
wrote it; one that a limit cut gets none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sapo_jax.text.tokenizer import Tokenizer
from sapo_jax.types import Completion, FinishReason


class PromptTooLongError(ValueError):
    """A prompt longer than the largest bucket; the question is skipped and counted."""

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(f"prompt of {length} tokens, config.sampling.prompt_buckets allows {limit}")
        self.length = length
        self.limit = limit


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompts:
    """A batch of prompts.

    Attributes:
        tokens: [Q, P] int32.
        prompt_mask: [Q, P] bool, true on prompt tokens.
        prompt_positions: [Q, P] int32, 0, 1, ... over a row's prompt tokens; 0 on padding.
    """

    tokens: np.ndarray
    prompt_mask: np.ndarray
    prompt_positions: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedCompletions:
    """A batch of completions, right-padded.

    Attributes:
        tokens: [Q, G, C] int32.
        completion_mask: [Q, G, C] bool, true on completion tokens, end token included.
    """

    tokens: np.ndarray
    completion_mask: np.ndarray


def bucket_for(length: int, buckets: Sequence[int]) -> int:
    """Returns the smallest of the rising `buckets` that holds `length` tokens.

    Raises:
        PromptTooLongError: none does.
    """
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise PromptTooLongError(length, buckets[-1])


def pad_prompts(
    rows: Sequence[Sequence[int]], length: int, *, pad_id: int, side: Literal["left", "right"] = "right"
) -> EncodedPrompts:
    """Returns `rows` (Q prompts) padded to `length` (P) on `side`.

    Raises:
        PromptTooLongError: a row has more than `length` tokens.
        ValueError: a row is empty.
    """
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    positions = np.zeros((len(rows), length), np.int32)
    for index, row in enumerate(rows):
        if len(row) > length:
            raise PromptTooLongError(len(row), length)
        if not row:
            raise ValueError(f"prompt {index} has no tokens")
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        tokens[index, place] = row
        mask[index, place] = True
        positions[index, place] = np.arange(len(row))
    return EncodedPrompts(tokens=tokens, prompt_mask=mask, prompt_positions=positions)


def pad_completions(groups: Sequence[Sequence[Sequence[int]]], length: int, *, pad_id: int) -> EncodedCompletions:
    """Returns `groups` (Q groups of G completions) right-padded to `length` (C).

    Raises:
        ValueError: groups of different sizes, or a completion of more than `length` tokens.
    """
    sizes = {len(group) for group in groups}
    if len(sizes) > 1:
        raise ValueError(f"groups of one batch must have one size, found {sorted(sizes)}")
    shape = (len(groups), sizes.pop() if sizes else 0, length)
    tokens = np.full(shape, pad_id, np.int32)
    mask = np.zeros(shape, bool)
    for q, group in enumerate(groups):
        for g, ids in enumerate(group):
            if len(ids) > length:
                raise ValueError(f"completion {g} of group {q} has {len(ids)} tokens, the limit is {length}")
            tokens[q, g, : len(ids)] = ids
            mask[q, g, : len(ids)] = True
    return EncodedCompletions(tokens=tokens, completion_mask=mask)


def encode_completion(
    tokenizer: Tokenizer, completion: Completion, limit: int, local_encoding: str = "text"
) -> tuple[list[int], bool]:
    """Returns the ids to train on (at most `limit`) and whether the completion counts as truncated.

    The text is encoded without recognizing control tokens, and our end token follows iff the
    completion stopped by itself. What does not fit is cut, gets no end token and is truncated, like
    everything that a limit had cut before.

    Args:
        tokenizer: our own, whoever wrote the completion.
        completion: local or external.
        limit: C, in tokens, end token included.
        local_encoding: "text", or "tokens", which keeps a local completion's own ids as they were sampled (they already
            hold the end token); external completions have none and are encoded from text.
    """
    stopped = completion.finish_reason is FinishReason.STOP
    if local_encoding == "tokens" and completion.token_ids is not None:
        ids = list(completion.token_ids)
    else:
        ids = _encode_start(tokenizer, completion.text, limit)
        if stopped:
            ids.append(tokenizer.end_id)
    if len(ids) > limit:
        return ids[:limit], True
    return ids, not stopped


def _encode_start(tokenizer: Tokenizer, text: str, limit: int) -> list[int]:
    """Returns the ids of `text`, or of its beginning where that alone exceeds `limit` tokens.

    A stranger's text may be a hundred times longer than what is trained on, and this runs between two
    updates. No token stands for more characters than the longest one has, so a text beyond `limit` of
    those cannot fit, and its beginning of that length holds all that is kept. Only next to the cut, far
    behind what is kept of ordinary text, can tokens differ from those of the whole.
    """
    most_chars = (limit + 1) * tokenizer.max_token_chars
    if len(text) > most_chars:
        ids = tokenizer.encode_text(text[:most_chars])
        if len(ids) > limit:
            return ids
        # Only a tokenizer that shortens text before it cuts it into tokens comes here.
    return tokenizer.encode_text(text)
