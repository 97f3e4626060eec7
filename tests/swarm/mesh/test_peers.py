from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from sapo_jax.swarm.mesh.peers import (
    FORGOTTEN_FAILURES,
    MAX_BACKOFF_OF_FRIENDS_S,
    MAX_BACKOFF_S,
    PeerBook,
    PeerLimits,
    backoff_s,
)
from sapo_jax.swarm.mesh.scores import Scores
from sapo_jax.swarm.wire.signed_content import Envelope, OpenedPeerRecord, PeerRecord


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(node_id: str, address: str = "", sequence: int = 1, reachable: bool = True) -> OpenedPeerRecord:
    addresses = (address,) if address else ()
    return OpenedPeerRecord(
        node_id=node_id,
        envelope=Envelope(
            payload=f"{node_id} {address} {sequence}".encode(), public_key=b"k" * 32, signature=b"s" * 64
        ),
        record=PeerRecord(
            swarm_id="test",
            addresses=addresses,
            certificate=b"certificate of " + node_id.encode(),
            session_nonce=b"n" * 16,
            sequence=sequence,
            software_version="1",
            catalog_digests=(),
            reachable=reachable and bool(addresses),
            created_unix_s=0.0,
        ),
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scores(clock) -> Scores:
    return Scores(clock)


@pytest.fixture
def book(clock, scores) -> PeerBook:
    return make_book(clock, scores)


def make_book(clock, scores, seed=0, **limits) -> PeerBook:
    return PeerBook("me", scores, limits=PeerLimits(**limits), clock=clock, rng=np.random.default_rng(seed))


def names(peers):
    return sorted(peer.node_id or peer.addresses[0] for peer in peers)


def dial_all(book, answers):
    """Lets every peer that the book wants to dial answer with the record `answers` holds for its first address."""
    for peer in book.to_dial():
        book.answered(peer, answers[peer.addresses[0]])


def test_a_given_peer_is_dialed_at_once_and_becomes_active(book):
    book.add_given(["10.0.0.1:1"], b"pinned")
    (peer,) = book.to_dial()
    assert peer.certificate == b"pinned" and not book.active()
    assert book.answered(peer, opened("a", "10.0.0.1:1")) is peer
    assert names(book.active()) == ["a"] and book.to_dial() == []


def test_giving_the_same_address_twice_is_one_peer(book):
    book.add_given(["10.0.0.1:1"], None)
    book.add_given(["10.0.0.1:1", "10.0.0.2:1"], b"pinned")
    assert [(peer.addresses, peer.certificate) for peer in book.peers()] == [(("10.0.0.1:1",), b"pinned")]


def test_this_host_under_a_given_address_is_dropped(book):
    book.add_given(["10.0.0.1:1"], None)
    assert book.answered(book.to_dial()[0], opened("me", "10.0.0.1:1")) is None
    assert book.peers() == []


def test_one_peer_under_two_addresses_becomes_one(book):
    book.add_given(["10.0.0.1:1"], None)
    book.add_given(["10.0.0.2:1"], None)
    first, second = book.to_dial()
    assert book.answered(first, opened("a", "10.0.0.1:1")) is first
    assert book.answered(second, opened("a", "10.0.0.1:1")) is None
    (peer,) = book.peers()
    assert peer.is_active and peer.is_given and set(peer.addresses) == {"10.0.0.1:1", "10.0.0.2:1"}


def test_backoff_doubles_with_jitter_up_to_its_bounds():
    rng = np.random.default_rng(0)
    for failures in range(1, 40):
        full = min(MAX_BACKOFF_S, 2.0 ** (failures - 1))
        waits = [backoff_s(failures, MAX_BACKOFF_S, rng) for _ in range(200)]
        assert full / 2 <= min(waits) and max(waits) <= full
        assert max(waits) - min(waits) > full / 4


def test_a_failed_peer_waits_out_its_backoff(book, clock):
    book.add_given(["10.0.0.1:1"], None)
    for _ in range(20):
        (peer,) = book.to_dial()
        book.failed(peer, "connection refused")
        assert peer.trouble == "connection refused" and book.to_dial() == []
        assert clock.now < peer.next_dial_s <= clock.now + MAX_BACKOFF_S
        clock.now = peer.next_dial_s
    assert book.to_dial() == [peer]  # given: never forgotten


def test_a_peer_that_answered_once_is_tried_again_within_ten_seconds(book, clock):
    book.add_given(["10.0.0.1:1"], None)
    (peer,) = book.to_dial()
    book.answered(peer, opened("a", "10.0.0.1:1"))
    for _ in range(30):
        book.failed(peer, "gone")
    assert peer.next_dial_s - clock.now <= MAX_BACKOFF_OF_FRIENDS_S
    assert book.active() == []


def test_a_sign_of_life_ends_the_backoff(book):
    book.learn(opened("a", "10.0.0.1:1"))
    (peer,) = book.to_dial()
    book.failed(peer, "gone")
    assert book.to_dial() == []
    book.learn(opened("a", "10.0.0.1:1"))  # hearsay
    assert book.to_dial() == []
    book.learn(opened("a", "10.0.0.1:1"), from_itself=True)  # an old record, which anybody may have sent
    assert book.to_dial() == []
    book.learn(opened("a", "10.0.0.1:1", sequence=2), from_itself=True)
    assert book.to_dial() == [peer]


def test_a_learned_peer_that_never_answers_is_forgotten(book, clock):
    book.learn(opened("a", "10.0.0.1:1"))
    (peer,) = book.peers()
    for _ in range(FORGOTTEN_FAILURES):
        book.failed(peer, "gone")
    assert book.peers() == []


def test_records_count_by_sequence(book):
    assert book.learn(opened("a", "10.0.0.1:1", sequence=5))
    assert not book.learn(opened("a", "10.0.0.9:1", sequence=5))
    assert not book.learn(opened("a", "10.0.0.9:1", sequence=4))
    assert book.find("a").addresses == ("10.0.0.1:1",)
    assert book.learn(opened("a", "10.0.0.2:1", sequence=6))
    assert book.find("a").addresses == ("10.0.0.2:1",)


def test_a_given_address_stays_first_whatever_records_say(book):
    book.add_given(["given:1"], None)
    book.answered(book.to_dial()[0], opened("a", "10.0.0.1:1"))
    assert book.find("a").addresses == ("given:1", "10.0.0.1:1")
    book.learn(opened("a", "10.0.0.2:1", sequence=2))
    assert book.find("a").addresses == ("given:1", "10.0.0.2:1")


def test_own_banned_and_unreachable_records_are_not_learned(book, scores):
    scores.ban("bad")
    assert not book.learn(opened("me", "10.0.0.1:1"))
    assert not book.learn(opened("bad", "10.0.0.1:1"))
    assert not book.learn(opened("nat"))
    assert not book.learn(opened("nat", "10.0.0.1:1", reachable=False))
    assert book.peers() == []


def test_the_active_view_is_bounded(book):
    for number in range(20):
        book.learn(opened(f"n{number}", f"10.{number}.0.1:1"))
    chosen = book.to_dial()
    assert len(chosen) == 6
    for peer in chosen[:4]:
        book.answered(peer, peer.record)
    assert len(book.to_dial()) == 2


def test_t15_at_most_two_active_peers_of_one_prefix(book):
    for number in range(8):
        book.learn(opened(f"evil{number}", f"10.0.0.{number}:1"))
    for number in range(3):
        book.learn(opened(f"good{number}", f"10.{number + 1}.0.1:1"))
    for _ in range(5):
        for peer in book.to_dial():
            book.answered(peer, peer.record)
    groups = Counter(name[:4] for name in names(book.active()))
    assert groups == {"evil": 2, "good": 3}


def test_given_peers_are_not_limited_by_prefix(book):
    for number in range(5):
        book.add_given([f"127.0.0.1:{number}"], None)
    assert len(book.to_dial()) == 5


def test_given_peers_are_dialed_first(book):
    for number in range(20):
        book.learn(opened(f"n{number}", f"10.{number}.0.1:1"))
    book.add_given(["given:1"], None)
    assert book.to_dial()[0].addresses == ("given:1",)


def test_t13_a_record_that_names_the_address_of_another_does_not_outlast_its_answer(book):
    book.learn(opened("liar", "10.0.0.1:1", sequence=10**12))
    (peer,) = book.to_dial()
    answer = opened("a", "10.0.0.1:1", sequence=5)
    assert book.answered(peer, answer) is peer
    assert peer.node_id == "a" and peer.record is answer
    assert book.learn(opened("a", "10.0.0.1:2", sequence=6)) and "10.0.0.1:2" in peer.addresses


def test_t15_many_records_push_out_nobody_who_answered(clock, scores):
    book = make_book(clock, scores, known=10, known_per_prefix=10)
    for number in range(5):
        book.learn(opened(f"good{number}", f"10.0.{number}.1:1"))
    for peer in book.to_dial():
        book.answered(peer, peer.record)
    for number in range(500):
        book.learn(opened(f"evil{number}", f"11.{number % 200}.{number // 200}.1:1"))
    known = names(book.peers())
    assert len(known) == 10 and [name for name in known if name.startswith("good")] == [f"good{n}" for n in range(5)]


@pytest.mark.parametrize("node_id", ["a", "me", "b"])
def test_a_peer_that_made_room_while_it_was_dialed_is_gone(clock, scores, node_id):
    book = make_book(clock, scores, known=2)
    book.add_given(["given:1"], None)
    (given,) = book.to_dial()
    book.answered(given, opened("b", "10.5.0.1:1"))
    book.learn(opened("a", "10.0.0.1:1"))
    (peer,) = book.to_dial()
    number = 0
    while book.find("a") is not None:
        number += 1
        book.learn(opened(f"n{number}", f"11.{number}.0.1:1"))
    before = names(book.peers())
    assert book.answered(peer, opened(node_id, "10.0.0.1:1", sequence=2)) is None
    book.failed(peer, "gone")
    assert names(book.peers()) == before and names(book.active()) == ["b"]


def test_t15_one_prefix_fills_only_its_part_of_the_book(book):
    for number in range(200):
        book.learn(opened(f"evil{number}", f"10.0.0.{number}:1"))
    assert len(book.peers()) == 8
    assert book.learn(opened("good", "10.1.0.1:1"))


def test_t15_two_honest_links_among_hostile_introducers_after_five_minutes(clock, scores):
    # Eight of ten introducers know only each other and tell of 40 more addresses in their four networks.
    honest = {f"10.1.{n}.1:1": opened(f"good{n}", f"10.1.{n}.1:1") for n in range(4)}
    evil = {f"66.{n % 4}.0.{n}:1": opened(f"evil{n}", f"66.{n % 4}.0.{n}:1") for n in range(48)}
    answers = honest | evil
    for seed in range(20):
        book = make_book(clock, scores, seed=seed)
        for address in [*list(evil)[:8], *list(honest)[:2]]:
            book.learn(answers[address])
        for second in range(300):
            clock.now += 1.0
            if second % 60 == 59:
                book.replace_one()
            dial_all(book, answers)
            if second % 30 == 0:
                for peer in book.active():
                    for record in evil.values() if peer.node_id.startswith("evil") else honest.values():
                        book.learn(record)
        assert sum(peer.node_id.startswith("good") for peer in book.active()) >= 2, f"seed {seed}"


def test_a_low_score_ends_activity_and_sharing(book, scores):
    for name in ("a", "b"):
        book.learn(opened(name, f"10.{ord(name)}.0.1:1"))
    for peer in book.to_dial():
        book.answered(peer, peer.record)
    assert names(book.active()) == ["a", "b"]
    for _ in range(8):
        scores.invalid("a")
    assert names(book.active()) == ["b"]
    assert [record.node_id for record in book.records_to_share(10)] == ["b"]
    assert names(book.drop_unwanted()) == ["a"] and not book.find("a").is_active
    assert book.find("a") not in book.to_dial()


def test_only_reached_peers_are_shared(book):
    for number in range(4):
        book.learn(opened(f"n{number}", f"10.{number}.0.1:1"))
    first, second, *_ = book.to_dial()
    book.answered(first, first.record)
    book.answered(second, second.record)
    assert {record.node_id for record in book.records_to_share(10)} == {first.node_id, second.node_id}
    assert len(book.records_to_share(1)) == 1
    assert [record.node_id for record in book.records_to_share(10, without=[first.node_id])] == [second.node_id]
    book.failed(second, "gone")
    assert [record.node_id for record in book.records_to_share(10)] == [first.node_id]


def test_one_random_peer_is_replaced_only_if_another_waits(clock, scores):
    book = make_book(clock, scores, active=2)
    for number in range(2):
        book.learn(opened(f"n{number}", f"10.{number}.0.1:1"))
    for peer in book.to_dial():
        book.answered(peer, peer.record)
    assert book.replace_one() is None
    book.learn(opened("n2", "10.2.0.1:1"))
    gone = book.replace_one()
    assert gone is not None and not gone.is_active
    assert names(book.to_dial()) == ["n2"]  # not the one just let go


def test_a_useful_peer_is_replaced_last(clock, scores):
    for seed in range(10):
        book = make_book(clock, scores, seed=seed, active=2)
        for name in ("a", "b"):
            book.learn(opened(name, f"10.{ord(name)}.0.1:1"))
        for peer in book.to_dial():
            book.answered(peer, peer.record)
        scores.useful("a")
        book.learn(opened("c", "10.9.0.1:1"))
        replaced = book.replace_one()
        assert replaced is not None and replaced.node_id == "b"


def test_a_given_peer_is_never_replaced(clock, scores):
    book = make_book(clock, scores, active=1)
    book.add_given(["given:1"], None)
    book.answered(book.to_dial()[0], opened("a", "10.0.0.1:1"))
    book.learn(opened("b", "10.1.0.1:1"))
    assert book.replace_one() is None


def test_the_book_survives_in_a_file_and_forged_entries_are_left_out(book, clock, scores):
    records = {name: opened(name, f"10.{ord(name)}.0.1:1") for name in ("a", "b", "c")}
    for record in records.values():
        book.learn(record)
    state = json.loads(json.dumps(book.to_json()))
    state["peer_records"] += [None, 5, {}, {"payload": "zz", "public_key": "", "signature": ""}]

    def open_record(signed):
        name = signed.envelope.payload.decode().split()[0]
        if name == "b":
            raise ValueError("forged")
        return records[name]

    fresh = make_book(clock, scores)
    assert fresh.restore_json(state, open_record) == 2
    assert names(fresh.to_dial()) == ["a", "c"]
    for damaged in (None, [], {"peer_records": None}, {"peer_records": {"a": 1}}):
        assert make_book(clock, scores).restore_json(damaged, open_record) == 0
