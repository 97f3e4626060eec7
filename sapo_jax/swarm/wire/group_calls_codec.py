"""The calls that move groups, as messages and back into checked records: publish, sample, list, get.

One pair of functions for each request and each response. Both ends are strangers to each other, so a
server checks requests and a client checks responses with equal care.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sapo_jax.swarm.wire.codec_parts import (
    MAX_NOTE_CHARS,
    check_count,
    cursor_from_message,
    cursor_to_message,
    reason_from_number,
    retry_after_s_of,
    signed_group_to_message,
    signed_groups_from_messages,
)
from sapo_jax.swarm.wire.field_rules import (
    COUNTER_LIMIT,
    check_bytes,
    check_dataset,
    check_node_id,
    check_range,
    field_error,
)
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, WireLimits
from sapo_jax.swarm.wire.printable import printable
from sapo_jax.swarm.wire.requests import (
    GetRequest,
    GetResponse,
    GroupRef,
    GroupRefPage,
    ListRequest,
    PublishOutcome,
    PublishRequest,
    PublishResponse,
    PublishResult,
    SampleRequest,
    SampleResponse,
)
from sapo_jax.swarm.wire.spans import duration_from_seconds, seconds_of

_GROUP_ID_BYTES = 32

_OUTCOMES: Mapping[int, PublishOutcome] = {
    pb.PublishOutcome.Value(f"PUBLISH_OUTCOME_{item.name}"): item for item in PublishOutcome
}

# PublishGroups.


def publish_request_to_message(request: PublishRequest) -> pb.PublishGroupsRequest:
    """Returns the message of a request."""
    return pb.PublishGroupsRequest(groups=[signed_group_to_message(group) for group in request.groups])


def publish_request_from_message(
    message: pb.PublishGroupsRequest, limits: WireLimits = DEFAULT_WIRE_LIMITS
) -> PublishRequest:
    """Returns the request in a message; raises WireError if it holds no group or too many."""
    check_count(len(message.groups), limits.max_publish_groups, "groups")
    return PublishRequest(groups=signed_groups_from_messages(message.groups))


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
        check_bytes(message.group_id, _GROUP_ID_BYTES, f"results[{i}].group_id")
    outcome = _OUTCOMES.get(int(message.outcome), PublishOutcome.REJECTED)
    return PublishResult(
        group_id=message.group_id,
        outcome=outcome,
        reason=reason_from_number(int(message.reason)) if outcome is PublishOutcome.REJECTED else None,
        field=printable(message.field_path, MAX_NOTE_CHARS),
        retry_after_s=retry_after_s_of(message),
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
    check_count(len(message.groups), min(asked, limits.max_sample_groups), "groups", least=0)
    check_range(message.stored_groups, COUNTER_LIMIT, "stored_groups")
    return SampleResponse(groups=signed_groups_from_messages(message.groups), stored_groups=message.stored_groups)


# ListGroups.


def list_request_to_message(request: ListRequest) -> pb.ListGroupsRequest:
    """Returns the message of a request."""
    return pb.ListGroupsRequest(
        page_size=request.max_references,
        cursor=None if request.cursor is None else cursor_to_message(request.cursor),
        datasets=request.datasets,
    )


def list_request_from_message(message: pb.ListGroupsRequest, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> ListRequest:
    """Returns the request in a message; raises WireError if a field breaks its rule."""
    check_range(message.page_size, limits.max_list_references + 1, "page_size", least=1)
    return ListRequest(
        max_references=message.page_size,
        cursor=cursor_from_message(message.cursor, "cursor", limits) if message.HasField("cursor") else None,
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
        next_cursor=cursor_to_message(page.next_cursor),
    )


def list_response_from_message(
    message: pb.ListGroupsResponse, *, asked: int, limits: WireLimits = DEFAULT_WIRE_LIMITS
) -> GroupRefPage:
    """Returns the response in a message; raises WireError if a field breaks its rule or more than `asked` came."""
    check_count(len(message.references), min(asked, limits.max_list_references), "references", least=0)
    if not message.HasField("next_cursor"):
        raise field_error("next_cursor", "is required")
    references: list[GroupRef] = []
    for i, ref in enumerate(message.references):
        check_bytes(ref.group_id, _GROUP_ID_BYTES, f"references[{i}].group_id")
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
    return GroupRefPage(
        references=tuple(references), next_cursor=cursor_from_message(message.next_cursor, "next_cursor", limits)
    )


# GetGroups.


def get_request_to_message(request: GetRequest) -> pb.GetGroupsRequest:
    """Returns the message of a request."""
    return pb.GetGroupsRequest(group_ids=request.group_ids)


def get_request_from_message(message: pb.GetGroupsRequest, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> GetRequest:
    """Returns the request in a message, repeats left out; raises WireError if a field breaks its rule."""
    check_count(len(message.group_ids), limits.max_get_groups, "group_ids")
    return GetRequest(group_ids=tuple(dict.fromkeys(_group_ids(message.group_ids, "group_ids"))))


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
        check_count(count, min(asked, limits.max_get_groups), field, least=0)
    return GetResponse(
        groups=signed_groups_from_messages(message.groups),
        missing_group_ids=_group_ids(message.missing_group_ids, "missing_group_ids"),
        deferred_group_ids=_group_ids(message.deferred_group_ids, "deferred_group_ids"),
    )


# Parts of several.


def _datasets(names: Iterable[str], limits: WireLimits) -> tuple[str, ...]:
    datasets = tuple(names)
    for i, name in enumerate(datasets):
        check_dataset(name, limits.max_dataset_bytes, f"datasets[{i}]")
    return datasets


def _group_ids(ids: Iterable[bytes], field: str) -> tuple[bytes, ...]:
    group_ids = tuple(ids)
    for i, group_id in enumerate(group_ids):
        check_bytes(group_id, _GROUP_ID_BYTES, f"{field}[{i}]")
    return group_ids
