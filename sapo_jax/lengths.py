"""The few lengths to which completions are padded."""

from __future__ import annotations

FEW = 3  # each is a loop of the sampler and, for every prompt bucket, an update program
SHORTEST = 64  # below, less padding saves less than another program costs


def completion_buckets(limit: int) -> tuple[int, ...]:
    """Returns rising lengths in tokens: `limit`, its half and its quarter, as far as they are not below `SHORTEST`.

    Where the half is the last, three quarters make the third. The sampler's cache grows from one to the next, and
    an update pads completions to the smallest that holds the longest of its round.
    """
    buckets = (limit,)
    while len(buckets) < FEW and buckets[0] >= 2 * SHORTEST:
        buckets = (-(-buckets[0] // 2), *buckets)
    return (buckets[0], -(-3 * limit // 4), limit) if len(buckets) == 2 else buckets
