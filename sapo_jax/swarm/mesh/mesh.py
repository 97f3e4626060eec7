"""The mesh without a coordinator: which of a host's network activities happens when.

Dialing, pushing, pulling, repairing and swapping peer records are steps of other modules; here they
recur, each in a task of its own. A step that fails is logged once and tried again later: nothing a
peer does ends a task, and no peer at all is a normal state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np

from sapo_jax.swarm.mesh.fetch import Fetcher
from sapo_jax.swarm.mesh.links import Links
from sapo_jax.swarm.mesh.membership import Membership
from sapo_jax.swarm.mesh.peers import Peer, PeerBook
from sapo_jax.swarm.mesh.push import Pusher

logger = logging.getLogger(__name__)

MAX_STEP_BACKOFF_S = 30.0
MAX_QUIET_PULL_S = 30.0  # the longest pause between pulls that bring nothing new


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshTimes:
    """Seconds between two of the same activity; each pause is drawn up to a quarter shorter or longer."""

    dial_s: float = 0.5  # looking whether somebody is due; the book's back-off decides who
    push_s: float = 1.0  # at the latest; a published group is pushed at once
    pull_s: float = 5.0  # longer while pulls bring nothing new
    repair_s: float = 60.0
    exchange_s: float = 30.0
    replace_s: float = 60.0


class Mesh:
    """Owns the tasks; everything runs on one loop."""

    def __init__(
        self,
        book: PeerBook,
        links: Links,
        membership: Membership,
        pusher: Pusher,
        fetcher: Fetcher,
        *,
        times: MeshTimes,
        sleep: Callable[[float], Awaitable[None]],
        rng: np.random.Generator,
    ) -> None:
        """Joins the parts; `run` starts the tasks, `sleep` waits on the loop for some seconds."""
        self._book = book
        self._links = links
        self._membership = membership
        self._pusher = pusher
        self._fetcher = fetcher
        self._times = times
        self._sleep = sleep
        self._rng = rng
        self._push_now = asyncio.Event()
        self._dial_now = asyncio.Event()
        self._welcomes: set[asyncio.Task[None]] = set()
        self._quiet_pull_s = times.pull_s
        self._failing: set[str] = set()  # steps whose failure has been logged

    async def run(self) -> None:
        """Runs all activities until it is cancelled."""
        times = self._times
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._recur("dial", self.dial_once, lambda: times.dial_s, self._dial_now))
                group.create_task(self._recur("push", self._pusher.push_once, lambda: times.push_s, self._push_now))
                group.create_task(self._recur("pull", self.pull_once, lambda: self._quiet_pull_s))
                group.create_task(self._recur("repair", self.repair_once, lambda: times.repair_s))
                group.create_task(self._recur("exchange", self.exchange_once, lambda: times.exchange_s))
                group.create_task(self._recur("replace", self.replace_once, lambda: times.replace_s))
        finally:
            for task in list(self._welcomes):
                task.cancel()
            await asyncio.gather(*self._welcomes, return_exceptions=True)
            await self._pusher.stop()

    def nudge_push(self) -> None:
        """Makes the next push happen now; call it on the loop."""
        self._push_now.set()

    async def dial_once(self) -> None:
        """Dials whoever is due, all at the same time, and lets go of peers with low scores."""
        self._book.drop_unwanted()
        await self._links.prune()
        await asyncio.gather(*(self._dial(peer) for peer in self._book.to_dial()))

    async def pull_once(self) -> None:
        """Pulls from a random peer, less and less often while nothing new comes."""
        new = await self._fetcher.pull_once()
        longest = max(MAX_QUIET_PULL_S, self._times.pull_s)
        self._quiet_pull_s = self._times.pull_s if new else min(longest, 1.5 * self._quiet_pull_s)

    async def repair_once(self) -> None:
        """Repairs with a random peer."""
        self._fetcher.forget({peer.node_id for peer in self._book.peers()})
        await self._fetcher.repair_once()

    async def exchange_once(self, peer: Peer | None = None) -> None:
        """Swaps peer records with one peer, by default a random one."""
        peer = peer or next(iter(self._links.ready()), None)
        if peer is None:
            return
        offer = self._membership.offer()
        answer = await self._links.call(peer, lambda client: client.exchange_peers(offer))
        if answer is not None:
            self._membership.take(answer.peer_records, peer.node_id)

    async def replace_once(self) -> None:
        """Lets go of one random peer if another waits."""
        if self._book.replace_one() is not None:
            self._dial_now.set()

    async def welcome(self, peer: Peer) -> None:
        """Gets up to date with a peer that has just been reached: groups first, then records and what was missed."""
        self._push_now.set()
        await self._fetcher.pull_once(peer)
        await self.exchange_once(peer)
        await self._fetcher.repair_once(peer)

    async def _dial(self, peer: Peer) -> None:
        active = await self._links.dial(peer)
        if active is not None:
            task = asyncio.create_task(self._guarded(f"welcome of {active.name}", self.welcome(active)))
            self._welcomes.add(task)
            task.add_done_callback(self._welcomes.discard)

    async def _guarded(self, name: str, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except Exception:  # whatever it is, the mesh goes on
            logger.exception("%s failed", name)

    async def _recur(
        self,
        name: str,
        step: Callable[[], Awaitable[None]],
        period_s: Callable[[], float],
        wake: asyncio.Event | None = None,
    ) -> None:
        """Does `step` for ever, with a pause in between that `wake` cuts short."""
        failures = 0
        while True:
            if wake is not None:
                wake.clear()
            try:
                await step()
                failures = 0
                self._failing.discard(name)
            except Exception:  # a defect of ours or a broken store: other activities, and training, go on
                failures += 1
                if name not in self._failing:
                    self._failing.add(name)
                    logger.exception("%s failed; it is tried again, further failures in a row are not logged", name)
            pause_s = period_s() * (0.75 + 0.5 * float(self._rng.random()))
            if failures:
                await self._sleep(min(MAX_STEP_BACKOFF_S, max(pause_s, 2.0 ** min(failures, 10) * 0.5)))
            else:
                await self._pause(pause_s, wake)

    async def _pause(self, seconds: float, wake: asyncio.Event | None) -> None:
        if wake is None:
            await self._sleep(seconds)
            return

        async def woken() -> None:
            await wake.wait()

        waits = {asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(woken())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
