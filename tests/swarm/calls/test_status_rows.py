"""The table of status codes, row by row over a real server: what is wrong, and the code and reason it gets.

What concerns one group of a batch stands in that group's result; its reason then has the code of its row.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from sapo_jax.swarm.calls import pipeline
from sapo_jax.swarm.calls.certificate import TLS_NAME, pem_of
from sapo_jax.swarm.calls.grpc_server import SERVICE
from sapo_jax.swarm.calls.quota import QuotaLimits
from sapo_jax.swarm.calls.status_codes import CODES
from sapo_jax.swarm.calls.trust import TOKEN_HEADER
from sapo_jax.swarm.store.file import StoreDamagedError
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.requests import PublishRequest
from tests.swarm.calls.hosts import (
    Host,
    closed_trust,
    half_sent,
    in_progress,
    publish_body,
    refusal,
    run,
    signed_group,
    until,
)

ANN = Identity.generate()
VALUE = "sEcReT"  # what callers write is in no answer
PAGE_BYTES = 4096

# What a row does with a fresh host and an empty directory; it returns reason and status, if a call failed.
Failure = tuple[grpc.StatusCode | None, WireReason | None]
Act = Callable[[Path], Awaitable[Failure]]
ROWS: dict[str, tuple[str, WireReason, Act]] = {}


def row(code: str, reason: WireReason) -> Callable[[Act], Act]:
    """Adds a function as a row of the table; its name is the situation."""

    def add(act: Act) -> Act:
        ROWS[act.__name__.strip("_").replace("_", " ")] = (code, reason, act)
        return act

    return add


async def failure(call: Awaitable[object], most_chars: int = 200) -> Failure:
    failed = await refusal(call)
    assert failed.detail is not None
    assert VALUE not in f"{failed.text}{failed.detail}" and len(failed.text) <= most_chars
    if failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert failed.detail.limit and failed.detail.retry_after_s > 0
    return failed.code, failed.detail.reason


async def call(rpc: str, body: bytes, *, host: Host | None = None, timeout: float | None = 2.0) -> Failure:
    async with (host or Host()).serve() as served:
        return await failure(served.raw(rpc)(body, timeout=timeout))


async def item(body: bytes, *, host: Host | None = None) -> Failure:
    """Publishes one group; returns the reason of its result, and the code that this reason has."""
    async with (host or Host()).serve() as served:
        response = pb.PublishGroupsResponse.FromString(await served.raw("PublishGroups")(body, timeout=2))
    (result,) = response.results
    assert result.outcome == pb.PUBLISH_OUTCOME_REJECTED and VALUE not in str(result)
    name = pb.WireReason.Name(result.reason).removeprefix("WIRE_REASON_")
    return CODES[WireReason[name]], WireReason[name]


@row("INVALID_ARGUMENT", WireReason.MALFORMED)
async def _a_malformed_message(tmp_path: Path) -> Failure:
    return await call("PublishGroups", b"\x0a\x05abc")


@row("INVALID_ARGUMENT", WireReason.MALFORMED)
async def _text_that_is_no_utf8(tmp_path: Path) -> Failure:
    return await call("SampleGroups", b"\x08\x05\x12\x02\xff\xfe")


@row("INVALID_ARGUMENT", WireReason.MALFORMED)
async def _fields_nested_a_thousand_deep(tmp_path: Path) -> Failure:
    """Groups, the old kind of field, can be nested in what nobody knows; protobuf's own limit is a hundred."""
    return await call("GetNodeInfo", b"\x7b" * 1000 + b"\x7c" * 1000)


@row("INVALID_ARGUMENT", WireReason.FIELD)
async def _a_missing_field(tmp_path: Path) -> Failure:
    return await call("PublishGroups", b"")


@row("INVALID_ARGUMENT", WireReason.FIELD)
async def _a_field_that_breaks_its_rule(tmp_path: Path) -> Failure:
    return await call("SampleGroups", pb.SampleGroupsRequest(count=1, datasets=[VALUE]).SerializeToString())


@row("INVALID_ARGUMENT", WireReason.FIELD)
async def _a_field_of_a_group_that_breaks_its_rule(tmp_path: Path) -> Failure:
    broken = pb.PublishGroupsRequest.FromString(publish_body(signed_group(ANN)))
    broken.groups[0].public_key = VALUE.encode()
    return await item(broken.SerializeToString())


