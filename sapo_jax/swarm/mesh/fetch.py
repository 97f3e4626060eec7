"""Groups on their way in by our own asking: random ones from random peers, and what a peer holds that we lack.

Whatever comes back goes through the same checks as what others publish to us. The peer that sent
broken bytes loses points; the publisher of a well-signed group answers for its content elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sapo_jax.swarm.mesh.links import Links
from sapo_jax.swarm.mesh.peers import Peer
from sapo_jax.swarm.mesh.scores import Scores
from sapo_jax.swarm.store.file import StoreFullError
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.limits import MIB, WireLimits
from sapo_jax.swarm.wire.requests import GetRequest, GroupCursor, GroupRef, ListRequest, PublishOutcome, SampleRequest
from sapo_jax.swarm.wire.signed_content import OpenedGroup, SignedGroup

OpenGroup = Callable[[SignedGroup], OpenedGroup]

# A group may expire or gain its last hop on the way: that is nobody's fault.
_INNOCENT = frozenset({WireReason.EXPIRED, WireReason.HOPS})
_USEFUL_POINTS = 0.1  # for a group that was new to us
_CHUNK_BYTES = 2 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchLimits:
    """How much is asked for."""

    sample_groups: int = 16  # per pull; 0: none
    repair_pages: int = 8  # of references per repair; 0: none
    repair_bytes: int = 8 * MIB  # of groups per repair; the rest waits for the next one


class Fetcher:
    """Asks peers for groups and stores them; used by the loop thread."""

    def __init__(
        self,
        links: Links,
        store: GroupStore,
        scores: Scores,
        *,
        open_group: OpenGroup,
        own_ids: Collection[str],
        wanted_digests: Collection[str],
        wire: WireLimits,
        limits: FetchLimits,
        on_stored: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts without any cursor.

        Args:
            links: the peers to ask.
            store: takes the groups.
            scores: of peers and publishers.
            open_group: checks a group; raises WireError.
            own_ids: node ids of this host, whose groups need no fetching.
            wanted_digests: config digests of the tasks that this host can verify; empty: any task.
            wire: bounds of requests.
            limits: how much to ask for.
            on_stored: told that something new is in the store.
        """
        self._links = links
        self._store = store
        self._scores = scores
        self._open = open_group
        self._own_ids = frozenset(own_ids)
        self._wanted_digests = frozenset(wanted_digests)
        self._wire = wire
        self._limits = limits
        self._on_stored = on_stored
        self._cursors: dict[str, GroupCursor] = {}  # peer -> up to where its references are known
        self.counts: Counter[str] = Counter()  # reason -> fetched groups that were refused

    async def pull_once(self, peer: Peer | None = None) -> int:
        """Asks one peer, by default a random one, for random groups; returns how many were new."""
        peer = peer or next(iter(self._links.ready()), None)
        if peer is None or self._limits.sample_groups < 1:
            return 0
        excluded = tuple(sorted(self._own_ids))[: self._wire.max_excluded_publishers]
        request = SampleRequest(count=self._limits.sample_groups, excluded_publishers=excluded)
        response = await self._links.call(peer, lambda client: client.sample_groups(request))
        if response is None:
            return 0
        return self._take_in(peer, response.groups[: self._limits.sample_groups])

    async def repair_once(self, peer: Peer | None = None) -> int:
        """Compares references with one peer and fetches what is missing; returns how many groups were new."""
        peer = peer or next(iter(self._links.ready()), None)
        if peer is None:
            return 0
        new, left_bytes = 0, self._limits.repair_bytes
        for _ in range(self._limits.repair_pages):
            request = ListRequest(max_references=self._wire.max_list_references, cursor=self._cursors.get(peer.node_id))
            page = await self._links.call(peer, lambda client, request=request: client.list_groups(request))
            if page is None:
                # Without a cursor the next repair starts over, which is right if that was what failed.
                self._cursors.pop(peer.node_id, None)
                return new
            unknown = set(self._store.unknown(reference.group_id for reference in page.references))
            for chunk in self._chunks([ref for ref in page.references if ref.group_id in unknown]):
                size_bytes = sum(reference.size_bytes for reference in chunk)
                if size_bytes > left_bytes:
                    return new  # the cursor stays: the next repair goes on here
                left_bytes -= size_bytes
                fetched = await self._get(peer, [reference.group_id for reference in chunk])
                if fetched is None:
                    return new
                new += fetched
            if page.next_cursor == request.cursor:
                break
            self._cursors[peer.node_id] = page.next_cursor
            if len(page.references) < request.max_references:
                break
        return new

    def forget(self, node_ids: Collection[str]) -> None:
        """Drops the cursors of all peers but these."""
        self._cursors = {node_id: cursor for node_id, cursor in self._cursors.items() if node_id in node_ids}

    async def _get(self, peer: Peer, group_ids: Sequence[bytes]) -> int | None:
        """Fetches groups by id; returns how many were new, None if the peer did not answer."""
        new = 0
        wanted = list(group_ids)
        for _ in range(4):  # a response may be full before all fit
            request = GetRequest(group_ids=tuple(wanted))
            response = await self._links.call(peer, lambda client, request=request: client.get_groups(request))
            if response is None:
                return None
            new += self._take_in(peer, response.groups[: len(wanted)], asked=frozenset(wanted))
            wanted = [group_id for group_id in response.deferred_group_ids if group_id in wanted]
            if not wanted or not response.groups:
                break
        return new

    def _take_in(self, peer: Peer, groups: Sequence[SignedGroup], *, asked: frozenset[bytes] | None = None) -> int:
        """Checks and stores what a peer sent; returns how many groups were new."""
        opened: list[OpenedGroup] = []
        for signed in groups:
            try:
                group = self._open(signed)
            except WireError as error:
                self.counts[error.reason.value] += 1
                if error.reason not in _INNOCENT:
                    self._scores.invalid(peer.node_id)
                continue
            if asked is not None and group.group_id not in asked:
                self._scores.invalid(peer.node_id)
            elif group.publisher in self._own_ids:
                continue
            elif self._scores.is_banned(group.publisher):
                self.counts[WireReason.BANNED.value] += 1
            elif self._wanted_digests and group.rollout.task_ref.config_digest not in self._wanted_digests:
                self.counts[WireReason.UNKNOWN_TASK.value] += 1
            else:
                opened.append(group)
        if not opened:
            return 0
        try:
            results = self._store.put(opened)
        except StoreFullError:
            self.counts[WireReason.STORE_FULL.value] += len(opened)
            return 0
        new = sum(result.outcome is PublishOutcome.ACCEPTED for result in results)
        if new:
            self._scores.useful(peer.node_id, _USEFUL_POINTS * new)
            self._on_stored()
        return new

    def _chunks(self, references: Sequence[GroupRef]) -> list[list[GroupRef]]:
        """Returns references in lists that one request and one response have room for."""
        chunks: list[list[GroupRef]] = []
        size_bytes = 0
        for reference in references:
            size_bytes += reference.size_bytes
            if not chunks or len(chunks[-1]) == self._wire.max_get_groups or size_bytes > _CHUNK_BYTES:
                chunks.append([])
                size_bytes = reference.size_bytes
            chunks[-1].append(reference)
        return chunks
