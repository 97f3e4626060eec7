from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sapo_jax.swarm.store.clock import system_clock
from sapo_jax.swarm.store.file import StoreError, StoreFullError
from sapo_jax.swarm.store.group_store import GroupStore, free_disk_bytes
from sapo_jax.swarm.store.retention import GroupState, StoreLimits
from sapo_jax.swarm.wire.requests import PublishOutcome
from tests.swarm.store.store_cases import FakeTime, held_ids, ids, make_group, make_key, open_store

ROOT = Path(__file__).parents[3]


@pytest.fixture
def time():
    return FakeTime()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.sqlite"


def test_a_restart_keeps_everything(path, time):
    store = open_store(path, time, max_groups=16)
    groups = [make_group(f"p{i % 9}", i, hops=i % 4, age_s=i, size_bytes=500 + i) for i in range(20)]
    store.put(groups)
    store.mark([groups[10].group_id], GroupState.INFORMATIVE)
    store.mark([groups[11].group_id], GroupState.UNINFORMATIVE)
    store.mark([groups[12].group_id], GroupState.REJECTED)
    before = (store.epoch, store.last_seq, store.after(0, 99), store.refs(None, 5), store.stats().seen)
    store.close()
    store = open_store(path, time, max_groups=16)
    assert (store.epoch, store.last_seq, store.after(0, 99), store.refs(None, 5), store.stats().seen) == before
    assert {result.outcome for result in store.put(groups)} == {PublishOutcome.DUPLICATE}
    store.close()


def test_places_are_never_given_twice_even_if_nothing_is_left(path, time):
    store = open_store(path, time)
    store.put([make_group(number=i, ttl_s=60) for i in range(5)])
    time.advance(61)
    store.expire()
    store.close()
    store = open_store(path, time)
    assert (held_ids(store), store.last_seq) == ([], 5)
    store.put([make_group(number=9)])
    assert [item.seq for item in store.after(0, 9)] == [6]
    store.close()


# What the child has been told is committed goes to its output, a line each, and nothing else does.
_CHILD = """
import sys
from pathlib import Path
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.clock import system_clock
from tests.swarm.store.store_cases import make_group, make_key

store = GroupStore(Path(sys.argv[1]), limits=StoreLimits(publisher_frac=1.0, max_groups=10**6), clock=system_clock())
number = int(sys.argv[2])
while True:
    groups = [make_group("peer", number + i, size_bytes=9000) for i in range(3)]
    store.put(groups)
    print("put", number, flush=True)
    published = store.publish(make_key(number), lambda sequence: make_group("own", sequence, size_bytes=9000))
    print("publish", number, published.sequence, flush=True)
    store.acknowledge([published.group_id], "peer")
    print("acknowledge", number, published.sequence, flush=True)
    number += 3
"""


