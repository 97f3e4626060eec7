"""Peers that are no help: dead ones, silent ones and slow ones, on ports of this machine.

    python -m scripts.faults.step_peers --slow=6

The slow ones are real hosts behind lines that hold back every piece of data; they live in a process of
their own, which writes their addresses to standard output and ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.mesh.network_host import HostLimits, NetworkHost
from sapo_jax.swarm.mesh.peers import PeerLimits
from sapo_jax.swarm.wire.identity import Identity
from scripts.faults.figures import ROOT

SWARM = "loopback"  # how hosts of one machine that name no swarm call theirs
LOOPBACK = "127.0.0.1"
START_S = 60.0
# One way, of the nearest slow peer and of each further one. A call must be answered in 2 to 10 s, so the near
# ones can be reached and then fail with what is large, and the far ones fail with everything.
FIRST_DELAY_S, MORE_DELAY_S = 0.2, 0.2
CHUNK_BYTES = 1024  # that pass in one delay
_MAX_QUEUE = 16  # connections that a silent port takes before it drops what comes


@contextlib.contextmanager
def dead_peers(count: int) -> Iterator[list[str]]:
    """Yields addresses of this machine that refuse every connection."""
    with contextlib.ExitStack() as held:
        yield [_address(held.enter_context(_bound())) for _ in range(count)]  # bound, so that nobody else listens


@contextlib.contextmanager
def silent_peers(count: int) -> Iterator[list[str]]:
    """Yields addresses that never say anything: half drop every packet, half take it in and do not answer."""
    with contextlib.ExitStack() as held:
        addresses: list[str] = []
        for i in range(count):
            listener = held.enter_context(_bound())
            listener.listen(0 if i % 2 == 0 else 128)
            addresses.append(_address(listener))
            if i % 2 == 0:
                _fill(listener, held)
        yield addresses


@contextlib.contextmanager
def slow_peers(count: int) -> Iterator[list[str]]:
    """Yields addresses of hosts that can only be reached over lines of seconds and a few KiB/s."""
    command = [sys.executable, "-m", "scripts.faults.step_peers", f"--slow={count}"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _bound() -> socket.socket:
    made = socket.socket()
    made.bind((LOOPBACK, 0))
    return made


def _address(of: socket.socket) -> str:
    return f"{LOOPBACK}:{of.getsockname()[1]}"


def _fill(listener: socket.socket, held: contextlib.ExitStack) -> None:
    """Uses up the queue of a port that accepts nobody; the system then drops whoever else wants to connect."""
    for _ in range(_MAX_QUEUE):
        caller = held.enter_context(socket.socket())
        caller.settimeout(0.3)
        try:
            caller.connect(listener.getsockname())
        except TimeoutError:
            return
    raise RuntimeError(
        f"{_address(listener)}: this system queues more than {_MAX_QUEUE} connections, so none is dropped"
    )


async def _serve(count: int) -> None:
    """Runs the slow hosts until standard input ends."""
    async with contextlib.AsyncExitStack() as running:
        addresses: list[str] = []
        for i in range(count):
            outside = _bound()
            with _bound() as probe:
                inside = _address(probe)  # free again when the host wants it
            host = NetworkHost(
                Identity.generate(),
                swarm_id=SWARM,
                trust=Trust(mode=TrustMode.INSECURE_LOOPBACK),
                listen=inside,
                advertise=[_address(outside)],
                directory=None,
                limits=HostLimits(peers=PeerLimits(active=0)),  # it is called and calls nobody
            )
            running.callback(partial(host.close, flush_s=0.0, grace_s=0.0))
            delay_s = FIRST_DELAY_S + i * MORE_DELAY_S
            line = await asyncio.start_server(partial(_carry, inside, delay_s), sock=outside)
            running.callback(line.close)
            addresses.append(_address(outside))
        print(json.dumps(addresses), flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def _carry(inside: str, delay_s: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Joins a caller and a host by a slow line."""
    host, _, port = inside.rpartition(":")
    with contextlib.suppress(OSError, asyncio.CancelledError):  # at the end of the process all lines are cut
        to_host = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_one_way(reader, to_host[1], delay_s), _one_way(to_host[0], writer, delay_s))


async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    try:
        while data := await reader.read(CHUNK_BYTES):
            await asyncio.sleep(delay_s)
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--slow", required=True, type=int, help="how many hosts")
    asyncio.run(_serve(parser.parse_args().slow))
