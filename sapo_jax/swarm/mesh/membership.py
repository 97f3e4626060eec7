"""Peer records as they come in and go out: the swap of a few signed records between two hosts.

Both sides of ExchangePeers are here. A caller's own record is the first one it sends. Records of
callers are remembered apart from the peer book, because a host that only dials out is in nobody's
book and its identity can be copied all the same.

Nothing proves that the first record is the caller's: anybody can send what it once got. But a host
sends a new one each time, and those of its earlier sessions have lower sequences than all of the
latest one. So a record counts only if its sequence is higher than that of the last one of its session,
or, of another session, than that of the first one seen of the latest session.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sapo_jax.swarm.mesh.peers import PeerBook
from sapo_jax.swarm.mesh.presence import Presence
from sapo_jax.swarm.mesh.scores import Scores
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.requests import PeerExchange
from sapo_jax.swarm.wire.signed_content import OpenedPeerRecord, SignedPeerRecord

logger = logging.getLogger(__name__)

OFFERED_RECORDS = 8  # of others, beside the own one
ANSWERED_RECORDS = 16
MAX_CALLERS = 1024
RECENT_S = 90.0  # a host that takes part swaps records every 30 s

OpenRecord = Callable[[SignedPeerRecord], OpenedPeerRecord]


@dataclass(frozen=True, slots=True)
class _Caller:
    latest: OpenedPeerRecord
    first_sequence: int  # of the first record seen of the latest session
    seen_s: float
    replaced: bytes  # session nonce before the latest, empty if there was none


class Membership:
    """Owns what is known about callers; used by the loop thread."""

    def __init__(
        self, book: PeerBook, presence: Presence, scores: Scores, *, open_record: OpenRecord, clock: Callable[[], float]
    ) -> None:
        """Joins the book, this host's own record and the scores.

        Args:
            book: learns peers.
            presence: this host's own record.
            scores: whoever sends broken records loses points.
            open_record: checks a signed record; raises WireError.
            clock: monotonic, in seconds.
        """
        self._book = book
        self._presence = presence
        self._scores = scores
        self._open = open_record
        self._clock = clock
        self._callers: OrderedDict[str, _Caller] = OrderedDict()
        self.copied: set[str] = set()  # ids of other hosts that two processes were seen to use

    def recent_callers(self, now_s: float) -> dict[str, float]:
        """Returns who called within the last minutes, by node id, with the seconds since."""
        ages = {node_id: now_s - caller.seen_s for node_id, caller in list(self._callers.items())}
        return {node_id: max(0.0, age_s) for node_id, age_s in ages.items() if age_s <= RECENT_S}

    def offer(self) -> PeerExchange:
        """Returns what to send to a peer: a fresh own record first, then a few random others."""
        self._presence.refresh()
        others = self._book.records_to_share(OFFERED_RECORDS)
        return PeerExchange(peer_records=(self._presence.record(), *(record.to_signed() for record in others)))

    def answer(self, request: PeerExchange) -> PeerExchange:
        """Takes in what a caller sent and returns what it gets.

        Raises:
            WireError: one of the records does not hold, or the caller is banned; nothing is taken in.
        """
        opened = [self._open(signed) for signed in request.peer_records]
        caller = opened[0] if opened else None
        if caller is not None and self._scores.is_banned(caller.node_id):
            raise WireError(WireReason.BANNED, "is banned here", field="peer_records[0]")
        echoes: list[SignedPeerRecord] = []
        if caller is not None:
            known = self._callers.get(caller.node_id)
            if known is not None and known.latest.record.session_nonce != caller.record.session_nonce:
                echoes.append(known.latest.to_signed())  # a copy of its key, or its own past: it can tell
            self._remember(caller)
        for index, record in enumerate(opened):
            self._take(record, from_itself=index == 0)
        without = () if caller is None else (caller.node_id,)
        others = self._book.records_to_share(ANSWERED_RECORDS, without=without)
        return PeerExchange(peer_records=(self._presence.record(), *echoes, *(record.to_signed() for record in others)))

    def take(self, records: Sequence[SignedPeerRecord], sender: str) -> None:
        """Takes in what the peer with the id `sender` answered; broken records cost it points."""
        for signed in records:
            try:
                opened = self._open(signed)
            except WireError:
                self._scores.invalid(sender)
                continue
            self._take(opened, from_itself=opened.node_id == sender)

    def _take(self, opened: OpenedPeerRecord, *, from_itself: bool) -> None:
        if opened.node_id == self._presence.node_id:
            self._presence.notice(opened)
        else:
            self._book.learn(opened, from_itself=from_itself)

    def _remember(self, caller: OpenedPeerRecord) -> None:
        """Keeps the newest record of a caller; a session that comes back after another one is a copied key."""
        known = self._callers.get(caller.node_id)
        nonce, sequence = caller.record.session_nonce, caller.record.sequence
        first_sequence, replaced = sequence, b""
        if known is not None:
            latest = known.latest.record
            is_same = nonce == latest.session_nonce
            if sequence <= (latest.sequence if is_same else known.first_sequence):
                return  # perhaps an old record that somebody else sends
            first_sequence = known.first_sequence if is_same else sequence
            replaced = known.replaced if is_same else latest.session_nonce
            if nonce == known.replaced:
                self._warn_of_copy(caller.node_id)
        self._callers[caller.node_id] = _Caller(caller, first_sequence, self._clock(), replaced)
        self._callers.move_to_end(caller.node_id)
        if len(self._callers) > MAX_CALLERS:
            self._callers.popitem(last=False)

    def _warn_of_copy(self, node_id: str) -> None:
        if node_id not in self.copied and len(self.copied) < MAX_CALLERS:
            self.copied.add(node_id)
            logger.warning("two processes use the identity of node %s", node_id)
