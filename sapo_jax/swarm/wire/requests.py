"""What hosts ask each other and answer, as plain frozen records: no protobuf, no gRPC.

`group_calls_codec`, `host_calls_codec` and, for parts of several, `codec_parts` turn them into messages
and back; the schema is rollout_exchange.proto. What a peer answered is unverified. Spans are seconds,
sizes bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.signed_content import SignedGroup, SignedPeerRecord

# PublishGroups.


class PublishOutcome(enum.Enum):
    """What became of one published group."""

    ACCEPTED = "accepted"  # checked and committed to the store
    DUPLICATE = "duplicate"  # held, or was held within its time to live: as good as accepted
    REJECTED = "rejected"  # see the reason


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishRequest:
    """Groups to take over, own or relayed."""

    groups: tuple[SignedGroup, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishResult:
    """The answer about one group.

    Attributes:
        group_id: as the receiver computed it; empty if the envelope had no usable sizes.
        outcome: what became of it.
        reason: why it was rejected; None otherwise. A reason that a newer peer knows and we do not reads as INTERNAL.
        field: path of the field behind reason FIELD or TOO_LARGE; may be empty.
        retry_after_s: when to offer it again; 0: no advice.
    """

    group_id: bytes
    outcome: PublishOutcome
    reason: WireReason | None = None
    field: str = ""
    retry_after_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishResponse:
    """One result per group of the request, in its order."""

    results: tuple[PublishResult, ...]


# SampleGroups.


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """Asks for up to `count` random groups.

    Attributes:
        count: at most this many come back, or fewer.
        datasets: only these; empty: all.
        max_age_s: only groups at most this old; None: any age.
        excluded_publishers: node ids whose groups are not wanted, the asker's own first of all.
        seed: makes the draw repeatable on an unchanged store; None: drawn anew.
    """

    count: int
    datasets: tuple[str, ...] = ()
    max_age_s: float | None = None
    excluded_publishers: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleResponse:
    """Random groups: uniform over publishers, then over a publisher's groups."""

    groups: tuple[SignedGroup, ...]
    stored_groups: int  # in the answering node's store, whether or not they pass the filter


# ListGroups.


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCursor:
    """A place in the arrival order of one store.

    `epoch` names the store's file; a store made anew has another one, and its sequences start over.
    `sequence` is that of the last group seen; 0 is before the first.
    """

    epoch: str
    sequence: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRef:
    """One stored group without its content."""

    group_id: bytes
    size_bytes: int
    dataset: str
    age_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ListRequest:
    """Asks for references in order of arrival; without a cursor from the oldest group on."""

    max_references: int
    cursor: GroupCursor | None = None
    datasets: tuple[str, ...] = ()  # only these; empty: all


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRefPage:
    """References after a cursor, and the cursor to go on with; no references: nothing newer is there."""

    references: tuple[GroupRef, ...]
    next_cursor: GroupCursor


# GetGroups.


@dataclass(frozen=True, kw_only=True, slots=True)
class GetRequest:
    """Asks for groups by id."""

    group_ids: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GetResponse:
    """The groups asked for, as far as they are held and fit into one message.

    Attributes:
        groups: in the order of the request.
        missing_group_ids: not held, or damaged.
        deferred_group_ids: held, but the response is full: ask again.
    """

    groups: tuple[SignedGroup, ...]
    missing_group_ids: tuple[bytes, ...] = ()
    deferred_group_ids: tuple[bytes, ...] = ()


# GetNodeInfo.


class LoadLevel(enum.Enum):
    """How busy the answering node is; a hint for whom to ask next."""

    NORMAL = "normal"
    BUSY = "busy"  # expect refusals for quota or concurrency
    DRAINING = "draining"  # takes nothing new


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeInfo:
    """What a host says about itself when asked.

    Attributes:
        swarm_id: the swarm it serves.
        software_version: for people.
        schema_minor: minor version of the schema it writes.
        epoch: of its store, see `GroupCursor`.
        stored_groups: in its store.
        stored_publishers: different publishers among them.
        load_level: how busy it is.
        read_unix_s: its clock when it answered; only to report skew.
        max_message_bytes: the largest request that it takes.
        max_publish_groups: groups per PublishGroups request that it takes.
        catalog_digests: config digests (hex) of the specialties it can verify.
        peer_record: its own signed record; None if it has none.
    """

    swarm_id: str
    software_version: str
    schema_minor: int
    epoch: str
    stored_groups: int
    stored_publishers: int
    load_level: LoadLevel
    read_unix_s: float
    max_message_bytes: int
    max_publish_groups: int
    catalog_digests: tuple[str, ...]
    peer_record: SignedPeerRecord | None


# ExchangePeers.


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerExchange:
    """Peer records, in either direction: what the asker offers, and what the other returns."""

    peer_records: tuple[SignedPeerRecord, ...]


# Errors of a whole call.


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorDetail:
    """Travels with a failed call, beside its status code and text.

    Attributes:
        reason: why it failed.
        field: path of the field that broke a rule; may be empty.
        limit: name of the limit that was hit, such as "groups per second"; may be empty.
        retry_after_s: when to try again; 0: no advice.
        oldest_cursor: for UNKNOWN_CURSOR, where the store now begins.
        error_id: for INTERNAL, what to look for in the answering node's log.
    """

    reason: WireReason
    field: str = ""
    limit: str = ""
    retry_after_s: float = 0.0
    oldest_cursor: GroupCursor | None = None
    error_id: str = ""
