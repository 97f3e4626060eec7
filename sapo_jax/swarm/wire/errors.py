"""Why content or a call is refused: one list of reasons, each with its status code.

The same reasons stand in the schema (`WireReason` of rollout_exchange.proto), in the reply to a
publisher, in the error of a whole call and in the counters. gRPC is not imported here: a status
code is its name.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class WireReason(enum.Enum):
    """Every reason to refuse a group, a peer record or a call. The value is the name in metrics."""

    # What the content itself shows; raised by the codec.
    MALFORMED = "malformed"  # the bytes are no such message: damaged, bad UTF-8, nested too deep, trailing garbage
    FIELD = "field"  # a field breaks its rule; `WireError.field` says which
    TOO_LARGE = "too_large"  # a message, field or list exceeds its size
    UNKNOWN_ALGORITHM = "unknown_algorithm"  # signed in a way that this version cannot check
    BAD_SIGNATURE = "bad_signature"  # the signature does not fit key and content
    WRONG_SWARM = "wrong_swarm"  # made for another swarm
    HOPS = "hops"  # relayed too often
    EXPIRED = "expired"  # carried for longer than its time to live
    # What the receiver decides about a group.
    UNKNOWN_TASK = "unknown_task"  # no catalog of the receiver rebuilds this task
    QUOTA = "quota"  # the sender's budget of groups or bytes is spent; says when to come back
    BANNED = "banned"  # the publisher or the sender is banned here
    QUEUE_FULL = "queue_full"  # too much is waiting to be verified; says when to come back
    STORE_FULL = "store_full"  # the disk is full
    # What concerns a whole call.
    UNAUTHENTICATED = "unauthenticated"  # the invite token is missing or wrong
    NOT_ALLOWED = "not_allowed"  # a call that this port does not serve, such as an admin call on the public one
    NO_DEADLINE = "no_deadline"  # the call has no deadline, or one beyond what the server accepts
    CONCURRENCY = "concurrency"  # too many calls at one time
    UNSUPPORTED_VERSION = "unsupported_version"  # the two sides share no version of the protocol
    UNKNOWN_CURSOR = "unknown_cursor"  # the cursor is of another epoch or trimmed away; start over
    STARTING = "starting"  # not serving yet
    DRAINING = "draining"  # about to stop
    STORE_BUSY = "store_busy"  # the store did not answer in time
    TIMEOUT = "timeout"  # the server gave up on its own budget
    NOT_IMPLEMENTED = "not_implemented"  # no such call in this version
    DATA_LOSS = "data_loss"  # what was asked for is damaged on disk
    INTERNAL = "internal"  # a defect of the answering node; the reply holds an id to find it in its log


STATUS_CODE: Mapping[WireReason, str] = {
    WireReason.MALFORMED: "INVALID_ARGUMENT",
    WireReason.FIELD: "INVALID_ARGUMENT",
    WireReason.HOPS: "INVALID_ARGUMENT",
    WireReason.EXPIRED: "INVALID_ARGUMENT",
    WireReason.NO_DEADLINE: "INVALID_ARGUMENT",
    WireReason.BAD_SIGNATURE: "UNAUTHENTICATED",
    WireReason.UNAUTHENTICATED: "UNAUTHENTICATED",
    WireReason.WRONG_SWARM: "PERMISSION_DENIED",
    WireReason.BANNED: "PERMISSION_DENIED",
    WireReason.NOT_ALLOWED: "PERMISSION_DENIED",
    WireReason.TOO_LARGE: "RESOURCE_EXHAUSTED",
    WireReason.QUOTA: "RESOURCE_EXHAUSTED",
    WireReason.QUEUE_FULL: "RESOURCE_EXHAUSTED",
    WireReason.STORE_FULL: "RESOURCE_EXHAUSTED",
    WireReason.CONCURRENCY: "RESOURCE_EXHAUSTED",
    WireReason.UNKNOWN_ALGORITHM: "FAILED_PRECONDITION",
    WireReason.UNKNOWN_TASK: "FAILED_PRECONDITION",
    WireReason.UNSUPPORTED_VERSION: "FAILED_PRECONDITION",
    WireReason.UNKNOWN_CURSOR: "OUT_OF_RANGE",
    WireReason.STARTING: "UNAVAILABLE",
    WireReason.DRAINING: "UNAVAILABLE",
    WireReason.STORE_BUSY: "UNAVAILABLE",
    WireReason.TIMEOUT: "DEADLINE_EXCEEDED",
    WireReason.NOT_IMPLEMENTED: "UNIMPLEMENTED",
    WireReason.DATA_LOSS: "DATA_LOSS",
    WireReason.INTERNAL: "INTERNAL",
}
"""The gRPC status code that answers a call which fails for this reason. UNKNOWN is never sent."""


class WireError(ValueError):
    """Content or a request that is refused; the text names field and rule, never the value.

    Values come from strangers: what they wrote has no place in our logs or in a reply.

    Attributes:
        reason: why, for counters and replies.
        field: dotted path of the field, such as "task.seed" or "completions[3].text"; empty where the
            whole message is meant.
    """

    def __init__(self, reason: WireReason, rule: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {rule}" if field else rule)
        self.reason = reason
        self.field = field
