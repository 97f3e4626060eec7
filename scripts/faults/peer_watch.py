"""Looks from outside at which groups hosts give out, as any member of the swarm may ask them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from sapo_jax.swarm.calls.client_pool import ClientPool
from sapo_jax.swarm.calls.invite import Invite
from sapo_jax.swarm.calls.peer_client import CallError, PeerClient
from sapo_jax.swarm.mesh.joining import plan_joining
from sapo_jax.swarm.mesh.loop_thread import LoopThread
from sapo_jax.swarm.wire.errors import WireError
from sapo_jax.swarm.wire.group_codec import open_group
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS
from sapo_jax.swarm.wire.requests import GetRequest, GroupCursor, ListRequest
from sapo_jax.swarm.wire.signed_content import OpenedGroup

ASK_S = 30.0  # for all calls of one look


class PeerWatch:
    """Owns one connection per host; `look` returns what a host has taken in since the look before."""

    def __init__(self, workdir: Path, invites: Mapping[str, Path]) -> None:
        """Becomes a member of the swarm that only asks.

        Args:
            workdir: of its own files.
            invites: the invite each host wrote, by the host's name.
        """
        now = datetime.datetime.now(datetime.UTC)
        joining = plan_joining(workdir, invite_path=next(iter(invites.values())), now=now)
        self._swarm_id = joining.swarm_id
        self._cursors: dict[str, GroupCursor] = {}
        self._known: dict[bytes, OpenedGroup] = {}  # of one host, so that no other is asked for it again
        self._loop = LoopThread("peer watch")
        self._pool = ClientPool(
            joining.trust,
            sleep=asyncio.sleep,
            rng=np.random.default_rng(),
            now=lambda: datetime.datetime.now(datetime.UTC),
        )
        self._clients = self._loop.run(self._connect({name: Invite.load(path, now) for name, path in invites.items()}))

    def skip(self, names: Sequence[str]) -> None:
        """Passes over what these hosts hold now."""
        self._known.clear()
        self._loop.run(self._all(names, fetches=False), ASK_S)

    def look(self, names: Sequence[str]) -> dict[str, list[OpenedGroup]]:
        """Returns the groups each of these hosts has taken in since the last look; a silent host has none."""
        return self._loop.run(self._all(names, fetches=True), ASK_S)

    def close(self) -> None:
        """Hangs up."""
        self._loop.run(self._pool.close())
        self._loop.stop()

    def __enter__(self) -> PeerWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _connect(self, invites: Mapping[str, Invite]) -> dict[str, PeerClient]:
        return {name: self._pool.connect(invite.addresses[0], invite.certificate) for name, invite in invites.items()}

    async def _all(self, names: Sequence[str], *, fetches: bool) -> dict[str, list[OpenedGroup]]:
        found = await asyncio.gather(*(self._new_groups(name, fetches=fetches) for name in names))
        return dict(zip(names, found, strict=True))

    async def _new_groups(self, name: str, *, fetches: bool) -> list[OpenedGroup]:
        client = self._clients[name]
        new: list[OpenedGroup] = []
        with contextlib.suppress(CallError):  # asked again at the next look
            while True:
                request = ListRequest(max_references=256, cursor=self._cursors.get(name))
                page = await client.list_groups(request)
                ids = [reference.group_id for reference in page.references] if fetches else []
                for start in range(0, len(ids), DEFAULT_WIRE_LIMITS.max_get_groups):
                    await self._fetch(client, ids[start : start + DEFAULT_WIRE_LIMITS.max_get_groups])
                new += [self._known[group_id] for group_id in ids if group_id in self._known]
                self._cursors[name] = page.next_cursor
                if len(page.references) < request.max_references:
                    break
        return new

    async def _fetch(self, client: PeerClient, ids: Sequence[bytes]) -> None:
        unknown = tuple(group_id for group_id in ids if group_id not in self._known)
        if not unknown:
            return
        for signed in (await client.get_groups(GetRequest(group_ids=unknown))).groups:
            with contextlib.suppress(WireError):  # expired on the way
                group = open_group(signed, swarm_id=self._swarm_id)
                self._known[group.group_id] = group
