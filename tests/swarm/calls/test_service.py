from __future__ import annotations

import dataclasses
import logging
import os

import pytest

from sapo_jax.swarm.calls.quota import OPEN_QUOTAS, QuotaLimits
from sapo_jax.swarm.calls.service import Phase
from sapo_jax.swarm.calls.service_error import ServiceError, UnknownServiceError
from sapo_jax.swarm.calls.status_codes import CODES, failure_of
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.group_codec import group_id_of
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.requests import (
    GetRequest,
    GroupCursor,
    ListRequest,
    LoadLevel,
    PeerExchange,
    PublishRequest,
    PublishResponse,
    SampleRequest,
)
from sapo_jax.swarm.wire.signed_content import Envelope, SignedGroup
from tests.swarm.calls.hosts import SWARM, Host, outcomes, signed_group

ANN = Identity.generate()


def publish(host: Host, *groups: SignedGroup, prefix: str = "net") -> PublishResponse:
    return host.ready().publish(PublishRequest(groups=groups), prefix=prefix)


def numbered(count: int, identity: Identity = ANN, **options: int) -> list[SignedGroup]:
    return [signed_group(identity, index=i, sequence=i + 1, **options) for i in range(count)]


def changed(group: SignedGroup, **fields: object) -> SignedGroup:
    envelope = {name: fields.pop(name) for name in list(fields) if name in Envelope.__slots__}
    return dataclasses.replace(group, envelope=dataclasses.replace(group.envelope, **envelope), **fields)


def refused(call, *arguments, **named) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        call(*arguments, **named)
    return caught.value


def test_accepted_groups_are_stored_and_told_about_and_a_duplicate_is_success():
    host = Host()
    first, second = numbered(2)
    response = publish(host, first, second)
    assert outcomes(response.results) == ["accepted", "accepted"]
    assert [result.group_id for result in response.results] == [group_id_of(g.envelope) for g in (first, second)]
    assert [group.envelope for group in host.stored] == [first.envelope, second.envelope]
    assert outcomes(publish(host, second, second).results) == ["duplicate", "duplicate"]
    assert len(host.stored) == 2 and host.store.stats().groups == 2


def test_one_bad_group_harms_none_of_its_neighbors():
    good = numbered(8)
    bad = [
        changed(good[1], signature=bytes(64)),
        changed(good[2], payload=b"\xff" + good[2].envelope.payload),
        changed(good[3], algorithm=9),
        changed(good[4], hops=5),
        changed(good[5], public_key=b"short"),
        changed(good[6], age_s=1e9),
        signed_group(ANN, swarm_id="other", sequence=99),
        changed(good[7], payload=bytes(960 * 1024 + 1)),
    ]
    host = Host()
    response = publish(host, good[0], *bad, good[1])
    assert outcomes(response.results) == [
        "accepted",
        "bad_signature",
        "malformed",
        "unknown_algorithm",
        "hops",
        "field",
        "expired",
        "wrong_swarm",
        "too_large",
        "accepted",
    ]
    assert [result.field for result in response.results][5] == "public_key"
    assert len(host.stored) == 2


def test_the_same_group_twice_in_one_request_is_stored_once():
    host = Host()
    (group,) = numbered(1)
    assert outcomes(publish(host, group, group).results) == ["accepted", "duplicate"]


def test_a_banned_publisher_is_refused_whoever_hands_its_groups_over():
    host = Host(banned={ANN.node_id})
    other = Identity.generate()
    response = publish(host, signed_group(ANN), signed_group(other))
    assert outcomes(response.results) == ["banned", "accepted"]


def test_t9_a_flood_spends_its_own_budget_and_nobody_elses():
    host = Host(quotas=OPEN_QUOTAS)
    flood = numbered(200)
    results = [result for i in range(0, 200, 25) for result in publish(host, *flood[i : i + 25], prefix="a").results]
    assert outcomes(results) == ["accepted"] * 64 + ["quota"] * 136
    assert all(result.retry_after_s > 0 for result in results[64:])
    honest = [Identity.generate() for _ in range(8)]
    for identity in honest:
        assert outcomes(publish(host, *numbered(8, identity), prefix="b").results) == ["accepted"] * 8


