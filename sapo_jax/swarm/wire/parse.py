"""Serialized messages to message objects, without ever doing much work for a few bytes.

A parser turns two bytes on the wire into an object of some fifty, so a request within its size could
still take a hundred times that in memory. The top-level fields are therefore counted first. That is
enough in this schema: repeated fields of nested messages lie inside signed bytes, which are parsed in
turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, WireLimits

# What a message may hold at most of its repeated fields: full name of the field -> name of the limit.
MAX_ITEMS: Mapping[str, str] = {
    "sapo.exchange.v1.PublishGroupsRequest.groups": "max_publish_groups",
    "sapo.exchange.v1.PublishGroupsResponse.results": "max_publish_groups",
    "sapo.exchange.v1.SampleGroupsRequest.datasets": "max_sample_datasets",
    "sapo.exchange.v1.SampleGroupsRequest.excluded_publishers": "max_excluded_publishers",
    "sapo.exchange.v1.SampleGroupsResponse.groups": "max_sample_groups",
    "sapo.exchange.v1.ListGroupsRequest.datasets": "max_sample_datasets",
    "sapo.exchange.v1.ListGroupsResponse.references": "max_list_references",
    "sapo.exchange.v1.GetGroupsRequest.group_ids": "max_get_groups",
    "sapo.exchange.v1.GetGroupsResponse.groups": "max_get_groups",
    "sapo.exchange.v1.GetGroupsResponse.missing_group_ids": "max_get_groups",
    "sapo.exchange.v1.GetGroupsResponse.deferred_group_ids": "max_get_groups",
    "sapo.exchange.v1.GetNodeInfoResponse.catalog_digests": "max_catalog_digests",
    "sapo.exchange.v1.ExchangePeersRequest.peer_records": "max_exchanged_peers",
    "sapo.exchange.v1.ExchangePeersResponse.peer_records": "max_exchanged_peers",
    "sapo.exchange.v1.PeerRecord.addresses": "max_addresses",
    "sapo.exchange.v1.PeerRecord.catalog_digests": "max_catalog_digests",
    "sapo.exchange.v1.RolloutGroup.completions": "max_completions",
}

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_M = TypeVar("_M", bound=Message)


def parse(
    message_type: type[_M], raw: bytes, limits: WireLimits = DEFAULT_WIRE_LIMITS, *, max_fields: int | None = None
) -> _M:
    """Returns the message that `raw` holds, after its size and the number of its fields are checked.

    Unknown fields are accepted: a newer version may send them.

    Args:
        message_type: what it should be.
        raw: untrusted bytes.
        limits: bounds of sizes and counts.
        max_fields: bound of the number of fields; None: that of requests and responses.

    Raises:
        WireError: MALFORMED or TOO_LARGE.
    """
    if len(raw) > limits.max_message_bytes:
        raise WireError(WireReason.TOO_LARGE, f"a message has at most {limits.max_message_bytes} bytes")
    counts = count_fields(raw, limits.max_fields if max_fields is None else max_fields)
    for field in message_type.DESCRIPTOR.fields:
        count = counts.get(field.number, 0)
        if count > 1 and field.full_name in MAX_ITEMS:
            most: int = getattr(limits, MAX_ITEMS[field.full_name])
            if count > most:
                raise WireError(WireReason.TOO_LARGE, f"holds at most {most}", field=field.name)
    message = message_type()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        # The library's own text may quote what was sent.
        raise WireError(WireReason.MALFORMED, f"is no {message_type.DESCRIPTOR.name}") from error
    return message


def count_fields(data: bytes, max_fields: int) -> dict[int, int]:
    """Returns how often each field number occurs at the top level of a serialized message.

    Raises:
        WireError: MALFORMED if the bytes are no sequence of fields, or hold one of the group types that this
            schema does not have; TOO_LARGE beyond `max_fields` fields.
    """
    counts: dict[int, int] = {}
    position, end, fields = 0, len(data), 0
    while position < end:
        fields += 1
        if fields > max_fields:
            raise WireError(WireReason.TOO_LARGE, f"a message has at most {max_fields} fields")
        tag, position = _read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if not 1 <= number < 2**29:
            raise _malformed("a field number is out of range")
        if kind == _LENGTH:
            length, position = _read_varint(data, position)
            position += length
        elif kind == _VARINT:
            position = _read_varint(data, position)[1]
        elif kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        else:
            raise _malformed("a field has a type that this schema does not use")
        counts[number] = counts.get(number, 0) + 1
    if position != end:
        raise _malformed("the last field is cut off")
    return counts


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns the number at `position` and the place after it."""
    if position < len(data) and data[position] < 0x80:  # most are this short
        return data[position], position + 1
    value = shift = 0
    for at in range(position, min(position + 10, len(data))):  # seven bits a byte, ten bytes for 64 bits
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
    raise _malformed("a number has no end")


def _malformed(rule: str) -> WireError:
    return WireError(WireReason.MALFORMED, rule)
