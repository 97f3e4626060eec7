"""Signed groups as a hostile or broken peer would send them, each with what opening it must say.

Structure-aware: most cases start from a valid group, break one rule, and are signed again with a
valid key, so that they get past the signature to the rule. Everything, keys included, follows from one
generator of random numbers. `cases` is an endless stream; its users decide how many they want.
`crafted` goes once through all that is broken on purpose.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.group_codec import seal_group
from sapo_jax.swarm.wire.identity import PEER_LABEL, Identity
from sapo_jax.swarm.wire.signed_content import SignedGroup

SWARM_ID = "fuzzed"

OPEN = "open"  # the group must open
ANY = "any"  # it opens or is refused for whatever reason, nothing else

MALFORMED, FIELD, TOO_LARGE = WireReason.MALFORMED, WireReason.FIELD, WireReason.TOO_LARGE


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One group.

    Attributes:
        name: what was done to it.
        signed: the group.
        expected: OPEN, ANY, or the one reason for which it must be refused.
        resigned: key and signature fit the (broken) payload.
    """

    name: str
    signed: SignedGroup
    expected: WireReason | str
    resigned: bool


def make_identities(rng: random.Random, count: int) -> list[Identity]:
    """Returns keys that follow from `rng`."""
    return [Identity(Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))) for _ in range(count)]


def cases(seed: int) -> Iterator[Case]:
    """Yields cases of a few publishers without end."""
    rng = random.Random(seed)
    identities = make_identities(rng, 4)
    while True:
        yield group_case(rng, rng.choice(identities))


def group_case(rng: random.Random, identity: Identity) -> Case:
    """Returns one case: of a third one field is broken, of a third bytes are damaged, the rest attack elsewhere."""
    kind = rng.randrange(12)
    if kind < 4:
        return field_case(rng.choice(_FIELD_NAMES), rng, identity)
    if kind < 8:
        payload = valid_group(rng).SerializeToString()
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            payload = damage(payload, rng)
        return _signed("damaged bytes", payload, identity, ANY)
    if kind < 10:
        return envelope_case(rng.choice(_ENVELOPE_NAMES), rng, identity)
    if kind < 11:
        return payload_case(rng.choice(_PAYLOAD_NAMES), rng, identity)
    return valid_case(rng, identity)


def crafted(rng: random.Random, identity: Identity) -> Iterator[Case]:
    """Yields one case for everything that is broken on purpose, and a valid one."""
    for name in _FIELD_NAMES:
        yield field_case(name, rng, identity)
    for name in _PAYLOAD_NAMES:
        yield payload_case(name, rng, identity)
    for name in _ENVELOPE_NAMES:
        yield envelope_case(name, rng, identity)
    yield valid_case(rng, identity)


def valid_case(rng: random.Random, identity: Identity) -> Case:
    """Returns a group that keeps every rule."""
    return _signed("valid", valid_group(rng).SerializeToString(), identity, OPEN)


def field_case(name: str, rng: random.Random, identity: Identity) -> Case:
    """Returns a group with one broken field, by the name in `FIELD_BREAKS`."""
    breaking, expected = FIELD_BREAKS[name]
    message = valid_group(rng)
    breaking(message, rng)
    return _signed(f"field {name}", message.SerializeToString(), identity, expected)


def payload_case(name: str, rng: random.Random, identity: Identity) -> Case:
    """Returns a group with a payload that no message class would write, by the name in `PAYLOADS`."""
    make, expected = PAYLOADS[name]
    return _signed(f"payload {name}", make(valid_group(rng).SerializeToString(), rng), identity, expected)


def envelope_case(name: str, rng: random.Random, identity: Identity) -> Case:
    """Returns a group whose envelope is attacked, by the name in `ENVELOPES`."""
    change, expected, resigned = ENVELOPES[name]
    signed = SignedGroup(envelope=seal_group(valid_group(rng).SerializeToString(), identity))
    return Case(name=f"envelope {name}", signed=change(signed, identity, rng), expected=expected, resigned=resigned)


