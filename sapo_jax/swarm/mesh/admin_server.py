"""The operator's door to a running host: status, drain, bans, on a Unix socket that only its owner can open.

The public port never serves any of it. The socket lies in a directory of mode 0700, so that there is
no moment at which others could connect.
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

from sapo_jax.swarm.calls.pipeline import CallPipeline, Rpc, refusing
from sapo_jax.swarm.calls.server_metrics import ServerMetrics
from sapo_jax.swarm.calls.slots import CallSlots
from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.mesh.admin_socket import (
    FAR_SOCKET_FILE,
    MAX_SOCKET_PATH_BYTES,
    SERVICE,
    SOCKET_DIRECTORY,
    SOCKET_FILE,
    AdminError,
)
from sapo_jax.swarm.mesh.host_status import HostStatus
from sapo_jax.swarm.mesh.scores import BAN_S, Scores
from sapo_jax.swarm.mesh.status_codec import status_to_message
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.field_rules import check_node_id, field_error
from sapo_jax.swarm.wire.generated import node_admin_pb2 as pb
from sapo_jax.swarm.wire.limits import CallLimits
from sapo_jax.swarm.wire.parse import parse
from sapo_jax.swarm.wire.spans import seconds_of, timestamp_from_seconds

MAX_DEADLINE_S = 30.0
_MAX_BAN_S = 10 * 365 * 86_400.0


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
            if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
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
