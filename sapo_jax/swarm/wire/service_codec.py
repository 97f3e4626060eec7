"""Requests and responses as messages, and back into checked records; one pair of functions for each.

Both ends are strangers to each other, so a server checks requests and a client checks responses with
equal care. Groups and peer records inside stay closed: each is opened, and may fail, by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.field_rules import (
    COUNTER_LIMIT,
    DIGEST_BYTES,
    check_bytes,
    check_dataset,
    check_node_id,
    check_range,
    check_text,
    digest_to_bytes,
    field_error,
)
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, WireLimits
from sapo_jax.swarm.wire.messages import (
    Envelope,
    ErrorDetail,
    GetRequest,
    GetResponse,
    GroupCursor,
    GroupRef,
    GroupRefPage,
    ListRequest,
    LoadLevel,
    NodeInfo,
    PeerExchange,
    PublishOutcome,
    PublishRequest,
    PublishResponse,
    PublishResult,
    SampleRequest,
    SampleResponse,
    SignedGroup,
    SignedPeerRecord,
)
from sapo_jax.swarm.wire.printable import printable
from sapo_jax.swarm.wire.spans import duration_from_seconds, seconds_of, timestamp_from_seconds

GROUP_ID_BYTES = 32
MAX_RETRY_AFTER_S = 3_600.0  # a peer may send us away for this long at most
_MAX_NOTE_CHARS = 128  # of texts that are only shown

# The schema's names are ours with a prefix, which a test keeps so; protobuf takes names for values.
_REASONS: Mapping[int, WireReason] = {pb.WireReason.Value(f"WIRE_REASON_{item.name}"): item for item in WireReason}
_OUTCOMES: Mapping[int, PublishOutcome] = {
    pb.PublishOutcome.Value(f"PUBLISH_OUTCOME_{item.name}"): item for item in PublishOutcome
}
_LOADS: Mapping[int, LoadLevel] = {pb.LoadLevel.Value(f"LOAD_LEVEL_{item.name}"): item for item in LoadLevel}

_T = TypeVar("_T")

# Groups and peer records in their envelopes.


def signed_group_to_message(signed: SignedGroup) -> pb.SignedGroup:
    """Returns the message that carries a group."""
    envelope = signed.envelope
    return pb.SignedGroup(
        payload=envelope.payload,
        public_key=envelope.public_key,
        signature=envelope.signature,
        algorithm=_algorithm(signed.algorithm),
        hops=signed.hops,
        age=duration_from_seconds(signed.age_s),
    )


def signed_group_from_message(message: pb.SignedGroup) -> SignedGroup:
    """Returns the group in a message, unopened; never fails."""
    return SignedGroup(
        envelope=Envelope(payload=message.payload, public_key=message.public_key, signature=message.signature),
        algorithm=int(message.algorithm),
        hops=message.hops,
        age_s=seconds_of(message.age),
    )


def signed_peer_record_to_message(signed: SignedPeerRecord) -> pb.SignedPeerRecord:
    """Returns the message that carries a peer record."""
    envelope = signed.envelope
    return pb.SignedPeerRecord(
        payload=envelope.payload,
        public_key=envelope.public_key,
        signature=envelope.signature,
        algorithm=_algorithm(signed.algorithm),
    )


def signed_peer_record_from_message(message: pb.SignedPeerRecord) -> SignedPeerRecord:
    """Returns the peer record in a message, unopened; never fails."""
    return SignedPeerRecord(
        envelope=Envelope(payload=message.payload, public_key=message.public_key, signature=message.signature),
        algorithm=int(message.algorithm),
    )


# PublishGroups.


def publish_request_to_message(request: PublishRequest) -> pb.PublishGroupsRequest:
    """Returns the message of a request."""
    return pb.PublishGroupsRequest(groups=[signed_group_to_message(group) for group in request.groups])


def publish_request_from_message(
    message: pb.PublishGroupsRequest, limits: WireLimits = DEFAULT_WIRE_LIMITS
) -> PublishRequest:
    """Returns the request in a message; raises WireError if it holds no group or too many."""
    _check_count(len(message.groups), limits.max_publish_groups, "groups")
    return PublishRequest(groups=_signed_groups(message.groups))


def publish_response_to_message(response: PublishResponse) -> pb.PublishGroupsResponse:
    """Returns the message of a response."""
    return pb.PublishGroupsResponse(
        results=[
            pb.PublishResult(
                group_id=result.group_id,
                outcome=f"PUBLISH_OUTCOME_{result.outcome.name}",
                reason=None if result.reason is None else f"WIRE_REASON_{result.reason.name}",
                field_path=result.field,
                retry_delay=duration_from_seconds(result.retry_after_s) if result.retry_after_s > 0 else None,
            )
            for result in response.results
        ]
    )


def publish_response_from_message(message: pb.PublishGroupsResponse, *, asked: int) -> PublishResponse:
    """Returns the response in a message; raises WireError unless it answers about the `asked` groups."""
    if len(message.results) != asked:
        raise field_error("results", f"must be {asked}, one per group")
    return PublishResponse(results=tuple(_publish_result(result, i) for i, result in enumerate(message.results)))


def _publish_result(message: pb.PublishResult, i: int) -> PublishResult:
    if message.group_id:
        check_bytes(message.group_id, GROUP_ID_BYTES, f"results[{i}].group_id")
    outcome = _OUTCOMES.get(int(message.outcome), PublishOutcome.REJECTED)
    return PublishResult(
        group_id=message.group_id,
        outcome=outcome,
        reason=_reason(int(message.reason)) if outcome is PublishOutcome.REJECTED else None,
        field=printable(message.field_path, _MAX_NOTE_CHARS),
        retry_after_s=_retry_after_s(message),
    )


# SampleGroups.


def sample_request_to_message(request: SampleRequest) -> pb.SampleGroupsRequest:
    """Returns the message of a request."""
    return pb.SampleGroupsRequest(
        count=request.count,
        datasets=request.datasets,
        max_age=None if request.max_age_s is None else duration_from_seconds(request.max_age_s),
        excluded_publishers=request.excluded_publishers,
        seed=request.seed,
    )


def sample_request_from_message(
    message: pb.SampleGroupsRequest, limits: WireLimits = DEFAULT_WIRE_LIMITS
) -> SampleRequest:
    """Returns the request in a message; raises WireError if a field breaks its rule."""
    check_range(message.count, limits.max_sample_groups + 1, "count", least=1)
    for i, node_id in enumerate(message.excluded_publishers):
        check_node_id(node_id, f"excluded_publishers[{i}]")
    max_age_s = seconds_of(message.max_age) if message.HasField("max_age") else None
    if max_age_s is not None and max_age_s < 0:
        raise field_error("max_age", "must be at least 0")
    return SampleRequest(
        count=message.count,
        datasets=_datasets(message.datasets, limits),
        max_age_s=max_age_s,
        excluded_publishers=tuple(message.excluded_publishers),
        seed=message.seed if message.HasField("seed") else None,
    )


def sample_response_to_message(response: SampleResponse) -> pb.SampleGroupsResponse:
    """Returns the message of a response."""
    return pb.SampleGroupsResponse(
        groups=[signed_group_to_message(group) for group in response.groups], stored_groups=response.stored_groups
    )


def sample_response_from_message(
    message: pb.SampleGroupsResponse, *, asked: int, limits: WireLimits = DEFAULT_WIRE_LIMITS
) -> SampleResponse:
    """Returns the response in a message; raises WireError if it holds more than the `asked` groups."""
    _check_count(len(message.groups), min(asked, limits.max_sample_groups), "groups", least=0)
    check_range(message.stored_groups, COUNTER_LIMIT, "stored_groups")
    return SampleResponse(groups=_signed_groups(message.groups), stored_groups=message.stored_groups)


# ListGroups.


def list_request_to_message(request: ListRequest) -> pb.ListGroupsRequest:
    """Returns the message of a request."""
    return pb.ListGroupsRequest(
        page_size=request.max_references,
        cursor=None if request.cursor is None else _cursor_to_message(request.cursor),
        datasets=request.datasets,
    )


def list_request_from_message(message: pb.ListGroupsRequest, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> ListRequest:
    """Returns the request in a message; raises WireError if a field breaks its rule."""
    check_range(message.page_size, limits.max_list_references + 1, "page_size", least=1)
    return ListRequest(
        max_references=message.page_size,
        cursor=_cursor(message.cursor, "cursor", limits) if message.HasField("cursor") else None,
        datasets=_datasets(message.datasets, limits),
    )


def list_response_to_message(page: GroupRefPage) -> pb.ListGroupsResponse:
    """Returns the message of a response."""
    return pb.ListGroupsResponse(
        references=[
            pb.GroupReference(
                group_id=ref.group_id,
                size_bytes=ref.size_bytes,
                dataset=ref.dataset,
                age=duration_from_seconds(ref.age_s),
            )
            for ref in page.references
        ],
        next_cursor=_cursor_to_message(page.next_cursor),
    )


def list_response_from_message(
    message: pb.ListGroupsResponse, *, asked: int, limits: WireLimits = DEFAULT_WIRE_LIMITS
) -> GroupRefPage:
    """Returns the response in a message; raises WireError if a field breaks its rule or more than `asked` came."""
    _check_count(len(message.references), min(asked, limits.max_list_references), "references", least=0)
    if not message.HasField("next_cursor"):
        raise field_error("next_cursor", "is required")
    references: list[GroupRef] = []
    for i, ref in enumerate(message.references):
        check_bytes(ref.group_id, GROUP_ID_BYTES, f"references[{i}].group_id")
        check_range(ref.size_bytes, COUNTER_LIMIT, f"references[{i}].size_bytes")
        check_dataset(ref.dataset, limits.max_dataset_bytes, f"references[{i}].dataset")
        references.append(
            GroupRef(
                group_id=ref.group_id,
                size_bytes=ref.size_bytes,
                dataset=ref.dataset,
                age_s=max(0.0, seconds_of(ref.age)),
            )
        )
    return GroupRefPage(references=tuple(references), next_cursor=_cursor(message.next_cursor, "next_cursor", limits))


# GetGroups.


def get_request_to_message(request: GetRequest) -> pb.GetGroupsRequest:
    """Returns the message of a request."""
    return pb.GetGroupsRequest(group_ids=request.group_ids)


def get_request_from_message(message: pb.GetGroupsRequest, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> GetRequest:
    """Returns the request in a message, repeats left out; raises WireError if a field breaks its rule."""
    _check_count(len(message.group_ids), limits.max_get_groups, "group_ids")
    return GetRequest(group_ids=_once(_group_ids(message.group_ids, "group_ids")))


def get_response_to_message(response: GetResponse) -> pb.GetGroupsResponse:
    """Returns the message of a response."""
    return pb.GetGroupsResponse(
        groups=[signed_group_to_message(group) for group in response.groups],
        missing_group_ids=response.missing_group_ids,
        deferred_group_ids=response.deferred_group_ids,
    )


def get_response_from_message(
    message: pb.GetGroupsResponse, *, asked: int, limits: WireLimits = DEFAULT_WIRE_LIMITS
) -> GetResponse:
    """Returns the response in a message; raises WireError if a list is longer than the `asked` ids."""
    for count, field in (
        (len(message.groups), "groups"),
        (len(message.missing_group_ids), "missing_group_ids"),
        (len(message.deferred_group_ids), "deferred_group_ids"),
    ):
        _check_count(count, min(asked, limits.max_get_groups), field, least=0)
    return GetResponse(
        groups=_signed_groups(message.groups),
        missing_group_ids=_group_ids(message.missing_group_ids, "missing_group_ids"),
        deferred_group_ids=_group_ids(message.deferred_group_ids, "deferred_group_ids"),
    )


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


# Errors of a whole call.


def error_detail_to_message(detail: ErrorDetail) -> pb.ErrorDetail:
    """Returns the message that travels in the trailing metadata of a failed call."""
    return pb.ErrorDetail(
        reason=f"WIRE_REASON_{detail.reason.name}",
        field_path=detail.field,
        limit=detail.limit,
        retry_delay=duration_from_seconds(detail.retry_after_s) if detail.retry_after_s > 0 else None,
        oldest_cursor=None if detail.oldest_cursor is None else _cursor_to_message(detail.oldest_cursor),
        error_id=detail.error_id,
    )


def error_detail_from_message(message: pb.ErrorDetail, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> ErrorDetail:
    """Returns the detail in a message, texts made harmless; raises WireError if its cursor breaks a rule."""
    has_cursor = message.HasField("oldest_cursor")
    return ErrorDetail(
        reason=_reason(int(message.reason)),
        field=printable(message.field_path, _MAX_NOTE_CHARS),
        limit=printable(message.limit, _MAX_NOTE_CHARS),
        retry_after_s=_retry_after_s(message),
        oldest_cursor=_cursor(message.oldest_cursor, "oldest_cursor", limits) if has_cursor else None,
        error_id=printable(message.error_id, 64),
    )


# Parts of several.


def _algorithm(number: int) -> pb.SignatureAlgorithm:
    # Enums of proto3 are open: any number passes through.
    return number  # pyright: ignore[reportReturnType]


def _reason(number: int) -> WireReason:
    return _REASONS.get(number, WireReason.INTERNAL)


def _retry_after_s(message: pb.PublishResult | pb.ErrorDetail) -> float:
    return min(max(0.0, seconds_of(message.retry_delay)), MAX_RETRY_AFTER_S)


def _signed_groups(messages: Iterable[pb.SignedGroup]) -> tuple[SignedGroup, ...]:
    return tuple(signed_group_from_message(message) for message in messages)


def _peer_exchange(messages: Iterable[pb.SignedPeerRecord], limits: WireLimits) -> PeerExchange:
    records = tuple(signed_peer_record_from_message(message) for message in messages)
    _check_count(len(records), limits.max_exchanged_peers, "peer_records", least=0)
    return PeerExchange(peer_records=records)


def _check_count(count: int, most: int, field: str, *, least: int = 1) -> None:
    if count > most:
        raise WireError(WireReason.TOO_LARGE, f"holds at most {most}", field=field)
    if count < least:
        raise field_error(field, f"must hold at least {least}")


def _datasets(names: Iterable[str], limits: WireLimits) -> tuple[str, ...]:
    datasets = tuple(names)
    for i, name in enumerate(datasets):
        check_dataset(name, limits.max_dataset_bytes, f"datasets[{i}]")
    return datasets


def _group_ids(ids: Iterable[bytes], field: str) -> tuple[bytes, ...]:
    group_ids = tuple(ids)
    for i, group_id in enumerate(group_ids):
        check_bytes(group_id, GROUP_ID_BYTES, f"{field}[{i}]")
    return group_ids


def _once(items: Iterable[_T]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(items))


def _cursor_to_message(cursor: GroupCursor) -> pb.GroupCursor:
    return pb.GroupCursor(epoch=cursor.epoch, sequence=cursor.sequence)


def _cursor(message: pb.GroupCursor, field: str, limits: WireLimits) -> GroupCursor:
    check_text(message.epoch, limits.max_epoch_bytes, f"{field}.epoch")
    check_range(message.sequence, COUNTER_LIMIT, f"{field}.sequence")
    return GroupCursor(epoch=message.epoch, sequence=message.sequence)