def _signed(name: str, payload: bytes, identity: Identity, expected: WireReason | str) -> Case:
    return Case(name=name, signed=SignedGroup(envelope=seal_group(payload, identity)), expected=expected, resigned=True)


def valid_group(rng: random.Random) -> pb.RolloutGroup:
    """Returns a group that keeps every rule, with optional parts there or not."""
    message = pb.RolloutGroup(
        schema_minor=rng.choice((0, 1, 9)),
        swarm_id=SWARM_ID,
        task=pb.TaskRef(
            dataset=rng.choice(("gcd", "leap_year", "a" * 64)),
            verifier_version=rng.choice(("", "0.1.25", "~" * 32)),
            config_digest=rng.randbytes(32),
            seed=rng.choice((0, 2**32 - 1, rng.randrange(2**32))),
            index=rng.choice((0, 2**63 - 1, rng.randrange(500))),
        ),
        sequence=rng.randrange(2**63),
        policy_version=rng.randrange(1000),
        round=rng.randrange(1000),
    )
    for _ in range(rng.choice((1, 2, 8, 64))):
        completion = message.completions.add(text=_text(rng), finish_reason=rng.randrange(5))  # 4 is unknown
        if rng.random() < 0.5:
            completion.claimed_score = rng.choice((0.0, 1.0, rng.random()))
    if rng.random() < 0.5:
        message.generator.CopyFrom(pb.GeneratorInfo(model_name=_text(rng)[:32], temperature=1.0, top_p=0.9))
    if rng.random() < 0.5:
        message.create_time.seconds = rng.randrange(-(2**60), 2**60)
    if rng.random() < 0.5:
        message.ttl.seconds = rng.choice((0, 60, 3600, 2**40))
    return message


def _text(rng: random.Random) -> str:
    letters = rng.choice(("<answer>42</answer> ", "\x00\x1b[31m\r\n", "ä𝔸😀\u202e\ufeff", "=HYPERLINK()"))
    return letters * rng.choice((0, 1, 1, 3, 10))


# Breaking one field of a parsed group.

Breaking = Callable[[pb.RolloutGroup, random.Random], object]


def _set(path: str, *values: object) -> Breaking:
    """Returns a function that sets the field at `path` to one of `values`."""

    def breaking(message: pb.RolloutGroup, rng: random.Random) -> None:
        *parents, name = path.split(".")
        owner: Any = message
        for parent in parents:
            owner = rng.choice(owner.completions) if parent == "completion" else getattr(owner, parent)
        setattr(owner, name, rng.choice(values))

    return breaking


def _resize(count: int) -> Breaking:
    def breaking(message: pb.RolloutGroup, rng: random.Random) -> None:
        del message.completions[:]
        message.completions.extend(pb.Completion(text="x") for _ in range(count))

    return breaking


def _fill(message: pb.RolloutGroup, rng: random.Random) -> None:
    """Makes texts that are short enough one by one and too long together."""
    del message.completions[:]
    message.completions.extend(pb.Completion(text="x" * (60 * 1024)) for _ in range(9))


_COUNTERS = (2**63, 2**64 - 1)
_NOT_A_SCORE = (math.nan, math.inf, -math.inf, -1e-9, 1.0000001, 148.4)