@row("INVALID_ARGUMENT", WireReason.MALFORMED)
async def _no_message_at_all(tmp_path: Path) -> Failure:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    async with Host().serve() as served:
        return await failure(served.channel().stream_unary(f"/{SERVICE}/GetNodeInfo")(nothing(), timeout=2))


@row("INVALID_ARGUMENT", WireReason.NO_DEADLINE)
async def _no_deadline(tmp_path: Path) -> Failure:
    return await call("GetNodeInfo", b"", timeout=None)


@row("INVALID_ARGUMENT", WireReason.NO_DEADLINE)
async def _a_deadline_beyond_the_longest(tmp_path: Path) -> Failure:
    return await call("GetNodeInfo", b"", timeout=30.0)


async def with_tokens(*tokens: str) -> Failure:
    async with Host().serve(closed_trust()) as served:
        assert served.certificate is not None
        credentials = grpc.ssl_channel_credentials(pem_of(served.certificate))
        options = [("grpc.ssl_target_name_override", TLS_NAME)]
        async with grpc.aio.secure_channel(served.address, credentials, options=options) as channel:
            metadata = tuple((TOKEN_HEADER, token) for token in tokens)
            return await failure(served.raw("GetNodeInfo", channel)(b"", timeout=2, metadata=metadata))


@row("UNAUTHENTICATED", WireReason.UNAUTHENTICATED)
async def _no_token(tmp_path: Path) -> Failure:
    return await with_tokens()


@row("UNAUTHENTICATED", WireReason.UNAUTHENTICATED)
async def _a_wrong_token(tmp_path: Path) -> Failure:
    return await with_tokens(VALUE)


@row("UNAUTHENTICATED", WireReason.BAD_SIGNATURE)
async def _a_bad_signature(tmp_path: Path) -> Failure:
    forged = pb.PublishGroupsRequest.FromString(publish_body(signed_group(ANN)))
    forged.groups[0].signature = bytes(64)
    return await item(forged.SerializeToString())


@row("PERMISSION_DENIED", WireReason.BANNED)
async def _a_banned_identity(tmp_path: Path) -> Failure:
    return await item(publish_body(signed_group(ANN)), host=Host(banned={ANN.node_id}))


@row("PERMISSION_DENIED", WireReason.WRONG_SWARM)
async def _another_swarm(tmp_path: Path) -> Failure:
    return await item(publish_body(signed_group(ANN, swarm_id=VALUE)))


@row("PERMISSION_DENIED", WireReason.NOT_ALLOWED)
async def _an_admin_verb_on_the_public_port(tmp_path: Path) -> Failure:
    return await call("/sapo.admin.v1.NodeAdminService/Drain", b"")


@row("RESOURCE_EXHAUSTED", WireReason.QUOTA)
async def _too_many_calls(tmp_path: Path) -> Failure:
    async with Host(quotas=QuotaLimits(calls_per_s=1.0, burst_calls=1.0)).serve() as served:
        await served.raw("GetNodeInfo")(b"", timeout=2)
        return await failure(served.raw("GetNodeInfo")(b"", timeout=2))


@row("RESOURCE_EXHAUSTED", WireReason.QUOTA)
async def _too_many_groups_of_one_publisher(tmp_path: Path) -> Failure:
    host = Host(quotas=QuotaLimits(groups_per_s=1.0, burst_groups=1.0))
    host.ready().publish(PublishRequest(groups=(signed_group(ANN, sequence=1),)), prefix="elsewhere")
    return await item(publish_body(signed_group(ANN, sequence=2)), host=host)


@row("RESOURCE_EXHAUSTED", WireReason.CONCURRENCY)
async def _too_many_calls_at_a_time(tmp_path: Path) -> Failure:
    async with Host().serve() as served, contextlib.AsyncExitStack() as stack:
        channel = served.channel()
        for _ in range(8):
            await stack.enter_async_context(half_sent(served, channel))
        await until(lambda: in_progress(served) == 8)
        return await failure(served.raw("GetNodeInfo", channel)(b"", timeout=2))


