"""The one place where a reason becomes a gRPC status, its public text and its detail.

`wire_errors.STATUS_CODE` says which code belongs to which reason. What is not one of our own errors
is a defect: it leaves as INTERNAL with a fixed text and an id to find it by, never with its own
text. Retry hints and names of limits travel in `ErrorDetail`, in the trailing metadata under
"sapo-error-detail-bin": it says all that google.rpc.RetryInfo and QuotaFailure would, typed by our own
schema and without one more dependency.
"""

# pyright: reportUnknownMemberType=false
# grpc's status codes are partly typed.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from sapo_jax.swarm.calls.service_error import ServiceError, UnknownServiceError
from sapo_jax.swarm.wire.errors import STATUS_CODE, WireError, WireReason
from sapo_jax.swarm.wire.requests import ErrorDetail

DETAIL_KEY = "sapo-error-detail-bin"

CODES: Mapping[WireReason, grpc.StatusCode] = {reason: grpc.StatusCode[STATUS_CODE[reason]] for reason in WireReason}

# What a caller may try again by itself. RESOURCE_EXHAUSTED is not among them: it waits for its retry hint.
RETRIED_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """How a call fails, ready to be sent.

    Attributes:
        code: of the status.
        text: for people; holds nothing the caller wrote, no path and no secret.
        detail: for programs.
    """

    code: grpc.StatusCode
    text: str
    detail: ErrorDetail


def failure_of(error: Exception, error_id: str) -> Failure:
    """Returns how a call that raised `error` fails; `error_id` is shown only if the error is a defect of ours."""
    if isinstance(error, ServiceError):
        detail = ErrorDetail(
            reason=error.reason,
            field=error.field,
            limit=error.limit,
            retry_after_s=error.retry_after_s,
            oldest_cursor=error.oldest_cursor,
        )
        code = grpc.StatusCode.NOT_FOUND if isinstance(error, UnknownServiceError) else CODES[error.reason]
        return Failure(code=code, text=str(error), detail=detail)
    if isinstance(error, WireError):
        detail = ErrorDetail(reason=error.reason, field=error.field)
        return Failure(code=CODES[error.reason], text=str(error), detail=detail)
    return Failure(
        code=CODES[WireReason.INTERNAL],
        text=f"internal error {error_id}",
        detail=ErrorDetail(reason=WireReason.INTERNAL, error_id=error_id),
    )