def test_t9_a_flooder_fills_no_more_than_its_share_of_the_store():
    host = Host(store_limits=StoreLimits(max_groups=64))
    others = [Identity.generate() for _ in range(4)]
    for identity in others:
        publish(host, *numbered(4, identity))
    for group in numbered(100):
        publish(host, group)
    held = host.ready().sample(SampleRequest(count=64)).groups
    mine = sum(group.envelope.public_key == ANN.public_key for group in held)
    assert mine == 8 and len(held) == 24


def test_t9_nonsense_is_paid_for_by_the_prefix_it_comes_from():
    host = Host(quotas=OPEN_QUOTAS)
    (group,) = numbered(1)
    nonsense = [changed(group, payload=os.urandom(8)) for _ in range(300)]
    results = [
        result for i in range(0, 300, 30) for result in publish(host, *nonsense[i : i + 30], prefix="bad").results
    ]
    assert outcomes(results)[-44:] == ["quota"] * 44
    assert outcomes(publish(host, group, prefix="good").results) == ["accepted"]


def test_t10_replayed_groups_neither_enter_again_nor_spend_their_publishers_budget():
    host = Host(quotas=dataclasses.replace(OPEN_QUOTAS, prefix_factor=1000.0))
    old = numbered(32)
    publish(host, *old, prefix="a")
    for _ in range(100):
        assert set(outcomes(publish(host, *old, prefix="replayer").results)) == {"duplicate"}
    assert host.store.stats().groups == 32
    fresh = [signed_group(ANN, index=100 + i, sequence=100 + i) for i in range(32)]
    assert outcomes(publish(host, *fresh, prefix="a").results) == ["accepted"] * 32


def test_t10_a_group_that_has_expired_here_does_not_come_back():
    host = Host()
    group = signed_group(ANN, ttl_s=60.0)
    publish(host, group)
    host.clock.now_s += 61.0
    assert host.ready().sample(SampleRequest(count=1)).groups == ()
    assert outcomes(publish(host, group).results) == ["duplicate"]


def test_t13_a_group_signed_by_another_key_is_not_accepted_as_mine():
    host = Host()
    forged = changed(signed_group(Identity.generate()), public_key=ANN.public_key)
    assert outcomes(publish(host, forged).results) == ["bad_signature"]
    assert host.store.stats().groups == 0


@pytest.mark.parametrize("backlog", [(1024, 0), (0, 64 * 2**20)])
def test_a_full_queue_says_when_to_come_back(backlog):
    host = Host(backlog=backlog)
    (group,) = numbered(1)
    response = publish(host, group)
    assert outcomes(response.results) == ["queue_full"] and response.results[0].retry_after_s > 0
    assert host.ready().node_info(is_busy=False).load_level is LoadLevel.BUSY
    host.backlog = (backlog[0] - 1, backlog[1] - 1)
    assert outcomes(publish(host, group).results) == ["accepted"]


def test_a_full_disk_rejects_with_a_hint_and_goes_on_serving(tmp_path, caplog):
    host = Host(path=tmp_path / "store.sqlite")
    held, late = numbered(2)
    publish(host, held)
    host.free_bytes = 0
    response = publish(host, late, held)
    assert outcomes(response.results) == ["store_full", "duplicate"]
    assert response.results[0].retry_after_s >= 60
    assert str(tmp_path) in caplog.text  # for the owner, not for the caller
    assert len(host.ready().sample(SampleRequest(count=4)).groups) == 1
    host.free_bytes = 2**40
    assert outcomes(publish(host, late).results) == ["accepted"]