@row("RESOURCE_EXHAUSTED", WireReason.TOO_LARGE)
async def _a_message_beyond_its_limit(tmp_path: Path) -> Failure:
    """Refused by the transport, which knows no details of ours."""
    async with Host().serve() as served:
        failed = await refusal(served.raw("GetNodeInfo")(bytes(4 * 2**20 + 1), timeout=4))
        assert failed.detail is None
        return failed.code, WireReason.TOO_LARGE


@row("RESOURCE_EXHAUSTED", WireReason.TOO_LARGE)
async def _metadata_beyond_its_limit(tmp_path: Path) -> Failure:
    async with Host().serve() as served:
        failed = await refusal(served.raw("GetNodeInfo")(b"", timeout=4, metadata=(("filler", "x" * 9000),)))
        assert failed.detail is None
        return failed.code, WireReason.TOO_LARGE


@row("RESOURCE_EXHAUSTED", WireReason.TOO_LARGE)
async def _a_group_beyond_its_limit(tmp_path: Path) -> Failure:
    large = pb.PublishGroupsRequest.FromString(publish_body(signed_group(ANN)))
    large.groups[0].payload = bytes(960 * 1024 + 1)
    return await item(large.SerializeToString())


@row("RESOURCE_EXHAUSTED", WireReason.QUEUE_FULL)
async def _a_full_queue(tmp_path: Path) -> Failure:
    return await item(publish_body(signed_group(ANN)), host=Host(backlog=(1024, 0)))


@row("RESOURCE_EXHAUSTED", WireReason.STORE_FULL)
async def _a_full_disk(tmp_path: Path) -> Failure:
    return await item(publish_body(signed_group(ANN)), host=Host(path=tmp_path / "store.sqlite", free_bytes=0))


@row("FAILED_PRECONDITION", WireReason.UNSUPPORTED_VERSION)
async def _another_major_version(tmp_path: Path) -> Failure:
    return await call("/sapo.exchange.v2.RolloutExchangeService/PublishGroups", b"")


@row("FAILED_PRECONDITION", WireReason.UNKNOWN_ALGORITHM)
async def _a_signature_of_a_later_kind(tmp_path: Path) -> Failure:
    later = pb.PublishGroupsRequest.FromString(publish_body(signed_group(ANN)))
    later.groups[0].algorithm = 9  # pyright: ignore[reportAttributeAccessIssue]
    return await item(later.SerializeToString())


@row("OUT_OF_RANGE", WireReason.UNKNOWN_CURSOR)
async def _a_cursor_of_another_epoch(tmp_path: Path) -> Failure:
    request = pb.ListGroupsRequest(page_size=5, cursor=pb.GroupCursor(epoch=VALUE, sequence=1))
    async with Host().serve() as served:
        failed = await refusal(served.raw("ListGroups")(request.SerializeToString(), timeout=2))
        assert failed.detail is not None and failed.detail.oldest_cursor is not None
        return failed.code, failed.detail.reason


@row("UNAVAILABLE", WireReason.STARTING)
async def _a_host_that_starts(tmp_path: Path) -> Failure:
    async with Host().serve(is_ready=False) as served:
        return await failure(served.raw("GetNodeInfo")(b"", timeout=2))


@row("UNAVAILABLE", WireReason.DRAINING)
async def _a_host_that_drains(tmp_path: Path) -> Failure:
    async with Host().serve() as served:
        await served.server.drain()
        return await failure(served.raw("PublishGroups")(publish_body(signed_group(ANN)), timeout=2))


@row("UNAVAILABLE", WireReason.STORE_BUSY)
async def _a_store_that_cannot_be_used(tmp_path: Path) -> Failure:
    host = Host(path=tmp_path / "store.sqlite")
    async with host.serve() as served:
        host.store.close()
        return await failure(served.raw("SampleGroups")(b"\x08\x01", timeout=2))


@row("DEADLINE_EXCEEDED", WireReason.TIMEOUT)
async def _a_body_that_does_not_come(tmp_path: Path) -> Failure:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "BODY_S", 0.05)
        async with Host().serve() as served, half_sent(served) as held:
            return await failure(held.task)


@row("UNIMPLEMENTED", WireReason.NOT_IMPLEMENTED)
async def _an_optional_call_that_is_not_there(tmp_path: Path) -> Failure:
    return await call("WatchGroups", b"")


