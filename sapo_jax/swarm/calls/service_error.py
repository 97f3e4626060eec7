"""Why a whole call fails, raised by whatever decides it; the server turns it into a status."""

from __future__ import annotations

from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.requests import GroupCursor


class ServiceError(Exception):
    """A call that is refused as a whole.

    The text goes to the caller: it names rules and limits of ours, and holds no value of theirs, no
    path and no secret.

    Attributes:
        reason: why; decides the status code.
        field: path of the request field behind it; may be empty.
        limit: name and value of the limit that was hit; may be empty.
        retry_after_s: when to try again; 0: no advice.
        oldest_cursor: with UNKNOWN_CURSOR, where the store now begins.
    """

    def __init__(
        self,
        reason: WireReason,
        text: str,
        *,
        field: str = "",
        limit: str = "",
        retry_after_s: float = 0.0,
        oldest_cursor: GroupCursor | None = None,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.field = field
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.oldest_cursor = oldest_cursor


class UnknownServiceError(ServiceError):
    """A health check of a service that is not here: NOT_FOUND, as the protocol of health checks demands."""
