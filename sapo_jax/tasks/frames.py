"""Messages between a scoring pool and its workers: JSON behind a length of four bytes, never pickles.

Floats keep their bits and texts every code point, lone surrogates included. An empty frame means
"still at work" and carries nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

# A group of the largest size whose every character needs an escape is 24 MiB.
MAX_FRAME_BYTES = 32 * 1024 * 1024

ALIVE = b"\0\0\0\0"  # the empty frame

_LENGTH_BYTES = 4


class FrameError(ValueError):
    """Bytes that are no frame, or a message that is too large for one."""


def encode(message: Any) -> bytes:
    """Returns `message` as a frame; raises FrameError if it exceeds `MAX_FRAME_BYTES`."""
    payload = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {len(payload)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


class FrameDecoder:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        """Waits for the first frame."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yields the messages that `data` completes, None for an empty frame.

        Raises:
            FrameError: a length beyond the limit, or a payload that is not JSON.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH_BYTES:
                end = start + _LENGTH_BYTES
                length = int.from_bytes(self._buffer[start:end], "big")
                if length > MAX_FRAME_BYTES:
                    raise FrameError(f"a frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}")
                if len(self._buffer) < end + length:
                    return
                payload = bytes(self._buffer[end : end + length])
                start = end + length
                yield _message(payload)
        finally:
            del self._buffer[:start]


def read_messages(read: Callable[[int], bytes]) -> Iterator[Any]:
    """Yields the messages of a blocking stream until it ends; `read(n)` returns at most n bytes.

    Raises:
        FrameError: see `FrameDecoder.feed`.
    """
    decoder = FrameDecoder()
    while data := read(1 << 16):
        yield from decoder.feed(data)


def _message(payload: bytes) -> Any:
    if not payload:
        return None
    try:
        return json.loads(payload.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame of {len(payload)} bytes is not JSON: {error!s:.200}") from error
