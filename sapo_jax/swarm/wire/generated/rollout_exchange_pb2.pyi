import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SignatureAlgorithm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIGNATURE_ALGORITHM_UNSPECIFIED: _ClassVar[SignatureAlgorithm]
    SIGNATURE_ALGORITHM_ED25519: _ClassVar[SignatureAlgorithm]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_ERROR: _ClassVar[FinishReason]

class PublishOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PUBLISH_OUTCOME_UNSPECIFIED: _ClassVar[PublishOutcome]
    PUBLISH_OUTCOME_ACCEPTED: _ClassVar[PublishOutcome]
    PUBLISH_OUTCOME_DUPLICATE: _ClassVar[PublishOutcome]
    PUBLISH_OUTCOME_REJECTED: _ClassVar[PublishOutcome]

class LoadLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOAD_LEVEL_UNSPECIFIED: _ClassVar[LoadLevel]
    LOAD_LEVEL_NORMAL: _ClassVar[LoadLevel]
    LOAD_LEVEL_BUSY: _ClassVar[LoadLevel]
    LOAD_LEVEL_DRAINING: _ClassVar[LoadLevel]

class WireReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WIRE_REASON_UNSPECIFIED: _ClassVar[WireReason]
    WIRE_REASON_MALFORMED: _ClassVar[WireReason]
    WIRE_REASON_FIELD: _ClassVar[WireReason]
    WIRE_REASON_TOO_LARGE: _ClassVar[WireReason]
    WIRE_REASON_UNKNOWN_ALGORITHM: _ClassVar[WireReason]
    WIRE_REASON_BAD_SIGNATURE: _ClassVar[WireReason]
    WIRE_REASON_WRONG_SWARM: _ClassVar[WireReason]
    WIRE_REASON_HOPS: _ClassVar[WireReason]
    WIRE_REASON_EXPIRED: _ClassVar[WireReason]
    WIRE_REASON_UNKNOWN_TASK: _ClassVar[WireReason]
    WIRE_REASON_QUOTA: _ClassVar[WireReason]
    WIRE_REASON_BANNED: _ClassVar[WireReason]
    WIRE_REASON_QUEUE_FULL: _ClassVar[WireReason]
    WIRE_REASON_STORE_FULL: _ClassVar[WireReason]
    WIRE_REASON_UNAUTHENTICATED: _ClassVar[WireReason]
    WIRE_REASON_NOT_ALLOWED: _ClassVar[WireReason]
    WIRE_REASON_NO_DEADLINE: _ClassVar[WireReason]
    WIRE_REASON_CONCURRENCY: _ClassVar[WireReason]
    WIRE_REASON_UNSUPPORTED_VERSION: _ClassVar[WireReason]
    WIRE_REASON_UNKNOWN_CURSOR: _ClassVar[WireReason]
    WIRE_REASON_STARTING: _ClassVar[WireReason]
    WIRE_REASON_DRAINING: _ClassVar[WireReason]
    WIRE_REASON_STORE_BUSY: _ClassVar[WireReason]
    WIRE_REASON_TIMEOUT: _ClassVar[WireReason]
    WIRE_REASON_NOT_IMPLEMENTED: _ClassVar[WireReason]
    WIRE_REASON_DATA_LOSS: _ClassVar[WireReason]
    WIRE_REASON_INTERNAL: _ClassVar[WireReason]
