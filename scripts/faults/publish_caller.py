"""Callers that hand one host more than it takes: `python -m scripts.faults.publish_caller --invite=FILE ...`.

Its groups are valid and signed before it says "ready"; at a line on standard input it begins. Each
caller offers one body after the other and, refused, the same one again `PAUSE_S` later, whatever it
was told. With `--hold_s` the callers send their bodies but for the end, wait so long, and send the rest.
What they saw goes to standard output as one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sapo_jax.swarm.calls.certificate import TLS_NAME, pem_of
from sapo_jax.swarm.calls.grpc_server import SERVICE
from sapo_jax.swarm.calls.invite import Invite
from sapo_jax.swarm.calls.status_codes import DETAIL_KEY
from sapo_jax.swarm.calls.trust import TOKEN_HEADER
from sapo_jax.swarm.wire.addresses import split_address
from sapo_jax.swarm.wire.codec_parts import error_detail_from_message
from sapo_jax.swarm.wire.errors import STATUS_CODE, WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.group_calls_codec import publish_request_to_message, publish_response_from_message
from sapo_jax.swarm.wire.limits import DEADLINES, DEFAULT_WIRE_LIMITS, CallLimits
from sapo_jax.swarm.wire.requests import PublishOutcome, PublishRequest
from sapo_jax.swarm.wire.signed_content import SignedGroup
from scripts.bench_exchange import make_groups

PAUSE_S = 0.4
KEPT_BACK_BYTES = 64 * 1024  # of a body that is held; more than lies in buffers on the way
CALLS_OF_CONNECTION = CallLimits().max_calls_per_peer


@dataclass(kw_only=True)
class Seen:
    """What the callers of one process saw.

    Attributes:
        offered: groups in all calls that were made.
        accepted: groups that are stored now.
        known: groups that were stored before.
        late: groups whose request did not arrive in the time that the host gives it.
        refused: groups refused for now with a retry hint, in the class RESOURCE_EXHAUSTED, by reason.
        wrong: what must not be: other refusals, and refusals without a hint, by how they look.
        admitted_s: seconds of each call of which some group was accepted.
    """

    offered: int = 0
    accepted: int = 0
    known: int = 0
    late: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    wrong: Counter[str] = field(default_factory=Counter[str])
    admitted_s: list[float] = field(default_factory=list[float])

    def refuse(self, reason: str, code: str, retry_after_s: float, groups: int) -> None:
        """Notes groups that were refused together."""
        if reason == WireReason.TIMEOUT.value:
            self.late += groups
        elif code == "RESOURCE_EXHAUSTED" and retry_after_s > 0:
            self.refused[reason] += groups
        else:
            self.wrong[f"{code} {reason}, retry after {retry_after_s:g} s"] += groups


def merged(all_seen: Sequence[Seen]) -> Seen:
    """Returns what several processes saw together."""
    total = Seen()
    for seen in all_seen:
        total.offered += seen.offered
        total.accepted += seen.accepted
        total.known += seen.known
        total.late += seen.late
        total.refused.update(seen.refused)
        total.wrong.update(seen.wrong)
        total.admitted_s += seen.admitted_s
    return total


def seen_from_json(text: str) -> Seen:
    """Returns what a process printed."""
    fields = json.loads(text)
    return Seen(**{**fields, "refused": Counter(fields["refused"]), "wrong": Counter(fields["wrong"])})


class Caller:
    """One caller: offers bodies through a connection and notes what comes of it."""

    def __init__(self, channel: grpc.aio.Channel, token: str, seen: Seen, *, timeout_s: float) -> None:
        self._call = channel.unary_unary(f"/{SERVICE}/PublishGroups")
        self._metadata = ((TOKEN_HEADER, token),)
        self._seen = seen
        self._timeout_s = timeout_s

    async def offer(self, body: bytes, groups: int) -> bool:
        """Makes one call; returns whether all its groups are settled."""
        self._seen.offered += groups
        start_s = time.perf_counter()
        try:
            raw = await self._call(body, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            self._refused(error, groups)
            return False
        took_s = time.perf_counter() - start_s
        results = publish_response_from_message(pb.PublishGroupsResponse.FromString(raw), asked=groups).results
        accepted = refused = 0
        for result in results:
            accepted += result.outcome is PublishOutcome.ACCEPTED
            self._seen.known += result.outcome is PublishOutcome.DUPLICATE
            if result.outcome is PublishOutcome.REJECTED:
                assert result.reason is not None
                code = STATUS_CODE[result.reason]
                self._seen.refuse(result.reason.value, code, result.retry_after_s, 1)
                refused += 1
        self._seen.accepted += accepted
        if accepted:
            self._seen.admitted_s.append(took_s)
        return refused == 0

    def _refused(self, error: grpc.aio.AioRpcError, groups: int) -> None:
        reason, retry_after_s = "without detail", 0.0
        for key, value in error.trailing_metadata() or ():
            if key == DETAIL_KEY and isinstance(value, bytes):
                detail = error_detail_from_message(pb.ErrorDetail.FromString(value))
                reason, retry_after_s = detail.reason.value, detail.retry_after_s
        self._seen.refuse(reason, error.code().name, retry_after_s, groups)


async def flood(
    channels: Sequence[grpc.aio.Channel], token: str, bodies: Sequence[bytes], groups: int, seconds: float
) -> Seen:
    """Has eight callers on every connection offer bodies for so long; begins anew when all were offered."""
    seen = Seen()
    end_s = time.monotonic() + seconds
    endless = _endless(bodies)

    async def work(channel: grpc.aio.Channel) -> None:
        caller = Caller(channel, token, seen, timeout_s=DEADLINES["PublishGroups"].client_s * 2)
        for body in endless:
            while time.monotonic() < end_s:
                if await caller.offer(body, groups):
                    break
                await asyncio.sleep(PAUSE_S)
            if time.monotonic() >= end_s:
                return

    await asyncio.gather(*(work(channel) for channel in channels for _ in range(CALLS_OF_CONNECTION)))
    return seen


class Holding:
    """A door on this machine that lets so many bytes of each connection through, and the rest when it is opened."""

    def __init__(self, address: str, through_bytes: int) -> None:
        self._host, self._port = split_address(address)
        self._through_bytes = through_bytes
        self.opened = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listens; returns the address to dial."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def closed(self) -> None:
        """Waits until all connections have ended, and stops listening."""
        self._server.close()
        await asyncio.gather(*self._connections)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connected(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            back_reader, back_writer = await asyncio.open_connection(self._host, self._port)
            await asyncio.gather(self._forward(reader, back_writer, True), self._forward(back_reader, writer, False))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                passed += len(data)
                if held and passed > self._through_bytes:
                    await self.opened.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


async def hold(invite: Invite, callers: int, bodies: Sequence[bytes], groups: int, hold_s: float) -> Seen:
    """Has so many callers, each on its own connection, send a body but for its end, wait, and send the rest."""
    seen = Seen()
    door = Holding(invite.addresses[0], len(bodies[0]) - KEPT_BACK_BYTES)
    address = await door.start()
    channels = [connect(invite, address) for _ in range(callers)]
    timeout_s = DEADLINES["PublishGroups"].server_max_s
    tasks = [
        asyncio.ensure_future(
            Caller(channel, invite.token, seen, timeout_s=timeout_s).offer(bodies[i % len(bodies)], groups)
        )
        for i, channel in enumerate(channels)
    ]
    await asyncio.sleep(hold_s)
    door.opened.set()
    await asyncio.gather(*tasks)
    await asyncio.gather(*(channel.close() for channel in channels))
    await door.closed()
    return seen


def bodies_of(groups: Sequence[SignedGroup], batch: int) -> list[bytes]:
    """Returns the requests that hand over so many groups at a time."""
    return [
        publish_request_to_message(PublishRequest(groups=tuple(groups[i : i + batch]))).SerializeToString()
        for i in range(0, len(groups), batch)
    ]


def _endless(bodies: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from bodies


def connect(invite: Invite, address: str) -> grpc.aio.Channel:
    """Returns a connection of its own to the host of an invite, at an address that may be a door before it."""
    credentials = grpc.ssl_channel_credentials(root_certificates=pem_of(invite.certificate))
    options = [
        ("grpc.ssl_target_name_override", TLS_NAME),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.max_send_message_length", DEFAULT_WIRE_LIMITS.max_message_bytes),
    ]
    return grpc.aio.secure_channel(address, credentials, options=options)


async def _main(options: argparse.Namespace) -> Seen:
    os.nice(10)  # the host comes first
    invite = Invite.load(options.invite, datetime.datetime.now(datetime.UTC))
    groups = make_groups(
        options.bodies * options.batch, options.size_bytes, swarm_id=invite.swarm_id, publishers=options.publishers
    )
    bodies = bodies_of(groups, options.batch)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    if options.hold_s:
        return await hold(invite, options.callers, bodies, options.batch, options.hold_s)
    channels = [connect(invite, invite.addresses[0]) for _ in range(options.callers // CALLS_OF_CONNECTION)]
    seen = await flood(channels, invite.token, bodies, options.batch, options.seconds)
    await asyncio.gather(*(channel.close() for channel in channels))
    return seen


def main() -> None:
    """Reads the command line, offers, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--invite", type=Path, required=True, help="of the host to call")
    parser.add_argument("--size_bytes", type=int, default=8_192, help="of one group")
    parser.add_argument("--batch", type=int, default=32, help="groups in a call")
    parser.add_argument("--bodies", type=int, default=64, help="different calls")
    parser.add_argument("--publishers", type=int, default=4, help="identities that sign")
    parser.add_argument("--callers", type=int, default=64, help="calls at a time")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long")
    parser.add_argument("--hold_s", type=float, default=0.0, help="keep back the end of each body for so long")
    seen = asyncio.run(_main(parser.parse_args()))
    print(json.dumps(vars(seen)), flush=True)


if __name__ == "__main__":
    main()
