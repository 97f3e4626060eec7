"""TCP proxies in front of hosts on this machine that can cut one side of the swarm off from the other.

Hosts advertise the address of their proxy. Who dials is looked up in /proc, so hosts need not cooperate
and the connections within a side are never touched. A cut is silent: connections stay open, new ones are
accepted, and nothing passes. A connection that was cut stays dead after the cut has ended, as behind a
firewall that has forgotten it; only new ones work, so hosts must find out by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sapo_jax.swarm.mesh.loop_thread import LoopThread
from sapo_jax.swarm.wire.addresses import split_address

CHUNK_BYTES = 65536


@dataclass(eq=False, slots=True)
class _Flow:
    crosses: bool  # from one side to the other
    is_dead: bool = False


class CutProxy:
    """Owns one listening port for each host; `cut` and `heal` may be called from any thread."""

    def __init__(self, targets: Sequence[str], sides: Sequence[int], pids: Callable[[], Sequence[int | None]]) -> None:
        """Listens; everything passes.

        Args:
            targets: "host:port" where each host listens.
            sides: which side each host is on.
            pids: returns the process of each host now.
        """
        self._sides = tuple(sides)
        self._pids = pids
        self._is_cut = False
        self._flows: set[_Flow] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.killed = 0  # connections that a cut met
        self.held = 0  # connections that were opened across a cut
        self.unknown = 0  # that nobody known had opened
        self._loop = LoopThread("cut proxy")
        self._servers = self._loop.run(self._listen(targets))
        ports = [server.sockets[0].getsockname()[1] for server in self._servers]
        self.addresses = tuple(f"127.0.0.1:{port}" for port in ports)

    def cut(self) -> None:
        """Lets nothing more pass between the sides, from when this returns."""
        self._loop.run(self._set_cut(True))

    def heal(self) -> None:
        """Lets new connections between the sides pass again."""
        self._loop.run(self._set_cut(False))

    def close(self) -> None:
        """Ends all connections."""
        self._loop.run(self._close())
        self._loop.stop()

    async def _set_cut(self, is_cut: bool) -> None:
        self._is_cut = is_cut
        if is_cut:
            for flow in self._flows:
                self.killed += flow.crosses and not flow.is_dead
                flow.is_dead = flow.is_dead or flow.crosses

    async def _listen(self, targets: Sequence[str]) -> list[asyncio.Server]:
        def serving(index: int, target: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
            def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = asyncio.create_task(self._serve(index, target, reader, writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

            return serve

        return [await asyncio.start_server(serving(i, target), "127.0.0.1", 0) for i, target in enumerate(targets)]

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, index: int, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes one connection to the host at `index` on, until both ends are closed."""
        pids = self._pids()
        dialer = who_dials(writer.get_extra_info("peername")[1], writer.get_extra_info("sockname")[1], pids)
        if dialer is None:  # it hung up at once, or is none of the hosts
            self.unknown += 1
            writer.close()
            return
        crosses = self._sides[dialer] != self._sides[index]
        flow = _Flow(crosses, is_dead=crosses and self._is_cut)
        self.held += flow.is_dead
        self._flows.add(flow)
        ends = [writer]
        try:
            if flow.is_dead:
                await self._pump(flow, reader, writer)
                return
            host, port = split_address(target)
            there, onward = await asyncio.open_connection(host, port)
            ends.append(onward)
            await asyncio.gather(self._pump(flow, reader, onward), self._pump(flow, there, writer))
        except OSError:  # the host is not there
            return
        finally:
            self._flows.discard(flow)
            for end in ends:
                end.close()

    async def _pump(self, flow: _Flow, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Passes bytes on until the source ends; those of a dead flow are swallowed, its end included."""
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                if not flow.is_dead:
                    sink.write(data)
                    await sink.drain()
        if not flow.is_dead:
            sink.close()


def who_dials(port: int, proxy_port: int, pids: Sequence[int | None]) -> int | None:
    """Returns which of `pids` holds the connection from `port` to `proxy_port` of this machine, None if none does."""
    inode = _inode(port, proxy_port)
    if inode is None:
        return None
    for index, pid in enumerate(pids):
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):  # closed meanwhile
                    if os.readlink(f"/proc/{pid}/fd/{number}") == f"socket:[{inode}]":
                        return index
    return None


def _inode(port: int, remote_port: int) -> str | None:
    """Returns the socket of this machine's end `port`, which may be an IPv6 one that speaks IPv4."""
    for table, address in (("tcp", "0100007F"), ("tcp6", "0000000000000000FFFF00000100007F")):
        with open(f"/proc/net/{table}", encoding="ascii") as file:
            for line in file:
                fields = line.split()
                if fields[1:3] == [f"{address}:{port:04X}", f"{address}:{remote_port:04X}"]:
                    return fields[9]
    return None