SIGNATURE_ALGORITHM_UNSPECIFIED: SignatureAlgorithm
SIGNATURE_ALGORITHM_ED25519: SignatureAlgorithm
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_ERROR: FinishReason
PUBLISH_OUTCOME_UNSPECIFIED: PublishOutcome
PUBLISH_OUTCOME_ACCEPTED: PublishOutcome
PUBLISH_OUTCOME_DUPLICATE: PublishOutcome
PUBLISH_OUTCOME_REJECTED: PublishOutcome
LOAD_LEVEL_UNSPECIFIED: LoadLevel
LOAD_LEVEL_NORMAL: LoadLevel
LOAD_LEVEL_BUSY: LoadLevel
LOAD_LEVEL_DRAINING: LoadLevel
WIRE_REASON_UNSPECIFIED: WireReason
WIRE_REASON_MALFORMED: WireReason
WIRE_REASON_FIELD: WireReason
WIRE_REASON_TOO_LARGE: WireReason
WIRE_REASON_UNKNOWN_ALGORITHM: WireReason
WIRE_REASON_BAD_SIGNATURE: WireReason
WIRE_REASON_WRONG_SWARM: WireReason
WIRE_REASON_HOPS: WireReason
WIRE_REASON_EXPIRED: WireReason
WIRE_REASON_UNKNOWN_TASK: WireReason
WIRE_REASON_QUOTA: WireReason
WIRE_REASON_BANNED: WireReason
WIRE_REASON_QUEUE_FULL: WireReason
WIRE_REASON_STORE_FULL: WireReason
WIRE_REASON_UNAUTHENTICATED: WireReason
WIRE_REASON_NOT_ALLOWED: WireReason
WIRE_REASON_NO_DEADLINE: WireReason
WIRE_REASON_CONCURRENCY: WireReason
WIRE_REASON_UNSUPPORTED_VERSION: WireReason
WIRE_REASON_UNKNOWN_CURSOR: WireReason
WIRE_REASON_STARTING: WireReason
WIRE_REASON_DRAINING: WireReason
WIRE_REASON_STORE_BUSY: WireReason
WIRE_REASON_TIMEOUT: WireReason
WIRE_REASON_NOT_IMPLEMENTED: WireReason
WIRE_REASON_DATA_LOSS: WireReason
WIRE_REASON_INTERNAL: WireReason

