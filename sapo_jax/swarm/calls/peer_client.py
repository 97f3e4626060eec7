"""What a connection to a peer offers, whoever provides it, and how a call fails."""

from __future__ import annotations

from typing import Protocol

from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.requests import (
    GetRequest,
    GetResponse,
    GroupRefPage,
    ListRequest,
    NodeInfo,
    PeerExchange,
    PublishRequest,
    PublishResponse,
    SampleRequest,
    SampleResponse,
)


class CallError(Exception):
    """A call that gave no result; `reason` is None if nothing answered."""

    def __init__(self, text: str, *, reason: WireReason | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.reason = reason
        self.retry_after_s = retry_after_s


class PeerClient(Protocol):
    """The calls of one connection; each has a deadline and raises CallError or WireError."""

    async def publish_groups(self, request: PublishRequest) -> PublishResponse: ...
    async def sample_groups(self, request: SampleRequest) -> SampleResponse: ...
    async def list_groups(self, request: ListRequest) -> GroupRefPage: ...
    async def get_groups(self, request: GetRequest) -> GetResponse: ...
    async def get_node_info(self) -> NodeInfo: ...
    async def exchange_peers(self, request: PeerExchange) -> PeerExchange: ...
    async def close(self) -> None: ...
