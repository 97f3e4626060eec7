"""The calls about hosts, as messages and back into checked records: what one is, and whom it knows.

One pair of functions for each request and each response, checked like those of `group_calls_codec`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sapo_jax.swarm.wire.codec_parts import check_count, signed_peer_record_from_message, signed_peer_record_to_message
from sapo_jax.swarm.wire.field_rules import (
    COUNTER_LIMIT,
    DIGEST_BYTES,
    check_bytes,
    check_range,
    check_text,
    digest_to_bytes,
)
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, WireLimits
from sapo_jax.swarm.wire.printable import printable
from sapo_jax.swarm.wire.requests import LoadLevel, NodeInfo, PeerExchange
from sapo_jax.swarm.wire.spans import seconds_of, timestamp_from_seconds

_LOADS: Mapping[int, LoadLevel] = {pb.LoadLevel.Value(f"LOAD_LEVEL_{item.name}"): item for item in LoadLevel}

# GetNodeInfo.


def node_info_request_to_message() -> pb.GetNodeInfoRequest:
    """Returns the message of a request, which has no content."""
    return pb.GetNodeInfoRequest()


def node_info_to_message(info: NodeInfo) -> pb.GetNodeInfoResponse:
    """Returns the message of a response."""
    record = info.peer_record
    return pb.GetNodeInfoResponse(
        swarm_id=info.swarm_id,
        software_version=info.software_version,
        schema_minor=info.schema_minor,
        epoch=info.epoch,
        stored_groups=info.stored_groups,
        stored_publishers=info.stored_publishers,
        load_level=f"LOAD_LEVEL_{info.load_level.name}",
        read_time=timestamp_from_seconds(info.read_unix_s),
        max_message_bytes=info.max_message_bytes,
        max_publish_groups=info.max_publish_groups,
        catalog_digests=[digest_to_bytes(digest, "catalog_digests") for digest in info.catalog_digests],
        peer_record=None if record is None else signed_peer_record_to_message(record),
    )


def node_info_from_message(message: pb.GetNodeInfoResponse, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> NodeInfo:
    """Returns the response in a message; raises WireError if a field breaks its rule."""
    check_text(message.swarm_id, limits.max_swarm_id_bytes, "swarm_id")
    check_text(message.epoch, limits.max_epoch_bytes, "epoch")
    for value, field in (
        (message.stored_groups, "stored_groups"),
        (message.stored_publishers, "stored_publishers"),
        (message.max_message_bytes, "max_message_bytes"),
    ):
        check_range(value, COUNTER_LIMIT, field)
    for i, digest in enumerate(message.catalog_digests):
        check_bytes(digest, DIGEST_BYTES, f"catalog_digests[{i}]")
    unspecified = message.load_level == pb.LOAD_LEVEL_UNSPECIFIED
    return NodeInfo(
        swarm_id=message.swarm_id,
        software_version=printable(message.software_version, limits.max_software_version_bytes),
        schema_minor=message.schema_minor,
        epoch=message.epoch,
        stored_groups=message.stored_groups,
        stored_publishers=message.stored_publishers,
        load_level=LoadLevel.NORMAL if unspecified else _LOADS.get(int(message.load_level), LoadLevel.BUSY),
        read_unix_s=seconds_of(message.read_time),
        max_message_bytes=message.max_message_bytes,
        max_publish_groups=message.max_publish_groups,
        catalog_digests=tuple(digest.hex() for digest in message.catalog_digests),
        peer_record=signed_peer_record_from_message(message.peer_record) if message.HasField("peer_record") else None,
    )


# ExchangePeers.


def peers_request_to_message(exchange: PeerExchange) -> pb.ExchangePeersRequest:
    """Returns the message of a request."""
    return pb.ExchangePeersRequest(
        peer_records=[signed_peer_record_to_message(record) for record in exchange.peer_records]
    )


def peers_request_from_message(
    message: pb.ExchangePeersRequest, limits: WireLimits = DEFAULT_WIRE_LIMITS
) -> PeerExchange:
    """Returns the request in a message; raises WireError if it holds too many records."""
    return _peer_exchange(message.peer_records, limits)


def peers_response_to_message(exchange: PeerExchange) -> pb.ExchangePeersResponse:
    """Returns the message of a response."""
    return pb.ExchangePeersResponse(
        peer_records=[signed_peer_record_to_message(record) for record in exchange.peer_records]
    )


def peers_response_from_message(
    message: pb.ExchangePeersResponse, limits: WireLimits = DEFAULT_WIRE_LIMITS
) -> PeerExchange:
    """Returns the response in a message; raises WireError if it holds too many records."""
    return _peer_exchange(message.peer_records, limits)


def _peer_exchange(messages: Iterable[pb.SignedPeerRecord], limits: WireLimits) -> PeerExchange:
    records = tuple(signed_peer_record_from_message(message) for message in messages)
    check_count(len(records), limits.max_exchanged_peers, "peer_records", least=0)
    return PeerExchange(peer_records=records)