class PublishGroupsRequest(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[SignedGroup]
    def __init__(self, groups: _Optional[_Iterable[_Union[SignedGroup, _Mapping]]] = ...) -> None: ...

class PublishGroupsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[PublishResult]
    def __init__(self, results: _Optional[_Iterable[_Union[PublishResult, _Mapping]]] = ...) -> None: ...

class PublishResult(_message.Message):
    __slots__ = ("group_id", "outcome", "reason", "field_path", "retry_delay")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELD_PATH_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    group_id: bytes
    outcome: PublishOutcome
    reason: WireReason
    field_path: str
    retry_delay: _duration_pb2.Duration
    def __init__(self, group_id: _Optional[bytes] = ..., outcome: _Optional[_Union[PublishOutcome, str]] = ..., reason: _Optional[_Union[WireReason, str]] = ..., field_path: _Optional[str] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SampleGroupsRequest(_message.Message):
    __slots__ = ("count", "datasets", "max_age", "excluded_publishers", "seed")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_PUBLISHERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    count: int
    datasets: _containers.RepeatedScalarFieldContainer[str]
    max_age: _duration_pb2.Duration
    excluded_publishers: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    def __init__(self, count: _Optional[int] = ..., datasets: _Optional[_Iterable[str]] = ..., max_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., excluded_publishers: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ...) -> None: ...

class SampleGroupsResponse(_message.Message):
    __slots__ = ("groups", "stored_groups")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    STORED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[SignedGroup]
    stored_groups: int
    def __init__(self, groups: _Optional[_Iterable[_Union[SignedGroup, _Mapping]]] = ..., stored_groups: _Optional[int] = ...) -> None: ...

class ListGroupsRequest(_message.Message):
    __slots__ = ("page_size", "cursor", "datasets")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    cursor: GroupCursor
    datasets: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, page_size: _Optional[int] = ..., cursor: _Optional[_Union[GroupCursor, _Mapping]] = ..., datasets: _Optional[_Iterable[str]] = ...) -> None: ...

class ListGroupsResponse(_message.Message):
    __slots__ = ("references", "next_cursor")
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    NEXT_CURSOR_FIELD_NUMBER: _ClassVar[int]
    references: _containers.RepeatedCompositeFieldContainer[GroupReference]
    next_cursor: GroupCursor
    def __init__(self, references: _Optional[_Iterable[_Union[GroupReference, _Mapping]]] = ..., next_cursor: _Optional[_Union[GroupCursor, _Mapping]] = ...) -> None: ...

class GroupCursor(_message.Message):
    __slots__ = ("epoch", "sequence")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    sequence: int
    def __init__(self, epoch: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class GroupReference(_message.Message):
    __slots__ = ("group_id", "size_bytes", "dataset", "age")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    group_id: bytes
    size_bytes: int
    dataset: str
    age: _duration_pb2.Duration
    def __init__(self, group_id: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., dataset: _Optional[str] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetGroupsRequest(_message.Message):
    __slots__ = ("group_ids",)
    GROUP_IDS_FIELD_NUMBER: _ClassVar[int]
    group_ids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, group_ids: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GetGroupsResponse(_message.Message):
    __slots__ = ("groups", "missing_group_ids", "deferred_group_ids")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    MISSING_GROUP_IDS_FIELD_NUMBER: _ClassVar[int]
    DEFERRED_GROUP_IDS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[SignedGroup]
    missing_group_ids: _containers.RepeatedScalarFieldContainer[bytes]
    deferred_group_ids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, groups: _Optional[_Iterable[_Union[SignedGroup, _Mapping]]] = ..., missing_group_ids: _Optional[_Iterable[bytes]] = ..., deferred_group_ids: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GetNodeInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetNodeInfoResponse(_message.Message):
    __slots__ = ("swarm_id", "software_version", "schema_minor", "epoch", "stored_groups", "stored_publishers", "load_level", "read_time", "max_message_bytes", "max_publish_groups", "catalog_digests", "peer_record")
    SWARM_ID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_MINOR_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STORED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    STORED_PUBLISHERS_FIELD_NUMBER: _ClassVar[int]
    LOAD_LEVEL_FIELD_NUMBER: _ClassVar[int]
    READ_TIME_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PUBLISH_GROUPS_FIELD_NUMBER: _ClassVar[int]
    CATALOG_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    PEER_RECORD_FIELD_NUMBER: _ClassVar[int]
    swarm_id: str
    software_version: str
    schema_minor: int
    epoch: str
    stored_groups: int
    stored_publishers: int
    load_level: LoadLevel
    read_time: _timestamp_pb2.Timestamp
    max_message_bytes: int
    max_publish_groups: int
    catalog_digests: _containers.RepeatedScalarFieldContainer[bytes]
    peer_record: SignedPeerRecord
    def __init__(self, swarm_id: _Optional[str] = ..., software_version: _Optional[str] = ..., schema_minor: _Optional[int] = ..., epoch: _Optional[str] = ..., stored_groups: _Optional[int] = ..., stored_publishers: _Optional[int] = ..., load_level: _Optional[_Union[LoadLevel, str]] = ..., read_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., max_message_bytes: _Optional[int] = ..., max_publish_groups: _Optional[int] = ..., catalog_digests: _Optional[_Iterable[bytes]] = ..., peer_record: _Optional[_Union[SignedPeerRecord, _Mapping]] = ...) -> None: ...

class ExchangePeersRequest(_message.Message):
    __slots__ = ("peer_records",)
    PEER_RECORDS_FIELD_NUMBER: _ClassVar[int]
    peer_records: _containers.RepeatedCompositeFieldContainer[SignedPeerRecord]
    def __init__(self, peer_records: _Optional[_Iterable[_Union[SignedPeerRecord, _Mapping]]] = ...) -> None: ...

class ExchangePeersResponse(_message.Message):
    __slots__ = ("peer_records",)
    PEER_RECORDS_FIELD_NUMBER: _ClassVar[int]
    peer_records: _containers.RepeatedCompositeFieldContainer[SignedPeerRecord]
    def __init__(self, peer_records: _Optional[_Iterable[_Union[SignedPeerRecord, _Mapping]]] = ...) -> None: ...

class SignedGroup(_message.Message):
    __slots__ = ("payload", "public_key", "signature", "algorithm", "hops", "age")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    public_key: bytes
    signature: bytes
    algorithm: SignatureAlgorithm
    hops: int
    age: _duration_pb2.Duration
    def __init__(self, payload: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., algorithm: _Optional[_Union[SignatureAlgorithm, str]] = ..., hops: _Optional[int] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RolloutGroup(_message.Message):
    __slots__ = ("schema_minor", "swarm_id", "task", "completions", "generator", "create_time", "ttl", "sequence", "policy_version", "round")
    SCHEMA_MINOR_FIELD_NUMBER: _ClassVar[int]
    SWARM_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    GENERATOR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    schema_minor: int
    swarm_id: str
    task: TaskRef
    completions: _containers.RepeatedCompositeFieldContainer[Completion]
    generator: GeneratorInfo
    create_time: _timestamp_pb2.Timestamp
    ttl: _duration_pb2.Duration
    sequence: int
    policy_version: int
    round: int
    def __init__(self, schema_minor: _Optional[int] = ..., swarm_id: _Optional[str] = ..., task: _Optional[_Union[TaskRef, _Mapping]] = ..., completions: _Optional[_Iterable[_Union[Completion, _Mapping]]] = ..., generator: _Optional[_Union[GeneratorInfo, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., sequence: _Optional[int] = ..., policy_version: _Optional[int] = ..., round: _Optional[int] = ...) -> None: ...

class TaskRef(_message.Message):
    __slots__ = ("dataset", "verifier_version", "config_digest", "seed", "index")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    verifier_version: str
    config_digest: bytes
    seed: int
    index: int
    def __init__(self, dataset: _Optional[str] = ..., verifier_version: _Optional[str] = ..., config_digest: _Optional[bytes] = ..., seed: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class Completion(_message.Message):
    __slots__ = ("text", "finish_reason", "token_count", "claimed_score")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_SCORE_FIELD_NUMBER: _ClassVar[int]
    text: str
    finish_reason: FinishReason
    token_count: int
    claimed_score: float
    def __init__(self, text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., token_count: _Optional[int] = ..., claimed_score: _Optional[float] = ...) -> None: ...

class GeneratorInfo(_message.Message):
    __slots__ = ("model_name", "parameter_count", "tokenizer_name", "prompt_template_id", "temperature", "top_p", "max_new_tokens")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEMPLATE_ID_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    parameter_count: int
    tokenizer_name: str
    prompt_template_id: str
    temperature: float
    top_p: float
    max_new_tokens: int
    def __init__(self, model_name: _Optional[str] = ..., parameter_count: _Optional[int] = ..., tokenizer_name: _Optional[str] = ..., prompt_template_id: _Optional[str] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., max_new_tokens: _Optional[int] = ...) -> None: ...

class SignedPeerRecord(_message.Message):
    __slots__ = ("payload", "public_key", "signature", "algorithm")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    public_key: bytes
    signature: bytes
    algorithm: SignatureAlgorithm
    def __init__(self, payload: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., algorithm: _Optional[_Union[SignatureAlgorithm, str]] = ...) -> None: ...

class PeerRecord(_message.Message):
    __slots__ = ("swarm_id", "addresses", "certificate", "session_nonce", "sequence", "create_time", "software_version", "catalog_digests", "reachable")
    SWARM_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SESSION_NONCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CATALOG_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    swarm_id: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    certificate: bytes
    session_nonce: bytes
    sequence: int
    create_time: _timestamp_pb2.Timestamp
    software_version: str
    catalog_digests: _containers.RepeatedScalarFieldContainer[bytes]
    reachable: bool
    def __init__(self, swarm_id: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., certificate: _Optional[bytes] = ..., session_nonce: _Optional[bytes] = ..., sequence: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., software_version: _Optional[str] = ..., catalog_digests: _Optional[_Iterable[bytes]] = ..., reachable: _Optional[bool] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("reason", "field_path", "limit", "retry_delay", "oldest_cursor", "error_id")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELD_PATH_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    OLDEST_CURSOR_FIELD_NUMBER: _ClassVar[int]
    ERROR_ID_FIELD_NUMBER: _ClassVar[int]
    reason: WireReason
    field_path: str
    limit: str
    retry_delay: _duration_pb2.Duration
    oldest_cursor: GroupCursor
    error_id: str
    def __init__(self, reason: _Optional[_Union[WireReason, str]] = ..., field_path: _Optional[str] = ..., limit: _Optional[str] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., oldest_cursor: _Optional[_Union[GroupCursor, _Mapping]] = ..., error_id: _Optional[str] = ...) -> None: ...
