from __future__ import annotations

import pytest

from sapo_jax.swarm.mesh.presence import Presence
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.peer_record_codec import open_peer_record

SWARM = "test-swarm"


class Clock:
    now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


def presence(identity: Identity, clock: Clock, *, nonce: int = 1, last_sequence: int = 0) -> Presence:
    return Presence(
        identity,
        swarm_id=SWARM,
        addresses=("10.0.0.1:5",),
        certificate=b"",
        session_nonce=bytes([nonce]) * 16,
        software_version="1",
        catalog_digests=("ab" * 32,),
        last_sequence=last_sequence,
        wall_clock=clock,
    )


def shown(who: Presence):
    return open_peer_record(who.record(), swarm_id=SWARM)


def test_records_are_signed_by_the_host_and_rise():
    who = presence(Identity.generate(), Clock())
    first = shown(who)
    who.refresh()
    second = shown(who)
    assert first.node_id == second.node_id == who.node_id
    assert second.record.sequence > first.record.sequence
    assert second.record.addresses == ("10.0.0.1:5",) and second.record.reachable
    who.set_addresses(())
    assert not shown(who).record.reachable


def test_sequences_rise_over_restarts_even_if_the_clock_went_back():
    identity, clock = Identity.generate(), Clock()
    first = presence(identity, clock)
    clock.now_s -= 86_400.0
    second = presence(identity, clock, nonce=2, last_sequence=first.sequence)
    assert second.sequence > first.sequence
    assert not second.notice(shown(first))  # our own past


def test_only_a_newer_record_of_another_session_is_a_copy():
    identity, clock = Identity.generate(), Clock()
    first = presence(identity, clock)
    assert not first.notice(shown(first))
    assert not first.notice(shown(presence(Identity.generate(), clock, nonce=2)))
    clock.now_s += 1.0
    copy = presence(identity, clock, nonce=2)
    assert not copy.notice(shown(first))  # it could be of an earlier session
    assert first.notice(shown(copy)) and first.copies_seen == 1
    assert first.sequence > copy.sequence  # so that the other one sees ours as the newer one
    assert copy.notice(shown(first))


@pytest.mark.parametrize("skew_s", [-86_400.0, 86_400.0])
def test_a_live_answer_is_a_copy_whatever_the_clocks_say(skew_s):
    identity, clock, other = Identity.generate(), Clock(), Clock()
    other.now_s += skew_s
    first, copy = presence(identity, clock), presence(identity, other, nonce=2)
    assert first.notice(shown(copy), is_live=True)
    first.refresh()
    assert copy.notice(shown(first), is_live=True)
