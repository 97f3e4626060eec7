"""Peer records as signed bytes, and back into checked records; checked in the same order as groups."""

from __future__ import annotations

from sapo_jax.swarm.wire.envelope import check_envelope, check_signature, seal
from sapo_jax.swarm.wire.field_rules import (
    COUNTER_LIMIT,
    DIGEST_BYTES,
    check_address,
    check_bytes,
    check_range,
    check_size,
    check_swarm_id,
    check_text,
    digest_to_bytes,
    valid_utf8,
)
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.identity import PEER_LABEL, Identity, node_id_of
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, WireLimits
from sapo_jax.swarm.wire.parse import parse
from sapo_jax.swarm.wire.signed_content import Envelope, OpenedPeerRecord, PeerRecord, SignedPeerRecord
from sapo_jax.swarm.wire.spans import seconds_of, timestamp_from_seconds

_NONCE_BYTES = 16


def pack_peer_record(record: PeerRecord, *, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> bytes:
    """Returns the payload to sign.

    Raises:
        WireError: FIELD or TOO_LARGE, for whatever a receiver would refuse.
    """
    check_range(record.sequence, COUNTER_LIMIT, "sequence")
    message = pb.PeerRecord(
        swarm_id=valid_utf8(record.swarm_id),
        addresses=[valid_utf8(address) for address in record.addresses],
        certificate=record.certificate,
        session_nonce=record.session_nonce,
        sequence=record.sequence,
        create_time=timestamp_from_seconds(record.created_unix_s),
        software_version=valid_utf8(record.software_version),
        catalog_digests=[digest_to_bytes(digest, "catalog_digests") for digest in record.catalog_digests],
        reachable=record.reachable,
    )
    payload = message.SerializeToString(deterministic=True)
    check_size(len(payload), limits.max_peer_record_bytes, "payload")
    _read_peer_record(
        parse(pb.PeerRecord, payload, limits, max_fields=limits.max_payload_fields), record.swarm_id, limits
    )
    return payload


def seal_peer_record(payload: bytes, identity: Identity) -> Envelope:
    """Returns a packed peer record in the envelope that `identity` signs."""
    return seal(payload, identity, PEER_LABEL)


def open_peer_record(
    signed: SignedPeerRecord, *, swarm_id: str, limits: WireLimits = DEFAULT_WIRE_LIMITS
) -> OpenedPeerRecord:
    """Returns the peer record that a stranger sent, once its signature and fields are checked.

    Raises:
        WireError: TOO_LARGE, UNKNOWN_ALGORITHM, MALFORMED, BAD_SIGNATURE, WRONG_SWARM or FIELD.
    """
    envelope = signed.envelope
    check_envelope(envelope, signed.algorithm, limits.max_peer_record_bytes)
    message = parse(pb.PeerRecord, envelope.payload, limits, max_fields=limits.max_payload_fields)
    check_signature(envelope, PEER_LABEL)
    record = _read_peer_record(message, swarm_id, limits)
    return OpenedPeerRecord(node_id=node_id_of(envelope.public_key), envelope=envelope, record=record)


def _read_peer_record(message: pb.PeerRecord, swarm_id: str, limits: WireLimits) -> PeerRecord:
    check_swarm_id(message.swarm_id, swarm_id, limits.max_swarm_id_bytes)
    for i, address in enumerate(message.addresses):
        check_address(address, limits.max_address_bytes, f"addresses[{i}]")
    check_bytes(message.session_nonce, _NONCE_BYTES, "session_nonce")
    check_range(message.sequence, COUNTER_LIMIT, "sequence")
    check_text(message.software_version, limits.max_software_version_bytes, "software_version")
    for i, digest in enumerate(message.catalog_digests):
        check_bytes(digest, DIGEST_BYTES, f"catalog_digests[{i}]")
    return PeerRecord(
        swarm_id=message.swarm_id,
        addresses=tuple(message.addresses),
        certificate=message.certificate,
        session_nonce=message.session_nonce,
        sequence=message.sequence,
        software_version=message.software_version,
        catalog_digests=tuple(digest.hex() for digest in message.catalog_digests),
        reachable=message.reachable,
        created_unix_s=seconds_of(message.create_time),
    )
