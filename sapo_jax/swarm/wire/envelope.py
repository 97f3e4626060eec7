"""Payloads in signed envelopes: what groups and peer records have in common, whatever they hold."""

from __future__ import annotations

from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.field_rules import check_bytes, check_size
from sapo_jax.swarm.wire.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, is_signed
from sapo_jax.swarm.wire.signed_content import ED25519, Envelope


def seal(payload: bytes, identity: Identity, label: bytes) -> Envelope:
    """Returns `payload` in the envelope that `identity` signs; `label` says what kind of content it is."""
    return Envelope(payload=payload, public_key=identity.public_key, signature=identity.sign(label, payload))


def check_envelope(envelope: Envelope, algorithm: int, max_payload_bytes: int) -> None:
    """Raises WireError unless sizes and algorithm hold; the cheap checks, before anything is parsed."""
    check_size(len(envelope.payload), max_payload_bytes, "payload")
    if algorithm != ED25519:
        raise WireError(WireReason.UNKNOWN_ALGORITHM, "must be Ed25519", field="algorithm")
    check_bytes(envelope.public_key, PUBLIC_KEY_BYTES, "public_key")
    check_bytes(envelope.signature, SIGNATURE_BYTES, "signature")


def check_signature(envelope: Envelope, label: bytes) -> None:
    """Raises WireError(BAD_SIGNATURE) unless the owner of the key signed this payload as content of `label`."""
    if not is_signed(envelope.public_key, envelope.signature, label, envelope.payload):
        raise WireError(WireReason.BAD_SIGNATURE, "does not fit key and payload", field="signature")
