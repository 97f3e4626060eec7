"""Which peer records open, field by field, and which are refused, reason by reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.identity import GROUP_LABEL, PEER_LABEL, Identity
from sapo_jax.swarm.wire.peer_record_codec import open_peer_record, pack_peer_record, seal_peer_record
from sapo_jax.swarm.wire.signed_content import Envelope, PeerRecord, SignedPeerRecord
from tests.swarm.wire.golden_wire import GROUP

SWARM = "test swarm"
KIB = 1024
IDENTITY = Identity.generate()
LARGE, FIELD = WireReason.TOO_LARGE, WireReason.FIELD
RECORD = PeerRecord(
    swarm_id=SWARM,
    addresses=("127.0.0.1:50051", "[::1]:1", "node-7.example.org:65535"),
    certificate=b"\x30\x82 a certificate",
    session_nonce=bytes(range(16)),
    sequence=9,
    software_version="0.1.0",
    catalog_digests=("ab" * 32,),
    reachable=True,
    created_unix_s=1_700_000_000.5,
)


def peer_sealed(payload: bytes, label: bytes = PEER_LABEL, **changes) -> SignedPeerRecord:
    envelope = Envelope(payload=payload, public_key=IDENTITY.public_key, signature=IDENTITY.sign(label, payload))
    return SignedPeerRecord(envelope=envelope, **changes)


def test_a_peer_record_comes_out_as_it_went_in():
    envelope = seal_peer_record(pack_peer_record(RECORD), IDENTITY)
    opened = open_peer_record(SignedPeerRecord(envelope=envelope), swarm_id=SWARM)
    assert opened.record == RECORD
    assert opened.node_id == IDENTITY.node_id
    assert opened.to_signed() == SignedPeerRecord(envelope=envelope)


def test_a_host_that_only_dials_has_a_peer_record_too():
    record = replace(RECORD, addresses=(), certificate=b"", catalog_digests=(), reachable=False)
    opened = open_peer_record(peer_sealed(pack_peer_record(record)), swarm_id=SWARM)
    assert opened.record == record


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"addresses": ("host:1",) * 9}, LARGE, "addresses"),
        *(
            ({"addresses": ("a:1", bad)}, FIELD, "addresses[1]")
            for bad in (
                "", ":1", "host", "host:", "host:0", "host:65536", "host:-1", "unix:/tmp/x", "dns:///x:1", "::1:80",
                "host:1\n", "ho st:1", "[::1]", "[host]:1", "http://host:1", "größe:1", "a" * 254 + ":1", "host:1 ",
            )
        ),
        ({"session_nonce": bytes(15)}, FIELD, "session_nonce"),
        ({"session_nonce": bytes(17)}, FIELD, "session_nonce"),
        ({"sequence": 2**63}, FIELD, "sequence"),
        ({"sequence": -1}, FIELD, "sequence"),
        ({"software_version": "v" * 65}, LARGE, "software_version"),
        ({"catalog_digests": ("ab" * 31,)}, FIELD, "catalog_digests"),
        ({"catalog_digests": ("ab" * 32,) * 65}, LARGE, "catalog_digests"),
        ({"certificate": bytes(4 * KIB)}, LARGE, "payload"),
        ({"swarm_id": "s" * 65}, LARGE, "swarm_id"),
    ],
)  # fmt: skip
def test_packing_a_peer_record_refuses_what_receivers_would(changes, reason, field):
    with pytest.raises(WireError) as caught:
        pack_peer_record(replace(RECORD, **changes))
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize(("excess", "fits"), [(-1, True), (0, True), (1, False)])
def test_a_peer_record_has_4_kib(excess, fits):
    spare = 4 * KIB - len(pack_peer_record(replace(RECORD, certificate=bytes(1024))))
    record = replace(RECORD, certificate=bytes(1024 + spare + excess))
    if fits:
        assert len(pack_peer_record(record)) == 4 * KIB + excess
    else:
        with pytest.raises(WireError, match="at most 4096 bytes"):
            pack_peer_record(record)


@pytest.mark.parametrize(
    ("signed", "reason"),
    [
        (peer_sealed(pack_peer_record(RECORD), GROUP_LABEL), WireReason.BAD_SIGNATURE),
        (peer_sealed(pack_peer_record(RECORD), algorithm=2), WireReason.UNKNOWN_ALGORITHM),
        (peer_sealed(pack_peer_record(replace(RECORD, swarm_id="other"))), WireReason.WRONG_SWARM),
        (peer_sealed(pack_peer_record(RECORD) + b"\x00"), WireReason.MALFORMED),
        (peer_sealed(bytes(4097)), LARGE),
        (SignedPeerRecord(envelope=GROUP.envelope), WireReason.MALFORMED),
    ],
)
def test_peer_records_that_do_not_hold_do_not_open(signed, reason):
    with pytest.raises(WireError) as caught:
        open_peer_record(signed, swarm_id=SWARM)
    assert caught.value.reason is reason


@given(st.binary(max_size=200))
def test_t1_noise_is_no_peer_record(noise):
    with pytest.raises(WireError):
        open_peer_record(peer_sealed(noise), swarm_id=SWARM)
