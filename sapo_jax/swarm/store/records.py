"""What a store hands out: groups, cursors' errors and figures about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sapo_jax.swarm.store.retention import EvictionReason, GroupState
from sapo_jax.swarm.wire.requests import GroupCursor
from sapo_jax.swarm.wire.signed_content import SignedGroup


class UnknownCursorError(ValueError):
    """A cursor of another store file, or from before what is held; `oldest` is where to start."""

    def __init__(self, message: str, oldest: GroupCursor) -> None:
        super().__init__(message)
        self.oldest = oldest


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredGroup:
    """One group out of the store; its payload is what arrived, byte for byte.

    Attributes:
        seq: its place in the order of arrival, rising for as long as the store's epoch lasts.
        signed: the envelope with the hops it arrived with and its age by now, time spent here included.
    """

    seq: int
    group_id: bytes
    publisher: str
    dataset: str
    size_bytes: int
    state: GroupState
    signed: SignedGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreStats:
    """What a store holds, and what happened to it since it was opened.

    Attributes:
        groups, size_bytes, publishers: of the pool.
        by_state, by_dataset: how many groups are in which state, of which dataset.
        oldest_age_s: of the oldest group; 0 if there is none.
        seen: ids remembered of groups that left.
        pending: own groups still on offer.
        accepted, duplicates: groups that were stored, and those that were known.
        evicted: groups that left, by reason.
        given_up: own groups that left the outbox for want of room.
        damaged: rows lost to a failed checksum.
    """

    groups: int
    size_bytes: int
    publishers: int
    by_state: Mapping[GroupState, int]
    by_dataset: Mapping[str, int]
    oldest_age_s: float
    seen: int
    pending: int
    accepted: int
    duplicates: int
    evicted: Mapping[EvictionReason, int]
    given_up: int
    damaged: int
