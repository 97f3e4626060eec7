"""Instants and spans between protobuf's messages and plain seconds.

Reading never fails: senders may put anything there. What a field must hold is for its reader to check.
"""

from __future__ import annotations

import math

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_NANOS = 1_000_000_000
_MOST_SECONDS = 315_576_000_000  # 10,000 years, the range of protobuf's Duration


def duration_from_seconds(seconds: float) -> Duration:
    """Returns a span; negative ones and NaN become 0, endless ones the longest there is."""
    whole, nanos = _split(min(seconds, _MOST_SECONDS) if seconds > 0 else 0.0)
    return Duration(seconds=whole, nanos=nanos)


def timestamp_from_seconds(unix_s: float) -> Timestamp:
    """Returns an instant; what is no finite time becomes 1970."""
    whole, nanos = _split(unix_s if math.isfinite(unix_s) and abs(unix_s) < _MOST_SECONDS else 0.0)
    return Timestamp(seconds=whole, nanos=nanos)


def seconds_of(span: Duration | Timestamp) -> float:
    """Returns a span in seconds, or an instant in seconds since 1970: any finite number, negative ones included."""
    return span.seconds + span.nanos / _NANOS


def _split(seconds: float) -> tuple[int, int]:
    whole = math.floor(seconds)
    nanos = round((seconds - whole) * _NANOS)
    return (whole, nanos) if nanos < _NANOS else (whole + 1, 0)