def test_nothing_committed_is_lost_when_the_process_is_killed(path):
    """Ten processes, each killed with SIGKILL at some moment; each finds what the ones before were told is stored."""
    rng = random.Random(7)
    limits = StoreLimits(publisher_frac=1.0, max_groups=10**6)
    told: list[list[str]] = []
    number = 0
    for _ in range(10):
        command = [sys.executable, "-c", _CHILD, str(path), str(number)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as child:
            assert child.stdout is not None
            told += [child.stdout.readline().split() for _ in range(rng.randint(1, 40))]
            child.kill()
            told += [line.split() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        assert child.returncode == -9
        store = GroupStore(path, limits=limits, clock=system_clock())
        held, offered = set(held_ids(store)), {offer.group_id: offer.copies for offer in store.outbox_pending(10**6)}
        for what, number_text, *sequence in told:
            number = int(number_text)
            if what == "put":
                assert {make_group("peer", number + i, size_bytes=9000).group_id for i in range(3)} <= held
            else:
                own = make_group("own", int(sequence[0]), size_bytes=9000)
                assert own.group_id in held
                assert offered[own.group_id] >= (what == "acknowledge")
                assert store.publish(make_key(number), lambda sequence: 1 / 0).group_id == own.group_id
        assert store.stats().damaged == 0
        store.close()
        number += 3
    sequences = [int(line[2]) for line in told if line[0] == "publish"]
    assert sequences == sorted(set(sequences))
    assert len(told) > 100


@pytest.mark.parametrize("size_bytes", [200, 9000])  # within the row, and on pages of its own
def test_t18_a_flipped_byte_in_a_payload_costs_one_group(path, time, size_bytes):
    """T18: the damaged row is left out and counted, all others are there, and the group may come again."""
    store = open_store(path, time)
    groups = [make_group(f"p{i % 4}", i, size_bytes=size_bytes) for i in range(30)]
    store.put(groups)
    store.close()
    _flip(path, groups[13].envelope.payload[64:96], 40 if size_bytes > 200 else 5)
    for _ in range(2):  # what was found once is gone for good
        store = open_store(path, time)
        lost = store.stats().damaged
        assert held_ids(store) == ids(groups[:13] + groups[14:])
        assert store.get([groups[13].group_id]) == []
        if _ == 0:
            assert (lost, store.stats().damaged) == (0, 1)
            assert len(store.sample(99, rng=np.random.default_rng(0))) == 29
            store.close()
    assert (lost, store.stats().damaged) == (0, 0)
    assert store.put([groups[13]])[0].outcome is PublishOutcome.ACCEPTED
    assert held_ids(store)[-1] == groups[13].group_id
    store.close()


@pytest.mark.parametrize("found", ["somebody", "some dataset", "id"])
def test_t18_a_flipped_byte_in_the_small_columns_costs_one_group(path, time, found):
    store = open_store(path, time)
    damaged = make_group("somebody", 1, dataset="some dataset", size_bytes=4000)
    groups = [make_group("p", 0), damaged, make_group("p", 2)]
    store.put(groups)
    store.close()
    _flip(path, damaged.group_id if found == "id" else found.encode(), 2)
    store = open_store(path, time)
    assert store.stats().damaged == 1
    assert held_ids(store) == [groups[0].group_id, groups[2].group_id]
    assert store.stats().publishers == 1
    store.close()


def test_t18_a_flipped_byte_in_the_outbox_costs_one_offer(path, time):
    store = open_store(path, time, max_groups=8)
    groups = []
    for round in range(4):
        group = make_group("own", round + 1, size_bytes=9000)
        store.publish(make_key(round), lambda sequence, group=group: group)
        groups.append(group)
    store.close()
    _flip(path, groups[2].envelope.payload[64:96], 40)  # only the outbox still holds it
    store = open_store(path, time, max_groups=8)
    assert ids(store.outbox_pending(10)) == ids([groups[0], groups[1], groups[3]])
    assert store.stats().damaged == 1
    store.close()


def test_t18_whatever_byte_is_flipped_nothing_false_comes_out(path, tmp_path, time):
    """Each flip ends in a refusal to open that names the file, or in a store of true groups only."""
    store = open_store(path, time, max_groups=64)
    groups = [make_group(f"p{i % 20}", i, size_bytes=(300, 6000)[i % 2]) for i in range(60)]
    store.put(groups)
    for round in range(4):
        store.publish(make_key(round), lambda sequence: make_group("own", sequence, size_bytes=500))
    store.close()
    content = path.read_bytes()
    truth = {group.group_id: group.envelope for group in groups}
    truth |= {group.group_id: group.envelope for group in (make_group("own", i, size_bytes=500) for i in range(1, 5))}
    rng = random.Random(11)
    refused = whole = hurt = 0
    for trial in range(60):
        damaged = bytearray(content)
        # Every third flip hits the head of a page, where the structure is.
        place = rng.randrange(len(content)) if trial % 3 else rng.randrange(len(content) // 4096) * 4096 + trial % 12
        damaged[place] ^= 1 << rng.randrange(8)
        target = tmp_path / "flipped.sqlite"
        for rest in tmp_path.glob("flipped.sqlite*"):
            rest.unlink()
        target.write_bytes(damaged)
        try:
            store = open_store(target, time, max_groups=64)
        except StoreError as error:
            assert str(target) in str(error)
            refused += 1
            continue
        try:
            found = store.after(0, 999)
            assert {item.group_id: item.signed.envelope for item in found}.items() <= truth.items()
            offers = store.outbox_pending(99)
            assert {offer.group_id: offer.signed.envelope for offer in offers}.items() <= truth.items()
            lost = store.stats().damaged
            store.put([make_group("late", trial)])
            store.publish(make_key(50 + trial), lambda sequence: make_group("own", sequence))
            assert lost > 0 or len(found) + len(offers) == 68
            hurt, whole = hurt + (lost > 0), whole + (lost == 0)
        except StoreError as error:
            assert str(target) in str(error)
            refused += 1
        finally:
            store.close()
    assert hurt > 10 and whole > 5 and refused > 0


def _flip(path, near, offset):
    """Flips one bit `offset` bytes after the only place where the file holds `near`."""
    content = bytearray(path.read_bytes())
    places = [i for i in range(len(content)) if content.startswith(near, i)] if len(near) < 32 else [content.find(near)]
    assert places and places[0] >= 0
    content[places[0] + offset] ^= 0x10
    path.write_bytes(content)


def test_t18_a_full_file_refuses_what_is_new_and_keeps_what_is_there(path, time):
    """T18: no room is one error; nothing stored is lost, and when room is there again the store goes on."""
    store = open_store(path, time, max_file_bytes=400_000)
    stored = []
    with pytest.raises(StoreFullError, match=f"store {path}: no room is left"):
        for i in range(0, 200, 2):
            batch = [make_group(f"p{i % 20}", i + j, size_bytes=8000, ttl_s=60 + 10 * (i % 2)) for j in range(2)]
            store.put(batch)
            stored += batch
    assert 20 < len(stored) < 60
    before = store.stats()
    assert (before.groups, before.accepted, before.damaged, store.last_seq) == (
        len(stored),
        len(stored),
        0,
        len(stored),
    )
    with pytest.raises(StoreFullError):
        store.put([make_group("x", i, size_bytes=8000) for i in range(8)])
    with pytest.raises(StoreFullError):
        store.publish(make_key(1), lambda sequence: make_group("own", sequence, size_bytes=300_000))
    assert store.stats() == before
    assert held_ids(store) == ids(stored)
    assert [item.signed.envelope for item in store.after(0, 99)] == [group.envelope for group in stored]
    assert len(store.sample(10, rng=np.random.default_rng(0))) == 10
    time.advance(61)
    assert [item.outcome for item in store.put([make_group("y", i, size_bytes=8000) for i in range(20)])] == [
        PublishOutcome.ACCEPTED
    ] * 20
    assert store.publish(make_key(1), lambda sequence: make_group("own", sequence)).sequence == 1
    store.close()
    store = open_store(path, time)
    assert (len(held_ids(store)), store.stats().damaged) == (21, 0)
    store.close()


def test_t18_the_disk_reserve_is_left_alone(path, time):
    free = {"bytes": 10_000}
    limits = StoreLimits(disk_reserve_bytes=5000)
    store = GroupStore(path, limits=limits, clock=time.clock, free_bytes=lambda _: free["bytes"])
    store.put([make_group(number=0)])
    store.publish(make_key(0), lambda sequence: make_group("own", sequence))
    free["bytes"] = 4999
    for call in (
        lambda: store.put([make_group(number=1)]),
        lambda: store.publish(make_key(1), lambda sequence: make_group("own", sequence)),
    ):
        with pytest.raises(StoreFullError, match="4999 bytes are left on the disk, disk_reserve_bytes = 5000"):
            call()
    # What is small goes on, and so does a replay.
    store.mark([make_group(number=0).group_id], GroupState.INFORMATIVE)
    store.acknowledge([make_group("own", 1).group_id], "peer")
    assert store.publish(make_key(0), lambda sequence: 1 / 0).is_replay
    free["bytes"] = 5000
    store.put([make_group(number=1)])
    assert len(held_ids(store)) == 3
    store.close()


def test_free_disk_bytes_asks_the_system(path, time):
    open_store(path, time).close()
    assert 0 < free_disk_bytes(path) < 2**60


def test_two_processes_cannot_have_one_store(path, time):
    store = open_store(path, time)
    with pytest.raises(StoreError, match=f"store {path}: is in use by another process"):
        open_store(path, time)
    store.put([make_group()])
    code = "import sqlite3, sys\ntry: sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM store')\n"
    code += "except sqlite3.OperationalError as error: print(error)"
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "database is locked"
    store.close()
    open_store(path, time).close()


def _other_version(path):
    open_store(path, FakeTime()).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()


def _other_program(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
    database.close()


def _half_a_store(path):
    open_store(path, FakeTime()).close()
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM store")
    database.close()


def _cut_store(path):
    store = open_store(path, FakeTime())
    store.put([make_group(number=i, size_bytes=3000) for i in range(20)])
    store.close()
    path.write_bytes(path.read_bytes()[:20_000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("my shopping list\n" * 400), "is not a store; name another file or move it away"),
        (lambda path: path.mkdir(), "unable to open database file"),
        (_other_version, "has schema version 7, this program reads 1; use the program that wrote it"),
        (_other_program, "is another program's database; name another file or move it away"),
        (_half_a_store, "is damaged .no valid row in table store.; move it away to start an empty one"),
        (_cut_store, "is damaged .*; move it away to start an empty one"),
    ],
)
def test_files_that_are_no_store_are_one_clear_error_and_stay_as_they_are(path, time, make, message):
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for _ in range(2):
        with pytest.raises(StoreError, match=f"^store {path}: {message}"):
            open_store(path, time)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_missing_directory_is_named(tmp_path, time):
    with pytest.raises(StoreError, match=f"store {tmp_path}/none/store.sqlite: unable to open"):
        open_store(tmp_path / "none" / "store.sqlite", time)


def test_an_empty_file_becomes_a_store(path, time):
    path.touch()
    store = open_store(path, time)
    store.put([make_group()])
    store.close()
