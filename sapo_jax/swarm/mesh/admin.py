"""The operator's door to a running host: status, drain, bans, on a Unix socket that only its owner can open.

Server, client and their messages are here together; the public port never serves any of it. The
socket lies in a directory of mode 0700, so that there is no moment at which others could connect.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# grpc is partly typed.

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from sapo_jax.swarm.calls.pipeline import CallPipeline, Rpc, refusing
from sapo_jax.swarm.calls.server_metrics import ServerMetrics
from sapo_jax.swarm.calls.service import Phase
from sapo_jax.swarm.calls.slots import CallSlots
from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.mesh.host_status import HostStatus, NodeFigures, PeerFigures, PeerState
from sapo_jax.swarm.mesh.scores import BAN_S, Scores
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.field_rules import check_node_id, field_error
from sapo_jax.swarm.wire.generated import node_admin_pb2 as pb
from sapo_jax.swarm.wire.limits import CallLimits
from sapo_jax.swarm.wire.parse import parse
from sapo_jax.swarm.wire.spans import duration_from_seconds, seconds_of, timestamp_from_seconds

SERVICE = "sapo.admin.v1.NodeAdminService"
SOCKET_DIRECTORY = ".admin"
SOCKET_FILE = "socket"
FAR_SOCKET_FILE = "socket_path"  # where the socket is if the directory's own path is too long for one
TIMEOUT_S = 5.0
MAX_DEADLINE_S = 30.0
_MAX_SOCKET_PATH_BYTES = 100  # the system's limit is 107, less where a suffix is added
_MAX_BAN_S = 10 * 365 * 86_400.0
# Verified groups by publisher travel among the counters, under this prefix.
PUBLISHER_COUNTER = "external/"

_PHASES = {
    Phase.STARTING: pb.HOST_STATE_STARTING,
    Phase.SERVING: pb.HOST_STATE_SERVING,
    Phase.DRAINING: pb.HOST_STATE_DRAINING,
}
_PEER_STATES = {
    PeerState.CONNECTED: pb.PEER_STATE_CONNECTED,
    PeerState.CALLING: pb.PEER_STATE_CONNECTED,  # with an empty address
    PeerState.KNOWN: pb.PEER_STATE_KNOWN,
    PeerState.UNREACHABLE: pb.PEER_STATE_UNREACHABLE,
    PeerState.BANNED: pb.PEER_STATE_BANNED,
}


class AdminError(OSError):
    """A host that cannot be asked; one line for the operator."""


class AdminServer:
    """Owns the socket of one host. All methods run in the loop that `start` was called in."""

    def __init__(
        self,
        directory: Path,
        *,
        status: Callable[[], HostStatus],
        drain: Callable[[], None],
        scores: Scores,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the service of the host in `directory`; `start` opens the socket.

        Args:
            directory: the host's work directory.
            status: gives its state.
            drain: asks it to stop; returns at once.
            scores: holds its bans.
            wall_clock: Unix time in seconds.
            clock: monotonic, in seconds.
        """
        self._directory = directory / SOCKET_DIRECTORY
        self._status = status
        self._drain = drain
        self._scores = scores
        self._wall_clock = wall_clock
        self._far_directory: Path | None = None
        self._server: grpc.aio.Server | None = None
        self._pipeline = CallPipeline(
            trust=Trust(mode=TrustMode.INSECURE_LOOPBACK),  # who can open the socket is the owner
            slots=CallSlots(CallLimits(), patience_s=1.0, clock=clock),
            charge_call=lambda prefix: None,
            metrics=ServerMetrics(),
            clock=clock,
        )

    async def start(self) -> None:
        """Opens the socket; raises AdminError if that fails."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(self._directory, 0o700)
            path = self._directory / SOCKET_FILE
            pointer = self._directory / FAR_SOCKET_FILE
            pointer.unlink(missing_ok=True)
            if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
                self._far_directory = Path(tempfile.mkdtemp(prefix="sapo-admin-"))  # mode 0700
                path = self._far_directory / SOCKET_FILE
                pointer.write_text(str(path), encoding="utf-8")
            path.unlink(missing_ok=True)  # of a process that was killed; the work directory's lock is ours
            server = grpc.aio.server(handlers=(_Handlers(self._rpcs(), self._pipeline),))
            server.add_insecure_port(f"unix:{path}")
            await server.start()
            os.chmod(path, 0o600)
        except (OSError, RuntimeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise AdminError(f"admin socket in {self._directory}: cannot be opened: {reason}") from error
        self._server = server

    async def stop(self) -> None:
        """Closes the socket; twice is allowed."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0.2)
        with contextlib.suppress(OSError):
            (self._directory / SOCKET_FILE).unlink(missing_ok=True)
            (self._directory / FAR_SOCKET_FILE).unlink(missing_ok=True)
        if self._far_directory is not None:
            shutil.rmtree(self._far_directory, ignore_errors=True)

    def _rpcs(self) -> Mapping[str, Rpc]:
        def status(body: bytes, prefix: str) -> bytes:
            parse(pb.GetStatusRequest, body)
            return status_to_message(self._status()).SerializeToString()

        def drain(body: bytes, prefix: str) -> bytes:
            parse(pb.DrainRequest, body)
            self._drain()
            return pb.DrainResponse().SerializeToString()

        def ban(body: bytes, prefix: str) -> bytes:
            request = parse(pb.BanPeerRequest, body)
            check_node_id(request.node_id, "node_id")
            duration_s = seconds_of(request.duration) if request.HasField("duration") else BAN_S
            if not 0 < duration_s <= _MAX_BAN_S:
                raise field_error("duration", f"must be above 0 and at most {_MAX_BAN_S:g} s")
            self._scores.unban(request.node_id)
            self._scores.ban(request.node_id, duration_s)
            end = timestamp_from_seconds(self._wall_clock() + duration_s)
            return pb.BanPeerResponse(expire_time=end).SerializeToString()

        def unban(body: bytes, prefix: str) -> bytes:
            request = parse(pb.UnbanPeerRequest, body)
            check_node_id(request.node_id, "node_id")
            self._scores.unban(request.node_id)
            return pb.UnbanPeerResponse().SerializeToString()

        answers = {"GetStatus": status, "Drain": drain, "BanPeer": ban, "UnbanPeer": unban}
        return {
            f"/{SERVICE}/{name}": Rpc(name=name, answer=answer, max_deadline_s=MAX_DEADLINE_S)
            for name, answer in answers.items()
        }


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, rpcs: Mapping[str, Rpc], pipeline: CallPipeline) -> None:
        self._rpcs = rpcs
        self._pipeline = pipeline
        self._unknown = refusing("unknown", WireReason.NOT_IMPLEMENTED, "no such admin call in this version")

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        rpc = self._rpcs.get(handler_call_details.method, self._unknown)
        metadata: Iterable[tuple[str, str | bytes]] = handler_call_details.invocation_metadata or ()

        async def answer(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            return await self._pipeline.run(rpc, metadata, context)

        return grpc.stream_unary_rpc_method_handler(answer)


class AdminClient:
    """Asks the host that runs in a work directory; blocking, for commands."""

    def __init__(self, directory: Path) -> None:
        """Finds the socket; raises AdminError if no host with a network has run there."""
        self._where = directory
        folder = directory / SOCKET_DIRECTORY
        path = folder / SOCKET_FILE
        with contextlib.suppress(OSError, UnicodeError):
            path = Path((folder / FAR_SOCKET_FILE).read_text(encoding="utf-8").strip())
        if not path.exists():
            raise AdminError(f"workdir {directory}: no host of a swarm runs there")
        self._channel = grpc.insecure_channel(f"unix:{path}", options=[("grpc.enable_http_proxy", 0)])

    def status(self) -> HostStatus:
        """Returns the state of the host."""
        raw = self._call("GetStatus", pb.GetStatusRequest())
        return status_from_message(pb.GetStatusResponse.FromString(raw))

    def drain(self) -> None:
        """Asks the host to stop politely."""
        self._call("Drain", pb.DrainRequest())

    def ban(self, node_id: str, duration_s: float = BAN_S) -> float:
        """Bans an identity; returns when the ban ends, as Unix time by the host's clock."""
        request = pb.BanPeerRequest(node_id=node_id, duration=duration_from_seconds(duration_s))
        return seconds_of(pb.BanPeerResponse.FromString(self._call("BanPeer", request)).expire_time)

    def unban(self, node_id: str) -> None:
        """Lifts a ban."""
        self._call("UnbanPeer", pb.UnbanPeerRequest(node_id=node_id))

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, name: str, request: Message) -> bytes:
        call = self._channel.unary_unary(f"/{SERVICE}/{name}")
        try:
            return call(request.SerializeToString(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()  # pyright: ignore[reportAttributeAccessIssue]
            if code is grpc.StatusCode.UNAVAILABLE:
                raise AdminError(f"workdir {self._where}: no host of a swarm runs there now") from error
            raise AdminError(f"workdir {self._where}: {name}: {details}") from error


def status_to_message(status: HostStatus) -> pb.GetStatusResponse:
    """Returns a status as the message of the admin service."""
    counters = dict(status.counters)
    counters |= {f"{PUBLISHER_COUNTER}{node_id}": count for node_id, count in status.publishers.items()}
    return pb.GetStatusResponse(
        swarm_id=status.swarm_id,
        state=_PHASES[status.phase],
        software_version=status.software_version,
        start_time=timestamp_from_seconds(status.started_unix_s),
        read_time=timestamp_from_seconds(status.read_unix_s),
        addresses=status.addresses,
        nodes=[
            pb.NodeStatus(
                node_id=node.node_id,
                alias=node.alias,
                round=node.round,
                published_groups=node.published,
                pulled_groups=node.pulled,
                waiting_groups=node.waiting,
            )
            for node in status.nodes
        ],
        store=pb.StoreStatus(
            epoch=status.epoch,
            stored_groups=status.stored_groups,
            stored_bytes=status.stored_bytes,
            stored_publishers=status.stored_publishers,
            unverified_groups=status.unverified_groups,
            outbox_groups=status.outbox_groups,
        ),
        peers=[_peer_to_message(peer, status.read_unix_s) for peer in status.peers],
        counters=[pb.Counter(name=name, total=counters[name]) for name in sorted(counters)],
        warnings=status.warnings,
    )


def status_from_message(message: pb.GetStatusResponse) -> HostStatus:
    """Returns the status that the host's own admin service sent."""
    phases = {number: phase for phase, number in _PHASES.items()}
    counters = {counter.name: counter.total for counter in message.counters}
    read_unix_s = seconds_of(message.read_time)
    return HostStatus(
        swarm_id=message.swarm_id,
        phase=phases.get(message.state, Phase.SERVING),
        software_version=message.software_version,
        started_unix_s=seconds_of(message.start_time),
        read_unix_s=read_unix_s,
        addresses=tuple(message.addresses),
        epoch=message.store.epoch,
        stored_groups=message.store.stored_groups,
        stored_bytes=message.store.stored_bytes,
        stored_publishers=message.store.stored_publishers,
        unverified_groups=message.store.unverified_groups,
        outbox_groups=message.store.outbox_groups,
        nodes=tuple(
            NodeFigures(
                node_id=node.node_id,
                alias=node.alias,
                round=node.round,
                published=node.published_groups,
                pulled=node.pulled_groups,
                waiting=node.waiting_groups,
            )
            for node in message.nodes
        ),
        peers=tuple(_peer_from_message(peer, read_unix_s) for peer in message.peers),
        counters={name: count for name, count in counters.items() if not name.startswith(PUBLISHER_COUNTER)},
        publishers={
            name.removeprefix(PUBLISHER_COUNTER): count
            for name, count in counters.items()
            if name.startswith(PUBLISHER_COUNTER)
        },
        warnings=tuple(message.warnings),
    )


def _peer_to_message(peer: PeerFigures, now_unix_s: float) -> pb.PeerStatus:
    return pb.PeerStatus(
        node_id=peer.node_id,
        address=peer.address,
        state=_PEER_STATES[peer.state],
        score=peer.score,
        contact_age=None if peer.contact_age_s is None else duration_from_seconds(peer.contact_age_s),
        retry_delay=None if peer.retry_s is None else duration_from_seconds(peer.retry_s),
        ban_expire_time=None if peer.ban_s is None else timestamp_from_seconds(now_unix_s + peer.ban_s),
        last_error=peer.last_error,
    )


def _peer_from_message(message: pb.PeerStatus, now_unix_s: float) -> PeerFigures:
    states = {
        pb.PEER_STATE_CONNECTED: PeerState.CONNECTED if message.address else PeerState.CALLING,
        pb.PEER_STATE_KNOWN: PeerState.KNOWN,
        pb.PEER_STATE_BANNED: PeerState.BANNED,
    }
    return PeerFigures(
        node_id=message.node_id,
        address=message.address,
        state=states.get(message.state, PeerState.UNREACHABLE),
        score=message.score,
        contact_age_s=seconds_of(message.contact_age) if message.HasField("contact_age") else None,
        retry_s=seconds_of(message.retry_delay) if message.HasField("retry_delay") else None,
        ban_s=seconds_of(message.ban_expire_time) - now_unix_s if message.HasField("ban_expire_time") else None,
        last_error=message.last_error,
    )
