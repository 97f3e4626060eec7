"""What the files under golden/ hold: bytes of the wire as a released version wrote them, and their meaning.

A file is written once and never again; every later version must read it to the same record. After
adding a record here, `python -m tests.swarm.wire.golden_wire` writes the file that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sapo_jax.swarm.wire import codec_parts, group_calls_codec, host_calls_codec
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.group_codec import pack_group, seal_group
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.parse import parse
from sapo_jax.swarm.wire.peer_record_codec import pack_peer_record, seal_peer_record
from sapo_jax.swarm.wire.requests import (
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
)
from sapo_jax.swarm.wire.signed_content import GeneratorInfo, PeerRecord, SignedGroup, SignedPeerRecord
from sapo_jax.types import Completion, FinishReason, Rollout, TaskRef

GOLDEN = Path(__file__).parent / "golden"
SWARM_ID = "golden swarm"
IDENTITY = Identity(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))

ROLLOUT = Rollout(
    task_ref=TaskRef(dataset="chain_sum", config_digest="00ff" * 16, seed=2**32 - 1, index=499),
    node_id=IDENTITY.node_id,
    round=12,
    policy_version=11,
    completions=(
        Completion(text="<think>2 + 2</think><answer>4</answer>", finish_reason=FinishReason.STOP),
        Completion(text="größer 😀 \x00\x1b[31m", finish_reason=FinishReason.LENGTH),
        Completion(text="", finish_reason=FinishReason.STOP),
    ),
)
GENERATOR = GeneratorInfo(
    model_name="SmolLM2-135M-Instruct",
    parameter_count=134_515_008,
    tokenizer_name="smollm",
    prompt_template_id="direct/1",
    temperature=0.7,
    top_p=0.95,
    max_new_tokens=32,
)
CLAIMED_SCORES = (1.0, 0.0, 0.05)
PEER_RECORD = PeerRecord(
    swarm_id=SWARM_ID,
    addresses=("127.0.0.1:50051", "[2001:db8::1]:50052"),
    certificate=b"\x30\x03\x02\x01\x05",
    session_nonce=bytes(range(16, 32)),
    sequence=3,
    software_version="0.1.0",
    catalog_digests=("00ff" * 16, "ab" * 32),
    reachable=True,
    created_unix_s=1_800_000_000.5,
)
GROUP = SignedGroup(
    envelope=seal_group(
        pack_group(
            ROLLOUT,
            swarm_id=SWARM_ID,
            sequence=77,
            created_unix_s=1_800_000_000.25,
            ttl_s=1_800.5,
            generator=GENERATOR,
            verifier_version="0.1.25",
            claimed_scores=CLAIMED_SCORES,
        ),
        IDENTITY,
    ),
    hops=2,
    age_s=12.5,
)
PEER = SignedPeerRecord(envelope=seal_peer_record(pack_peer_record(PEER_RECORD), IDENTITY))
IDS = tuple(bytes([i]) * 32 for i in range(3))
CURSOR = GroupCursor(epoch="f00d", sequence=2**63 - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """One record and the functions between it and its message."""

    record: Any
    message_type: type[Any]
    to_message: Callable[[Any], Any]
    from_message: Callable[[Any], Any]

    def write(self) -> bytes:
        """Returns the bytes that today's code writes."""
        return self.to_message(self.record).SerializeToString(deterministic=True)

    def read(self, raw: bytes) -> Any:
        """Returns the record that today's code reads."""
        return self.from_message(parse(self.message_type, raw))


def conversion(name: str) -> Callable[..., Any]:
    """Returns the function of the calls' codecs with this name."""
    modules = (codec_parts, group_calls_codec, host_calls_codec)
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def _golden(record: Any, message_type: type[Any], name: str, **options: Any) -> Golden:
    read = conversion(f"{name}_from_message")
    return Golden(
        record=record,
        message_type=message_type,
        to_message=conversion(f"{name}_to_message"),
        from_message=lambda message: read(message, **options),
    )


