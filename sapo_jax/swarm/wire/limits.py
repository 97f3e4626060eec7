"""The sizes that the exchange refuses to exceed, in one place and with their units.

`WireLimits` bounds content: what one message, one group and one record may hold. `CallLimits`
bounds traffic at the listening port. How much a store keeps is the store's own business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sapo_jax.config import MAX_GROUP_SIZE

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, kw_only=True, slots=True)
class WireLimits:
    """Bounds of what crosses the wire; every one is inclusive, and texts are measured in bytes of UTF-8.

    The defaults are part of the contract: a node that lowers them refuses what others accept, and
    one that raises them publishes what others refuse.
    """

    max_message_bytes: int = 4 * MIB  # one request or response
    max_fields: int = 2048  # fields of one request or response, unknown ones included; bounds what parsing costs

    max_payload_bytes: int = 960 * KIB  # one signed group; leaves room for headers below 1 MiB
    max_payload_fields: int = 256  # fields of one signed content, unknown ones included; a request holds many
    max_text_bytes: int = 64 * KIB  # one completion
    max_group_text_bytes: int = 512 * KIB  # all completions of one group
    max_completions: int = MAX_GROUP_SIZE  # of one group; at least one
    max_swarm_id_bytes: int = 64
    max_dataset_bytes: int = 64
    max_verifier_version_bytes: int = 32
    max_name_bytes: int = 128  # a model's or tokenizer's name
    max_template_id_bytes: int = 64

    max_hops: int = 4  # relays a group may have passed
    min_ttl_s: float = 60.0  # a shorter or longer wish is clamped to these two
    max_ttl_s: float = 86_400.0
    default_ttl_s: float = 3_600.0  # of a group that states none

    max_publish_groups: int = 32  # per PublishGroups request
    max_sample_groups: int = 64  # per SampleGroups response
    max_sample_datasets: int = 128  # names in a sample's filter
    max_excluded_publishers: int = 256  # node ids in a sample's filter
    max_list_references: int = 1_000  # per ListGroups response
    max_get_groups: int = 64  # ids per GetGroups request
    max_exchanged_peers: int = 32  # records in each direction of ExchangePeers

    max_peer_record_bytes: int = 4 * KIB  # payload of one signed peer record
    max_addresses: int = 8
    max_address_bytes: int = 262  # a 253-byte host name, brackets, colon and port
    max_catalog_digests: int = 64
    max_software_version_bytes: int = 64
    max_epoch_bytes: int = 64


DEFAULT_WIRE_LIMITS = WireLimits()


@dataclass(frozen=True, kw_only=True, slots=True)
class CallLimits:
    """Bounds of the traffic that one listening port takes on; quotas per identity are configured elsewhere."""

    max_metadata_bytes: int = 8 * KIB  # headers of one call
    max_connections: int = 256
    max_connections_per_prefix: int = 8  # of one address prefix: /24 of IPv4, /48 of IPv6
    max_streams_per_connection: int = 64
    max_calls: int = 128  # in progress at one time
    max_calls_per_peer: int = 8
    max_queued_groups: int = 1_024  # stored and not yet verified
    max_queued_bytes: int = 64 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadline:
    """Seconds a call may take: what a client asks for by default, and the most a server accepts."""

    client_s: float
    server_max_s: float


DEADLINES: Mapping[str, Deadline] = {
    "PublishGroups": Deadline(client_s=5.0, server_max_s=15.0),
    "SampleGroups": Deadline(client_s=2.0, server_max_s=5.0),
    "ListGroups": Deadline(client_s=5.0, server_max_s=10.0),
    "GetGroups": Deadline(client_s=10.0, server_max_s=20.0),
    "GetNodeInfo": Deadline(client_s=2.0, server_max_s=5.0),
    "ExchangePeers": Deadline(client_s=2.0, server_max_s=5.0),
}
