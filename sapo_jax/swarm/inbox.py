"""What the nodes of a host have been sent and not yet taken: mailboxes, and a place in the store.

Siblings' rollouts lie in the mailboxes themselves. Foreign ones lie in the store too, so all that a
checkpoint needs of them is up to where the store was read and which places of it are still owed to
whom. Restored, the owed ones are read and verified again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapo_jax.swarm.codec_json import CodecError, fields_from_json, scored_from_json, scored_to_json, typed
from sapo_jax.swarm.exchange import RebuildTask
from sapo_jax.swarm.pool import MAX_TEXT_BYTES, Shares, text_bytes
from sapo_jax.types import ScoredRollout


@dataclass(frozen=True, slots=True)
class _Letter:
    scored: ScoredRollout
    seq: int | None  # place in the store; None: a sibling's


class _Mailbox:
    """Letters in order of arrival, bounded by count and bytes of text; see `Shares` for what gives way."""

    def __init__(self, max_letters: int, max_bytes: int) -> None:
        self._bounds = (max_letters, max_bytes)
        self.clear()

    def __len__(self) -> int:
        return len(self._letters)

    def __iter__(self) -> Iterator[_Letter]:
        return iter(self._letters.values())

    def append(self, letter: _Letter) -> int:
        """Adds a letter; returns how many had to give way."""
        self._letters[self._next] = letter
        rollout = letter.scored.rollout
        self._shares.add(rollout.node_id, self._next, text_bytes(rollout))
        self._next += 1
        dropped = self._shares.give_way()
        for number in dropped:
            del self._letters[number]
        return len(dropped)

    def clear(self) -> None:
        max_letters, max_bytes = self._bounds
        self._letters: dict[int, _Letter] = {}  # by number, which rises with their arrival
        self._next = 0
        self._shares = Shares(max_items=max_letters, max_bytes=max_bytes)


class Inbox:
    """Owns the mailboxes; thread-safe."""

    def __init__(
        self,
        node_ids: Sequence[str],
        *,
        mailbox_rollouts: int,
        epoch: str,
        opened_seq: int = 0,
        mailbox_text_bytes: int = MAX_TEXT_BYTES,
    ) -> None:
        """Opens one empty mailbox per node, reading from the start of the store.

        Args:
            node_ids: the nodes of this host.
            mailbox_rollouts: bound of each mailbox; the oldest rollout of whoever has most gives way.
            epoch: of the store whose places are meant.
            opened_seq: the last place that the store had when it was opened.
            mailbox_text_bytes: bound of each mailbox's texts; the oldest of whoever has most bytes gives way.

        Raises:
            ValueError: a node id appears twice, or a bound is below 1.
        """
        if len(set(node_ids)) != len(node_ids):
            raise ValueError(f"node ids {list(node_ids)} must not repeat")
        for name, value in (("mailbox_rollouts", mailbox_rollouts), ("mailbox_text_bytes", mailbox_text_bytes)):
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        self._lock = threading.Lock()
        self._bound = mailbox_rollouts
        self._epoch = epoch
        self._mailboxes = {node_id: _Mailbox(mailbox_rollouts, mailbox_text_bytes) for node_id in node_ids}
        self._missed = 0
        self._generation = 0
        self._read_seq = 0
        self._opened_seq = opened_seq
        self._last_seq = opened_seq  # no place that an earlier process can have read is beyond
        self._reading: set[int] = set()  # read, not yet settled
        # Of what was read before the last restore, only this is still wanted.
        self._resumed_seq = 0
        self._owed: dict[str, set[int]] = {node_id: set() for node_id in node_ids}

    @property
    def node_ids(self) -> tuple[str, ...]:
        """The nodes with a mailbox."""
        return tuple(self._mailboxes)

    @property
    def missed(self) -> int:
        """Rollouts that found no room so far, in the store until they were read or in a mailbox of any node."""
        with self._lock:
            return self._missed

    def position(self) -> tuple[int, int]:
        """Returns the generation, which each restore raises, and the place in the store up to which was read."""
        with self._lock:
            return self._generation, self._read_seq

    def begin(self, generation: int, read_seq: int, seqs: Sequence[int]) -> list[int]:
        """Notes that the store was read up to `read_seq` and held `seqs`; returns those that somebody wants.

        What arrived since the store was opened and is not among `seqs` had to leave it unread: it is missed.
        """
        with self._lock:
            if generation != self._generation:
                return []
            unread_seq = max(self._read_seq, self._opened_seq)
            self._missed += max(0, read_seq - unread_seq) - sum(seq > unread_seq for seq in seqs)
            wanted = [seq for seq in seqs if any(self._wants(node_id, seq) for node_id in self._mailboxes)]
            self._reading.update(wanted)
            for owed in self._owed.values():  # what has left the store since will never be read
                owed.difference_update({seq for seq in owed if seq <= read_seq and seq not in self._reading})
            self._read_seq = max(self._read_seq, read_seq)
            self._last_seq = max(self._last_seq, read_seq)
            return wanted

    def settle(self, generation: int, seq: int, scored: ScoredRollout | None) -> None:
        """Delivers what came of one place to the nodes that want it; None: nothing to deliver."""
        with self._lock:
            if generation != self._generation or seq not in self._reading:
                return
            self._reading.discard(seq)
            for node_id in self._mailboxes:
                if scored is not None and self._wants(node_id, seq):
                    self._append(node_id, _Letter(scored, seq))
                self._owed[node_id].discard(seq)

    def miss(self, generation: int, seq: int) -> None:
        """Notes that a place will not be delivered for want of time."""
        with self._lock:
            if generation == self._generation and seq in self._reading:
                self._missed += 1
        self.settle(generation, seq, None)

    def deliver(self, sender_id: str, scored: Sequence[ScoredRollout]) -> None:
        """Puts a sibling's rollouts into every mailbox but the sender's, in order."""
        with self._lock:
            for node_id in self._mailboxes:
                if node_id != sender_id:
                    for item in scored:
                        self._append(node_id, _Letter(item, None))

    def take(self, node_id: str) -> list[ScoredRollout]:
        """Returns the content of a mailbox, oldest first, and empties it."""
        with self._lock:
            taken = [letter.scored for letter in self._mailboxes[node_id]]
            self._mailboxes[node_id].clear()
            return taken

    def waiting(self) -> dict[str, int]:
        """Returns how many rollouts lie in each mailbox."""
        with self._lock:
            return {node_id: len(mailbox) for node_id, mailbox in self._mailboxes.items()}

    def to_json(self) -> dict[str, Any]:
        """Returns siblings' rollouts, the place in the store and what is owed of it, JSON-ready."""
        with self._lock:
            nodes: dict[str, Any] = {}
            for node_id, mailbox in self._mailboxes.items():
                reading = {seq for seq in self._reading if self._wants(node_id, seq)}
                lying = {letter.seq for letter in mailbox if letter.seq is not None}
                nodes[node_id] = {
                    "siblings": [scored_to_json(letter.scored) for letter in mailbox if letter.seq is None],
                    "owed": sorted(self._owed[node_id] | reading | lying),
                }
            # Not lower than the place of an earlier run: what lies between is read again only if it is owed.
            read_seq = max(self._read_seq, self._resumed_seq)
            return {"epoch": self._epoch, "read_seq": read_seq, "nodes": nodes, "missed": self._missed}

    def restore_json(self, state: Mapping[str, Any], rebuild_task: RebuildTask) -> None:
        """Replaces everything with what `to_json` wrote; places of another store's epoch are dropped.

        So are places that the store does not have: a machine that loses power may lose its last groups, and
        their places are then given to others.

        Raises:
            CodecError: the state belongs to other nodes, holds more than a mailbox takes, or is damaged;
                nothing is changed then.
        """
        top = fields_from_json(state, "exchange", ("epoch", "read_seq", "nodes", "missed"))
        epoch = typed(top["epoch"], str, "exchange.epoch")
        read_seq = typed(top["read_seq"], int, "exchange.read_seq")
        missed = typed(top["missed"], int, "exchange.missed")
        nodes = fields_from_json(top["nodes"], "exchange.nodes", self._mailboxes)
        letters: dict[str, list[_Letter]] = {}
        owed: dict[str, set[int]] = {}
        for node_id in self._mailboxes:
            path = f"exchange.nodes.{node_id}"
            fields = fields_from_json(nodes[node_id], path, ("siblings", "owed"))
            siblings = typed(fields["siblings"], list, f"{path}.siblings")
            if len(siblings) > self._bound:
                raise CodecError(f"{path}.siblings holds {len(siblings)} rollouts, the limit is {self._bound}")
            letters[node_id] = [
                _Letter(scored_from_json(item, f"{path}.siblings[{i}]", rebuild_task), None)
                for i, item in enumerate(siblings)
            ]
            places = typed(fields["owed"], list, f"{path}.owed")
            owed[node_id] = {typed(seq, int, f"{path}.owed") for seq in places}
        same_store = epoch == self._epoch
        with self._lock:
            self._generation += 1
            self._reading.clear()
            self._missed = missed
            self._resumed_seq = min(read_seq, self._last_seq) if same_store else 0
            for node_id, mailbox in self._mailboxes.items():
                mailbox.clear()
                for letter in letters[node_id]:
                    self._append(node_id, letter)
                places = owed[node_id] if same_store else ()
                self._owed[node_id] = {seq for seq in places if seq <= self._last_seq}
            first_owed = min((seq for places in self._owed.values() for seq in places), default=self._resumed_seq + 1)
            self._read_seq = min(first_owed - 1, self._resumed_seq)

    def _wants(self, node_id: str, seq: int) -> bool:
        return seq > self._resumed_seq or seq in self._owed[node_id]

    def _append(self, node_id: str, letter: _Letter) -> None:
        self._missed += self._mailboxes[node_id].append(letter)
