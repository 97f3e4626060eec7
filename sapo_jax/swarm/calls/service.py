"""What a host does when it is asked: plain functions from request records to response records.

Nothing here knows gRPC, waits or sleeps; a call takes milliseconds and runs on the server's loop. A
call fails as a whole by `ServiceError` or `WireError`; what concerns one group of a batch stands in
that group's result, so that a bad one never harms its neighbors.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from sapo_jax.swarm.calls.quota import Quotas
from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.store.file import StoreDamagedError, StoreError, StoreFullError
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.records import StoreStats, UnknownCursorError
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.field_rules import check_bytes
from sapo_jax.swarm.wire.group_codec import SCHEMA_MINOR, group_id_of, open_group
from sapo_jax.swarm.wire.identity import PUBLIC_KEY_BYTES
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, KIB, CallLimits, WireLimits
from sapo_jax.swarm.wire.requests import (
    GetRequest,
    GetResponse,
    GroupRefPage,
    ListRequest,
    LoadLevel,
    NodeInfo,
    PeerExchange,
    PublishOutcome,
    PublishRequest,
    PublishResponse,
    PublishResult,
    SampleRequest,
    SampleResponse,
)
from sapo_jax.swarm.wire.signed_content import OpenedGroup, SignedGroup, SignedPeerRecord

logger = logging.getLogger(__name__)

STORE_FULL_RETRY_S = 60.0  # a full disk is a matter for its owner, not of seconds
STORE_BUSY_RETRY_S = 1.0
QUEUE_FULL_RETRY_S = 2.0
STATS_KEPT_S = 1.0  # counting a full store takes milliseconds, and anybody may ask
_RESPONSE_MARGIN_BYTES = 64 * KIB  # of a message, for what surrounds the groups in it


class Phase(enum.Enum):
    """Where in its life a host is."""

    STARTING = "starting"  # answers nothing yet
    SERVING = "serving"
    DRAINING = "draining"  # gives what it has, takes nothing new


class ExchangeService:
    """Owns the answers of one host; holds its store and quotas. The server's loop is the only caller."""

    def __init__(
        self,
        store: GroupStore,
        quotas: Quotas,
        *,
        swarm_id: str,
        software_version: str,
        catalog_digests: Sequence[str],
        peer_record: Callable[[], SignedPeerRecord | None],
        swap_peers: Callable[[PeerExchange], PeerExchange],
        is_banned: Callable[[str], bool],
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
        rng: np.random.Generator,
        on_stored: Callable[[Sequence[OpenedGroup]], None] = lambda groups: None,
        backlog: Callable[[], tuple[int, int]] = lambda: (0, 0),
        wire_limits: WireLimits = DEFAULT_WIRE_LIMITS,
        call_limits: CallLimits | None = None,
    ) -> None:
        """Starts in phase STARTING.

        Args:
            store: where groups are kept.
            quotas: of callers and publishers.
            swarm_id: groups and peer records of other swarms are refused.
            software_version: shown to callers.
            catalog_digests: hex digests of the specialties that this host verifies.
            peer_record: gives this host's own signed record.
            swap_peers: takes what a caller knows and gives what it should; may raise WireError.
            is_banned: says whether a node id is banned here.
            wall_clock: Unix time in seconds.
            clock: seconds, never goes back.
            rng: draws samples.
            on_stored: told about groups that are new and committed; must return at once.
            backlog: groups and bytes that wait to be verified; beyond the queue's limits nothing new is taken.
            wire_limits: sizes of messages and of what is in them.
            call_limits: for the queue's limits.
        """
        self._store = store
        self._quotas = quotas
        self._swarm_id = swarm_id
        self._software_version = software_version
        self._catalog_digests = tuple(catalog_digests)
        self._peer_record = peer_record
        self._swap_peers = swap_peers
        self._is_banned = is_banned
        self._wall_clock = wall_clock
        self._clock = clock
        self._stats: tuple[float, StoreStats] | None = None
        self._rng = rng
        self._on_stored = on_stored
        self._backlog = backlog
        self._limits = wire_limits
        self._call_limits = call_limits or CallLimits()
        self._failing: set[str] = set()  # uses of the store that failed the last time
        self.phase = Phase.STARTING

    @property
    def wire_limits(self) -> WireLimits:
        """Sizes of messages and of what is in them."""
        return self._limits

    def charge_call(self, prefix: str) -> None:
        """Charges one call to an address prefix; raises ServiceError(QUOTA) if it has made too many."""
        refusal = self._quotas.admit_call(prefix)
        if refusal is not None:
            raise ServiceError(
                WireReason.QUOTA,
                f"too many {refusal.limit}",
                limit=refusal.limit,
                retry_after_s=refusal.retry_after_s,
            )

    def publish(self, request: PublishRequest, *, prefix: str) -> PublishResponse:
        """Takes in groups from a caller in the network `prefix`; returns one result per group, in order.

        Cheap checks come before dear ones: budget, repetition, signature and fields, ban, the publisher's
        budget. ACCEPTED is said after the commit.

        Raises:
            ServiceError: STARTING or DRAINING; STORE_BUSY if the store failed and nothing was stored.
        """
        self._require_serving()
        results: list[PublishResult | None] = [None] * len(request.groups)
        is_queue_full = self._is_queue_full()
        for i, signed in enumerate(request.groups):
            results[i] = self._refuse_unread(signed, prefix, is_queue_full=is_queue_full)
        waiting = [i for i, result in enumerate(results) if result is None]
        with self._store_errors("looking up groups"):
            ids = {i: group_id_of(request.groups[i].envelope) for i in waiting}
            unknown = set(self._store.unknown(ids.values()))
            # Of known groups nothing is read but their age: of several claims the youngest wins.
            self._store.note_ages((ids[i], request.groups[i].age_s) for i in waiting if ids[i] not in unknown)
        new: dict[bytes, tuple[int, OpenedGroup]] = {}
        for i in waiting:
            if ids[i] not in unknown or ids[i] in new:
                results[i] = PublishResult(group_id=ids[i], outcome=PublishOutcome.DUPLICATE)
                continue
            try:
                opened = open_group(request.groups[i], swarm_id=self._swarm_id, limits=self._limits)
            except WireError as error:
                results[i] = _rejected(ids[i], error.reason, field=error.field)
                continue
            results[i] = self._refuse_opened(opened)
            if results[i] is None:
                new[opened.group_id] = i, opened
        for i, result in self._put(list(new.values())):
            results[i] = result
        # The type checker cannot see that every group has its result by now.
        return PublishResponse(results=tuple(result for result in results if result is not None))

    def sample(self, request: SampleRequest) -> SampleResponse:
        """Returns random groups of the store; fewer than asked if fewer pass or fit into one message.

        Raises:
            ServiceError: STARTING, STORE_BUSY.
        """
        self._require_started()
        with self._store_errors("sampling groups"):
            drawn = self._store.sample(
                request.count,
                rng=self._rng if request.seed is None else np.random.default_rng(request.seed),
                datasets=request.datasets or None,
                max_age_s=request.max_age_s,
                excluded_publishers=request.excluded_publishers,
                max_bytes=self._response_bytes,
            )
        return SampleResponse(groups=tuple(group.signed for group in drawn), stored_groups=self._recent_stats().groups)

    def list_groups(self, request: ListRequest) -> GroupRefPage:
        """Returns a page of references in order of arrival.

        Raises:
            ServiceError: STARTING, STORE_BUSY; UNKNOWN_CURSOR with the place to start over from.
        """
        self._require_started()
        with self._store_errors("listing groups"):
            return self._store.refs(request.cursor, request.max_references, datasets=request.datasets or None)

    def get_groups(self, request: GetRequest) -> GetResponse:
        """Returns groups by id, as far as they are held, whole and fit into one message.

        Raises:
            ServiceError: STARTING, STORE_BUSY.
        """
        self._require_started()
        with self._store_errors("reading groups"):
            found = self._store.get(request.group_ids, max_bytes=self._response_bytes)
            held = set(self._store.held(request.group_ids))  # after reading: damaged ones are gone by now
        read = {group.group_id for group in found}
        return GetResponse(
            groups=tuple(group.signed for group in found),
            missing_group_ids=tuple(each for each in request.group_ids if each not in held and each not in read),
            deferred_group_ids=tuple(each for each in request.group_ids if each in held and each not in read),
        )

    def node_info(self, *, is_busy: bool) -> NodeInfo:
        """Returns what this host says about itself; answers while draining too.

        Raises:
            ServiceError: STARTING, STORE_BUSY.
        """
        self._require_started()
        stats = self._recent_stats()
        if self.phase is Phase.DRAINING:
            load_level = LoadLevel.DRAINING
        else:
            load_level = LoadLevel.BUSY if is_busy or self._is_queue_full() else LoadLevel.NORMAL
        return NodeInfo(
            swarm_id=self._swarm_id,
            software_version=self._software_version,
            schema_minor=SCHEMA_MINOR,
            epoch=self._store.epoch,
            stored_groups=stats.groups,
            stored_publishers=stats.publishers,
            load_level=load_level,
            read_unix_s=self._wall_clock(),
            max_message_bytes=self._limits.max_message_bytes,
            max_publish_groups=self._limits.max_publish_groups,
            catalog_digests=self._catalog_digests,
            peer_record=self._peer_record(),
        )

    def exchange_peers(self, request: PeerExchange) -> PeerExchange:
        """Swaps peer records with a caller.

        Raises:
            ServiceError: STARTING, DRAINING.
            WireError: a record does not hold.
        """
        self._require_serving()
        return self._swap_peers(request)

    # Inside the calls.

    @property
    def _response_bytes(self) -> int:
        return self._limits.max_message_bytes - _RESPONSE_MARGIN_BYTES

    def _recent_stats(self) -> StoreStats:
        now_s = self._clock()
        if self._stats is None or now_s - self._stats[0] >= STATS_KEPT_S:
            with self._store_errors("counting groups"):
                self._stats = now_s, self._store.stats()
        return self._stats[1]

    def _refuse_unread(self, signed: SignedGroup, prefix: str, *, is_queue_full: bool) -> PublishResult | None:
        """Returns why a group is rejected before anything in it is read, or None."""
        envelope = signed.envelope
        refusal = self._quotas.admit_sent(prefix, len(envelope.payload))
        if refusal is not None:
            return _rejected(b"", WireReason.QUOTA, retry_after_s=refusal.retry_after_s)
        if is_queue_full:
            return _rejected(b"", WireReason.QUEUE_FULL, retry_after_s=QUEUE_FULL_RETRY_S)
        if len(envelope.payload) > self._limits.max_payload_bytes:  # not worth hashing
            return _rejected(b"", WireReason.TOO_LARGE, field="payload")
        try:
            check_bytes(envelope.public_key, PUBLIC_KEY_BYTES, "public_key")
        except WireError as error:
            return _rejected(b"", error.reason, field=error.field)
        return None

    def _refuse_opened(self, group: OpenedGroup) -> PublishResult | None:
        """Returns why a new and valid group is rejected all the same, or None."""
        if self._is_banned(group.publisher):
            return _rejected(group.group_id, WireReason.BANNED)
        refusal = self._quotas.admit_group(group.publisher, group.size_bytes)
        if refusal is not None:
            return _rejected(group.group_id, WireReason.QUOTA, retry_after_s=refusal.retry_after_s)
        return None

    def _put(self, new: Sequence[tuple[int, OpenedGroup]]) -> Iterator[tuple[int, PublishResult]]:
        if not new:
            return
        groups = [group for _, group in new]
        try:
            with self._store_errors("storing groups"):
                outcomes = self._store.put(groups)
        except StoreFullError:
            outcomes = [
                _rejected(group.group_id, WireReason.STORE_FULL, retry_after_s=STORE_FULL_RETRY_S) for group in groups
            ]
        stored = [g for g, outcome in zip(groups, outcomes, strict=True) if outcome.outcome is PublishOutcome.ACCEPTED]
        if stored:
            self._on_stored(stored)
        for (i, _), outcome in zip(new, outcomes, strict=True):
            yield i, outcome

    def _is_queue_full(self) -> bool:
        with self._store_errors("counting what waits"):
            groups, size_bytes = self._backlog()
        return groups >= self._call_limits.max_queued_groups or size_bytes >= self._call_limits.max_queued_bytes

    def _require_started(self) -> None:
        if self.phase is Phase.STARTING:
            raise ServiceError(WireReason.STARTING, "this host is starting", retry_after_s=1.0)

    def _require_serving(self) -> None:
        self._require_started()
        if self.phase is Phase.DRAINING:
            raise ServiceError(WireReason.DRAINING, "this host is about to stop")

    @contextmanager
    def _store_errors(self, use: str) -> Generator[None]:
        """Turns what the store raises in `use` into what a caller may read; StoreFullError passes."""
        try:
            yield
        except UnknownCursorError as error:
            raise ServiceError(WireReason.UNKNOWN_CURSOR, str(error), oldest_cursor=error.oldest) from error
        except StoreError as error:
            self._log_failure(use, error)
            if isinstance(error, StoreFullError):
                raise
            if isinstance(error, StoreDamagedError):
                raise ServiceError(WireReason.DATA_LOSS, "the store is damaged") from error
            raise ServiceError(
                WireReason.STORE_BUSY, "the store cannot be used now", retry_after_s=STORE_BUSY_RETRY_S
            ) from error
        self._failing.discard(use)

    def _log_failure(self, use: str, error: StoreError) -> None:
        """Logs once until `use` succeeds again: anybody may call, and a log must not fill the disk that is full."""
        if use not in self._failing:
            self._failing.add(use)
            logger.error("%s fails, which is not logged again until it succeeds: %s", use, error)


def _rejected(group_id: bytes, reason: WireReason, *, field: str = "", retry_after_s: float = 0.0) -> PublishResult:
    return PublishResult(
        group_id=group_id,
        outcome=PublishOutcome.REJECTED,
        reason=reason,
        field=field,
        retry_after_s=retry_after_s,
    )
