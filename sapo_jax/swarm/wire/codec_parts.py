"""What several requests and responses hold: groups and peer records in their envelopes, cursors, reasons.

Groups and peer records stay closed here: each is opened, and may fail, by itself. The detail of a
failed call is here too, because any call may fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.field_rules import COUNTER_LIMIT, check_range, check_text, field_error
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, WireLimits
from sapo_jax.swarm.wire.printable import printable
from sapo_jax.swarm.wire.requests import ErrorDetail, GroupCursor
from sapo_jax.swarm.wire.signed_content import Envelope, SignedGroup, SignedPeerRecord
from sapo_jax.swarm.wire.spans import duration_from_seconds, seconds_of

MAX_NOTE_CHARS = 128  # of texts that are only shown
_MAX_RETRY_AFTER_S = 3_600.0  # a peer may send us away for this long at most

# The schema's names are ours with a prefix, which a test keeps so; protobuf takes names for values.
_REASONS: Mapping[int, WireReason] = {pb.WireReason.Value(f"WIRE_REASON_{item.name}"): item for item in WireReason}


def signed_group_to_message(signed: SignedGroup) -> pb.SignedGroup:
    """Returns the message that carries a group."""
    envelope = signed.envelope
    return pb.SignedGroup(
        payload=envelope.payload,
        public_key=envelope.public_key,
        signature=envelope.signature,
        algorithm=_algorithm(signed.algorithm),
        hops=signed.hops,
        age=duration_from_seconds(signed.age_s),
    )


def signed_group_from_message(message: pb.SignedGroup) -> SignedGroup:
    """Returns the group in a message, unopened; never fails."""
    return SignedGroup(
        envelope=Envelope(payload=message.payload, public_key=message.public_key, signature=message.signature),
        algorithm=int(message.algorithm),
        hops=message.hops,
        age_s=seconds_of(message.age),
    )


def signed_peer_record_to_message(signed: SignedPeerRecord) -> pb.SignedPeerRecord:
    """Returns the message that carries a peer record."""
    envelope = signed.envelope
    return pb.SignedPeerRecord(
        payload=envelope.payload,
        public_key=envelope.public_key,
        signature=envelope.signature,
        algorithm=_algorithm(signed.algorithm),
    )


def signed_peer_record_from_message(message: pb.SignedPeerRecord) -> SignedPeerRecord:
    """Returns the peer record in a message, unopened; never fails."""
    return SignedPeerRecord(
        envelope=Envelope(payload=message.payload, public_key=message.public_key, signature=message.signature),
        algorithm=int(message.algorithm),
    )


def signed_groups_from_messages(messages: Iterable[pb.SignedGroup]) -> tuple[SignedGroup, ...]:
    """Returns the groups in messages, unopened; never fails."""
    return tuple(signed_group_from_message(message) for message in messages)


def cursor_to_message(cursor: GroupCursor) -> pb.GroupCursor:
    """Returns the message of a cursor."""
    return pb.GroupCursor(epoch=cursor.epoch, sequence=cursor.sequence)


def cursor_from_message(message: pb.GroupCursor, field: str, limits: WireLimits) -> GroupCursor:
    """Returns the cursor in a message; raises WireError naming a place in `field` if it breaks a rule."""
    check_text(message.epoch, limits.max_epoch_bytes, f"{field}.epoch")
    check_range(message.sequence, COUNTER_LIMIT, f"{field}.sequence")
    return GroupCursor(epoch=message.epoch, sequence=message.sequence)


def error_detail_to_message(detail: ErrorDetail) -> pb.ErrorDetail:
    """Returns the message that travels in the trailing metadata of a failed call."""
    return pb.ErrorDetail(
        reason=f"WIRE_REASON_{detail.reason.name}",
        field_path=detail.field,
        limit=detail.limit,
        retry_delay=duration_from_seconds(detail.retry_after_s) if detail.retry_after_s > 0 else None,
        oldest_cursor=None if detail.oldest_cursor is None else cursor_to_message(detail.oldest_cursor),
        error_id=detail.error_id,
    )


def error_detail_from_message(message: pb.ErrorDetail, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> ErrorDetail:
    """Returns the detail in a message, texts made harmless; raises WireError if its cursor breaks a rule."""
    has_cursor = message.HasField("oldest_cursor")
    return ErrorDetail(
        reason=reason_from_number(int(message.reason)),
        field=printable(message.field_path, MAX_NOTE_CHARS),
        limit=printable(message.limit, MAX_NOTE_CHARS),
        retry_after_s=retry_after_s_of(message),
        oldest_cursor=cursor_from_message(message.oldest_cursor, "oldest_cursor", limits) if has_cursor else None,
        error_id=printable(message.error_id, 64),
    )


def reason_from_number(number: int) -> WireReason:
    """Returns the reason with the schema's `number`; one that only a newer version knows reads as INTERNAL."""
    return _REASONS.get(number, WireReason.INTERNAL)


def retry_after_s_of(message: pb.PublishResult | pb.ErrorDetail) -> float:
    """Returns when to try again, bounded; 0: no advice."""
    return min(max(0.0, seconds_of(message.retry_delay)), _MAX_RETRY_AFTER_S)


def check_count(count: int, most: int, field: str, *, least: int = 1) -> None:
    """Raises WireError unless `field` holds from `least` to `most` items."""
    if count > most:
        raise WireError(WireReason.TOO_LARGE, f"holds at most {most}", field=field)
    if count < least:
        raise field_error(field, f"must hold at least {least}")


def _algorithm(number: int) -> pb.SignatureAlgorithm:
    # Enums of proto3 are open: any number passes through.
    return number  # pyright: ignore[reportReturnType]