FIELD_BREAKS: Mapping[str, tuple[Breaking, WireReason]] = {
    "other swarm": (_set("swarm_id", "", "fuzze", "fuzzed ", "FUZZED"), WireReason.WRONG_SWARM),
    "long swarm": (_set("swarm_id", "s" * 65), TOO_LARGE),
    "no task": (lambda message, rng: message.ClearField("task"), FIELD),
    "dataset": (_set("task.dataset", "", "Gcd", "a b", "../x", "gcd\n", "gcd\x00", "größe", "x\u202e"), FIELD),
    "long dataset": (_set("task.dataset", "a" * 65, "ä" * 33), TOO_LARGE),
    "verifier version": (_set("task.verifier_version", "\x1b[2J", "0.1\n", "é"), FIELD),
    "long verifier version": (_set("task.verifier_version", "1" * 33), TOO_LARGE),
    "digest": (_set("task.config_digest", b"", bytes(31), bytes(33)), FIELD),
    "seed": (_set("task.seed", -1, 2**32, 2**63 - 1, -(2**63)), FIELD),
    "index": (_set("task.index", *_COUNTERS), FIELD),
    "sequence": (_set("sequence", *_COUNTERS), FIELD),
    "policy version": (_set("policy_version", *_COUNTERS), FIELD),
    "round": (_set("round", *_COUNTERS), FIELD),
    "negative ttl": (_set("ttl.seconds", -1, -(2**63)), FIELD),
    "odd ttl": (_set("ttl.nanos", -1, 10**9, 2**31 - 1), FIELD),
    "no completions": (_resize(0), FIELD),
    "65 completions": (_resize(65), TOO_LARGE),
    "many completions": (_resize(200), TOO_LARGE),
    "long text": (_set("completion.text", "x" * (64 * 1024 + 1), "\u20ac" * 22_000), TOO_LARGE),
    "long texts": (_fill, TOO_LARGE),
    "claimed score": (_set("completion.claimed_score", *_NOT_A_SCORE), FIELD),
    "temperature": (_set("generator.temperature", math.nan, math.inf, -0.1), FIELD),
    "top_p": (_set("generator.top_p", math.nan, math.inf, -0.1, 1.1), FIELD),
    "parameter count": (_set("generator.parameter_count", *_COUNTERS), FIELD),
    "model name": (_set("generator.model_name", "m" * 129, "ä" * 65), TOO_LARGE),
    "tokenizer name": (_set("generator.tokenizer_name", "m" * 129), TOO_LARGE),
    "template id": (_set("generator.prompt_template_id", "m" * 65), TOO_LARGE),
}


# Payloads that no message class would write.


def varint(value: int) -> bytes:
    """Returns `value` as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field_bytes(number: int, content: bytes) -> bytes:
    """Returns a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def _nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = field_bytes(7, content)
    return content


Making = Callable[[bytes, random.Random], bytes]

PAYLOADS: Mapping[str, tuple[Making, WireReason | str]] = {
    "empty": (lambda payload, rng: b"", WireReason.WRONG_SWARM),
    "noise": (lambda payload, rng: rng.randbytes(rng.randrange(1, 200)), ANY),
    "cut": (lambda payload, rng: payload[: rng.randrange(len(payload))], ANY),
    "trailing zero": (lambda payload, rng: payload + b"\x00", MALFORMED),
    "trailing tag": (lambda payload, rng: payload + b"\x08", MALFORMED),
    "bad UTF-8 dataset": (
        lambda payload, rng: payload + field_bytes(3, field_bytes(1, rng.choice(BAD_UTF8))),
        MALFORMED,
    ),
    "bad UTF-8 name": (lambda payload, rng: payload + field_bytes(8, field_bytes(1, rng.choice(BAD_UTF8))), MALFORMED),
    "bad UTF-8 text": (lambda payload, rng: field_bytes(7, field_bytes(1, rng.choice(BAD_UTF8))) * 8, MALFORMED),
    "groups": (lambda payload, rng: payload + b"\xa3\x06" * rng.choice((1, 150)), MALFORMED),
    "endless number": (lambda payload, rng: payload + b"\x08" + b"\xff" * 11, MALFORMED),
    "length beyond the end": (lambda payload, rng: payload + b"\x12" + varint(2**31 - 1), MALFORMED),
    "huge length": (lambda payload, rng: payload + b"\x12" + varint(2**63), MALFORMED),
    "nested": (lambda payload, rng: payload + _nested(rng.choice((20, 150, 1000))), ANY),
    "unknown fields": (
        lambda payload, rng: payload + field_bytes(rng.randrange(100, 2**29), rng.randbytes(9)) + b"\xc8\x06\x01",
        OPEN,
    ),
    "too many fields": (lambda payload, rng: payload + b"\xc8\x06\x01" * 257, TOO_LARGE),
    "repeated number": (lambda payload, rng: payload + b"\x08\x01" * 100, OPEN),
    "wrong type of a field": (lambda payload, rng: payload + b"\x10\x05", OPEN),  # swarm_id as a number: unknown
    "oversize": (lambda payload, rng: payload + field_bytes(100, bytes(960 * 1024)), TOO_LARGE),
}

