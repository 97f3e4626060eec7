"""Network addresses as text: "host:port" as people write it, and the prefix that quotas count by."""

from __future__ import annotations

import functools
import ipaddress
import urllib.parse


class AddressError(ValueError):
    """Text that is no "host:port"; the message says what is wrong."""


def split_address(address: str) -> tuple[str, int]:
    """Returns host and port of "host:port" or "[IPv6]:port".

    Raises:
        AddressError: the text has another form, or the port is not in 0 to 65535.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        raise AddressError(f"address {address!r} must have the form host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"address {address!r}: write an IPv6 address in brackets, [address]:port")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise AddressError(f"address {address!r}: the port must be a number from 0 to 65535")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Returns "host:port", which `split_address` reads: with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Returns whether `host` names this machine only, without asking a name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@functools.lru_cache(maxsize=1024)
def host_of_caller(peer: str) -> str:
    """Returns the address of gRPC's name for a caller, such as "ipv4:127.0.0.1:55420", without its port."""
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind  # a Unix socket: everybody behind it is this machine
    return rest.rpartition(":")[0].strip("[]")


@functools.lru_cache(maxsize=1024)
def prefix_of(host: str) -> str:
    """Returns the network that `host` counts to: /24 of IPv4, /48 of IPv6, else the text itself.

    An IPv4 address in IPv6 dress counts as IPv4, so that a dual-stack socket gives nobody a second budget.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    width = 24 if address.version == 4 else 48
    return str(ipaddress.ip_network((address, width), strict=False))


def address_prefix(address: str) -> str:
    """Returns the network an address "host:port" counts for: its /24 or /48, or the last two labels of a name."""
    prefix = prefix_of(address.rpartition(":")[0].strip("[]"))
    return prefix if "/" in prefix else ".".join(prefix.lower().rstrip(".").split(".")[-2:])