def test_a_store_that_cannot_be_used_makes_calls_unavailable_without_naming_its_file(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    host = Host(path=tmp_path / "store.sqlite")
    host.ready()
    host.store.close()
    for call in (
        lambda: host.service.publish(PublishRequest(groups=(signed_group(ANN),)), prefix="net"),
        lambda: host.service.sample(SampleRequest(count=1)),
        lambda: host.service.get_groups(GetRequest(group_ids=(bytes(32),))),
        lambda: host.service.list_groups(ListRequest(max_references=1)),
        lambda: host.service.node_info(is_busy=False),
    ):
        error = refused(call)
        assert error.reason is WireReason.STORE_BUSY and error.retry_after_s > 0
        assert str(tmp_path) not in str(error)


def test_t18_a_full_disk_is_logged_once_until_a_group_is_stored_again(tmp_path, caplog):
    host = Host(path=tmp_path / "store.sqlite")
    groups = numbered(9)
    for free_bytes in (0, 2**40, 0):
        host.free_bytes = free_bytes
        for _ in range(3):
            publish(host, groups.pop())
            host.ready().sample(SampleRequest(count=1))  # succeeds, and says nothing about storing
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    assert all("storing groups fails" in record.message for record in caplog.records)


def test_t18_a_broken_store_is_logged_once_a_use_however_many_call(tmp_path, caplog):
    host = Host(path=tmp_path / "store.sqlite")
    host.ready()
    host.store.close()
    for _ in range(5):
        refused(host.service.sample, SampleRequest(count=1))
        refused(host.service.get_groups, GetRequest(group_ids=(bytes(32),)))
    assert [record.message.partition(" fails")[0] for record in caplog.records] == ["sampling groups", "reading groups"]


def test_before_it_is_ready_a_host_answers_nothing():
    host = Host()
    for call in (
        lambda: host.service.publish(PublishRequest(groups=(signed_group(ANN),)), prefix="net"),
        lambda: host.service.sample(SampleRequest(count=1)),
        lambda: host.service.get_groups(GetRequest(group_ids=(bytes(32),))),
        lambda: host.service.list_groups(ListRequest(max_references=1)),
        lambda: host.service.exchange_peers(PeerExchange(peer_records=())),
        lambda: host.service.node_info(is_busy=False),
    ):
        assert refused(call).reason is WireReason.STARTING
    assert host.store.stats().groups == 0


def test_a_draining_host_gives_what_it_has_and_takes_nothing_new():
    host = Host()
    publish(host, signed_group(ANN))
    host.service.phase = Phase.DRAINING
    late = PublishRequest(groups=(signed_group(ANN, sequence=2),))
    assert refused(host.service.publish, late, prefix="net").reason is WireReason.DRAINING
    assert refused(host.service.exchange_peers, PeerExchange(peer_records=())).reason is WireReason.DRAINING
    assert len(host.service.sample(SampleRequest(count=5)).groups) == 1
    assert host.service.node_info(is_busy=False).load_level is LoadLevel.DRAINING


def test_a_sample_honors_its_filters_and_its_seed():
    host = Host()
    bob = Identity.generate()
    publish(host, *numbered(20), signed_group(bob, dataset="other"))
    service = host.ready()
    only = service.sample(SampleRequest(count=64, datasets=("other",)))
    assert [group.envelope.public_key for group in only.groups] == [bob.public_key] and only.stored_groups == 21
    without = service.sample(SampleRequest(count=64, excluded_publishers=(ANN.node_id,)))
    assert len(without.groups) == 1
    host.clock.now_s += 100.0
    assert service.sample(SampleRequest(count=64, max_age_s=99.0)).groups == ()
    draws = [service.sample(SampleRequest(count=5, seed=seed)).groups for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][0].age_s == 100.0


def test_answers_fit_into_one_message_and_say_what_is_left():
    host = Host()
    big = [signed_group(Identity.generate(), index=i, text_bytes=65_000) for i in range(64)]
    for i in range(0, 64, 32):
        publish(host, *big[i : i + 32])
    ids = tuple(group_id_of(group.envelope) for group in big)
    response = host.ready().get_groups(GetRequest(group_ids=(*ids[:63], bytes(32))))
    size_bytes = sum(len(group.envelope.payload) for group in response.groups)
    assert size_bytes < 4 * 2**20 < size_bytes + 2 * 65_000 + 64 * 1024
    assert response.missing_group_ids == (bytes(32),)
    assert response.deferred_group_ids == ids[len(response.groups) : 63]
    rest = host.ready().get_groups(GetRequest(group_ids=response.deferred_group_ids))
    assert len(rest.groups) == 63 - len(response.groups)
    drawn = host.ready().sample(SampleRequest(count=64)).groups
    assert sum(len(group.envelope.payload) for group in drawn) < 4 * 2**20


def test_pages_lead_through_the_whole_store():
    host = Host()
    groups = numbered(5)
    publish(host, *groups)
    cursor, ids = None, []
    while True:
        page = host.ready().list_groups(ListRequest(max_references=2, cursor=cursor))
        ids += [ref.group_id for ref in page.references]
        cursor = page.next_cursor
        if not page.references:
            break
    assert ids == [group_id_of(group.envelope) for group in groups]


def test_a_cursor_of_another_epoch_is_answered_with_where_to_start():
    host = Host()
    publish(host, *numbered(3))
    stale = ListRequest(max_references=5, cursor=GroupCursor(epoch="gone", sequence=1))
    error = refused(host.ready().list_groups, stale)
    assert error.reason is WireReason.UNKNOWN_CURSOR
    assert error.oldest_cursor == GroupCursor(epoch=host.store.epoch, sequence=0)
    again = host.ready().list_groups(ListRequest(max_references=5, cursor=error.oldest_cursor))
    assert len(again.references) == 3


def test_node_info_says_what_a_caller_must_know():
    host = Host()
    publish(host, *numbered(3))
    info = host.ready().node_info(is_busy=False)
    assert (info.swarm_id, info.stored_groups, info.stored_publishers) == (SWARM, 3, 1)
    assert (info.max_message_bytes, info.max_publish_groups) == (4 * 2**20, 32)
    assert info.epoch == host.store.epoch and info.load_level is LoadLevel.NORMAL
    assert info.catalog_digests == ("ab" * 32,) and info.peer_record is not None
    assert host.ready().node_info(is_busy=True).load_level is LoadLevel.BUSY


def test_counting_the_store_is_not_repeated_for_every_caller():
    host = Host()
    host.ready().node_info(is_busy=False)
    publish(host, *numbered(3))
    assert host.ready().node_info(is_busy=False).stored_groups == 0
    host.clock.now_s += 1.0
    assert host.ready().node_info(is_busy=False).stored_groups == 3


def test_calls_of_one_prefix_are_charged():
    host = Host(quotas=QuotaLimits(calls_per_s=1.0, burst_calls=2.0))
    host.service.charge_call("a")
    host.service.charge_call("a")
    error = refused(host.service.charge_call, "a")
    assert error.reason is WireReason.QUOTA and error.retry_after_s == 1.0
    assert error.limit == "calls of one address prefix, 1/s"
    host.service.charge_call("b")


# The table of status codes.

TABLE = {
    "INVALID_ARGUMENT": {"malformed", "field", "hops", "expired", "no_deadline"},
    "UNAUTHENTICATED": {"bad_signature", "unauthenticated"},
    "PERMISSION_DENIED": {"wrong_swarm", "banned", "not_allowed"},
    "RESOURCE_EXHAUSTED": {"too_large", "quota", "queue_full", "store_full", "concurrency"},
    "FAILED_PRECONDITION": {"unknown_algorithm", "unknown_task", "unsupported_version"},
    "OUT_OF_RANGE": {"unknown_cursor"},
    "UNAVAILABLE": {"starting", "draining", "store_busy"},
    "DEADLINE_EXCEEDED": {"timeout"},
    "UNIMPLEMENTED": {"not_implemented"},
    "DATA_LOSS": {"data_loss"},
    "INTERNAL": {"internal"},
}


def test_every_reason_has_the_code_of_the_contract_and_none_is_unknown():
    found: dict[str, set[str]] = {}
    for reason, code in CODES.items():
        found.setdefault(code.name, set()).add(reason.value)
    assert found == TABLE and len(CODES) == len(WireReason)


def test_an_error_of_ours_keeps_its_text_and_hints():
    error = ServiceError(WireReason.QUOTA, "too many", limit="calls, 3/s", retry_after_s=2.5)
    failure = failure_of(error, "id")
    assert (failure.code.name, failure.text) == ("RESOURCE_EXHAUSTED", "too many")
    assert (failure.detail.limit, failure.detail.retry_after_s, failure.detail.error_id) == ("calls, 3/s", 2.5, "")
    failure = failure_of(WireError(WireReason.FIELD, "must be small", field="a.b"), "id")
    assert (failure.code.name, failure.text, failure.detail.field) == ("INVALID_ARGUMENT", "a.b: must be small", "a.b")


def test_a_defect_leaves_with_a_fixed_text_and_an_id():
    failure = failure_of(RuntimeError("the secret of /home/ann"), "c0ffee")
    assert (failure.code.name, failure.text) == ("INTERNAL", "internal error c0ffee")
    assert failure.detail.reason is WireReason.INTERNAL and failure.detail.error_id == "c0ffee"


def test_a_health_check_of_an_unknown_service_is_not_found():
    assert failure_of(UnknownServiceError(WireReason.FIELD, "x"), "").code.name == "NOT_FOUND"