# Lone continuation, overlong slash, encoded surrogate, beyond U+10FFFF, cut sequence.
BAD_UTF8 = (b"\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82")


def damage(data: bytes, rng: random.Random) -> bytes:
    """Returns `data` with one random change: bits, bytes, pieces or numbers."""
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    to = min(len(out), at + rng.choice((1, 2, 8, 40)))
    match rng.randrange(7):
        case 0 if at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        case 1:
            out[at:to] = rng.randbytes(to - at)
        case 2:
            del out[at:to]
        case 3:
            out[at:at] = rng.randbytes(rng.choice((1, 3, 17)))
        case 4:
            out[at:at] = out[at:to] * rng.choice((1, 2, 50))
        case 5:
            out[at:to] = varint(rng.choice((0, 2**7, 2**31, 2**32, 2**63, 2**64 - 1)))
        case _:
            del out[at:]
    return bytes(out)


# Attacks on the envelope.

Change = Callable[[SignedGroup, Identity, random.Random], SignedGroup]


def _with(signed: SignedGroup, **changes: bytes) -> SignedGroup:
    return replace(signed, envelope=replace(signed.envelope, **changes))


def _flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _other_label(signed: SignedGroup, identity: Identity, rng: random.Random) -> SignedGroup:
    return _with(signed, signature=identity.sign(PEER_LABEL, signed.envelope.payload))


def _other_payload(signed: SignedGroup, identity: Identity, rng: random.Random) -> SignedGroup:
    return _with(signed, payload=valid_group(rng).SerializeToString())


# Name -> what to change, what must come of it, and whether the signature still fits.
ENVELOPES: Mapping[str, tuple[Change, WireReason | str, bool]] = {
    "hops": (lambda s, i, rng: replace(s, hops=rng.choice((5, 2**32 - 1))), WireReason.HOPS, True),
    "most hops": (lambda s, i, rng: replace(s, hops=rng.randrange(5)), OPEN, True),
    "old": (lambda s, i, rng: replace(s, age_s=rng.choice((86_400.0, 1e18))), WireReason.EXPIRED, True),
    "odd age": (lambda s, i, rng: replace(s, age_s=rng.choice((-1.0, -1e-9, math.nan, math.inf))), FIELD, True),
    "algorithm": (
        lambda s, i, rng: replace(s, algorithm=rng.choice((0, 2, -1, 2**31 - 1))),
        WireReason.UNKNOWN_ALGORITHM,
        True,
    ),
    "key size": (lambda s, i, rng: _with(s, public_key=rng.randbytes(rng.choice((0, 31, 33)))), FIELD, False),
    "signature size": (lambda s, i, rng: _with(s, signature=rng.randbytes(rng.choice((0, 63, 65)))), FIELD, False),
    "flipped signature": (
        lambda s, i, rng: _with(s, signature=_flip(s.envelope.signature, rng)),
        WireReason.BAD_SIGNATURE,
        False,
    ),
    "flipped key": (
        lambda s, i, rng: _with(s, public_key=_flip(s.envelope.public_key, rng)),
        WireReason.BAD_SIGNATURE,
        False,
    ),
    "zero key": (lambda s, i, rng: _with(s, public_key=bytes(32)), WireReason.BAD_SIGNATURE, False),
    "signature for a peer record": (_other_label, WireReason.BAD_SIGNATURE, False),
    "other payload": (_other_payload, WireReason.BAD_SIGNATURE, False),
}

_FIELD_NAMES, _PAYLOAD_NAMES, _ENVELOPE_NAMES = list(FIELD_BREAKS), list(PAYLOADS), list(ENVELOPES)
