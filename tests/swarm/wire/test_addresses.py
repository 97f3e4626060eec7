"""Addresses as people and gRPC write them, and the networks they count to."""

from __future__ import annotations

import pytest

from sapo_jax.swarm.wire.addresses import (
    AddressError,
    address_prefix,
    host_of_caller,
    is_loopback,
    prefix_of,
    split_address,
)


@pytest.mark.parametrize(
    ("peer", "host", "prefix"),
    [
        ("ipv4:192.0.2.77:4444", "192.0.2.77", "192.0.2.0/24"),
        ("ipv6:%5B2001:db8:1:2::5%5D:4444", "2001:db8:1:2::5", "2001:db8:1::/48"),
        ("ipv6:%5B::ffff:192.0.2.77%5D:4444", "::ffff:192.0.2.77", "192.0.2.0/24"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::1%eth0", "fe80::/48"),
        ("unix:/tmp/socket", "unix", "unix"),
    ],
)
def test_the_prefix_of_a_caller(peer, host, prefix):
    assert host_of_caller(peer) == host
    assert prefix_of(host) == prefix


@pytest.mark.parametrize(
    ("address", "parts"),
    [("host:1", ("host", 1)), ("[::1]:65535", ("::1", 65535)), ("1.2.3.4:0", ("1.2.3.4", 0))],
)
def test_addresses_are_split(address, parts):
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["host", ":1", "host:", "host:65536", "host:-1", "host:x", "::1:5", "host:१"])
def test_broken_addresses_are_named(address):
    with pytest.raises(AddressError, match=r"address '"):
        split_address(address)


def test_loopback_is_decided_without_a_name_server():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example")] == [False] * 4


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("10.1.2.3:50", "10.1.2.0/24"),
        ("[2001:db8:1:2::3]:50", "2001:db8:1::/48"),
        ("a.b.Example.org:50", "example.org"),
        ("localhost:50", "localhost"),
        (":50", ""),
    ],
)
def test_the_prefix_of_an_address(address, prefix):
    assert address_prefix(address) == prefix
