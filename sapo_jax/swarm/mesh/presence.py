"""What this host tells others about itself, and how it notices that somebody else does so with its key.

A session has a random nonce, and every new record of an identity has a higher sequence. Records of
earlier sessions therefore always have lower sequences than the first of this one; a higher one with
another nonce means that a second process is using the key right now. That process is outbid by the
next record, so it sees ours as the newer one and notices too. No clock needs to be right for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.peer_record_codec import pack_peer_record, seal_peer_record
from sapo_jax.swarm.wire.signed_content import OpenedPeerRecord, PeerRecord, SignedPeerRecord

logger = logging.getLogger(__name__)

MAX_SEQUENCE = 2**63 - 1


class Presence:
    """Owns the peer record of this host; used by the loop thread."""

    def __init__(
        self,
        identity: Identity,
        *,
        swarm_id: str,
        addresses: Sequence[str],
        certificate: bytes,
        session_nonce: bytes,
        software_version: str,
        catalog_digests: Sequence[str],
        last_sequence: int,
        wall_clock: Callable[[], float],
    ) -> None:
        """Makes the first record of a session.

        Args:
            identity: signs the records.
            swarm_id: goes into the record.
            addresses: where others can dial this host; empty if it only dials out.
            certificate: DER; empty without TLS.
            session_nonce: 16 random bytes, new at each start.
            software_version: for people.
            catalog_digests: hex digests of the specialties this host verifies.
            last_sequence: the highest sequence that earlier sessions are known to have used.
            wall_clock: Unix time in seconds.
        """
        self._identity = identity
        self._swarm_id = swarm_id
        self._addresses = tuple(addresses)
        self._certificate = certificate
        self._session_nonce = session_nonce
        self._software_version = software_version
        self._catalog_digests = tuple(catalog_digests)
        self._wall_clock = wall_clock
        self._sequence = last_sequence
        self.copies_seen = 0  # how often another session with this identity was noticed
        self._signed = self._sign()
        self._first_sequence = self._sequence

    @property
    def node_id(self) -> str:
        """The id of the identity that signs."""
        return self._identity.node_id

    @property
    def sequence(self) -> int:
        """The highest sequence used so far."""
        return self._sequence

    def record(self) -> SignedPeerRecord:
        """Returns the current record."""
        return self._signed

    def refresh(self) -> None:
        """Makes a new record with a higher sequence: a sign of life, once per exchange of peers."""
        self._signed = self._sign()

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """Takes over where the host can be dialed, once the server knows its port."""
        self._addresses = tuple(addresses)
        self.refresh()

    def notice(self, opened: OpenedPeerRecord, *, is_live: bool = False) -> bool:
        """Looks at a record from the swarm; returns whether it shows a second process with our identity.

        Args:
            opened: any peer record.
            is_live: its host has just answered with it itself, so it is of no earlier session.
        """
        if opened.node_id != self.node_id or opened.record.session_nonce == self._session_nonce:
            return False
        sequence = opened.record.sequence
        if sequence <= self._first_sequence and not is_live:
            return False  # of an earlier session of ours
        if not self.copies_seen:
            logger.warning(
                "another process uses the identity of this node, %s (%s), at %s: stop one of the two, or give it "
                "another key file",
                self.node_id,
                self._identity.alias,
                ", ".join(opened.record.addresses) or "an unknown address",
            )
        self.copies_seen += 1
        if self._sequence <= sequence < MAX_SEQUENCE:
            self._sequence = sequence
            self._signed = self._sign()
        return True

    def _sign(self) -> SignedPeerRecord:
        now = self._wall_clock()
        self._sequence = max(self._sequence + 1, int(now * 1000))
        record = PeerRecord(
            swarm_id=self._swarm_id,
            addresses=self._addresses,
            certificate=self._certificate,
            session_nonce=self._session_nonce,
            sequence=self._sequence,
            software_version=self._software_version,
            catalog_digests=self._catalog_digests,
            reachable=bool(self._addresses),
            created_unix_s=now,
        )
        return SignedPeerRecord(envelope=seal_peer_record(pack_peer_record(record), self._identity))
