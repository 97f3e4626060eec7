"""The table of limits, row by row over a real server: one below, at the limit, one above it.

The numbers themselves are at the end: a limit that is changed has to be changed there too.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable

import grpc
import pytest

from sapo_jax.config import SharingConfig, TasksConfig
from sapo_jax.swarm.calls.grpc_server import CLOSED_CALL_LIMITS
from sapo_jax.swarm.calls.quota import OPEN_QUOTAS, QuotaLimits
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.verifying import VerifyLimits
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.group_codec import seal_group
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.limits import DEADLINES, KIB, MIB, CallLimits, WireLimits
from sapo_jax.swarm.wire.requests import PublishRequest, SampleRequest
from sapo_jax.swarm.wire.signed_content import SignedGroup
from tests.swarm.calls.hosts import (
    Host,
    Served,
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


def of_payload(message: pb.RolloutGroup, filler_bytes: int = 0) -> SignedGroup:
    """Returns a signed group with this content, and an unknown field that adds `filler_bytes`."""
    payload = message.SerializeToString() + filler(filler_bytes)
    return SignedGroup(envelope=seal_group(payload, ANN))


def filler(size_bytes: int) -> bytes:
    """Returns one unknown field of `size_bytes` in all; its length takes four bytes whatever it is."""
    if not size_bytes:
        return b""
    rest = size_bytes - 6
    length = bytes([rest & 0x7F | 0x80, rest >> 7 & 0x7F | 0x80, rest >> 14 & 0x7F | 0x80, rest >> 21])
    return b"\xfa\x7f" + length + bytes(rest)


def content() -> pb.RolloutGroup:
    return pb.RolloutGroup.FromString(signed_group(ANN).envelope.payload)


def texts(*sizes: int) -> SignedGroup:
    message = content()
    del message.completions[:]
    for size in sizes:
        message.completions.add(text="x" * size, finish_reason=pb.FINISH_REASON_STOP)
    return of_payload(message)


def with_field(path: str, size: int) -> SignedGroup:
    message = content()
    target, _, name = path.rpartition(".")
    setattr(getattr(message, target) if target else message, name, "x" * size)
    return of_payload(message)


def published(make: Callable[[int], SignedGroup]) -> Callable[[Served, int], Awaitable[bool]]:
    """Whether the group that `make` makes of a number is accepted."""

    async def is_taken(served: Served, n: int) -> bool:
        response = await served.client().publish_groups(PublishRequest(groups=(make(n),)))
        return outcomes(response.results) == ["accepted"]

    return is_taken


def called(rpc: str, body: Callable[[int], bytes]) -> Callable[[Served, int], Awaitable[bool]]:
    """Whether a request of this size is answered; refused it must be in one of the two documented ways."""

    async def is_answered(served: Served, n: int) -> bool:
        try:
            await served.raw(rpc)(body(n), timeout=4)
        except grpc.aio.AioRpcError as error:
            assert error.code() in (CODE.INVALID_ARGUMENT, CODE.RESOURCE_EXHAUSTED), error
            return False
        return True

    return is_answered


PAYLOAD_BYTES = len(content().SerializeToString())

# What is limited: the limit, and whether n of it pass.
SIZES: dict[str, tuple[int, Callable[[Served, int], Awaitable[bool]]]] = {
    "bytes of a message": (4 * MIB, called("GetNodeInfo", filler)),
    "groups of a publish call": (
        32,
        called("PublishGroups", lambda n: publish_body(*[signed_group(ANN)] * n)),
    ),
    "groups of a sample call": (
        64,
        called("SampleGroups", lambda n: pb.SampleGroupsRequest(count=n).SerializeToString()),
    ),
    "references of a list call": (
        1_000,
        called("ListGroups", lambda n: pb.ListGroupsRequest(page_size=n).SerializeToString()),
    ),
    "ids of a get call": (
        64,
        called("GetGroups", lambda n: pb.GetGroupsRequest(group_ids=[bytes(32)] * n).SerializeToString()),
    ),
    "records of a peer exchange": (
        32,
        called("ExchangePeers", lambda n: records(n).SerializeToString()),
    ),
    "bytes of a group": (960 * KIB, published(lambda n: of_payload(content(), n - PAYLOAD_BYTES))),
    "completions of a group": (64, published(lambda n: texts(*[10] * n))),
    "bytes of a completion": (64 * KIB, published(lambda n: texts(n))),
    "bytes of all completions": (512 * KIB, published(lambda n: texts(*[64 * KIB] * 7, 60 * KIB, n - 508 * KIB))),
    "bytes of a dataset's name": (64, published(lambda n: with_field("task.dataset", n))),
    "bytes of a verifier's version": (32, published(lambda n: with_field("task.verifier_version", n))),
    "bytes of a model's name": (128, published(lambda n: with_field("generator.model_name", n))),
    "bytes of a tokenizer's name": (128, published(lambda n: with_field("generator.tokenizer_name", n))),
    "bytes of a template's id": (64, published(lambda n: with_field("generator.prompt_template_id", n))),
    "relays of a group": (
        4,
        published(lambda n: dataclasses.replace(signed_group(ANN), hops=n)),
    ),
}


def records(count: int) -> pb.ExchangePeersRequest:
    signed = peer_record(ANN).envelope
    one = pb.SignedPeerRecord(
        payload=signed.payload, public_key=signed.public_key, signature=signed.signature, algorithm=1
    )
    return pb.ExchangePeersRequest(peer_records=[one] * count)


@pytest.mark.parametrize("name", SIZES)
def test_t2_what_is_at_the_limit_passes_and_one_more_does_not(name: str) -> None:
    limit, passes = SIZES[name]

    async def test() -> None:
        for n, expected in ((limit - 1, True), (limit, True), (limit + 1, False)):
            async with Host().serve() as served:
                assert await passes(served, n) is expected, f"{n} of {limit}"
                await served.client().get_node_info()  # still there

    run(test)


@pytest.mark.parametrize("rpc", DEADLINES)
def test_the_longest_deadline_is_taken_and_a_second_more_is_not(rpc: str) -> None:
    async def test() -> None:
        longest_s = DEADLINES[rpc].server_max_s
        async with Host().serve() as served:
            call = served.raw(rpc)  # one connection, so that only the first call spends time on it
            for timeout, expected in ((longest_s, False), (longest_s + 1.0, True)):
                failed = "deadline" in await text_of(call(b"", timeout=timeout))
                assert failed is expected

    run(test)


async def text_of(call: Awaitable[object]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.details() or ""
    return ""


# Amounts per time. The clock stands still, so a bucket gives its burst and nothing more.


@pytest.mark.parametrize(
    ("quotas", "sizes", "passes"),
    [
        pytest.param(OPEN_QUOTAS, [20] * 66, 64, id="groups of one publisher"),
        pytest.param(OPEN_QUOTAS, [64 * KIB - 600] * 140, 64, id="groups again, of 64 KiB"),
        pytest.param(
            dataclasses.replace(OPEN_QUOTAS, groups_per_s=1e3, burst_groups=1e3),
            [60 * KIB] * 140,
            136,
            id="bytes of one publisher",
        ),
    ],
)
def test_t9_a_publisher_spends_its_burst_and_no_more(quotas: QuotaLimits, sizes: list[int], passes: int) -> None:
    host = Host(quotas=dataclasses.replace(quotas, prefix_factor=100.0))
    groups = [signed_group(ANN, index=i, sequence=i + 1, text_bytes=size) for i, size in enumerate(sizes)]
    results = [outcomes(publish(host, group))[0] for group in groups]
    assert results == ["accepted"] * passes + ["quota"] * (len(sizes) - passes)


def publish(host: Host, *groups: SignedGroup, prefix: str = "net"):
    return host.ready().publish(PublishRequest(groups=groups), prefix=prefix).results


def test_t9_a_group_beyond_256_kib_counts_twice() -> None:
    limit, quotas = 256 * KIB, dataclasses.replace(OPEN_QUOTAS, burst_bytes=1e9, burst_groups=4.0)
    for size, passes in ((limit, 4), (limit + 1, 2)):
        host = Host(quotas=quotas)
        groups = []
        for i in range(5):
            message = content()
            message.sequence = i + 1
            message.task.index = i
            groups.append(of_payload(message, size - len(message.SerializeToString()) - 96))
        assert {len(group.envelope.payload) + 96 for group in groups} == {size}  # with key and signature
        assert outcomes(publish(host, *groups)).count("accepted") == passes


def test_t9_a_prefix_has_four_times_the_burst_of_a_publisher() -> None:
    host = Host(quotas=OPEN_QUOTAS)
    people = [Identity.generate() for _ in range(5)]
    results = [outcomes(publish(host, signed_group(who, index=i)))[0] for who in people for i in range(60)]
    assert results == ["accepted"] * 256 + ["quota"] * 44
    assert outcomes(publish(host, signed_group(ANN), prefix="another")) == ["accepted"]


# Amounts at a time.


async def held(served: Served, stack: contextlib.AsyncExitStack, count: int, *, one_channel: bool) -> grpc.aio.Channel:
    """Has `count` calls in progress, on one connection or each on its own; returns a channel for one more."""
    channel = served.channel()
    for number in range(count):
        await stack.enter_async_context(half_sent(served, channel if one_channel else None))
        await until(lambda number=number: in_progress(served) == number + 1)
    return channel


@pytest.mark.parametrize(
    ("limits", "one_channel", "limit", "text"),
    [
        pytest.param(CLOSED_CALL_LIMITS, True, 8, "calls of one connection at a time, 8", id="calls of a connection"),
        pytest.param(CallLimits(), False, 8, "busy connections of one address prefix, 8", id="connections of a prefix"),
        pytest.param(
            dataclasses.replace(CLOSED_CALL_LIMITS, max_calls=12),
            False,
            12,
            "calls at a time, 12",
            id="calls of a host",
        ),
    ],
)
def test_t17_calls_at_a_time(limits: CallLimits, one_channel: bool, limit: int, text: str) -> None:
    async def test() -> None:
        async with Host(call_limits=limits).serve(clock=lambda: 0.0) as served, contextlib.AsyncExitStack() as stack:
            channel = await held(served, stack, limit - 1, one_channel=one_channel)
            last = served.raw("GetNodeInfo", channel)
            await last(b"", timeout=2)  # the last place, free again at once
            await until(lambda: in_progress(served) == limit - 1)
            await stack.enter_async_context(half_sent(served, channel if one_channel else None))
            await until(lambda: in_progress(served) == limit)
            failed = await refusal(last(b"", timeout=2))
            assert failed.code is CODE.RESOURCE_EXHAUSTED and failed.detail is not None
            assert failed.detail.limit == text and failed.detail.retry_after_s > 0

    run(test)


@pytest.mark.parametrize("limit", [1, 3])
def test_t17_connections_of_a_host(limit: int) -> None:
    async def test() -> None:
        limits = dataclasses.replace(CLOSED_CALL_LIMITS, max_connections=limit)
        async with Host(call_limits=limits).serve() as served:
            for _ in range(limit):
                await served.raw("GetNodeInfo")(b"", timeout=2)
            assert (await refusal(served.raw("GetNodeInfo")(b"", timeout=2))).code is CODE.UNAVAILABLE

    run(test)


def test_t17_streams_of_a_connection() -> None:
    async def test() -> None:
        limits = dataclasses.replace(CLOSED_CALL_LIMITS, max_streams_per_connection=3, max_calls_per_peer=64)
        async with Host(call_limits=limits).serve() as served, contextlib.AsyncExitStack() as stack:
            channel = served.channel()
            await served.raw("GetNodeInfo", channel)(b"", timeout=2)  # by now the client knows the limit
            for number in range(3):
                await stack.enter_async_context(half_sent(served, channel))
                await until(lambda number=number: in_progress(served) == number + 1)
            waiting = asyncio.ensure_future(served.raw("GetNodeInfo", channel)(b"", timeout=0.2))
            assert (await refusal(waiting)).code is CODE.DEADLINE_EXCEEDED and in_progress(served) == 3

    run(test)


@pytest.mark.parametrize(("groups", "size_bytes"), [(1_024, 0), (0, 64 * MIB)], ids=["groups", "bytes"])
def test_t9_a_queue_takes_nothing_once_it_is_full(groups: int, size_bytes: int) -> None:
    for excess, expected in ((-1, "accepted"), (0, "queue_full"), (1, "queue_full")):
        host = Host(backlog=(groups + excess if groups else 0, size_bytes + excess if size_bytes else 0))
        assert outcomes(publish(host, signed_group(ANN))) == [expected]


# What a store keeps.


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_t9_a_store_keeps_its_groups_and_of_one_publisher_an_eighth(excess: int) -> None:
    host = Host(store_limits=StoreLimits(max_groups=64))
    people = [Identity.generate() for _ in range(9)]
    for who in people[: 8 + (excess == 1)]:
        publish(host, *(signed_group(who, index=i, sequence=i + 1) for i in range(8 + excess)))
    held = host.ready().sample(SampleRequest(count=64))
    assert held.stored_groups == {-1: 56, 0: 64, 1: 64}[excess]
    counts = [sum(group.envelope.public_key == who.public_key for group in held.groups) for who in people]
    assert max(counts) == min(8, 8 + excess)


def test_answers_stay_within_a_message() -> None:
    host = Host()
    big = [signed_group(Identity.generate(), index=i, text_bytes=64 * KIB) for i in range(64)]
    for start in range(0, 64, 32):
        publish(host, *big[start : start + 32])

    async def test() -> None:
        async with host.serve() as served:
            channel = served.channel(max_receive_message_length=16 * MIB)
            ids = [result.group_id for result in publish(host, *big)]
            request = pb.GetGroupsRequest(group_ids=ids).SerializeToString()
            for rpc, body in (("GetGroups", request), ("SampleGroups", b"\x08\x40")):
                answer = await served.raw(rpc, channel)(body, timeout=5)
                assert 3 * MIB < len(answer) <= 4 * MIB

    run(test)


def test_the_limits_are_those_of_the_contract() -> None:
    wire, calls, store, verify = WireLimits(), CallLimits(), StoreLimits(), VerifyLimits()
    assert (wire.max_message_bytes, calls.max_metadata_bytes) == (4 * MIB, 8 * KIB)
    assert (wire.max_payload_bytes, OPEN_QUOTAS.soft_group_bytes) == (960 * KIB, 256 * KIB)
    assert (calls.max_streams_per_connection, calls.max_calls, calls.max_calls_per_peer) == (64, 128, 8)
    assert (calls.max_connections, calls.max_connections_per_prefix) == (256, 8)
    assert (OPEN_QUOTAS.groups_per_s, OPEN_QUOTAS.burst_groups) == (4, 64)
    assert (OPEN_QUOTAS.bytes_per_s, OPEN_QUOTAS.burst_bytes) == (MIB, 8 * MIB)
    assert OPEN_QUOTAS.prefix_factor == 4
    assert (store.max_groups, store.max_bytes, store.publisher_frac) == (4_096, 256 * MIB, 1 / 8)
    assert (wire.default_ttl_s, wire.min_ttl_s, wire.max_ttl_s) == (3_600, 60, 86_400)
    assert (calls.max_queued_groups, calls.max_queued_bytes) == (1_024, 64 * MIB)
    assert (TasksConfig().completion_budget_s, TasksConfig().group_budget_s) == (1.0, 4.0)
    assert verify.core_share == 0.25 and SharingConfig().max_uses <= 4
