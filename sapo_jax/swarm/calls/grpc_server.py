"""The listening end of the exchange: one gRPC server in one asyncio loop, answering through `ExchangeService`.

Handlers take and give raw bytes, so that a malformed message is ours to refuse; each of them decodes,
calls a plain function, encodes. Calls are registered as streams of one message, which looks the same
on the wire and leaves it to us when a body is read. What every call goes through is
`pipeline`'s.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# grpc and its companions are partly typed.

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import grpc

from sapo_jax.swarm.calls.health import SERVICE as HEALTH_SERVICE
from sapo_jax.swarm.calls.health import Health
from sapo_jax.swarm.calls.pipeline import CallPipeline, Rpc, StreamRpc, refusing
from sapo_jax.swarm.calls.reflection import reflection_streams
from sapo_jax.swarm.calls.server_metrics import ServerMetrics
from sapo_jax.swarm.calls.service import ExchangeService, Phase
from sapo_jax.swarm.calls.slots import CallSlots
from sapo_jax.swarm.calls.trust import Trust
from sapo_jax.swarm.wire.addresses import join_address, split_address
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.group_calls_codec import (
    get_request_from_message,
    get_response_to_message,
    list_request_from_message,
    list_response_to_message,
    publish_request_from_message,
    publish_response_to_message,
    sample_request_from_message,
    sample_response_to_message,
)
from sapo_jax.swarm.wire.host_calls_codec import (
    node_info_to_message,
    peers_request_from_message,
    peers_response_to_message,
)
from sapo_jax.swarm.wire.limits import DEADLINES, CallLimits, WireLimits
from sapo_jax.swarm.wire.parse import parse

SERVICE = "sapo.exchange.v1.RolloutExchangeService"
PATIENCE_S = 1.0  # a call in progress for longer gives way when places run out
IDLE_MS = 5 * 60_000
MAX_AGE_MS, AGE_GRACE_MS = 30 * 60_000, 30_000
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
MIN_PING_INTERVAL_MS = 20_000

# Members of a closed swarm share networks, and the processes of one machine share an address.
CLOSED_CALL_LIMITS = CallLimits(max_connections_per_prefix=256)


class ServerAddressError(OSError):
    """The server cannot listen there; one line for the operator."""


class GrpcServer:
    """Owns the listening port of a host. All methods run in the loop that `start` was called in."""

    def __init__(
        self,
        service: ExchangeService,
        trust: Trust,
        *,
        address: str,
        call_limits: CallLimits = CLOSED_CALL_LIMITS,
        metrics: ServerMetrics | None = None,
        with_reflection: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares a server; `start` makes it listen.

        Args:
            service: answers.
            trust: certificate and token.
            address: "host:port" to listen on; port 0 takes a free one.
            call_limits: bounds of traffic.
            metrics: counts; None for counts that nobody reads.
            with_reflection: lets tools list the services; for debugging.
            clock: seconds, never goes back.

        Raises:
            AddressError: the address has another form.
            TrustError: this address may not be listened on in this trust mode.
        """
        self._host, self._wanted_port = split_address(address)
        trust.check_listen_address(self._host)
        self._service = service
        self._trust = trust
        self._limits = call_limits
        self._metrics = metrics or ServerMetrics()
        self._with_reflection = with_reflection
        self._slots = CallSlots(call_limits, patience_s=PATIENCE_S, clock=clock)
        self._pipeline = CallPipeline(
            trust=trust,
            slots=self._slots,
            charge_call=service.charge_call,
            metrics=self._metrics,
            clock=clock,
        )
        self._metrics.watch_calls(lambda: len(self._slots))
        self._health = Health((SERVICE,))
        self._server: grpc.aio.Server | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port it listens on; 0 before `start`."""
        return self._port

    @property
    def metrics(self) -> ServerMetrics:
        """What it counts."""
        return self._metrics

    async def start(self, *, is_ready: bool = True) -> None:
        """Listens; answers STARTING until ready.

        Args:
            is_ready: False if the host has more to prepare; `set_ready` says when it is done.

        Raises:
            ServerAddressError: the address is in use, not of this machine, or not allowed.
        """
        _check_free(self._host, self._wanted_port)
        server = grpc.aio.server(
            handlers=(_Handlers(self.rpcs(), self._pipeline, self._health, with_reflection=self._with_reflection),),
            options=_options(self._limits, self._service.wire_limits),
        )
        target = join_address(self._host, self._wanted_port)
        try:
            if self._trust.certificate is None:
                self._port = server.add_insecure_port(target)
            else:
                pair = (self._trust.certificate.key_pem, self._trust.certificate.certificate_pem)
                self._port = server.add_secure_port(target, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:  # somebody was faster after our own look
            raise ServerAddressError(f"cannot listen on {target}: is the port in use?") from error
        self._server = server
        await server.start()
        if is_ready:
            await self.set_ready(True)

    async def set_ready(self, is_ready: bool) -> None:
        """Says whether new groups can be taken; health shows it. False while a store is read-only, for instance."""
        if self._service.phase is Phase.DRAINING:
            return
        if is_ready:
            self._service.phase = Phase.SERVING
        await self._health.set_serving(is_ready)

    async def drain(self) -> None:
        """Turns health off and takes nothing new; what is held is still given, calls in progress go on."""
        self._service.phase = Phase.DRAINING
        await self._health.set_serving(False)

    async def stop(self, grace_s: float = 15.0) -> None:
        """Drains, refuses new calls, lets calls in progress finish for `grace_s`, and frees the port."""
        await self.drain()
        await self._health.close()
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace_s)

    def rpcs(self) -> Mapping[str, Rpc]:
        """Returns every RPC of the exchange by its method name: decode, call, encode."""
        service, limits = self._service, self._service.wire_limits

        def publish(body: bytes, prefix: str) -> bytes:
            request = publish_request_from_message(parse(pb.PublishGroupsRequest, body, limits), limits)
            response = service.publish(request, prefix=prefix)
            self._metrics.count_results(response.results)
            return publish_response_to_message(response).SerializeToString()

        def sample(body: bytes, prefix: str) -> bytes:
            request = sample_request_from_message(parse(pb.SampleGroupsRequest, body, limits), limits)
            return sample_response_to_message(service.sample(request)).SerializeToString()

        def list_groups(body: bytes, prefix: str) -> bytes:
            request = list_request_from_message(parse(pb.ListGroupsRequest, body, limits), limits)
            return list_response_to_message(service.list_groups(request)).SerializeToString()

        def get_groups(body: bytes, prefix: str) -> bytes:
            request = get_request_from_message(parse(pb.GetGroupsRequest, body, limits), limits)
            return get_response_to_message(service.get_groups(request)).SerializeToString()

        def node_info(body: bytes, prefix: str) -> bytes:
            parse(pb.GetNodeInfoRequest, body, limits)
            is_busy = len(self._slots) > 0.75 * self._limits.max_calls
            return node_info_to_message(service.node_info(is_busy=is_busy)).SerializeToString()

        def exchange_peers(body: bytes, prefix: str) -> bytes:
            request = peers_request_from_message(parse(pb.ExchangePeersRequest, body, limits), limits)
            return peers_response_to_message(service.exchange_peers(request)).SerializeToString()

        answers = {
            "PublishGroups": publish,
            "SampleGroups": sample,
            "ListGroups": list_groups,
            "GetGroups": get_groups,
            "GetNodeInfo": node_info,
            "ExchangePeers": exchange_peers,
        }
        return {
            f"/{SERVICE}/{name}": Rpc(name=name, answer=answer, max_deadline_s=DEADLINES[name].server_max_s)
            for name, answer in answers.items()
        }


class _Handlers(grpc.GenericRpcHandler):
    """Finds the handler of a method. There is one for every name, so that nothing is answered without us."""

    def __init__(
        self, rpcs: Mapping[str, Rpc], pipeline: CallPipeline, health: Health, *, with_reflection: bool
    ) -> None:
        self._pipeline = pipeline
        self._rpcs = {**rpcs, **health.rpcs()}
        self._streams: dict[str, StreamRpc] = dict(health.streams())
        if with_reflection:
            self._streams.update(reflection_streams((SERVICE, HEALTH_SERVICE)))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method
        metadata: Iterable[tuple[str, str | bytes]] = handler_call_details.invocation_metadata or ()
        stream = self._streams.get(method)
        if stream is not None:

            async def answer_all(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
                await self._pipeline.run_stream(stream, metadata, requests, context)

            return grpc.stream_stream_rpc_method_handler(answer_all)
        rpc = self._rpcs.get(method) or _unknown(method)

        async def answer(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            return await self._pipeline.run(rpc, metadata, context)

        return grpc.stream_unary_rpc_method_handler(answer)


_ADMIN = refusing("admin", WireReason.NOT_ALLOWED, "admin calls are not served here: use the host's own admin socket")
_OTHER_VERSION = refusing("other_version", WireReason.UNSUPPORTED_VERSION, "this host speaks sapo.exchange.v1")
_NO_SUCH_CALL = refusing("unknown", WireReason.NOT_IMPLEMENTED, "no such call in this version")


def _unknown(method: str) -> Rpc:
    if method.startswith("/sapo.admin."):
        return _ADMIN
    if method.startswith("/sapo.exchange.v") and not method.startswith("/sapo.exchange.v1."):
        return _OTHER_VERSION
    return _NO_SUCH_CALL


def _options(calls: CallLimits, wire: WireLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second process listens on the same port without any error
        ("grpc.max_receive_message_length", wire.max_message_bytes),  # holds after inflation too
        ("grpc.max_send_message_length", wire.max_message_bytes),
        # Between the two limits gRPC refuses at random; equal ones leave nothing to chance.
        ("grpc.max_metadata_size", calls.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", calls.max_metadata_bytes),
        ("grpc.max_concurrent_streams", calls.max_streams_per_connection),
        ("grpc.max_allowed_incoming_connections", calls.max_connections),
        ("grpc.max_connection_idle_ms", IDLE_MS),
        ("grpc.max_connection_age_ms", MAX_AGE_MS),
        ("grpc.max_connection_age_grace_ms", AGE_GRACE_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),  # finds half-open connections
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _check_free(host: str, port: int) -> None:
    """Raises ServerAddressError with the system's reason, which gRPC would keep to itself."""
    if port == 0:
        return
    try:
        kind, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with contextlib.closing(socket.socket(kind, socket.SOCK_STREAM)) as probe:
            # As the server will: connections of a process that has ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error.strerror
        raise ServerAddressError(f"cannot listen on {join_address(host, port)}: {reason}") from error