RECORDS: Mapping[str, Golden] = {
    "signed_group": _golden(GROUP, pb.SignedGroup, "signed_group"),
    "signed_peer_record": _golden(PEER, pb.SignedPeerRecord, "signed_peer_record"),
    "publish_request": _golden(PublishRequest(groups=(GROUP,)), pb.PublishGroupsRequest, "publish_request"),
    "publish_response": _golden(
        PublishResponse(
            results=(
                PublishResult(group_id=IDS[0], outcome=PublishOutcome.ACCEPTED),
                PublishResult(group_id=IDS[1], outcome=PublishOutcome.DUPLICATE),
                PublishResult(
                    group_id=b"", outcome=PublishOutcome.REJECTED, reason=WireReason.FIELD, field="public_key"
                ),
                PublishResult(
                    group_id=IDS[2], outcome=PublishOutcome.REJECTED, reason=WireReason.QUOTA, retry_after_s=2.25
                ),
            )
        ),
        pb.PublishGroupsResponse,
        "publish_response",
        asked=4,
    ),
    "sample_request": _golden(
        SampleRequest(
            count=64, datasets=("gcd",), max_age_s=0.0, excluded_publishers=(IDENTITY.node_id,), seed=2**64 - 1
        ),
        pb.SampleGroupsRequest,
        "sample_request",
    ),
    "sample_request_bare": _golden(SampleRequest(count=1), pb.SampleGroupsRequest, "sample_request"),
    "sample_response": _golden(
        SampleResponse(groups=(GROUP, GROUP), stored_groups=4096), pb.SampleGroupsResponse, "sample_response", asked=2
    ),
    "list_request": _golden(
        ListRequest(max_references=1000, cursor=CURSOR, datasets=("gcd", "bf")), pb.ListGroupsRequest, "list_request"
    ),
    "list_request_bare": _golden(ListRequest(max_references=1), pb.ListGroupsRequest, "list_request"),
    "list_response": _golden(
        GroupRefPage(
            references=tuple(
                GroupRef(group_id=group_id, size_bytes=960 * 1024, dataset="gcd", age_s=3_599.75) for group_id in IDS
            ),
            next_cursor=CURSOR,
        ),
        pb.ListGroupsResponse,
        "list_response",
        asked=3,
    ),
    "get_request": _golden(GetRequest(group_ids=IDS), pb.GetGroupsRequest, "get_request"),
    "get_response": _golden(
        GetResponse(groups=(GROUP,), missing_group_ids=IDS[:1], deferred_group_ids=IDS[1:]),
        pb.GetGroupsResponse,
        "get_response",
        asked=4,
    ),
    "node_info": _golden(
        NodeInfo(
            swarm_id=SWARM_ID,
            software_version="0.1.0",
            schema_minor=1,
            epoch="f00d",
            stored_groups=10,
            stored_publishers=3,
            load_level=LoadLevel.DRAINING,
            read_unix_s=1_800_000_001.0,
            max_message_bytes=4 * 2**20,
            max_publish_groups=32,
            catalog_digests=("ab" * 32,),
            peer_record=PEER,
        ),
        pb.GetNodeInfoResponse,
        "node_info",
    ),
    "peers_request": _golden(PeerExchange(peer_records=(PEER,)), pb.ExchangePeersRequest, "peers_request"),
    "peers_response": _golden(PeerExchange(peer_records=(PEER, PEER)), pb.ExchangePeersResponse, "peers_response"),
    "error_detail": _golden(
        ErrorDetail(
            reason=WireReason.UNKNOWN_CURSOR,
            field="cursor",
            limit="references per page = 1000",
            retry_after_s=1.5,
            oldest_cursor=CURSOR,
            error_id="e-17",
        ),
        pb.ErrorDetail,
        "error_detail",
    ),
}


def path_of(name: str) -> Path:
    """Returns where the bytes of a record lie."""
    return GOLDEN / f"{name}.binpb"


def main() -> None:
    """Writes the files that are missing, and no other."""
    for name, golden in RECORDS.items():
        if not path_of(name).exists():
            path_of(name).write_bytes(golden.write())
            print(path_of(name))


if __name__ == "__main__":
    main()
