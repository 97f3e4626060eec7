"""The connections this host has made: dialing a peer, calling it, and what a failed call means.

Every answer of a peer is a stranger's. A call gives its result or None; why it failed goes into the
peer book, where the dialing starts over after a back-off, and into the peer's score if it sent
nonsense.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sapo_jax.swarm.calls.peer_client import CallError, PeerClient
from sapo_jax.swarm.mesh.membership import OpenRecord
from sapo_jax.swarm.mesh.peers import Peer, PeerBook
from sapo_jax.swarm.mesh.presence import Presence
from sapo_jax.swarm.mesh.scores import Scores
from sapo_jax.swarm.wire.errors import STATUS_CODE, WireError, WireReason
from sapo_jax.swarm.wire.requests import NodeInfo, PeerExchange
from sapo_jax.swarm.wire.signed_content import OpenedPeerRecord

logger = logging.getLogger(__name__)

STRIKES = 2  # calls in a row without an answer before a peer counts as gone
REFUSED_PAUSE_S = 5.0  # after a refusal that does not say for how long
MAX_PAUSE_S = 60.0  # however long a peer asks us to stay away

_T = TypeVar("_T")


Connect = Callable[[str, bytes | None], PeerClient]
"""Opens a connection to an address, pinned to a certificate (DER); raises ValueError if that is not allowed."""


class _UnfitError(Exception):
    """A host that answers and is no peer of ours; the text says why."""


@dataclass(kw_only=True, slots=True)
class _Link:
    client: PeerClient
    info: NodeInfo
    strikes: int = 0
    paused_until_s: float = 0.0


class Links:
    """Owns one connection per active peer; used by the loop thread."""

    def __init__(
        self,
        book: PeerBook,
        presence: Presence,
        scores: Scores,
        *,
        connect: Connect,
        swarm_id: str,
        open_record: OpenRecord,
        clock: Callable[[], float],
    ) -> None:
        """Starts without connections.

        Args:
            book: says what became of peers.
            presence: looks at every record that carries our own id; its record shows whether we use TLS.
            scores: of peers.
            connect: opens connections.
            swarm_id: ours; a peer of another swarm is left alone.
            open_record: checks signed peer records; raises WireError.
            clock: monotonic, in seconds.
        """
        self._book = book
        self._presence = presence
        self._scores = scores
        self._connect = connect
        self._swarm_id = swarm_id
        self._open_record = open_record
        self._clock = clock
        self._links: dict[str, _Link] = {}
        # All hosts of a swarm use TLS or none does; without it nothing proves which of them answers.
        self._uses_tls = bool(open_record(presence.record()).record.certificate)

    def ready(self) -> list[Peer]:
        """Returns the connected peers that may be called now, in random order."""
        now = self._clock()
        return [
            peer
            for peer in self._book.active()
            if peer.node_id in self._links and self._links[peer.node_id].paused_until_s <= now
        ]

    def info(self, peer: Peer) -> NodeInfo | None:
        """Returns what a connected peer said about itself."""
        link = self._links.get(peer.node_id)
        return None if link is None else link.info

    async def dial(self, peer: Peer) -> Peer | None:
        """Connects to a peer and asks who it is; returns the peer that is active now, None if there is none new."""
        address = peer.addresses[peer.failures % len(peer.addresses)]
        certificate = peer.certificate  # a record that comes in while we wait may change that of the peer
        try:
            client = self._connect(address, certificate)
        except ValueError as error:  # the address or the certificate cannot be used
            self._book.failed(peer, str(error))
            return None
        active = None
        try:
            info = await client.get_node_info()
            opened = self._shown_record(info, certificate)
            if self._presence.notice(opened, is_live=True):
                await client.exchange_peers(PeerExchange(peer_records=(self._presence.record(),)))  # it shall know too
                self._book.failed(peer, "uses the identity of this node")
                return None
            active = self._book.answered(peer, opened)
            if active is not None:
                await self._hang_up(active.node_id)
                self._links[active.node_id] = _Link(client=client, info=info)
            return active
        except (CallError, _UnfitError) as error:
            self._book.failed(peer, str(error))
        except WireError as error:
            self._book.failed(peer, f"answers nonsense: {error}")
        finally:
            if active is None:
                await client.close()
        return None

    async def call(self, peer: Peer, call: Callable[[PeerClient], Awaitable[_T]]) -> _T | None:
        """Returns what `call` gives with the peer's client, or None if it failed."""
        link = self._links.get(peer.node_id)
        if link is None:
            return None
        try:
            result = await call(link.client)
        except CallError as error:
            await self._failed(peer, link, error)
            return None
        except WireError as error:
            self._scores.invalid(peer.node_id)
            await self._strike(peer, link, f"answers nonsense: {error}")
            return None
        link.strikes = 0
        peer.last_contact_s = self._clock()
        return result

    def pause(self, peer: Peer, seconds: float) -> None:
        """Leaves a peer alone for a while, as it asked."""
        link = self._links.get(peer.node_id)
        if link is not None:
            wait_s = min(max(seconds, 0.0) or REFUSED_PAUSE_S, MAX_PAUSE_S)
            link.paused_until_s = max(link.paused_until_s, self._clock() + wait_s)

    async def prune(self) -> None:
        """Closes connections to peers that are not active any more."""
        active = {peer.node_id for peer in self._book.peers() if peer.is_active}
        for node_id in [node_id for node_id in self._links if node_id not in active]:
            await self._hang_up(node_id)

    async def close(self) -> None:
        """Closes all connections."""
        for node_id in list(self._links):
            await self._hang_up(node_id)

    def _shown_record(self, info: NodeInfo, certificate: bytes | None) -> OpenedPeerRecord:
        """Returns the record of the host that answered a dial pinned to `certificate`.

        Raises:
            _UnfitError: it is of another swarm, or shows no record or that of another host.
            WireError: the record does not hold.
        """
        if info.swarm_id != self._swarm_id:
            raise _UnfitError("belongs to another swarm")
        if info.peer_record is None:
            raise _UnfitError("shows no record of itself")
        opened = self._open_record(info.peer_record)
        # Records are public and anybody can show them; only its own one names the certificate a host proved to have.
        if self._uses_tls and opened.record.certificate != certificate:
            raise _UnfitError("shows the record of another host")
        return opened

    async def _failed(self, peer: Peer, link: _Link, error: CallError) -> None:
        if self._links.get(peer.node_id) is not link:
            return  # hung up meanwhile; a new link has nothing to do with it
        code = None if error.reason is None else STATUS_CODE[error.reason]
        if code == "RESOURCE_EXHAUSTED":
            self.pause(peer, error.retry_after_s)
        elif code in (None, "UNAVAILABLE", "DEADLINE_EXCEEDED"):
            await self._strike(peer, link, str(error))
        elif error.reason is WireReason.BANNED:
            self.pause(peer, MAX_PAUSE_S)  # it still lets us read, so dialing would succeed, again and again
        elif code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
            self._book.failed(peer, str(error))
            await self._hang_up(peer.node_id)
        else:
            self.pause(peer, REFUSED_PAUSE_S)
            logger.debug("peer %s refused a call: %s", peer.name, error)

    async def _strike(self, peer: Peer, link: _Link, trouble: str) -> None:
        if self._links.get(peer.node_id) is not link:
            return  # as above
        link.strikes += 1
        if link.strikes >= STRIKES:
            self._book.failed(peer, trouble)
            await self._hang_up(peer.node_id)

    async def _hang_up(self, node_id: str) -> None:
        link = self._links.pop(node_id, None)
        if link is not None:
            await link.client.close()
