"""Signed peer records as a hostile or broken host would send them; the counterpart of `wire_fuzz` for groups."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.identity import GROUP_LABEL, Identity
from sapo_jax.swarm.wire.peer_record_codec import seal_peer_record
from scripts.faults.wire_fuzz import ANY, BAD_UTF8, OPEN, SWARM_ID, damage, field_bytes

FIELD, MALFORMED, TOO_LARGE = WireReason.FIELD, WireReason.MALFORMED, WireReason.TOO_LARGE


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordCase:
    """One peer record, as the message that carries it.

    Attributes:
        name: what was done to it.
        message: the signed record.
        expected: OPEN, ANY, or the one reason for which it must be refused.
        resigned: key and signature fit the (broken) payload.
    """

    name: str
    message: pb.SignedPeerRecord
    expected: WireReason | str
    resigned: bool


def record_case(rng: random.Random, identity: Identity, *, with_damage: bool = True) -> RecordCase:
    """Returns one case: mostly one broken field, signed again.

    Args:
        rng: decides everything.
        identity: signs.
        with_damage: damage bytes before signing too; such a record may hold any address, which a host with
            a mesh would dial.
    """
    kind = rng.randrange(10)
    if kind < 5:
        return broken_record(rng.choice(_BREAK_NAMES), rng, identity)
    if kind < 7:
        return attacked_record(rng.choice(_ENVELOPE_NAMES), rng, identity)
    payload = valid_record(rng).SerializeToString()
    if kind < 9 and with_damage:
        return _case("record damaged bytes", damage(payload, rng), identity, ANY)
    return _case("record valid", payload, identity, OPEN)


def broken_record(name: str, rng: random.Random, identity: Identity) -> RecordCase:
    """Returns a record with one broken field, by the name in `RECORD_BREAKS`."""
    change, expected = RECORD_BREAKS[name]
    message = valid_record(rng)
    change(message, rng)
    return _case(f"record {name}", message.SerializeToString(), identity, expected)


def attacked_record(name: str, rng: random.Random, identity: Identity) -> RecordCase:
    """Returns a record whose payload or envelope is attacked, by the name in `RECORD_ATTACKS`."""
    attack, expected, resigned = RECORD_ATTACKS[name]
    message = _case("", valid_record(rng).SerializeToString(), identity, OPEN).message
    attack(message, identity, rng)
    return RecordCase(name=f"record {name}", message=message, expected=expected, resigned=resigned)


def valid_record(rng: random.Random) -> pb.PeerRecord:
    """Returns a record that keeps every rule; where it says it listens, nobody does."""
    return pb.PeerRecord(
        swarm_id=SWARM_ID,
        addresses=rng.choice(((), ("127.0.0.1:1",), ("127.0.0.1:1", "[::1]:1"))),
        certificate=rng.randbytes(rng.choice((0, 0, 500))),
        session_nonce=rng.randbytes(16),
        sequence=rng.choice((0, 1, 2**63 - 1, rng.randrange(2**40))),
        software_version=rng.choice(("", "0.1.0", "\x1b[31m", "v" * 64)),
        catalog_digests=[rng.randbytes(32) for _ in range(rng.choice((0, 1, 63)))],
        reachable=rng.random() < 0.5,
    )


def _case(name: str, payload: bytes, identity: Identity, expected: WireReason | str) -> RecordCase:
    envelope = seal_peer_record(payload, identity)
    message = pb.SignedPeerRecord(
        payload=envelope.payload,
        public_key=envelope.public_key,
        signature=envelope.signature,
        algorithm=pb.SIGNATURE_ALGORITHM_ED25519,
    )
    return RecordCase(name=name, message=message, expected=expected, resigned=True)


Breaking = Callable[[pb.PeerRecord, random.Random], object]


def _set(name: str, *values: object) -> Breaking:
    return lambda message, rng: setattr(message, name, rng.choice(values))


def _fill(name: str, *values: object) -> Breaking:
    return lambda message, rng: getattr(message, name).append(rng.choice(values))


_BAD_ADDRESSES = ("", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", ":1", "a b:1", "[::1:1", "::1:1", "x\x00:1", "ä:1")

RECORD_BREAKS: Mapping[str, tuple[Breaking, WireReason]] = {
    "other swarm": (_set("swarm_id", "", "fuzze", "FUZZED"), WireReason.WRONG_SWARM),
    "long swarm": (_set("swarm_id", "s" * 65), TOO_LARGE),
    "address": (_fill("addresses", *_BAD_ADDRESSES), FIELD),
    "long address": (_fill("addresses", "a" * 300 + ":1"), TOO_LARGE),
    "nine addresses": (lambda message, rng: message.addresses.extend(["127.0.0.1:1"] * 9), TOO_LARGE),
    "nonce": (_set("session_nonce", b"", bytes(15), bytes(17)), FIELD),
    "sequence": (_set("sequence", 2**63, 2**64 - 1), FIELD),
    "long version": (_set("software_version", "v" * 65, "ä" * 33), TOO_LARGE),
    "digest": (_fill("catalog_digests", b"", bytes(31), bytes(33)), FIELD),
    "65 digests": (lambda message, rng: message.catalog_digests.extend([bytes(32)] * 65), TOO_LARGE),
    "long certificate": (_set("certificate", bytes(5000)), TOO_LARGE),
}


Attack = Callable[[pb.SignedPeerRecord, Identity, random.Random], object]


def _resealed(make: Callable[[bytes, random.Random], bytes]) -> Attack:
    def attack(message: pb.SignedPeerRecord, identity: Identity, rng: random.Random) -> None:
        message.CopyFrom(_case("", make(message.payload, rng), identity, ANY).message)

    return attack


def _other_label(message: pb.SignedPeerRecord, identity: Identity, rng: random.Random) -> None:
    message.signature = identity.sign(GROUP_LABEL, message.payload)


def _flip(name: str) -> Attack:
    def attack(message: pb.SignedPeerRecord, identity: Identity, rng: random.Random) -> None:
        data = bytearray(getattr(message, name))
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        setattr(message, name, bytes(data))

    return attack


# Name -> what is done, what must come of it, and whether the signature still fits.
RECORD_ATTACKS: Mapping[str, tuple[Attack, WireReason | str, bool]] = {
    "empty payload": (_resealed(lambda payload, rng: b""), WireReason.WRONG_SWARM, True),
    "noise": (_resealed(lambda payload, rng: rng.randbytes(rng.randrange(1, 100))), ANY, True),
    "trailing zero": (_resealed(lambda payload, rng: payload + b"\x00"), MALFORMED, True),
    "bad UTF-8": (_resealed(lambda payload, rng: payload + field_bytes(1, rng.choice(BAD_UTF8))), MALFORMED, True),
    "unknown fields": (_resealed(lambda payload, rng: payload + field_bytes(500, b"new")), OPEN, True),
    "too many fields": (_resealed(lambda payload, rng: payload + b"\xc8\x06\x01" * 257), TOO_LARGE, True),
    "oversize": (_resealed(lambda payload, rng: payload + field_bytes(100, bytes(4096))), TOO_LARGE, True),
    "algorithm": (
        lambda message, identity, rng: setattr(message, "algorithm", rng.choice((0, 2, -1))),
        WireReason.UNKNOWN_ALGORITHM,
        True,
    ),
    "key size": (
        lambda message, identity, rng: setattr(message, "public_key", rng.choice((b"", bytes(31), bytes(33)))),
        FIELD,
        False,
    ),
    "signature size": (
        lambda message, identity, rng: setattr(message, "signature", rng.choice((b"", bytes(63), bytes(65)))),
        FIELD,
        False,
    ),
    "flipped signature": (_flip("signature"), WireReason.BAD_SIGNATURE, False),
    "flipped key": (_flip("public_key"), WireReason.BAD_SIGNATURE, False),
    "signature for a group": (_other_label, WireReason.BAD_SIGNATURE, False),
}

_BREAK_NAMES, _ENVELOPE_NAMES = list(RECORD_BREAKS), list(RECORD_ATTACKS)
