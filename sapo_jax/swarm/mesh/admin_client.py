"""How a command asks a running host, through the admin socket in its work directory."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# grpc is partly typed.

from __future__ import annotations

from pathlib import Path

import grpc
from google.protobuf.message import Message

from sapo_jax.swarm.mesh.admin_socket import SERVICE, AdminError, find_socket
from sapo_jax.swarm.mesh.host_status import HostStatus
from sapo_jax.swarm.mesh.scores import BAN_S
from sapo_jax.swarm.mesh.status_codec import status_from_message
from sapo_jax.swarm.wire.generated import node_admin_pb2 as pb
from sapo_jax.swarm.wire.spans import duration_from_seconds, seconds_of

TIMEOUT_S = 5.0


class AdminClient:
    """Asks the host that runs in a work directory; blocking, for commands."""

    def __init__(self, directory: Path) -> None:
        """Finds the socket; raises AdminError if no host with a network has run there."""
        self._where = directory
        path = find_socket(directory)
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
