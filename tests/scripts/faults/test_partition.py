"""A partition that is none, one that does not heal, and what the proxies do to connections."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.faults import partition
from scripts.faults.cut_proxy import CutProxy
from scripts.faults.figures import Figure, Setting
from scripts.faults.partition import Story, figures, healings

CUT, HEALED = 100.0, 160.0


def _stories() -> list[Story]:
    """Returns two hosts of two halves; each got the other's groups of 120 and 161 a few seconds after the cut."""
    made = ({"a before": 90.0, "a during": 120.0, "a after": 161.0}, {"b during": 120.0, "b after": 161.0})
    arrived = ({"b during": 164.0, "b after": 165.0}, {"a before": 130.0, "a during": 163.0, "a after": 167.0})
    return [
        Story(side=side, made=made[side], arrived=arrived[side], dials_s=2.0 + side, dialed_s=3.0 - side)
        for side in (0, 1)
    ]


def _value(stories: list[Story], name: str) -> Figure:
    found = {each.name: each for each in figures(stories, CUT, HEALED, killed=4, failures=0)}
    return found[name]


def test_a_host_is_healed_when_old_and_new_groups_and_links_are_there() -> None:
    assert [healing.healed_s for healing in healings(_stories(), CUT, HEALED)] == [5.0, 7.0]
    assert healings(_stories(), CUT, HEALED)[0].links_s == 3.0
    assert _value(_stories(), "partition healed").value == 7.0
    # "a before" arrived during the cut, but was made before it: its own half may have handed it on.
    assert _value(_stories(), "groups that crossed during the cut").is_met


def test_a_cut_that_leaks_is_noticed() -> None:
    stories = _stories()
    stories[1].arrived["a during"] = 140.0
    leaked = _value(stories, "groups that crossed during the cut")
    assert leaked.value == 1 and not leaked.is_met


@pytest.mark.parametrize("missing", ["b during", "b after"])
def test_a_host_that_never_gets_a_group_is_not_healed(missing: str) -> None:
    stories = _stories()
    del stories[0].arrived[missing]
    healed = _value(stories, "partition healed")
    assert healed.value == math.inf and not healed.is_met


def test_a_host_that_nobody_dials_is_not_healed() -> None:
    stories = _stories()
    stories[1].dialed_s = math.inf
    assert not _value(stories, "partition healed").is_met


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that sends back what it gets."""

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(100):
                connection.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def _dial(address: str, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """Connects as gRPC may do, with an IPv6 socket that speaks IPv4, or plainly."""
    dialing = socket.socket(family)
    dialing.settimeout(10.0)
    prefix = "::ffff:" if family is socket.AF_INET6 else ""
    dialing.connect((f"{prefix}127.0.0.1", int(address.rpartition(":")[2])))
    return dialing


def _answers(connection: socket.socket, timeout_s: float = 10.0) -> bool:
    connection.settimeout(timeout_s)
    connection.sendall(b"?")
    with contextlib.suppress(TimeoutError):
        return connection.recv(1) == b"?"
    return False


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_cut_silences_what_crosses_and_nothing_else(echo: str, family: socket.AddressFamily) -> None:
    # This process is the first host, on side 0; it dials itself and the other one.
    proxy = CutProxy([echo, echo], [0, 1], lambda: [os.getpid(), None])
    with contextlib.ExitStack() as opened:
        opened.callback(proxy.close)
        within, across = (opened.enter_context(_dial(address, family)) for address in proxy.addresses)
        assert _answers(within) and _answers(across)
        proxy.cut()
        during = opened.enter_context(_dial(proxy.addresses[1], family))
        assert _answers(within)
        assert not _answers(across, 0.3) and not _answers(during, 0.3)
        proxy.heal()
        after = opened.enter_context(_dial(proxy.addresses[1], family))
        assert _answers(after) and _answers(within)
        assert not _answers(across, 0.3) and not _answers(during, 0.3), "dead connections stay dead"
        assert (proxy.killed, proxy.held, proxy.unknown) == (1, 1, 0)


def test_a_connection_of_an_unknown_process_is_refused(echo: str) -> None:
    proxy = CutProxy([echo], [0], lambda: [None])
    with contextlib.closing(proxy), _dial(proxy.addresses[0]) as stranger:
        assert stranger.recv(1) == b"" and proxy.unknown == 1


@pytest.mark.slow
def test_a_short_partition(tmp_path: Path) -> None:
    said: list[str] = []
    found = partition.measure(Setting(scale=0.01, seed=0, workdir=tmp_path, say=said.append))
    by_name = {each.name: each for each in found}
    assert by_name["groups that crossed during the cut"].value == 0
    assert by_name["partition healed"].value < math.inf
    assert by_name["connections that the cut met"].is_met
    assert by_name["processes that ended unasked or not with 0"].value == 0
