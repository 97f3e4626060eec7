"""The parts of a process group that need no second process; tests/e2e/test_process_group.py has the whole."""

from __future__ import annotations

import dataclasses
import re
import socket
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sapo_jax import mirrored_host, process_group
from sapo_jax.command_line import UsageError
from sapo_jax.config import ConfigError, HostConfig, SapoConfig
from sapo_jax.host import Host
from sapo_jax.mirrored_host import MIRRORED, LeadingHost, weights_digest
from sapo_jax.models.sharding import make_mesh
from sapo_jax.process_link import SECRET_BYTES, Link, Message, listen, welcome
from sapo_jax.process_start import GroupRequest, parse_request

NOT_ON_DEVICES = {"nodes", "busy_s"}  # what a host answers without a computation


def test_the_flag_names_this_process_or_leaves_it_to_jax() -> None:
    assert parse_request("auto") is None
    assert parse_request("10.0.0.1:8476,4,3") == GroupRequest(host="10.0.0.1", port=8476, count=4, index=3)


def test_an_ipv6_address_stands_in_brackets() -> None:
    request = parse_request("[::1]:8476,2,0")
    assert request is not None and request == GroupRequest(host="::1", port=8476, count=2, index=0)
    assert request.address == "[::1]:8476"


@pytest.mark.parametrize("host", ["[]", "[::1", "::1", "[h]"])
def test_brackets_anywhere_else_or_none_are_a_usage_error(host: str) -> None:
    with pytest.raises(UsageError, match=f"^--distributed={re.escape(host)}:1,2,0: must be "):
        parse_request(f"{host}:1,2,0")


def _has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_loopback_address_is_listened_to_alone(host: str) -> None:
    if ":" in host and not _has_ipv6_loopback():
        pytest.skip("no IPv6 on this machine")
    with listen(host) as server, socket.create_connection((host, server.getsockname()[1])) as caller:
        assert server.getsockname()[0] == caller.getpeername()[0]
        assert server.getsockname()[0] in ("127.0.0.1", "::1")


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1:8476", ":1,2,0", "h:1,2", "h:1,2,x", "h:0,2,0", "h:1,2,2"])
def test_any_other_flag_is_a_usage_error_that_shows_it(text: str) -> None:
    with pytest.raises(UsageError, match=f"^--distributed={text}: "):
        parse_request(text)


class _Told(Exception):
    """What followers would be told, in place of the call."""


def test_the_leader_tells_of_every_call_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    public = {name for name in vars(Host) if not name.startswith("_")}
    own = {name for name in vars(LeadingHost) if not name.startswith("_")}
    assert set(MIRRORED) <= public and public - own == NOT_ON_DEVICES

    def tell(self: LeadingHost, kind: str, content: object) -> None:
        raise _Told(kind, content)

    monkeypatch.setattr(LeadingHost, "_telling", tell)
    for name in MIRRORED:
        with pytest.raises(_Told) as told:
            getattr(object.__new__(LeadingHost), name)(1, key=2)
        assert told.value.args == ("call", (name, (1,), {"key": 2}))


def test_another_configuration_or_code_is_named() -> None:
    config = SapoConfig()
    hello = process_group._introduction(3, config)
    assert process_group._mismatch(hello, config) == ""
    other = dataclasses.replace(config, seed=7)
    assert process_group._mismatch(hello, other).endswith("config.seed = 0 there, 7 in process 0")
    assert "runs other code" in process_group._mismatch(hello | {"code": "0.0.0"}, config)
    assert "runs other code" in process_group._mismatch(hello | {"versions": {}}, config)


def test_a_mesh_that_leaves_a_process_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [SimpleNamespace(process_index=index // 4) for index in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    process_group._check_mesh(SapoConfig(nodes=1, host=HostConfig(mesh_fsdp=8)))
    with pytest.raises(ConfigError, match="mesh_tensor = 4: reaches 1 of the 2 processes"):
        process_group._check_mesh(SapoConfig(nodes=1, host=HostConfig(mesh_fsdp=4)))


def test_messages_arrive_whole_and_a_closed_end_is_noticed() -> None:
    sent = [Message("call", ("sample", (), {})), Message("pieces", {((0, 3),): np.arange(300_000)})]
    ends = _pair()
    thread = threading.Thread(target=lambda: [*map(ends[0].send, sent), ends[0].close()])
    thread.start()
    got = [ends[1].receive() for _ in sent]
    thread.join()
    with pytest.raises(EOFError):
        ends[1].receive()
    ends[1].close()
    assert got[0] == sent[0]
    np.testing.assert_array_equal(got[1].content[((0, 3),)], np.arange(300_000))


@pytest.mark.parametrize("spec", [("node", "fsdp"), (None, "fsdp"), (), ("node", None, "fsdp")])
def test_the_pieces_of_an_array_are_the_array(spec: tuple[str | None, ...]) -> None:
    whole = np.arange(4 * 6 * 2, dtype=np.float32).reshape(4, 6, 2)
    sharding = NamedSharding(make_mesh(node=2, fsdp=2), PartitionSpec(*spec))
    spread = mirrored_host._spread(whole, sharding)
    pieces = mirrored_host._pieces(spread)
    assert sum(piece.size for piece in pieces.values()) == whole.size  # of copies there is one
    alone = SimpleNamespace(followers=())
    np.testing.assert_array_equal(mirrored_host._gather(alone, [spread])[0], whole)
    shape = jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=sharding)
    again = mirrored_host._from_pieces(shape, pieces)
    np.testing.assert_array_equal(np.asarray(again), whole)
    assert again.sharding == sharding
    np.testing.assert_array_equal(np.asarray(mirrored_host._deal(alone, [whole], [shape])[0]), whole)


def test_the_digest_of_weights_sees_every_number() -> None:
    weights = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
    changed = {"a": weights["a"], "b": np.array([1, 1, 1, 1.0000001], np.float32)}
    assert weights_digest(weights) == weights_digest({"a": weights["a"].copy(), "b": weights["b"].copy()})
    assert weights_digest(weights) != weights_digest(changed)


def _pair() -> list[Link]:
    """Returns both ends of a connection over the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return [Link(one), Link(server.accept()[0])]


def test_a_stranger_is_not_let_in() -> None:
    secret = b"s" * SECRET_BYTES
    for shown, is_let_in in ((secret, True), (b"x" * len(secret), False), (b"", False)):
        with socket.create_server(("127.0.0.1", 0)) as server:
            caller = socket.create_connection(server.getsockname())
            caller.sendall(shown)
            caller.shutdown(socket.SHUT_WR)
            link = welcome(server.accept()[0], secret)
            caller.close()
        assert (link is not None) is is_let_in
        if link is not None:
            link.close()
