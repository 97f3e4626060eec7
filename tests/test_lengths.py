"""The lengths of completions: few, and never beyond the limit."""

from __future__ import annotations

import pytest

from sapo_jax.lengths import FEW, SHORTEST, completion_buckets


@pytest.mark.parametrize(
    ("limit", "buckets"),
    [
        (1, (1,)),
        (127, (127,)),
        (128, (64, 96, 128)),
        (201, (101, 151, 201)),
        (255, (64, 128, 255)),
        (4096, (1024, 2048, 4096)),
    ],
)
def test_buckets_end_with_the_limit(limit: int, buckets: tuple[int, ...]) -> None:
    assert completion_buckets(limit) == buckets


def test_buckets_are_few_and_rising_whatever_the_limit() -> None:
    for limit in range(1, 1200):
        buckets = completion_buckets(limit)
        assert len(buckets) <= FEW and buckets[-1] == limit
        assert list(buckets) == sorted(set(buckets)) and (len(buckets) == 1 or buckets[0] >= SHORTEST)