@row("INTERNAL", WireReason.INTERNAL)
async def _a_defect_of_ours(tmp_path: Path) -> Failure:
    def broken(request: object) -> object:
        raise RuntimeError(VALUE)

    async with Host(swap_peers=broken).serve() as served:  # pyright: ignore[reportArgumentType]
        failed = await refusal(served.raw("ExchangePeers")(b"", timeout=2))
        assert failed.detail is not None and failed.text == f"internal error {failed.detail.error_id}"
        return failed.code, failed.detail.reason


@row("DATA_LOSS", WireReason.DATA_LOSS)
async def _a_damaged_page_of_the_store(tmp_path: Path) -> Failure:
    """Damage beside the groups, where no row can be left out: here, in the memory of past ids."""
    path, limits = tmp_path / "store.sqlite", StoreLimits(max_groups=16)
    host = Host(path=path, store_limits=limits)
    groups = tuple(signed_group(ANN, index=i, sequence=i + 1) for i in range(400))
    host.ready().publish(PublishRequest(groups=groups), prefix="elsewhere")
    host.store.close()
    content = path.read_bytes()
    new = publish_body(*(signed_group(ANN, index=i, sequence=i + 1) for i in range(500, 532)))
    for start in range(len(content) - PAGE_BYTES, 0, -PAGE_BYTES):
        path.write_bytes(content[:start] + bytes(PAGE_BYTES) + content[start + PAGE_BYTES :])
        try:
            host = Host(path=path, store_limits=limits)
        except StoreDamagedError:  # most damage is noticed at once
            continue
        async with host.serve() as served:
            failed = await failure(served.raw("PublishGroups")(new, timeout=4))
            assert len(await served.raw("SampleGroups")(b"\x08\x02", timeout=2)) > 300  # what can be read is given
        host.store.close()
        return failed
    raise AssertionError("no page was found whose damage shows late")


@pytest.mark.parametrize("name", ROWS)
def test_t1_each_situation_has_its_code_and_reason(name: str, tmp_path: Path) -> None:
    code, reason, act = ROWS[name]

    async def test() -> None:
        assert await act(tmp_path) == (grpc.StatusCode[code], reason)

    run(test)


def test_every_code_of_the_contract_has_a_row() -> None:
    assert {code for code, _, _ in ROWS.values()} == {code.name for code in CODES.values()}


def test_every_reason_has_a_row_but_those_tested_elsewhere() -> None:
    """Hops and age are the codec's field rules; what task is unknown shows when it is verified."""
    shown = {reason for _, reason, _ in ROWS.values()}
    assert set(WireReason) - shown == {WireReason.HOPS, WireReason.EXPIRED, WireReason.UNKNOWN_TASK}


def test_t18_a_damaged_group_is_left_out_counted_and_may_come_again(tmp_path: Path) -> None:
    """The other kind of damage, within one group: the call succeeds and says that the group is not held."""
    path = tmp_path / "store.sqlite"
    groups = [signed_group(ANN, index=i, sequence=i + 1, text_bytes=9000) for i in range(3)]

    async def test() -> None:
        host = Host(path=path)
        async with host.serve() as served:
            published = pb.PublishGroupsResponse.FromString(
                await served.raw("PublishGroups")(publish_body(*groups), timeout=4)
            )
        host.store.close()
        content = bytearray(path.read_bytes())
        content[content.find(groups[1].envelope.payload[-64:]) + 5] ^= 0x10
        path.write_bytes(content)
        host = Host(path=path)
        ids = [result.group_id for result in published.results]
        async with host.serve() as served:
            asked = pb.GetGroupsRequest(group_ids=ids).SerializeToString()
            found = pb.GetGroupsResponse.FromString(await served.raw("GetGroups")(asked, timeout=4))
            assert list(found.missing_group_ids) == [ids[1]] and len(found.groups) == 2
            assert host.store.stats().damaged == 1
            again = await served.raw("PublishGroups")(publish_body(groups[1]), timeout=4)
            assert pb.PublishGroupsResponse.FromString(again).results[0].outcome == pb.PUBLISH_OUTCOME_ACCEPTED

    run(test)
