"""Requests and responses: exact in both directions, and refused where they break a rule."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from sapo_jax.swarm.wire.codec_parts import error_detail_from_message, error_detail_to_message
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.group_calls_codec import (
    get_request_from_message,
    list_request_from_message,
    publish_request_from_message,
    publish_request_to_message,
    publish_response_from_message,
    sample_request_from_message,
)
from sapo_jax.swarm.wire.group_codec import open_group
from sapo_jax.swarm.wire.host_calls_codec import node_info_from_message
from sapo_jax.swarm.wire.parse import parse
from sapo_jax.swarm.wire.peer_record_codec import open_peer_record
from sapo_jax.swarm.wire.requests import (
    ErrorDetail,
    GetRequest,
    GroupCursor,
    ListRequest,
    LoadLevel,
    PublishOutcome,
    PublishResult,
    SampleRequest,
)
from scripts.faults import wire_fuzz
from tests.swarm.wire import golden_wire
from tests.swarm.wire.golden_wire import RECORDS, conversion, path_of


@pytest.mark.parametrize("name", RECORDS)
def test_bytes_of_the_release_read_as_what_was_written(name):
    assert RECORDS[name].read(path_of(name).read_bytes()) == RECORDS[name].record


@pytest.mark.parametrize("name", RECORDS)
def test_records_come_out_as_they_went_in(name):
    assert RECORDS[name].read(RECORDS[name].write()) == RECORDS[name].record


def test_every_golden_file_has_a_record():
    files = {path.stem for path in golden_wire.GOLDEN.glob("*.binpb")}
    assert files == {*RECORDS, "descriptors"}


def test_a_released_group_opens_to_its_content():
    signed = RECORDS["signed_group"].read(path_of("signed_group").read_bytes())
    opened = open_group(signed, swarm_id=golden_wire.SWARM_ID)
    assert opened.rollout == golden_wire.ROLLOUT
    assert opened.generator == golden_wire.GENERATOR
    assert opened.claimed_scores == golden_wire.CLAIMED_SCORES
    assert (opened.sequence, opened.ttl_s, opened.hops, opened.age_s) == (77, 1_800.5, 2, 12.5)
    # sha256sum of payload and key; it must never depend on the version that computes it
    assert opened.group_id.hex() == "8bd28c8b1238635d3695adef5d4d13ecc97adb2ff4ec1762ed16ef3708d426f3"


def test_a_released_peer_record_opens_to_its_content():
    signed = RECORDS["signed_peer_record"].read(path_of("signed_peer_record").read_bytes())
    assert open_peer_record(signed, swarm_id=golden_wire.SWARM_ID).record == golden_wire.PEER_RECORD


@pytest.mark.parametrize("name", RECORDS)
def test_t1_damaged_messages_raise_nothing_but_wire_errors(name):
    golden, rng = RECORDS[name], random.Random(name)
    raw, refused = golden.write(), 0
    for _ in range(400):
        damaged = raw
        for _ in range(rng.choice((1, 2, 5))):
            damaged = wire_fuzz.damage(damaged, rng)
        try:
            golden.read(damaged)
        except WireError:
            refused += 1
    assert refused > 20


IDS = golden_wire.IDS


@pytest.mark.parametrize(
    ("name", "message", "field"),
    [
        ("publish_request", pb.PublishGroupsRequest(), "groups"),
        ("sample_request", pb.SampleGroupsRequest(), "count"),
        ("sample_request", pb.SampleGroupsRequest(count=65), "count"),
        ("sample_request", pb.SampleGroupsRequest(count=1, datasets=["gcd", "GCD"]), "datasets[1]"),
        ("sample_request", pb.SampleGroupsRequest(count=1, excluded_publishers=["a" * 51]), "excluded_publishers[0]"),
        ("sample_request", pb.SampleGroupsRequest(count=1, excluded_publishers=["1" * 52]), "excluded_publishers[0]"),
        ("sample_request", pb.SampleGroupsRequest(count=1, max_age={"seconds": -1}), "max_age"),
        ("list_request", pb.ListGroupsRequest(), "page_size"),
        ("list_request", pb.ListGroupsRequest(page_size=1001), "page_size"),
        ("list_request", pb.ListGroupsRequest(page_size=1, cursor={"sequence": 2**63}), "cursor.sequence"),
        ("get_request", pb.GetGroupsRequest(), "group_ids"),
        ("get_request", pb.GetGroupsRequest(group_ids=[bytes(32), bytes(31)]), "group_ids[1]"),
        ("node_info", pb.GetNodeInfoResponse(stored_groups=2**63), "stored_groups"),
        ("node_info", pb.GetNodeInfoResponse(catalog_digests=[bytes(33)]), "catalog_digests[0]"),
        ("error_detail", pb.ErrorDetail(oldest_cursor={"sequence": 2**64 - 1}), "oldest_cursor.sequence"),
    ],
)
def test_a_broken_rule_is_named(name, message, field):
    with pytest.raises(WireError) as caught:
        conversion(f"{name}_from_message")(message)
    assert (caught.value.reason, caught.value.field) == (WireReason.FIELD, field)


@pytest.mark.parametrize(
    ("name", "message", "field"),
    [
        ("publish_request", pb.PublishGroupsRequest(groups=[pb.SignedGroup()] * 33), "groups"),
        ("list_request", pb.ListGroupsRequest(page_size=1, cursor={"epoch": "e" * 65}), "cursor.epoch"),
        ("get_request", pb.GetGroupsRequest(group_ids=[bytes(32)] * 65), "group_ids"),
        ("peers_request", pb.ExchangePeersRequest(peer_records=[pb.SignedPeerRecord()] * 33), "peer_records"),
        ("peers_response", pb.ExchangePeersResponse(peer_records=[pb.SignedPeerRecord()] * 33), "peer_records"),
        ("node_info", pb.GetNodeInfoResponse(swarm_id="s" * 65), "swarm_id"),
        ("node_info", pb.GetNodeInfoResponse(epoch="s" * 65), "epoch"),
    ],
)
def test_what_is_too_large_is_named(name, message, field):
    with pytest.raises(WireError) as caught:
        conversion(f"{name}_from_message")(message)
    assert (caught.value.reason, caught.value.field) == (WireReason.TOO_LARGE, field)


@pytest.mark.parametrize(
    ("name", "message", "field"),
    [
        ("publish_response", pb.PublishGroupsResponse(), "results"),
        ("publish_response", pb.PublishGroupsResponse(results=[pb.PublishResult()] * 3), "results"),
        (
            "publish_response",
            pb.PublishGroupsResponse(results=[{}, {"group_id": bytes(31)}]),
            "results[1].group_id",
        ),
        ("sample_response", pb.SampleGroupsResponse(groups=[pb.SignedGroup()] * 3), "groups"),
        ("list_response", pb.ListGroupsResponse(), "next_cursor"),
        (
            "list_response",
            pb.ListGroupsResponse(references=[{"group_id": IDS[0], "dataset": "\x1b[2J"}], next_cursor={}),
            "references[0].dataset",
        ),
        (
            "list_response",
            pb.ListGroupsResponse(references=[{"group_id": b"1", "dataset": "gcd"}], next_cursor={}),
            "references[0].group_id",
        ),
        ("get_response", pb.GetGroupsResponse(groups=[pb.SignedGroup()] * 3), "groups"),
        ("get_response", pb.GetGroupsResponse(missing_group_ids=[bytes(32)] * 3), "missing_group_ids"),
        ("get_response", pb.GetGroupsResponse(deferred_group_ids=[bytes(1)]), "deferred_group_ids[0]"),
    ],
)
def test_a_response_that_answers_something_else_is_named(name, message, field):
    with pytest.raises(WireError) as caught:
        conversion(f"{name}_from_message")(message, asked=2)
    assert caught.value.field == field


def test_limits_are_inclusive():
    sample = sample_request_from_message(pb.SampleGroupsRequest(count=64))
    assert sample == SampleRequest(count=64)
    listing = list_request_from_message(pb.ListGroupsRequest(page_size=1000))
    assert listing == ListRequest(max_references=1000)
    full = pb.PublishGroupsRequest(groups=[pb.SignedGroup()] * 32)
    assert len(publish_request_from_message(full).groups) == 32


def test_ids_asked_for_twice_are_answered_once():
    request = get_request_from_message(pb.GetGroupsRequest(group_ids=[IDS[1], IDS[0], IDS[1]]))
    assert request == GetRequest(group_ids=(IDS[1], IDS[0]))


def test_unknown_values_of_enums_read_as_the_schema_says():
    raw = pb.PublishGroupsResponse(results=[{"outcome": 99, "reason": 99}, {"outcome": 1, "reason": 2}])
    first, second = publish_response_from_message(raw, asked=2).results
    assert (first.outcome, first.reason) == (PublishOutcome.REJECTED, WireReason.INTERNAL)
    assert second == PublishResult(group_id=b"", outcome=PublishOutcome.ACCEPTED)
    assert node_info_from_message(pb.GetNodeInfoResponse()).load_level is LoadLevel.NORMAL
    assert node_info_from_message(pb.GetNodeInfoResponse(load_level=9)).load_level is LoadLevel.BUSY
    assert error_detail_from_message(pb.ErrorDetail(reason=99)).reason is WireReason.INTERNAL


@pytest.mark.parametrize(("seconds", "expected"), [(-5, 0.0), (0, 0.0), (7, 7.0), (2**62, 3600.0)])
def test_a_peer_cannot_send_us_away_for_ever(seconds, expected):
    detail = error_detail_from_message(pb.ErrorDetail(reason=10, retry_delay={"seconds": seconds}))
    assert detail.retry_after_s == expected
    raw = pb.PublishGroupsResponse(results=[{"retry_delay": {"seconds": seconds}}])
    assert publish_response_from_message(raw, asked=1).results[0].retry_after_s == expected


def test_t16_texts_that_are_shown_arrive_harmless():
    hostile = "\x1b[2Jall\r\ngood\u202e" + "x" * 500
    detail = error_detail_from_message(pb.ErrorDetail(reason=26, field_path=hostile, limit=hostile, error_id=hostile))
    for text in (detail.field, detail.limit, detail.error_id):
        assert text.startswith("[2Jall  goodx") and text.isprintable() and len(text) <= 128
    info = node_info_from_message(pb.GetNodeInfoResponse(software_version=hostile))
    assert info.software_version.isprintable() and len(info.software_version) <= 64


def test_a_bad_group_does_not_spoil_the_request():
    good = golden_wire.GROUP
    bad = replace(good, algorithm=7, age_s=0.0)
    raw = publish_request_to_message(replace(RECORDS["publish_request"].record, groups=(bad, good)))
    odd = parse(pb.PublishGroupsRequest, raw.SerializeToString())
    odd.groups[0].age.seconds = -(2**63)
    request = publish_request_from_message(odd)
    assert request.groups[1] == good
    assert request.groups[0].algorithm == 7 and request.groups[0].age_s < 0


def test_details_without_content_stay_small():
    detail = ErrorDetail(reason=WireReason.DRAINING)
    message = error_detail_to_message(detail)
    assert error_detail_from_message(message) == detail
    assert len(message.SerializeToString()) == 2
    cursor = GroupCursor(epoch="e", sequence=0)
    with_cursor = error_detail_to_message(replace(detail, oldest_cursor=cursor))
    assert error_detail_from_message(with_cursor).oldest_cursor == cursor
