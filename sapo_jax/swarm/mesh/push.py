"""Groups on their way out: own ones until enough peers hold them, good foreign ones once more, within a budget.

Pushing makes a fresh group known fast; what it misses, others pull. So nothing here insists: a peer
that is slow, full or gone is left alone, and the outbox offers its groups again later. A push to a slow
peer goes on by itself, one at a time, while the others get what is new.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sapo_jax.swarm.calls.quota import BucketTable
from sapo_jax.swarm.mesh.links import Links
from sapo_jax.swarm.mesh.peers import Peer
from sapo_jax.swarm.mesh.scores import Scores
from sapo_jax.swarm.store.group_store import GroupStore, StoredGroup
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.limits import MIB
from sapo_jax.swarm.wire.requests import PublishOutcome, PublishRequest
from sapo_jax.swarm.wire.signed_content import SignedGroup

FULL_MESH_PEERS = 12  # up to so many known peers one relay reaches everybody
MAX_QUEUED_RELAYS = 256
_BATCH_GROUPS = 32
_BATCH_BYTES = 3 * MIB  # a request stays below the limit of a message with its headers
_BATCHES_PER_PUSH = 8  # then the others get their turn
# The peer may take the group later; any other refusal is its last word on it.
_LATER = frozenset({WireReason.QUOTA, WireReason.QUEUE_FULL, WireReason.STORE_FULL, WireReason.STORE_BUSY})
_BANNED_PAUSE_S = 60.0
_BURST_S = 4.0  # of each budget: what may be sent at once after a quiet time


@dataclass(frozen=True, kw_only=True, slots=True)
class PushLimits:
    """How widely and how fast groups are pushed."""

    peers: int = 3  # that a group is pushed to at a time
    own_bytes_per_s: float = 16.0 * MIB
    relay_bytes_per_s: float = 1.0 * MIB
    patience_s: float = 2.0  # how long peers are waited for before the next are pushed to


@dataclass(frozen=True, slots=True)
class _Item:
    group_id: bytes
    publisher: str
    size_bytes: int
    signed: SignedGroup


class Pusher:
    """Sends to random active peers; used by the loop thread, but for `offer_relay`."""

    def __init__(
        self,
        links: Links,
        store: GroupStore,
        scores: Scores,
        *,
        limits: PushLimits,
        clock: Callable[[], float],
        known_peers: Callable[[], int],
    ) -> None:
        """Starts with nothing to relay.

        Args:
            links: the peers to send to.
            store: holds the outbox.
            scores: groups of publishers with low scores are not relayed.
            limits: breadth and budgets.
            clock: monotonic, in seconds.
            known_peers: how many peers there are; decides how far groups are relayed.
        """
        self._links = links
        self._store = store
        self._scores = scores
        self._limits = limits
        self._known_peers = known_peers
        self._relays: deque[bytes] = deque(maxlen=MAX_QUEUED_RELAYS)  # ids alone: the store has the bytes
        self._in_flight: dict[asyncio.Task[None], str] = {}  # a push -> the node id of its peer
        self._budget = BucketTable(
            per_s=limits.relay_bytes_per_s, burst=_BURST_S * limits.relay_bytes_per_s, clock=clock
        )
        self._own_budget = BucketTable(
            per_s=limits.own_bytes_per_s, burst=_BURST_S * limits.own_bytes_per_s, clock=clock
        )
        self.accepted = 0  # own groups that a peer newly took
        self.relayed = 0  # foreign ones
        self.refused: Counter[str] = Counter()  # reason -> own groups that a peer will never take

    def offer_relay(self, group: StoredGroup) -> None:
        """Proposes a foreign group for relaying; any thread may call. Of too many the oldest gives way."""
        self._relays.append(group.group_id)

    async def push_once(self) -> None:
        """Sends what is pending to a few random peers, each at its own pace; slow ones are not waited for."""
        peers = self._free(self._links.ready())[: self._limits.peers]
        # With nobody to send to, proposals stay where they are.
        await self._wait_for(self._start(peers, self._take_relays() if peers else []))

    async def flush_once(self) -> bool:
        """Sends the outbox to all peers in touch; returns whether every group has a holder, or nobody who would be."""
        peers = self._links.ready()
        self._start(self._free(peers), [])
        await self._wait_for(list(self._in_flight))
        return self._store.outbox_waiting({peer.node_id for peer in peers}) == 0

    async def stop(self) -> None:
        """Breaks off the pushes to slow peers that still go on."""
        for push in self._in_flight:
            push.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        self._in_flight.clear()

    def _free(self, peers: Sequence[Peer]) -> list[Peer]:
        """Returns those of the peers that no push is under way to."""
        busy = {node_id for push, node_id in self._in_flight.items() if not push.done()}
        return [peer for peer in peers if peer.node_id not in busy]

    def _start(self, peers: Sequence[Peer], relays: Sequence[StoredGroup]) -> list[asyncio.Task[None]]:
        """Starts a push to each of the peers."""
        # Chosen for all peers before the first acknowledges, so that a fresh group goes to all of them.
        offers = [self._offers_for(peer) for peer in peers]
        started = {
            asyncio.create_task(self._push_to(peer, batch, relays)): peer.node_id
            for peer, batch in zip(peers, offers, strict=True)
        }
        self._in_flight |= started
        return list(started)

    async def _wait_for(self, pushes: Sequence[asyncio.Task[None]]) -> None:
        """Waits for pushes, but leaves those behind that take long; raises what one that has ended failed with."""
        if pushes:
            await asyncio.wait(pushes, timeout=self._limits.patience_s)
        ended = [push for push in self._in_flight if push.done()]  # with those that were left behind earlier
        for push in ended:
            del self._in_flight[push]
        await asyncio.gather(*ended)

    def _offers_for(self, peer: Peer) -> list[_Item]:
        """Returns the oldest own groups that the peer does not hold, as many as one request has room for."""
        offered = self._store.outbox_pending(_BATCH_GROUPS, peer_id=peer.node_id)
        items = [_Item(group.group_id, group.publisher, group.size_bytes, group.signed) for group in offered]
        empty: list[_Item] = []
        return next(_batches(items), empty)

    async def _push_to(self, peer: Peer, batch: list[_Item], relays: Sequence[StoredGroup]) -> None:
        for _ in range(_BATCHES_PER_PUSH):
            size_bytes = sum(item.size_bytes for item in batch)
            if not batch or self._own_budget.wait_s("", size_bytes) > 0:
                break
            self._own_budget.take("", size_bytes)
            held, refused = await self._send(peer, batch)
            if not held and not refused:
                return
            if held:
                self._store.acknowledge(held, peer.node_id)
            self._store.note_refusals(refused, peer.node_id)
            batch = self._offers_for(peer)
        items = [
            _Item(group.group_id, group.publisher, group.size_bytes, _one_hop_on(group.signed))
            for group in relays
            if group.publisher != peer.node_id
        ]
        for batch in _batches(items):
            size_bytes = sum(item.size_bytes for item in batch)
            if self._budget.wait_s("", size_bytes) > 0:
                return
            self._budget.take("", size_bytes)
            if not any(await self._send(peer, batch, is_relay=True)):
                return

    async def _send(
        self, peer: Peer, batch: Sequence[_Item], *, is_relay: bool = False
    ) -> tuple[list[bytes], list[bytes]]:
        """Publishes a batch to a peer; returns the ids that it holds now, and those that it never wants."""
        request = PublishRequest(groups=tuple(item.signed for item in batch))
        response = await self._links.call(peer, lambda client: client.publish_groups(request))
        if response is None or len(response.results) != len(batch):
            return [], []
        held: list[bytes] = []
        refused: list[bytes] = []
        for item, result in zip(batch, response.results, strict=True):
            if result.outcome is PublishOutcome.REJECTED and result.reason in _LATER:
                self._links.pause(peer, result.retry_after_s)
                continue
            # Of a relayed group its publisher is banned there, and that is not us.
            if result.outcome is PublishOutcome.REJECTED and result.reason is WireReason.BANNED and not is_relay:
                self._links.pause(peer, _BANNED_PAUSE_S)
                continue
            (refused if result.outcome is PublishOutcome.REJECTED else held).append(item.group_id)
            if result.reason is not None and not is_relay:
                self.refused[result.reason.value] += 1
            if result.outcome is PublishOutcome.ACCEPTED:
                self.accepted += not is_relay
                self.relayed += is_relay
        return held, refused

    def _take_relays(self) -> list[StoredGroup]:
        """Returns the proposals that may still travel, as far as the budget may reach, and forgets all of them."""
        max_hops = 1 if self._known_peers() < FULL_MESH_PEERS else 2
        ids: list[bytes] = []
        while self._relays:
            ids.append(self._relays.popleft())
        groups = self._store.get(ids, max_bytes=max(_BATCH_BYTES, int(_BURST_S * self._limits.relay_bytes_per_s)))
        return [group for group in groups if group.signed.hops < max_hops and self._scores.may_relay(group.publisher)]


def _one_hop_on(signed: SignedGroup) -> SignedGroup:
    return dataclasses.replace(signed, hops=signed.hops + 1)


def _batches(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """Yields `items` in order, in lists that fit one request each."""
    batch: list[_Item] = []
    size_bytes = 0
    for item in items:
        if batch and (len(batch) == _BATCH_GROUPS or size_bytes + item.size_bytes > _BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(item)
        size_bytes += item.size_bytes
    if batch:
        yield batch
