"""Real servers and clients on loopback: what leaves the server, whatever is sent to it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
import socket
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from sapo_jax.swarm.calls import grpc_client, pipeline
from sapo_jax.swarm.calls.certificate import TLS_NAME, pem_of
from sapo_jax.swarm.calls.grpc_client import NO_RETRY, RetryPolicy
from sapo_jax.swarm.calls.grpc_server import CLOSED_CALL_LIMITS, SERVICE, GrpcServer, ServerAddressError
from sapo_jax.swarm.calls.peer_client import CallError
from sapo_jax.swarm.calls.quota import CLOSED_QUOTAS, OPEN_QUOTAS, QuotaLimits
from sapo_jax.swarm.calls.server_metrics import MetricsAddressError, ServerMetrics
from sapo_jax.swarm.calls.trust import TOKEN_HEADER, Trust, TrustError
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.group_codec import group_id_of
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.limits import DEADLINES
from sapo_jax.swarm.wire.requests import (
    GetRequest,
    GroupCursor,
    ListRequest,
    PeerExchange,
    PublishRequest,
    SampleRequest,
)
from tests.swarm.calls.hosts import (
    PLAIN,
    TOKEN,
    FakeClock,
    HalfSent,
    Host,
    Served,
    closed_trust,
    half_sent,
    in_progress,
    outcomes,
    peer_record,
    publish_body,
    refusal,
    run,
    signed_group,
    until,
)

ANN = Identity.generate()
CODE = grpc.StatusCode
HEALTH = "/grpc.health.v1.Health/"
ADMIN_VERBS = ("GetStatus", "Status", "Drain", "Pause", "BanPeer", "UnbanPeer", "Checkpoint", "SetLogLevel")


# What a whole exchange looks like.


@pytest.mark.parametrize("make_trust", [lambda: PLAIN, closed_trust], ids=["plain", "closed"])
def test_every_call_of_the_exchange_answers(make_trust):
    async def test() -> None:
        host, trust = Host(), make_trust()
        async with host.serve(trust) as served:
            client = served.client()
            groups = tuple(signed_group(ANN, index=i, sequence=i + 1) for i in range(3))
            results = (await client.publish_groups(PublishRequest(groups=groups))).results
            assert outcomes(results) == ["accepted"] * 3
            assert outcomes((await client.publish_groups(PublishRequest(groups=groups))).results) == ["duplicate"] * 3
            sample = await client.sample_groups(SampleRequest(count=2))
            assert len(sample.groups) == 2 and sample.stored_groups == 3
            page = await client.list_groups(ListRequest(max_references=2))
            assert [ref.group_id for ref in page.references] == [group_id_of(group.envelope) for group in groups[:2]]
            found = await client.get_groups(GetRequest(group_ids=(results[2].group_id, bytes(32))))
            assert found.groups[0].envelope == groups[2].envelope and found.missing_group_ids == (bytes(32),)
            assert (await client.get_node_info()).epoch == host.store.epoch
            swapped = await client.exchange_peers(PeerExchange(peer_records=(peer_record(ANN),)))
            assert [record.envelope.public_key for record in swapped.peer_records] == [ANN.public_key]

    run(test)


def test_one_bad_group_of_a_batch_is_answered_by_itself():
    async def test() -> None:
        good = [signed_group(ANN, index=i, sequence=i + 1) for i in range(2)]
        forged = dataclasses.replace(good[0], envelope=dataclasses.replace(good[0].envelope, signature=bytes(64)))
        async with Host().serve() as served:
            response = await served.client().publish_groups(PublishRequest(groups=(good[1], forged, good[0])))
            assert outcomes(response.results) == ["accepted", "bad_signature", "accepted"]

    run(test)


# Status codes, row by row.


@pytest.mark.parametrize("rpc", DEADLINES)
def test_a_malformed_message_is_an_invalid_argument(rpc):
    async def test() -> None:
        async with Host().serve() as served:
            for body in (b"\xff\xff\xff", b"\x0a\x05abc", b"\x07", bytes(3)):
                failed = await refusal(served.raw(rpc)(body, timeout=2))
                assert failed.code is CODE.INVALID_ARGUMENT and failed.detail is not None
                assert failed.detail.reason is WireReason.MALFORMED

    run(test)


def test_a_broken_field_is_an_invalid_argument_that_names_it_and_not_its_value():
    async def test() -> None:
        async with Host().serve() as served:
            failed = await refusal(served.raw("SampleGroups")(b"\x08\x05\x12\x06SECRET", timeout=2))
            assert failed.code is CODE.INVALID_ARGUMENT and failed.detail is not None
            assert failed.detail.field == "datasets[0]" and "SECRET" not in failed.text

    run(test)


@pytest.mark.parametrize("rpc", DEADLINES)
def test_a_call_without_a_deadline_or_with_too_long_a_one_is_an_invalid_argument(rpc):
    async def test() -> None:
        most_s = DEADLINES[rpc].server_max_s
        async with Host().serve() as served:
            for timeout in (None, most_s + 2.0):
                failed = await refusal(served.raw(rpc)(b"", timeout=timeout))
                assert failed.code is CODE.INVALID_ARGUMENT and failed.detail is not None
                assert failed.detail.reason is WireReason.NO_DEADLINE and f"{most_s:g} s" in failed.text
            assert served.server.metrics.registry.get_sample_value(
                "sapo_exchange_calls_total", {"rpc": rpc, "code": "INVALID_ARGUMENT"}
            )

    run(test)


def test_the_longest_deadline_is_accepted():
    async def test() -> None:
        async with Host().serve() as served:
            for rpc in ("GetNodeInfo", "ExchangePeers"):
                await served.raw(rpc)(b"", timeout=DEADLINES[rpc].server_max_s)

    run(test)


@pytest.mark.parametrize("tokens", [(), ("wrong",), (TOKEN, TOKEN)], ids=["none", "wrong", "twice"])
@pytest.mark.parametrize("rpc", ["PublishGroups", "GetNodeInfo"])
def test_a_missing_or_wrong_token_is_unauthenticated(tokens, rpc):
    async def test() -> None:
        trust = closed_trust()
        async with Host().serve(trust) as served:
            assert served.certificate is not None
            credentials = grpc.ssl_channel_credentials(pem_of(served.certificate))
            options = [("grpc.ssl_target_name_override", TLS_NAME)]
            async with grpc.aio.secure_channel(served.address, credentials, options=options) as channel:
                call = served.raw(rpc, channel)
                metadata = tuple((TOKEN_HEADER, token) for token in tokens)
                failed = await refusal(call(b"", timeout=2, metadata=metadata))
                assert failed.code is CODE.UNAUTHENTICATED
                assert TOKEN not in failed.text

    run(test)


@pytest.mark.parametrize("verb", ADMIN_VERBS)
def test_t20_an_admin_verb_on_the_public_port_is_denied(verb):
    async def test() -> None:
        async with Host().serve() as served:
            for timeout in (1, None):
                failed = await refusal(served.raw(f"/sapo.admin.v1.NodeAdminService/{verb}")(b"", timeout=timeout))
                assert failed.code is CODE.PERMISSION_DENIED
            await served.client().get_node_info()  # still there

    run(test)


def test_another_major_version_is_a_failed_precondition_that_names_ours():
    async def test() -> None:
        async with Host().serve() as served:
            failed = await refusal(served.raw("/sapo.exchange.v2.RolloutExchangeService/PublishGroups")(b"", timeout=1))
            assert failed.code is CODE.FAILED_PRECONDITION and "sapo.exchange.v1" in failed.text

    run(test)


@pytest.mark.parametrize("method", [f"/{SERVICE}/WatchGroups", "/a.B/C", f"/{SERVICE}/", "/x"])
def test_a_call_we_do_not_have_is_unimplemented(method):
    async def test() -> None:
        async with Host().serve() as served:
            failed = await refusal(served.raw(method)(b"", timeout=1))
            assert failed.code is CODE.UNIMPLEMENTED and method not in failed.text

    run(test)


def test_an_unknown_cursor_is_out_of_range_with_the_oldest_one():
    async def test() -> None:
        host = Host()
        async with host.serve() as served:
            gone = b"\x08\x05\x12\x08\x0a\x04gone\x10\x01"
            failed = await refusal(served.raw("ListGroups")(gone, timeout=2))
            assert failed.code is CODE.OUT_OF_RANGE and failed.detail is not None
            assert failed.detail.oldest_cursor == GroupCursor(epoch=host.store.epoch, sequence=0)

    run(test)


def test_a_starting_host_is_unavailable_and_shows_it():
    async def test() -> None:
        async with Host().serve(is_ready=False) as served:
            assert await health(served) == "NOT_SERVING"
            for rpc in DEADLINES:
                body = publish_body(signed_group(ANN)) if rpc == "PublishGroups" else VALID[rpc]
                failed = await refusal(served.raw(rpc)(body, timeout=2))
                assert failed.code is CODE.UNAVAILABLE and failed.detail is not None
                assert failed.detail.reason is WireReason.STARTING
            await served.server.set_ready(True)
            assert await health(served) == "SERVING"
            await served.client().get_node_info()

    run(test)


VALID = {
    "SampleGroups": b"\x08\x01",
    "ListGroups": b"\x08\x01",
    "GetGroups": b"\x0a\x20" + bytes(32),
    "GetNodeInfo": b"",
    "ExchangePeers": b"",
}


def test_a_store_that_cannot_be_used_is_unavailable_with_a_hint(tmp_path):
    async def test() -> None:
        host = Host(path=tmp_path / "store.sqlite")
        async with host.serve() as served:
            host.store.close()
            failed = await refusal(served.raw("PublishGroups")(publish_body(signed_group(ANN)), timeout=2))
            assert failed.code is CODE.UNAVAILABLE and failed.detail is not None
            assert failed.detail.retry_after_s == 1.0 and str(tmp_path) not in failed.text

    run(test)


def test_a_body_that_does_not_come_ends_with_our_deadline(monkeypatch):
    monkeypatch.setattr(pipeline, "BODY_S", 0.05)

    async def test() -> None:
        async with Host().serve() as served, half_sent(served) as call:
            failed = await refusal(call.task)
            assert failed.code is CODE.DEADLINE_EXCEEDED and failed.detail is not None
            assert failed.detail.reason is WireReason.TIMEOUT
            await until(lambda: in_progress(served) == 0)

    run(test)


def test_t19_a_defect_is_internal_with_a_fixed_text_and_an_id_that_the_log_explains(caplog):
    caplog.set_level(logging.DEBUG)

    def broken(request: PeerExchange) -> PeerExchange:
        raise RuntimeError("/home/ann/key\n\x1b[31mred")

    async def test() -> None:
        async with Host(swap_peers=broken).serve() as served:
            failed = await refusal(served.raw("ExchangePeers")(b"", timeout=2))
            assert failed.code is CODE.INTERNAL and failed.detail is not None
            assert failed.text == f"internal error {failed.detail.error_id}" and len(failed.detail.error_id) == 12
            logged = [record for record in caplog.records if failed.detail.error_id in record.getMessage()]
            assert len(logged) == 1 and "/home/ann/key" in logged[0].getMessage()
            assert "\x1b" not in logged[0].getMessage() and "\n" not in logged[0].getMessage()
            await served.client().get_node_info()  # still there

    run(test)


# Limits.


def test_too_many_calls_of_a_prefix_are_refused_with_a_hint():
    async def test() -> None:
        quotas = QuotaLimits(calls_per_s=1.0, burst_calls=2.0)
        async with Host(quotas=quotas).serve() as served:
            call = served.raw("GetNodeInfo")
            await call(b"", timeout=2)
            await call(b"", timeout=2)
            failed = await refusal(call(b"", timeout=2))
            assert failed.code is CODE.RESOURCE_EXHAUSTED and failed.detail is not None
            assert failed.detail.reason is WireReason.QUOTA and failed.detail.retry_after_s == 1.0
            assert failed.detail.limit == "calls of one address prefix, 1/s"

    run(test)


def test_a_ninth_call_on_one_connection_is_refused_with_a_hint_and_others_go_on():
    async def test() -> None:
        async with Host().serve() as served, contextlib.AsyncExitStack() as stack:
            channel = served.channel()
            held = [await stack.enter_async_context(half_sent(served, channel)) for _ in range(8)]
            await until(lambda: in_progress(served) == 8)
            failed = await refusal(served.raw("GetNodeInfo", channel)(b"", timeout=2))
            assert failed.code is CODE.RESOURCE_EXHAUSTED and failed.detail is not None
            assert failed.detail.limit == "calls of one connection at a time, 8" and failed.detail.retry_after_s > 0
            await served.raw("GetNodeInfo")(b"", timeout=2)
            held[0].release.set()
            await held[0].task
            await until(lambda: in_progress(served) == 7)
            await served.raw("GetNodeInfo", channel)(b"", timeout=2)

    run(test)


def test_connections_are_limited_and_free_again_when_closed():
    async def test() -> None:
        limits = dataclasses.replace(CLOSED_CALL_LIMITS, max_connections=2)
        async with Host(call_limits=limits).serve() as served:
            first, second = served.channel(), served.channel()
            await served.raw("GetNodeInfo", first)(b"", timeout=2)
            await served.raw("GetNodeInfo", second)(b"", timeout=2)
            failed = await refusal(served.raw("GetNodeInfo")(b"", timeout=2))
            assert failed.code is CODE.UNAVAILABLE
            await first.close()
            while True:  # the server notices in its own time
                third = served.channel()
                try:
                    await served.raw("GetNodeInfo", third)(b"", timeout=2)
                    break
                except grpc.aio.AioRpcError:
                    await third.close()

    run(test)


def test_streams_of_a_connection_are_limited_and_the_next_one_waits():
    async def test() -> None:
        limits = dataclasses.replace(CLOSED_CALL_LIMITS, max_streams_per_connection=2)
        async with Host(call_limits=limits).serve() as served:
            channel = served.channel()
            await served.raw("GetNodeInfo", channel)(b"", timeout=2)  # by now the client knows the limit
            async with half_sent(served, channel) as held, half_sent(served, channel):
                await until(lambda: in_progress(served) == 2)
                waiting = asyncio.ensure_future(served.raw("GetNodeInfo", channel)(b"", timeout=4))
                await served.raw("GetNodeInfo")(b"", timeout=2)
                assert not waiting.done()
                held.release.set()
                await held.task
                await waiting

    run(test)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": grpc.Compression.Gzip}, {"compression": grpc.Compression.Deflate}],
    ids=["plain", "gzip bomb", "deflate bomb"],
)
def test_t2_a_message_beyond_the_limit_is_refused_and_memory_stays_flat(options):
    async def test() -> None:
        async with Host().serve() as served:
            call = served.raw("PublishGroups")
            assert (await refusal(call(bytes(64 * 2**20), timeout=14, **options))).code is CODE.RESOURCE_EXHAUSTED
            before = resident_bytes()
            for _ in range(5):
                failed = await refusal(call(bytes(32 * 2**20), timeout=14, **options))
                assert failed.code is CODE.RESOURCE_EXHAUSTED
            # The sender's copies live in this process too; kept messages would be 160 MiB.
            assert resident_bytes() - before < 80 * 2**20
            await served.client().get_node_info()

    run(test)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("size_bytes", [9 * 1024, 64 * 1024])
def test_t2_metadata_beyond_the_limit_is_refused(size_bytes):
    async def test() -> None:
        async with Host().serve() as served:
            call = served.raw("GetNodeInfo")
            await call(b"", timeout=2, metadata=(("filler", "x" * 7 * 1024),))
            failed = await refusal(call(b"", timeout=2, metadata=(("filler", "x" * size_bytes),)))
            assert failed.code is CODE.RESOURCE_EXHAUSTED
            await served.client().get_node_info()

    run(test)


def test_t1_no_nonsense_gets_an_undocumented_status():
    async def test() -> None:
        rng = random.Random(0)
        seeds = [publish_body(signed_group(ANN)), *VALID.values()]
        async with Host(quotas=dataclasses.replace(CLOSED_QUOTAS, prefix_factor=1e6)).serve() as served:
            channel = served.channel()
            calls = {rpc: served.raw(rpc, channel) for rpc in DEADLINES}
            seen: set[str] = set()
            for _ in range(400):
                body = bytearray(rng.choice(seeds) or rng.randbytes(rng.randrange(1, 40)))
                for _ in range(rng.randrange(1, 4)):
                    body[rng.randrange(len(body))] = rng.randrange(256)
                rpc = rng.choice(list(calls))
                try:
                    await calls[rpc](bytes(body), timeout=2)
                    seen.add("OK")
                except grpc.aio.AioRpcError as error:
                    seen.add(error.code().name)
            assert seen <= {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE"} and len(seen) > 1

    run(test)


def test_overload_is_refused_with_hints_and_the_store_stays_within_its_cap():
    async def test() -> None:
        host = Host(quotas=OPEN_QUOTAS)
        async with host.serve() as served:
            client = served.client()
            groups = [signed_group(ANN, index=i, sequence=i + 1) for i in range(640)]
            requests = [PublishRequest(groups=tuple(groups[i : i + 32])) for i in range(0, 640, 32)]
            responses = await asyncio.gather(*(client.publish_groups(request) for request in requests))
            results = [result for response in responses for result in response.results]
            assert sorted(outcomes(results)) == ["accepted"] * 64 + ["quota"] * 576
            assert all(result.retry_after_s > 0 for result in results if result.reason is WireReason.QUOTA)
            assert host.store.stats().groups == 64

    run(test)


# Slow, rude and silent callers.


def test_t17_slow_callers_give_way_to_an_honest_one():
    async def test() -> None:
        clock = FakeClock()
        limits = dataclasses.replace(CLOSED_CALL_LIMITS, max_calls=16)
        async with (
            Host(call_limits=limits).serve(clock=clock) as served,
            contextlib.AsyncExitStack() as stack,
        ):
            slow = [await stack.enter_async_context(half_sent(served)) for _ in range(16)]
            await until(lambda: in_progress(served) == 16)
            failed = await refusal(served.raw("GetNodeInfo")(b"", timeout=2))
            assert failed.code is CODE.RESOURCE_EXHAUSTED and failed.detail is not None
            assert failed.detail.limit == "calls at a time, 16"  # they are not slow yet
            clock.now_s += 1.0
            for _ in range(3):
                await served.raw("GetNodeInfo")(b"", timeout=2)
                await until(lambda: in_progress(served) == 15)  # an answered call leaves a moment later
            assert sum(call.task.done() for call in slow) == 1  # no more than had to
            gave_way = await refusal(next(call.task for call in slow if call.task.done()))
            assert gave_way.code is CODE.RESOURCE_EXHAUSTED and gave_way.detail is not None
            assert gave_way.detail.reason is WireReason.CONCURRENCY and gave_way.detail.retry_after_s > 0

    run(test)


def test_t17_callers_that_vanish_leave_nothing_behind():
    async def test() -> None:
        async with Host().serve() as served:
            for _ in range(3):
                channel = served.channel()
                calls = [HalfSent(served, channel) for _ in range(8)]
                await until(lambda: in_progress(served) == 8)
                for call in calls[:4]:
                    call.task.cancel()  # a stream reset
                await channel.close()  # the connection goes
                await asyncio.wait([call.task for call in calls])
                await until(lambda: in_progress(served) == 0)
            await served.client().get_node_info()

    run(test)


def test_t17_silent_and_babbling_connections_hold_nobody_up():
    async def test() -> None:
        async with Host().serve() as served:
            pairs = [await asyncio.open_connection("127.0.0.1", served.server.port) for _ in range(32)]
            for _, writer in pairs[::2]:
                writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
            client = served.client()
            for _ in range(20):
                await client.get_node_info()
            for _, writer in pairs:
                writer.close()

    run(test)


# Trust.


def test_t22_a_plain_client_fails_on_a_tls_port():
    async def test() -> None:
        async with Host().serve(closed_trust()) as served:
            failed = await refusal(served.raw("GetNodeInfo")(b"", timeout=2, metadata=((TOKEN_HEADER, TOKEN),)))
            assert failed.code is CODE.UNAVAILABLE
            await served.client().get_node_info()

    run(test)


def test_t22_a_closed_client_does_not_talk_to_a_plain_port():
    async def test() -> None:
        trust = closed_trust()
        assert trust.certificate is not None
        async with Host().serve() as served:
            pool = served.make_pool(trust)
            with pytest.raises(TrustError, match="no certificate is known"):
                pool.connect(served.address, None)
            with pytest.raises(CallError) as caught:
                await pool.connect(served.address, trust.certificate.der).get_node_info()
            assert caught.value.reason is None
            await pool.close()

    run(test)


def test_t22_a_server_in_plain_text_does_not_listen_on_the_network():
    with pytest.raises(TrustError, match="--insecure-loopback"):
        GrpcServer(Host().service, PLAIN, address="0.0.0.0:0")


def test_a_host_with_another_certificate_than_the_pinned_one_is_not_believed():
    async def test() -> None:
        other = closed_trust().certificate
        assert other is not None
        async with Host().serve(closed_trust()) as served:
            with pytest.raises(CallError) as caught:
                await served.pool.connect(served.address, other.der).get_node_info()
            assert caught.value.reason is None
            await served.client().get_node_info()

    run(test)


def test_t19_secrets_appear_neither_on_the_wire_nor_in_logs_nor_in_errors(caplog, capfd):
    caplog.set_level(logging.DEBUG)

    async def test() -> None:
        trust = closed_trust()
        assert trust.certificate is not None
        async with Host().serve(trust) as served:
            captured = bytearray()
            async with recording_proxy(served.server.port, captured) as port:
                client = served.pool.connect(f"127.0.0.1:{port}", served.certificate)
                await client.get_node_info()
                await client.publish_groups(PublishRequest(groups=(signed_group(ANN),)))
            wrong = served.make_pool(Trust(mode=trust.mode, certificate=trust.certificate, token=TOKEN[:-1] + "_"))
            with pytest.raises(CallError) as caught:
                await wrong.connect(served.address, served.certificate).get_node_info()
            assert caught.value.reason is WireReason.UNAUTHENTICATED
            await wrong.close()
        key_line = trust.certificate.key_pem.decode().splitlines()[1]
        printed = "".join(capfd.readouterr())
        assert len(captured) > 1000 and TOKEN[:-1].encode() not in captured
        for text in (str(caught.value), caplog.text, printed):
            assert TOKEN[:-1] not in text and key_line not in text
        assert "unauthenticated" in caplog.text  # the refusal itself is logged

    run(test)


@contextlib.asynccontextmanager
async def recording_proxy(port: int, captured: bytearray) -> AsyncGenerator[int]:
    """Passes bytes between callers and `port`, and keeps all of them."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    captured.extend(data)
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        for pair in ((reader, upstream_writer), (upstream_reader, writer)):
            tasks.add(asyncio.ensure_future(pump(*pair)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# Start, health, stop.


async def health(served: Served, service: str = "") -> str:
    body = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    raw = await served.raw(f"{HEALTH}Check")(body, timeout=2)
    response = health_pb2.HealthCheckResponse.FromString(raw)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


@pytest.mark.parametrize("make_trust", [lambda: PLAIN, closed_trust], ids=["plain", "closed"])
def test_a_second_server_on_the_same_port_fails_in_one_clear_line(make_trust, capfd):
    async def test() -> None:
        async with Host().serve(make_trust()) as served:
            second = GrpcServer(Host().service, make_trust(), address=served.address)
            with pytest.raises(ServerAddressError) as caught:
                await second.start()
            assert str(caught.value) == f"cannot listen on {served.address}: address already in use"
            assert "in use" not in "".join(capfd.readouterr())  # gRPC does not talk over us
            await second.stop()
            await served.client().get_node_info()

    run(test)


def test_an_address_of_another_machine_fails_in_one_clear_line():
    async def test() -> None:
        server = GrpcServer(Host().service, closed_trust(), address="192.0.2.1:7000")
        with pytest.raises(ServerAddressError, match="cannot listen on 192.0.2.1:7000: cannot assign"):
            await server.start()

    run(test)


def test_a_port_can_be_taken_again_at_once():
    async def test() -> None:
        address = "127.0.0.1:0"
        for _ in range(3):
            async with Host().serve(address=address) as served:
                await served.client().get_node_info()
                address = served.address

    run(test)


def test_health_is_told_of_the_whole_server_and_of_each_service_without_a_token():
    async def test() -> None:
        trust = closed_trust()
        async with Host().serve(trust) as served:
            assert served.certificate is not None
            credentials = grpc.ssl_channel_credentials(pem_of(served.certificate))
            options = [("grpc.ssl_target_name_override", TLS_NAME)]
            async with grpc.aio.secure_channel(served.address, credentials, options=options) as channel:
                check = served.raw(f"{HEALTH}Check", channel)
                for name in ("", SERVICE):
                    body = health_pb2.HealthCheckRequest(service=name).SerializeToString()
                    raw = await check(body, timeout=2)
                    assert health_pb2.HealthCheckResponse.FromString(raw).status == 1  # SERVING
        async with Host().serve() as served:
            failed = await refusal(served.raw(f"{HEALTH}Check")(b"\x0a\x01x", timeout=2))
            assert failed.code is CODE.NOT_FOUND
            failed = await refusal(served.raw(f"{HEALTH}Check")(b"\xff", timeout=2))
            assert failed.code is CODE.INVALID_ARGUMENT

    run(test)


def test_health_is_watched():
    async def test() -> None:
        async with Host().serve() as served:
            watch = served.channel().unary_stream(f"{HEALTH}Watch")
            call, strange = watch(b""), watch(b"\x0a\x01x")
            statuses = [health_pb2.HealthCheckResponse.FromString(await call.read()).status]
            await served.server.set_ready(False)
            statuses.append(health_pb2.HealthCheckResponse.FromString(await call.read()).status)
            await served.server.set_ready(True)
            statuses.append(health_pb2.HealthCheckResponse.FromString(await call.read()).status)
            assert statuses == [1, 2, 1]
            assert health_pb2.HealthCheckResponse.FromString(await strange.read()).status == 3  # SERVICE_UNKNOWN
            malformed = watch(b"\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await malformed.read()
            assert caught.value.code() is CODE.INVALID_ARGUMENT

    run(test)


def test_watchers_are_few(monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_STREAMS", 2)

    async def test() -> None:
        async with Host().serve() as served:
            watch = served.channel().unary_stream(f"{HEALTH}Watch")
            calls = [watch(b"") for _ in range(2)]
            for call in calls:
                await call.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await watch(b"").read()
            assert caught.value.code() is CODE.RESOURCE_EXHAUSTED
            calls[0].cancel()
            await until(lambda: served.server._pipeline._streams == 1)
            await watch(b"").read()

    run(test)


def test_draining_turns_health_off_refuses_what_is_new_and_finishes_what_is_under_way():
    async def test() -> None:
        host = Host()
        async with host.serve() as served, half_sent(served) as held:
            publish = served.raw("PublishGroups")
            await until(lambda: in_progress(served) == 1)
            await served.client().publish_groups(PublishRequest(groups=(signed_group(ANN, sequence=7),)))
            await served.server.drain()
            assert await health(served) == "NOT_SERVING" and await health(served, SERVICE) == "NOT_SERVING"
            failed = await refusal(publish(publish_body(signed_group(ANN, sequence=8)), timeout=2))
            assert failed.code is CODE.UNAVAILABLE and failed.detail is not None
            assert failed.detail.reason is WireReason.DRAINING
            assert len((await served.client().sample_groups(SampleRequest(count=5))).groups) == 1
            await served.server.set_ready(True)  # too late
            assert await health(served) == "NOT_SERVING"
            assert not held.task.done()
            held.release.set()
            finished = await refusal(held.task)  # answered, not broken off, though its groups come too late
            assert finished.detail is not None and finished.detail.reason is WireReason.DRAINING

    run(test)


def test_stopping_lets_a_call_in_progress_finish():
    async def test() -> None:
        async with Host().serve() as served:
            channel = served.channel()
            sample = channel.stream_unary(f"/{SERVICE}/SampleGroups")
            release = asyncio.Event()

            async def body() -> AsyncIterator[bytes]:
                await release.wait()
                yield b"\x08\x01"
                # Left open: the answer does not wait for the end, and a server that stops hangs up with its last
                # answer. An end sent at that moment would meet a closed connection; a unary call sends both at once.
                await asyncio.Event().wait()

            async def make() -> bytes:
                return await sample(body(), timeout=4)

            call = asyncio.ensure_future(make())
            await until(lambda: in_progress(served) == 1)
            stopping = asyncio.ensure_future(served.server.stop(grace_s=10.0))
            await until(lambda: served.server._server is None)
            failed = await refusal(served.raw("GetNodeInfo")(b"", timeout=2))
            assert failed.code is CODE.UNAVAILABLE and not stopping.done()
            release.set()
            await call
            await stopping

    run(test)


def test_stopping_ends_watchers_and_calls_beyond_the_grace():
    async def test() -> None:
        async with Host().serve() as served, half_sent(served) as held:
            call = served.channel().unary_stream(f"{HEALTH}Watch")(b"")
            await call.read()
            await until(lambda: in_progress(served) == 1)
            await served.server.stop(grace_s=0.05)
            assert (await refusal(held.task)).code is CODE.UNAVAILABLE

    run(test)


def test_reflection_lists_the_services_on_request_only():
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

    async def test() -> None:
        async with Host().serve() as served:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.channel().unary_unary(method)(b"", timeout=2)
            assert caught.value.code() is CODE.UNIMPLEMENTED
        async with Host().serve(with_reflection=True) as served:
            asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
            call = served.channel().stream_stream(method)(timeout=4)
            await call.write(asked)
            response = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
            names = {service.name for service in response.list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= names
            await call.write(b"\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is CODE.INVALID_ARGUMENT

    run(test)


# The client.


def test_what_was_not_answered_is_tried_again_with_growing_random_pauses():
    async def test() -> None:
        async with Host().serve() as served:
            address = served.address
            await served.server.stop(grace_s=0.0)
            with pytest.raises(CallError) as caught:
                await served.pool.connect(address, None).get_node_info()
            assert caught.value.reason is None
            assert len(served.pauses) == 3
            assert all(0.0 <= pause <= 0.1 * 2**i for i, pause in enumerate(served.pauses)) and any(served.pauses)
            served.pauses.clear()
            with pytest.raises(CallError):
                await served.pool.connect(address, None).sample_groups(SampleRequest(count=1))
            assert served.pauses == []

    run(test)


def test_a_host_that_is_starting_is_asked_again_after_its_hint():
    async def test() -> None:
        host = Host()
        async with host.serve(is_ready=False) as served:

            async def sleep(seconds: float) -> None:
                served.pauses.append(seconds)
                await served.server.set_ready(True)

            served.pool._sleep = sleep
            assert (await served.client().get_node_info()).epoch == host.store.epoch
            assert served.pauses == [1.0]

    run(test)


def test_a_refusal_is_not_tried_again_and_carries_its_hint():
    async def test() -> None:
        async with Host(quotas=QuotaLimits(calls_per_s=0.5, burst_calls=1.0)).serve() as served:
            client = served.client()
            await client.get_node_info()
            with pytest.raises(CallError) as caught:
                await client.get_node_info()
            assert (caught.value.reason, caught.value.retry_after_s) == (WireReason.QUOTA, 2.0)
            assert served.pauses == []

    run(test)


def test_a_peer_that_never_answers_costs_two_deadlines():
    async def test() -> None:
        async with Host().serve() as served:
            writers: list[asyncio.StreamWriter] = []
            silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
            address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
            with pytest.raises(CallError) as caught:
                await served.pool.connect(address, None).get_node_info(timeout_s=0.05)
            assert caught.value.reason is None and len(served.pauses) == 1
            silent.close()
            for writer in writers:
                writer.close()

    run(test)


def test_pauses_have_a_cap_and_full_jitter():
    rng = np.random.default_rng(0)
    policy = RetryPolicy()
    for attempt, most_s in ((0, 0.1), (1, 0.2), (4, 1.6), (5, 2.0), (50, 2.0)):
        pauses = [policy.pause_s(attempt, rng) for _ in range(500)]
        assert 0.9 * most_s < max(pauses) <= most_s and min(pauses) < 0.1 * most_s
    assert NO_RETRY.max_attempts == 1


class Liar(grpc.GenericRpcHandler):
    """A peer that answers every call with the same bytes, or fails in a way of its own."""

    def __init__(self, answer: bytes | None, trailing: tuple[tuple[str, bytes], ...] = ()) -> None:
        self.answer = answer
        self.trailing = trailing

    def service(self, handler_call_details):
        async def handle(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            if self.answer is None:
                await context.abort(CODE.INVALID_ARGUMENT, "\x1b[31m" + "x" * 5000, self.trailing)
            return self.answer

        return grpc.unary_unary_rpc_method_handler(handle)


@contextlib.asynccontextmanager
async def lying_peer(liar: Liar) -> AsyncGenerator[str]:
    server = grpc.aio.server(handlers=(liar,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def test_nonsense_from_a_peer_is_a_wire_error_for_every_call():
    async def test() -> None:
        async with Host().serve() as served, lying_peer(Liar(b"\xff\xff\xff")) as address:
            client = served.pool.connect(address, None)
            for call in (
                client.publish_groups(PublishRequest(groups=(signed_group(ANN),))),
                client.sample_groups(SampleRequest(count=1)),
                client.list_groups(ListRequest(max_references=1)),
                client.get_groups(GetRequest(group_ids=(bytes(32),))),
                client.get_node_info(),
                client.exchange_peers(PeerExchange(peer_records=())),
            ):
                with pytest.raises(WireError):
                    await call

    run(test)


def test_a_peer_that_answers_about_other_groups_than_asked_is_a_wire_error():
    async def test() -> None:
        async with Host().serve() as served, lying_peer(Liar(b"")) as address:
            with pytest.raises(WireError):
                request = PublishRequest(groups=(signed_group(ANN),))
                await served.pool.connect(address, None).publish_groups(request)

    run(test)


@pytest.mark.parametrize("detail", [None, b"\xff\xff", b"\x08\x0a"], ids=["none", "nonsense", "another code"])
def test_a_peers_error_is_short_and_harmless_and_its_contradictions_do_not_count(detail):
    trailing = () if detail is None else (("sapo-error-detail-bin", detail),)

    async def test() -> None:
        async with Host().serve() as served, lying_peer(Liar(None, trailing)) as address:
            with pytest.raises(CallError) as caught:
                await served.pool.connect(address, None).get_node_info()
            assert len(str(caught.value)) < 300 and "\x1b" not in str(caught.value)
            assert caught.value.reason is None

    run(test)


def test_an_answer_beyond_the_limit_is_refused_on_our_side():
    async def test() -> None:
        async with Host().serve() as served, lying_peer(Liar(bytes(5 * 2**20))) as address:
            with pytest.raises(CallError) as caught:
                await served.pool.connect(address, None).get_node_info()
            assert caught.value.reason is WireReason.TOO_LARGE

    run(test)


def test_channels_are_reused_and_few():
    async def test() -> None:
        async with Host().serve() as served:
            pool = served.make_pool(PLAIN, max_channels=2)
            first, again = pool.connect(served.address, None), pool.connect(served.address, None)
            assert len(pool) == 1
            await first.close()
            await first.close()
            await again.get_node_info()  # the channel lives as long as somebody uses it
            others = [pool.connect(f"127.0.0.1:{port}", None) for port in (1, 2, 3)]
            assert len(pool) == 4  # all in use
            for client in others:
                await client.close()
            assert len(pool) == 2
            await again.get_node_info()
            await pool.close()
            assert len(pool) == 0

    run(test)


def test_a_channel_on_which_nobody_answered_is_not_used_again():
    async def test() -> None:
        async with Host().serve() as served:
            dead = socket.create_server(("127.0.0.1", 0))  # accepts and says nothing, like a connection that was cut
            address = f"127.0.0.1:{dead.getsockname()[1]}"
            pool = served.make_pool(PLAIN)
            for client in (first := pool.connect(address, None)), pool.connect(address, None):
                with pytest.raises(CallError):
                    await client.get_node_info(timeout_s=0.1)
            await first.close()
            assert len(pool) == 0  # the next to dial gets a new one
            pending = asyncio.create_task(client.get_node_info(timeout_s=0.1))
            await asyncio.sleep(0)
            await client.close()
            with pytest.raises(CallError):  # not canceled: its task would take that for its own end
                await pending
            answering = pool.connect(served.address, None)
            await answering.get_node_info()
            await answering.close()
            assert len(pool) == 1
            await pool.close()
            dead.close()

    run(test)


def test_a_client_keeps_to_what_one_connection_may_do():
    async def test() -> None:
        async with Host().serve() as served:
            client = served.client()
            infos = await asyncio.gather(*(client.get_node_info() for _ in range(40)))
            assert len(infos) == 40 and served.pauses == []

    run(test)


def test_the_client_dials_directly_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")

    async def test() -> None:
        async with Host().serve() as served:
            await served.client().get_node_info()

    run(test)


def test_client_and_contract_agree_on_the_service():
    assert grpc_client.SERVICE_PATH == f"/{SERVICE}/"


# Metrics.


def test_calls_groups_and_bytes_are_counted_without_naming_anybody():
    async def test() -> None:
        host = Host()
        async with host.serve() as served:
            client = served.client()
            group = signed_group(ANN)
            await client.publish_groups(PublishRequest(groups=(group,)))
            await client.publish_groups(PublishRequest(groups=(group,)))
            await refusal(served.raw("SampleGroups")(b"\xff", timeout=2))
            await refusal(served.raw("/made.up.Name/Call")(b"", timeout=2))
            metrics = served.server.metrics
            metrics.watch_store(host.store.stats)
            value = metrics.registry.get_sample_value
            assert value("sapo_exchange_calls_total", {"rpc": "PublishGroups", "code": "OK"}) == 2
            assert value("sapo_exchange_calls_total", {"rpc": "SampleGroups", "code": "INVALID_ARGUMENT"}) == 1
            assert value("sapo_exchange_calls_total", {"rpc": "unknown", "code": "UNIMPLEMENTED"}) == 1
            assert value("sapo_exchange_published_groups_total", {"outcome": "accepted", "reason": ""}) == 1
            assert value("sapo_exchange_published_groups_total", {"outcome": "duplicate", "reason": ""}) == 1
            assert value("sapo_exchange_bytes_total", {"direction": "in"}) == 2 * len(publish_body(group)) + 1
            assert value("sapo_exchange_call_seconds_count", {"rpc": "PublishGroups"}) == 2
            assert value("sapo_store_groups", {"state": "unverified"}) == 1
            await until(lambda: value("sapo_exchange_calls_in_progress") == 0)
            page = metrics.serve("127.0.0.1", 0)
            try:
                url = f"http://127.0.0.1:{page.port}/metrics"
                text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
            finally:
                page.close()
            assert "sapo_exchange_calls_total" in text and "sapo_store_bytes" in text
            assert ANN.node_id not in text and "made.up" not in text

    run(test)


def test_the_metrics_page_stays_on_this_machine():
    metrics = ServerMetrics()
    with pytest.raises(MetricsAddressError, match="loopback"):
        metrics.serve("0.0.0.0", 0)
    page = metrics.serve("127.0.0.1", 0)
    with pytest.raises(MetricsAddressError, match="in use"):
        ServerMetrics().serve("127.0.0.1", page.port)
    page.close()


def test_refusals_are_logged_but_not_without_end(caplog):
    caplog.set_level(logging.INFO, logger="sapo_jax.swarm.calls.pipeline")

    async def test() -> None:
        async with Host().serve(clock=FakeClock()) as served:
            call = served.raw("GetNodeInfo")
            for _ in range(20):
                await refusal(call(b"\xff", timeout=2))
            assert len(caplog.records) == 5

    run(test)
