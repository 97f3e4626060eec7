"""What publishers and hosts sign, rollout groups and peer records, as plain frozen records: no protobuf.

`group_codec` and `peer_record_codec` turn them into bytes and back; the schema is
rollout_exchange.proto. What is called signed came from a stranger and is unverified; what is called
opened has a signature and fields that hold. Spans are seconds, sizes bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sapo_jax.types import Rollout

ED25519 = 1  # the schema's number of the only signature algorithm that there is


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
        algorithm: number of the signature algorithm.
        hops: relays it passed; not signed.
        age_s: how long it has been under way, as the relays add it up; not signed.
    """

    envelope: Envelope
    algorithm: int = ED25519
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
        claimed_scores: per completion what the publisher says it scored, or None; advisory. Nothing here
            uses it: what counts is what our own verifier finds.
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
    algorithm: int = ED25519


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedPeerRecord:
    """A peer record whose signature and fields hold; what it claims is still a stranger's word."""

    node_id: str  # of the identity that signed it
    envelope: Envelope
    record: PeerRecord

    def to_signed(self) -> SignedPeerRecord:
        """Returns the record to send on."""
        return SignedPeerRecord(envelope=self.envelope)
