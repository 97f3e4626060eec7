"""The thread that turns stored foreign groups into verified rollouts, within its share of one core.

It follows the store in order of arrival, lets publishers take turns, has each group judged by the
given verifier and hands the verdict on. Nothing waits for it: the network only stores, and training
takes what is ready.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sapo_jax.swarm.calls.quota import BucketTable
from sapo_jax.swarm.inbox import Inbox
from sapo_jax.swarm.mesh.scores import REJECTION_WEIGHTS, Scores
from sapo_jax.swarm.selection import is_informative
from sapo_jax.swarm.store.file import StoreError
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.records import StoredGroup
from sapo_jax.swarm.store.retention import GroupState
from sapo_jax.swarm.verify_queue import VerifyQueue, WaitingGroup
from sapo_jax.swarm.wire.errors import WireError
from sapo_jax.swarm.wire.signed_content import SignedGroup
from sapo_jax.types import Rejection, RejectionReason, Rollout, ScoredRollout

logger = logging.getLogger(__name__)

Verify = Callable[[Sequence[Rollout]], Sequence[ScoredRollout | Rejection]]

_READ_GROUPS = 256
_READ_BYTES = 8 * 2**20
_IDLE_S = 0.5  # between two looks at the store when nobody says that something came
_LEAST_WAIT_S = 0.001
_BURST_S = 8.0  # busy seconds that may be spent at once: more than a group may cost
# Publishers of whom no cheap group was verified yet have a small budget of their own, so that many new ones
# with dear groups cannot keep the others waiting; beyond it they get what the others leave.
_CHEAP_S = 1.0  # a group that cost less is cheap
_UNPROVEN_FRAC = 0.25  # of the core share
_UNPROVEN_BURST_S = 4.0
# What a group may cost at most, its whole budget and the start of a new scorer process; left in the budget of the
# proven before others may use it.
_RESERVE_S = 6.0
_EXPENSIVE = frozenset({RejectionReason.TIMEOUT, RejectionReason.WORKER_DIED})
MAX_PUBLISHERS = 4096  # counted apart
_PAUSE_S = 15.0  # of a publisher whose group used up its budget; twice as long each time


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyLimits:
    """How much verification of foreign groups may cost and how many groups may wait for it."""

    core_share: float = 0.25  # of one core, on average
    max_waiting: int = 768
    max_waiting_bytes: int = 48 * 2**20  # of those groups


class Verifying:
    """Owns the verifying thread and its queue."""

    def __init__(
        self,
        store: GroupStore,
        inbox: Inbox,
        scores: Scores,
        verify: Verify,
        *,
        open_stored: Callable[[SignedGroup], Rollout],
        own_ids: Collection[str],
        catalog_digests: Collection[str],
        on_informative: Callable[[StoredGroup], None],
        limits: VerifyLimits,
        clock: Callable[[], float],
        busy_s: Callable[[], float] | None = None,
    ) -> None:
        """Makes the thread without starting it.

        Args:
            store: followed and marked.
            inbox: gets what is verified.
            scores: publishers of rejected groups lose points.
            verify: judges rollouts, in order; called in this thread only.
            open_stored: gives the rollout of a stored group; raises WireError.
            own_ids: publishers whose groups are ours.
            catalog_digests: hex digests that `verify` knows; a task it cannot rebuild under one of them is
                the publisher's fault.
            on_informative: told about every group worth relaying.
            limits: cost and length.
            clock: monotonic, in seconds.
            busy_s: CPU seconds that `verify` has used so far, new scorer processes included, which is what groups
                are charged; without, the time on `clock`.
        """
        self._store = store
        self._inbox = inbox
        self._scores = scores
        self._verify = verify
        self._open_stored = open_stored
        self._own_ids = frozenset(own_ids)
        self._catalog_digests = frozenset(catalog_digests)
        self._on_informative = on_informative
        self._busy_s = busy_s or clock
        self._queue = VerifyQueue(max_groups=limits.max_waiting, max_bytes=limits.max_waiting_bytes, clock=clock)
        share = limits.core_share
        self._budget = BucketTable(per_s=(1 - _UNPROVEN_FRAC) * share, burst=_BURST_S, clock=clock)
        self._unproven_budget = BucketTable(per_s=_UNPROVEN_FRAC * share, burst=_UNPROVEN_BURST_S, clock=clock)
        self._proven: OrderedDict[str, None] = OrderedDict()  # publishers whose last group was verified and cheap
        self._generation = -1
        self._timeouts: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self.by_publisher: Counter[str] = Counter()  # verified groups
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sapo-verify", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def nudge(self) -> None:
        """Says that the store has something new; any thread may call."""
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread after the group at hand, waiting for it at most `timeout_s`."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def backlog(self) -> tuple[int, int]:
        """Returns how many stored groups are not verified yet, and their bytes; any thread may call.

        The queue gives way by itself; beyond its bounds is what the thread has not come to read.
        """
        groups, size_bytes = self._store.size_after(self._inbox.position()[1])
        return len(self._queue) + groups, self._queue.size_bytes + size_bytes

    def counts(self) -> dict[str, int]:
        """Returns verdicts so far: `verified` and `rejected_<reason>`."""
        return dict(self._counts)

    def step(self) -> float:
        """Does one piece of work; returns the seconds after which there may be more, 0 for at once."""
        self._read()
        wait_s, unproven_wait_s = self._budget.wait_s("", 0.0), self._unproven_budget.wait_s("", 0.0)
        reserve_wait_s = self._budget.wait_s("", _RESERVE_S)
        waiting, budget = None, self._budget
        if unproven_wait_s == 0:
            waiting = self._queue.next(lambda publisher: wait_s == 0 or publisher not in self._proven)
            if waiting is not None and waiting.publisher not in self._proven:
                budget = self._unproven_budget
        elif wait_s == 0:
            waiting = self._queue.next(self._proven.__contains__)
            if waiting is None and reserve_wait_s == 0:
                waiting = self._queue.next()
        if waiting is None:
            waits_s = [each for each in (wait_s, unproven_wait_s, reserve_wait_s) if each > 0]
            return max(_LEAST_WAIT_S, min(waits_s, default=_IDLE_S))
        try:
            self._judge(waiting, budget)
        finally:
            # Also after a failure: nobody waits for this group any more.
            self._inbox.settle(self._generation, waiting.seq, None)
        return 0.0

    def _run(self) -> None:
        is_failing = False
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                wait_s = self.step()
                is_failing = False
            except Exception:  # a broken store or verifier: training goes on without foreign groups
                if self._stopping.is_set():
                    return
                if not is_failing:
                    logger.exception("foreign groups cannot be verified now; further failures are not logged")
                is_failing, wait_s = True, 1.0
            if wait_s > 0:
                self._wake.wait(min(wait_s, _IDLE_S))

    def _read(self) -> None:
        """Follows the store into the queue, up to a batch."""
        generation, seq = self._inbox.position()
        if generation != self._generation:
            self._generation = generation
            self._queue.clear()
        groups = self._store.after(seq, _READ_GROUPS, max_bytes=_READ_BYTES)
        if not groups:
            return
        wanted = set(self._inbox.begin(generation, groups[-1].seq, [group.seq for group in groups]))
        for group in groups:
            if group.seq not in wanted:
                continue
            if group.publisher in self._own_ids:
                self._inbox.settle(generation, group.seq, None)
                continue
            waiting = WaitingGroup(
                seq=group.seq, group_id=group.group_id, publisher=group.publisher, size_bytes=group.size_bytes
            )
            for dropped in self._queue.add(waiting):
                self._inbox.miss(generation, dropped.seq)

    def _judge(self, waiting: WaitingGroup, budget: BucketTable) -> None:
        """Verifies one group, charges `budget` and hands the verdict to store, inbox and scores."""
        found = self._store.get([waiting.group_id])
        if not found or self._scores.is_banned(waiting.publisher):
            return
        (stored,) = found
        try:
            rollout = self._open_stored(stored.signed)
        except WireError:  # kept under other limits, or by another version
            return
        started_s = self._busy_s()
        try:
            (verdict,) = self._verify([rollout])
        finally:
            busy_s = self._busy_s() - started_s
            budget.take("", busy_s)
            self._queue.charge(waiting.publisher, busy_s)
            self._proven.pop(waiting.publisher, None)
        if isinstance(verdict, Rejection):
            self._reject(stored, verdict)
            return
        if busy_s < _CHEAP_S:
            self._proven[waiting.publisher] = None
            if len(self._proven) > MAX_PUBLISHERS:
                self._proven.popitem(last=False)
        self._counts["verified"] += 1
        _count(self.by_publisher, waiting.publisher)
        self._timeouts.pop(waiting.publisher, None)
        self._inbox.settle(self._generation, waiting.seq, verdict)
        informative = is_informative(verdict.scores)
        try:
            self._store.mark([stored.group_id], GroupState.INFORMATIVE if informative else GroupState.UNINFORMATIVE)
        except StoreError as error:
            logger.debug("a verdict is not kept: %s", error)
        if informative:
            self._scores.useful(waiting.publisher)
            self._on_informative(stored)

    def _reject(self, stored: StoredGroup, verdict: Rejection) -> None:
        reason, publisher = verdict.reason, stored.publisher
        self._counts[f"rejected_{reason.value}"] += 1
        weight = REJECTION_WEIGHTS[reason]
        if reason is RejectionReason.UNKNOWN_TASK and verdict.rollout.task_ref.config_digest in self._catalog_digests:
            weight = 1.0  # our own catalog, so no such item exists
        self._scores.invalid(publisher, weight)
        if reason in _EXPENSIVE:
            _count(self._timeouts, publisher)
            self._queue.pause(publisher, _PAUSE_S * 2.0 ** min(self._timeouts[publisher] - 1, 6))
        self._store.mark([stored.group_id], GroupState.REJECTED)


def _count(counter: Counter[str], publisher: str) -> None:
    """Counts one of a publisher; a stranger with many keys must not fill the memory."""
    if publisher not in counter and len(counter) >= MAX_PUBLISHERS:
        del counter[min(counter, key=lambda name: counter[name])]
    counter[publisher] += 1
