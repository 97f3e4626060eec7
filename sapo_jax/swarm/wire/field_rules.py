"""The rules that fields of messages must keep, as checks of plain values.

Each raises a `WireError` that names field and rule; none repeats the value. Texts are measured in
bytes of UTF-8, and numbers must be within a range that every store can hold.
"""

from __future__ import annotations

import re

from sapo_jax.swarm.wire.errors import WireError, WireReason

COUNTER_LIMIT = 2**63  # counters stay below: SQLite and others have signed 64-bit integers
SEED_LIMIT = 2**32  # what the task library takes
DIGEST_BYTES = 32

_DATASET = re.compile(r"[a-z0-9_]+")
_NODE_ID = re.compile(r"[a-z2-7]{52}")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253}):([0-9]{1,5})")


def field_error(field: str, rule: str) -> WireError:
    """Returns the error that `field` breaks its rule."""
    return WireError(WireReason.FIELD, rule, field=field)


def check_size(size: int, most: int, field: str) -> None:
    """Raises WireError(TOO_LARGE) if `size` bytes are more than `most`."""
    if size > most:
        raise WireError(WireReason.TOO_LARGE, f"has at most {most} bytes", field=field)


def check_text(text: str, most: int, field: str) -> None:
    """Raises WireError(TOO_LARGE) if `text` has more than `most` bytes."""
    check_size(utf8_size(text), most, field)


def utf8_size(text: str) -> int:
    """Returns the bytes of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def check_bytes(value: bytes, size: int, field: str) -> None:
    """Raises WireError(FIELD) unless `value` has exactly `size` bytes."""
    if len(value) != size:
        raise field_error(field, f"must be {size} bytes")


def check_range(value: int, limit: int, field: str, *, least: int = 0) -> None:
    """Raises WireError(FIELD) unless `value` is in [`least`, `limit`)."""
    if not least <= value < limit:
        raise field_error(field, f"must be in [{least}, {limit})")


def check_dataset(name: str, most: int, field: str) -> None:
    """Raises WireError unless `name` looks like the name of a dataset: it becomes a label and a file's word."""
    check_text(name, most, field)
    if not _DATASET.fullmatch(name):
        raise field_error(field, "must be lower-case letters, digits and underscores")


def check_swarm_id(swarm_id: str, own: str, most: int) -> None:
    """Raises WireError(WRONG_SWARM) unless `swarm_id` is that of the `own` swarm."""
    check_text(swarm_id, most, "swarm_id")
    if swarm_id != own:
        raise WireError(WireReason.WRONG_SWARM, "is not this swarm", field="swarm_id")


def check_node_id(node_id: str, field: str) -> None:
    """Raises WireError(FIELD) unless `node_id` looks like one."""
    if not _NODE_ID.fullmatch(node_id):
        raise field_error(field, "must be a node id: 52 characters of lower-case base32")


def check_address(address: str, most: int, field: str) -> None:
    """Raises WireError unless `address` is "host:port" or "[IPv6]:port"."""
    check_text(address, most, field)
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match[1]) < 2**16:
        raise field_error(field, "must be host:port or [address]:port with a port in [1, 65536)")


def digest_to_bytes(digest: str, field: str) -> bytes:
    """Returns a hex digest as bytes; raises WireError(FIELD) naming `field` if it is none."""
    try:
        raw = bytes.fromhex(digest)
    except ValueError:
        raw = b""
    if len(raw) != DIGEST_BYTES or raw.hex() != digest:
        raise field_error(field, f"must be {DIGEST_BYTES} bytes in lower-case hex")
    return raw


def valid_utf8(text: str) -> str:
    """Returns `text` with U+FFFD for each lone surrogate, which UTF-8 cannot express; pairs become their character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
