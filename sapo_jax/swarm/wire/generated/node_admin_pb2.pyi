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

class HostState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HOST_STATE_UNSPECIFIED: _ClassVar[HostState]
    HOST_STATE_STARTING: _ClassVar[HostState]
    HOST_STATE_SERVING: _ClassVar[HostState]
    HOST_STATE_DRAINING: _ClassVar[HostState]

class PeerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PEER_STATE_UNSPECIFIED: _ClassVar[PeerState]
    PEER_STATE_KNOWN: _ClassVar[PeerState]
    PEER_STATE_CONNECTED: _ClassVar[PeerState]
    PEER_STATE_UNREACHABLE: _ClassVar[PeerState]
    PEER_STATE_BANNED: _ClassVar[PeerState]
HOST_STATE_UNSPECIFIED: HostState
HOST_STATE_STARTING: HostState
HOST_STATE_SERVING: HostState
HOST_STATE_DRAINING: HostState
PEER_STATE_UNSPECIFIED: PeerState
PEER_STATE_KNOWN: PeerState
PEER_STATE_CONNECTED: PeerState
PEER_STATE_UNREACHABLE: PeerState
PEER_STATE_BANNED: PeerState

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("swarm_id", "state", "software_version", "start_time", "read_time", "addresses", "nodes", "store", "peers", "counters", "warnings")
    SWARM_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    READ_TIME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    swarm_id: str
    state: HostState
    software_version: str
    start_time: _timestamp_pb2.Timestamp
    read_time: _timestamp_pb2.Timestamp
    addresses: _containers.RepeatedScalarFieldContainer[str]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    store: StoreStatus
    peers: _containers.RepeatedCompositeFieldContainer[PeerStatus]
    counters: _containers.RepeatedCompositeFieldContainer[Counter]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, swarm_id: _Optional[str] = ..., state: _Optional[_Union[HostState, str]] = ..., software_version: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., read_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., addresses: _Optional[_Iterable[str]] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., store: _Optional[_Union[StoreStatus, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[PeerStatus, _Mapping]]] = ..., counters: _Optional[_Iterable[_Union[Counter, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node_id", "alias", "round", "published_groups", "pulled_groups", "waiting_groups")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    PULLED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    WAITING_GROUPS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    alias: str
    round: int
    published_groups: int
    pulled_groups: int
    waiting_groups: int
    def __init__(self, node_id: _Optional[str] = ..., alias: _Optional[str] = ..., round: _Optional[int] = ..., published_groups: _Optional[int] = ..., pulled_groups: _Optional[int] = ..., waiting_groups: _Optional[int] = ...) -> None: ...

class StoreStatus(_message.Message):
    __slots__ = ("epoch", "stored_groups", "stored_bytes", "stored_publishers", "unverified_groups", "outbox_groups")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STORED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_PUBLISHERS_FIELD_NUMBER: _ClassVar[int]
    UNVERIFIED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_GROUPS_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    stored_groups: int
    stored_bytes: int
    stored_publishers: int
    unverified_groups: int
    outbox_groups: int
    def __init__(self, epoch: _Optional[str] = ..., stored_groups: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., stored_publishers: _Optional[int] = ..., unverified_groups: _Optional[int] = ..., outbox_groups: _Optional[int] = ...) -> None: ...

class PeerStatus(_message.Message):
    __slots__ = ("node_id", "address", "state", "score", "contact_age", "retry_delay", "ban_expire_time", "last_error")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CONTACT_AGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    BAN_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    address: str
    state: PeerState
    score: float
    contact_age: _duration_pb2.Duration
    retry_delay: _duration_pb2.Duration
    ban_expire_time: _timestamp_pb2.Timestamp
    last_error: str
    def __init__(self, node_id: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[_Union[PeerState, str]] = ..., score: _Optional[float] = ..., contact_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ban_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_error: _Optional[str] = ...) -> None: ...

class Counter(_message.Message):
    __slots__ = ("name", "total")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    total: int
    def __init__(self, name: _Optional[str] = ..., total: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BanPeerRequest(_message.Message):
    __slots__ = ("node_id", "duration")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    duration: _duration_pb2.Duration
    def __init__(self, node_id: _Optional[str] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class BanPeerResponse(_message.Message):
    __slots__ = ("expire_time",)
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class UnbanPeerRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class UnbanPeerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
