"""What a killed host leaves on its disk, read by somebody else: its journal of rounds and its store.

A store is read from a copy, so that the next process of the host finds it as the kill left it. The
journal holds what happened; a process that resumes takes back the rounds after its checkpoint, as the
metrics of a run do, and what remains is the surviving history.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapo_jax.swarm.mesh.network_host import STORE_FILE
from sapo_jax.swarm.wire.group_codec import group_id_of, reopen_group
from sapo_jax.swarm.wire.signed_content import Envelope, SignedGroup
from scripts.faults.light_host import JOURNAL_FILE, content_key

RoundOf = tuple[str, int, str]  # publisher, its round, the task: what a group is made of


@dataclass(kw_only=True)
class StoreReadings:
    """Everything that was ever seen in the store of one host, at any of the moments it was read.

    Attributes:
        held: ids of groups in the pool of the store, at the last reading only.
        seen: ids remembered of groups that left, at the last reading only.
        acknowledged: (own group, peer) that the outbox has noted, at any reading.
        names: group id -> "publisher content", as journals call it.
        ids: what a group was made of -> ids that it had.
        damaged: readings in which SQLite found the file damaged.
    """

    held: set[bytes] = field(default_factory=set)
    seen: set[bytes] = field(default_factory=set)
    acknowledged: set[tuple[bytes, str]] = field(default_factory=set)
    names: dict[bytes, str] = field(default_factory=dict)
    ids: dict[RoundOf, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    damaged: int = 0

    def read(self, directory: Path, swarm_id: str) -> None:
        """Reads the store below `directory`, whose process must be dead; one that is not there yet is empty."""
        with tempfile.TemporaryDirectory() as copy:
            for path in directory.glob(f"{STORE_FILE}*"):
                shutil.copy(path, copy)
            if not (Path(copy) / STORE_FILE).exists():
                return
            database = sqlite3.connect(Path(copy) / STORE_FILE)
            try:
                self._read(database, swarm_id)
            except sqlite3.DatabaseError:
                self.damaged += 1
            finally:
                database.close()

    def _read(self, database: sqlite3.Connection, swarm_id: str) -> None:
        self.damaged += database.execute("PRAGMA quick_check").fetchone()[0] != "ok"
        if not database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            return  # killed before it made its tables
        self.held = {group_id for (group_id,) in database.execute("SELECT group_id FROM groups")}
        self.seen = {group_id for (group_id,) in database.execute("SELECT group_id FROM seen")}
        self.acknowledged |= set(database.execute("SELECT group_id, peer_id FROM acknowledgements").fetchall())
        for table in ("groups", "outbox"):
            columns = "group_id, payload, public_key, signature"
            for group_id, *body in database.execute(f"SELECT {columns} FROM {table} WHERE payload IS NOT NULL"):
                if group_id not in self.names:
                    self._open(Envelope(payload=body[0], public_key=body[1], signature=body[2]), swarm_id)

    def _open(self, envelope: Envelope, swarm_id: str) -> None:
        rollout = reopen_group(SignedGroup(envelope=envelope), swarm_id=swarm_id).rollout
        group_id = group_id_of(envelope)
        self.names[group_id] = f"{rollout.node_id} {content_key(rollout)}"
        ref = rollout.task_ref
        task = f"{ref.config_digest} {ref.seed} {ref.index}"
        self.ids[rollout.node_id, rollout.round, task].add(group_id)


@dataclass(kw_only=True)
class History:
    """The journal of one host.

    Attributes:
        rounds: the surviving history: the last record of each round, in order.
        replayed: how many records a resumed process took back.
        starts: how often a process got as far as playing rounds.
        damaged: rows of the store that one of the processes found damaged.
        end: what the last process said when it stopped politely; empty if it did not.
    """

    rounds: list[dict[str, Any]] = field(default_factory=list)
    replayed: int = 0
    starts: int = 0
    damaged: int = 0
    end: dict[str, Any] = field(default_factory=dict)

    def arrivals(self) -> Counter[str]:
        """Returns how often each foreign group came into the pool."""
        return Counter(name for record in self.rounds for name in record["arrived"])

    def uses(self) -> Counter[str]:
        """Returns how often each foreign group was drawn for training."""
        return Counter(name for record in self.rounds for name in record["drawn"])

    def drawn_twice_in_a_round(self) -> int:
        """Returns how many draws took a group that the same round had drawn already."""
        return sum(len(record["drawn"]) - len(set(record["drawn"])) for record in self.rounds)


def read_history(workdir: Path) -> History:
    """Returns the journal below a work directory; a last line that a kill cut off counts as not written."""
    history = History()
    for record in _records(workdir / JOURNAL_FILE):
        history.damaged += record.get("damaged", 0)
        if record["event"] == "start":
            history.starts += 1
            kept = [each for each in history.rounds if each["round"] <= record["after"]]
            history.replayed += len(history.rounds) - len(kept)
            history.rounds, history.end = kept, {}
        elif record["event"] == "round":
            history.rounds.append(record)
        else:
            history.end = record
    return history


def rounds_rise(rounds: Sequence[int]) -> bool:
    """Returns whether no round is missing, repeated or out of order."""
    return list(rounds) == list(range(1, len(rounds) + 1))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            # A kill between two writes of one line; the next process begins a line of its own.
            continue
