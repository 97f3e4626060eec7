from __future__ import annotations

import pytest

from sapo_jax.swarm.calls.quota import MAX_KEYS, OPEN_QUOTAS, BucketTable, QuotaLimits, Quotas
from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.calls.slots import CallSlots
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.limits import CallLimits
from tests.swarm.calls.hosts import FakeClock


def test_a_bucket_gives_a_burst_then_its_rate():
    clock = FakeClock()
    bucket = BucketTable(per_s=4.0, burst=2.0, clock=clock)
    for _ in range(2):
        assert bucket.wait_s("a", 1.0) == 0.0
        bucket.take("a", 1.0)
    assert bucket.wait_s("a", 1.0) == 0.25
    clock.now_s += 0.125
    assert bucket.wait_s("a", 1.0) == 0.125
    clock.now_s += 0.125
    assert bucket.wait_s("a", 1.0) == 0.0
    clock.now_s += 1e6
    assert bucket.wait_s("a", 2.0) == 0.0 and bucket.wait_s("b", 2.0) == 0.0
    bucket.take("a", 2.0)
    assert bucket.wait_s("a", 2.0) == 0.5  # no more than a burst was saved up


def test_more_than_a_burst_is_granted_once_and_paid_back():
    clock = FakeClock()
    bucket = BucketTable(per_s=1.0, burst=2.0, clock=clock)
    assert bucket.wait_s("a", 10.0) == 0.0
    bucket.take("a", 10.0)
    assert bucket.wait_s("a", 1.0) == 9.0
    clock.now_s += 9.0
    assert bucket.wait_s("a", 1.0) == 0.0


def test_made_up_keys_do_not_fill_the_memory():
    bucket = BucketTable(per_s=1.0, burst=1.0, clock=FakeClock())
    for i in range(MAX_KEYS + 100):
        bucket.take(str(i), 1.0)
    assert len(bucket) == MAX_KEYS
    assert bucket.wait_s(str(MAX_KEYS + 99), 1.0) == 1.0  # the latest is remembered


@pytest.mark.parametrize(
    ("size_bytes", "count", "limit"),
    [
        (1, 64, "groups of one publisher, 4/s"),
        (256 * 1024, 32, "bytes of one publisher, 1048576/s"),  # 32 * 256 KiB = 8 MiB
        (256 * 1024 + 1, 15, "bytes of one publisher, 1048576/s"),  # a larger one counts twice
    ],
)
def test_a_publisher_is_limited_in_groups_and_bytes(size_bytes, count, limit):
    quotas = Quotas(OPEN_QUOTAS, clock=FakeClock())
    assert [quotas.admit_group("a", size_bytes) for _ in range(count)] == [None] * count
    refusal = quotas.admit_group("a", size_bytes)
    assert refusal is not None and refusal.limit == limit and 0 < refusal.retry_after_s < 2
    assert quotas.admit_group("b", size_bytes) is None  # others are not concerned


def test_the_retry_hint_is_when_it_works():
    clock = FakeClock()
    quotas = Quotas(OPEN_QUOTAS, clock=clock)
    while (refusal := quotas.admit_group("a", 300 * 1024)) is None:
        pass
    clock.now_s += refusal.retry_after_s
    assert quotas.admit_group("a", 300 * 1024) is None


def test_a_prefix_has_four_times_the_budget_of_one_publisher():
    quotas = Quotas(OPEN_QUOTAS, clock=FakeClock())
    for _ in range(4 * 64):
        assert quotas.admit_sent("10.0.0.0/24", 1) is None
    refusal = quotas.admit_sent("10.0.0.0/24", 1)
    assert refusal is not None and refusal.limit == "groups of one address prefix, 16/s"
    assert quotas.admit_sent("10.0.1.0/24", 1) is None


def test_calls_of_a_prefix_are_limited():
    quotas = Quotas(QuotaLimits(calls_per_s=2.0, burst_calls=3.0), clock=FakeClock())
    assert [quotas.admit_call("p") for _ in range(3)] == [None] * 3
    refusal = quotas.admit_call("p")
    assert refusal is not None and refusal.retry_after_s == 0.5


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_quota_must_be_positive(value):
    with pytest.raises(ValueError, match="groups_per_s"):
        QuotaLimits(groups_per_s=value)


class Slots:
    def __init__(self, **limits: int) -> None:
        self.clock = FakeClock()
        self.slots = CallSlots(CallLimits(**limits), patience_s=1.0, clock=self.clock)
        self.ended: list[str] = []

    def enter(self, connection: str, prefix: str = "p"):
        return self.slots.enter(connection, prefix, lambda: self.ended.append(connection))

    def refused(self, connection: str, prefix: str = "p") -> str:
        with pytest.raises(ServiceError) as caught:
            self.enter(connection, prefix)
        assert caught.value.reason is WireReason.CONCURRENCY and caught.value.retry_after_s > 0
        return caught.value.limit


def test_one_connection_may_make_eight_calls_at_a_time():
    slots = Slots()
    held = [slots.enter("a") for _ in range(8)]
    assert slots.refused("a") == "calls of one connection at a time, 8"
    slots.enter("b")
    slots.slots.leave(held[0])
    slots.slots.leave(held[0])  # twice does nothing
    slots.enter("a")
    assert len(slots.slots) == 9


def test_one_prefix_may_keep_eight_connections_busy():
    slots = Slots()
    held = [slots.enter(str(i)) for i in range(8)]
    assert slots.refused("9") == "busy connections of one address prefix, 8"
    slots.enter("0")  # one of them again
    slots.enter("9", "other")
    slots.slots.leave(held[1])
    slots.enter("9")


def test_t17_a_slow_call_gives_way_when_places_run_out_and_a_fast_one_does_not():
    slots = Slots(max_calls=2)
    slots.enter("slow")
    slots.clock.now_s += 0.9
    slots.enter("fast")
    assert slots.refused("new") == "calls at a time, 2"
    slots.clock.now_s += 0.1
    slots.enter("new")
    assert slots.ended == ["slow"] and len(slots.slots) == 2
    assert slots.refused("newer") == "calls at a time, 2"


def test_tables_are_empty_when_all_have_left():
    slots = Slots()
    for slot in [slots.enter(str(i % 4), str(i % 2)) for i in range(16)]:
        slots.slots.leave(slot)
    assert len(slots.slots) == 0
    assert not slots.slots._per_connection and not slots.slots._connections
