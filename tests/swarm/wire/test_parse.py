"""Messages are counted and bounded before anything is made of them."""

from __future__ import annotations

import tracemalloc

import pytest

from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.limits import WireLimits
from sapo_jax.swarm.wire.parse import MAX_ITEMS, parse
from scripts.faults import wire_fuzz

KIB = 1024


@pytest.mark.parametrize(
    ("message_type", "field", "limit"),
    [
        (pb.PublishGroupsRequest, 1, 32),
        (pb.GetGroupsRequest, 1, 64),
        (pb.ExchangePeersRequest, 1, 32),
        (pb.SampleGroupsRequest, 4, 256),
        (pb.SampleGroupsRequest, 2, 128),
    ],
)
def test_t2_tiny_items_by_the_million_cost_no_memory(message_type, field, limit):
    item = wire_fuzz.field_bytes(field, b"")
    assert parse(message_type, item * limit) is not None

    class Unparsed:
        """A message that must not be made: tracemalloc does not see what protobuf takes for one."""

        DESCRIPTOR = message_type.DESCRIPTOR

    for count in (limit + 1, 2 * 2**20):
        raw = item * count
        tracemalloc.start()
        with pytest.raises(WireError) as caught:
            parse(Unparsed, raw)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert caught.value.reason is WireReason.TOO_LARGE
        assert peak < 100 * KIB


@pytest.mark.parametrize(("excess", "fits"), [(-1, True), (0, True), (1, False)])
def test_t2_a_request_has_4_mib(excess, fits):
    overhead = len(wire_fuzz.field_bytes(100, bytes(4000 * KIB))) - 4000 * KIB
    raw = wire_fuzz.field_bytes(100, bytes(4096 * KIB - overhead + excess))
    assert len(raw) == 4096 * KIB + excess
    if fits:
        assert not parse(pb.PublishGroupsRequest, raw).groups
    else:
        with pytest.raises(WireError, match="at most 4194304 bytes"):
            parse(pb.PublishGroupsRequest, raw)


def test_every_repeated_field_has_a_limit():
    descriptors = pb.DESCRIPTOR.message_types_by_name.values()
    repeated = {field.full_name for message in descriptors for field in message.fields if field.is_repeated}
    assert MAX_ITEMS.keys() == repeated
    assert all(hasattr(WireLimits(), name) for name in MAX_ITEMS.values())
