"""What nodes say to each other, as plain frozen records: no protobuf, no gRPC.

`codec` turns them into messages and back; the schema is rollout_exchange.proto. Records of what a
peer sent are unverified unless their docstring says otherwise. Spans are seconds, sizes bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.types import Rollout

# Signed content.


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """Signed bytes with their key and signature, kept and forwarded verbatim.

    They are never serialized again: protobuf has no canonical form, and a newer node's payload may
    hold fields that only a byte-wise copy preserves.
    """

    payload: bytes
    public_key: bytes  # Ed25519, 32 bytes
    signature: bytes  # 64 bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedGroup:
    """A group as it arrived or leaves: nothing about it is checked.

    Attributes:
        envelope: what the publisher signed.
        algorithm: number of the signature algorithm; 1 is Ed25519.
        hops: relays it passed; not signed.
        age_s: how long it has been under way, as the relays add it up; not signed.
    """

    envelope: Envelope
    algorithm: int = 1
    hops: int = 0
    age_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorInfo:
    """What a publisher says about the policy that sampled a group; advisory, empty or 0 where unknown."""

    model_name: str = ""
    parameter_count: int = 0
    tokenizer_name: str = ""
    prompt_template_id: str = ""
    temperature: float = 0.0
    top_p: float = 0.0
    max_new_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedGroup:
    """A group whose signature and fields hold; its texts are still a stranger's, its scores unknown.

    Attributes:
        group_id: SHA-256(payload || public key), 32 bytes.
        envelope: the bytes to store and forward.
        rollout: `rollout.node_id` is the publisher's node id, computed from its key.
        sequence: the publisher's count of its groups, strictly rising; gaps are no error.
        ttl_s: how long after its making it may be used, clamped.
        hops: relays it passed.
        age_s: seconds it had been under way when it was opened; add the time it is kept.
        size_bytes: what it counts against quotas: the envelope's bytes.
        created_unix_s: the publisher's clock when it signed; advisory, any value.
        verifier_version: the publisher's version of the task library; advisory.
        generator: advisory.
        claimed_scores: per completion what the publisher says it scored, or None. Never used for
            learning; a claim that our own verifier contradicts costs the peer.
    """

    group_id: bytes
    envelope: Envelope
    rollout: Rollout
    sequence: int
    ttl_s: float
    hops: int
    age_s: float
    size_bytes: int
    created_unix_s: float
    verifier_version: str
    generator: GeneratorInfo
    claimed_scores: tuple[float | None, ...]

    @property
    def dataset(self) -> str:
        return self.rollout.task_ref.dataset

    @property
    def publisher(self) -> str:
        """The publisher's node id."""
        return self.rollout.node_id

    def to_signed(self, *, kept_s: float = 0.0, relayed: bool = False) -> SignedGroup:
        """Returns the group to send on, after `kept_s` seconds here; `relayed` counts one more hop."""
        return SignedGroup(envelope=self.envelope, hops=self.hops + relayed, age_s=self.age_s + kept_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerRecord:
    """What a host says about itself; signed by the identity of its first node.

    Attributes:
        swarm_id: the swarm it takes part in.
        addresses: "host:port" where it listens, best first; empty if it only dials out.
        certificate: its TLS certificate as DER, to be pinned as the only root; empty without TLS.
        session_nonce: 16 bytes, new at each start: two sessions of one identity are a copied key.
        sequence: rising with each new record of the identity; the highest one counts.
        software_version: for people.
        catalog_digests: config digests (hex) of the specialties it can verify.
        reachable: it believes that others can dial `addresses`.
        created_unix_s: its clock when it signed; advisory.
    """

    swarm_id: str
    addresses: tuple[str, ...]
    certificate: bytes
    session_nonce: bytes
    sequence: int
    software_version: str
    catalog_digests: tuple[str, ...]
    reachable: bool
    created_unix_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedPeerRecord:
    """A peer record as it arrived or leaves: nothing about it is checked."""

    envelope: Envelope
    algorithm: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedPeerRecord:
    """A peer record whose signature and fields hold; what it claims is still a stranger's word."""

    node_id: str  # of the identity that signed it
    envelope: Envelope
    record: PeerRecord

    def to_signed(self) -> SignedPeerRecord:
        """Returns the record to send on."""
        return SignedPeerRecord(envelope=self.envelope)


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
