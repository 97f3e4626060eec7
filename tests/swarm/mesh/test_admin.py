from __future__ import annotations

import stat
import threading

import grpc
import pytest

from sapo_jax.swarm.calls.service import Phase
from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.mesh.admin_client import AdminClient
from sapo_jax.swarm.mesh.admin_socket import FAR_SOCKET_FILE, SERVICE, SOCKET_DIRECTORY, SOCKET_FILE, AdminError
from sapo_jax.swarm.mesh.host_status import HostStatus, NodeFigures, PeerFigures, PeerState, headline
from sapo_jax.swarm.mesh.status_codec import status_from_message, status_to_message
from sapo_jax.swarm.wire.generated import node_admin_pb2 as pb
from sapo_jax.swarm.wire.identity import Identity
from tests.swarm.network_hubs import Collected, Hubs, wait_for


@pytest.fixture
def hubs():
    made = Hubs()
    yield made
    made.close_all()


def peer(state: PeerState, **fields) -> PeerFigures:
    values = {
        "node_id": Identity.generate().node_id,
        "address": "" if state is PeerState.CALLING else "10.0.0.1:5",
        "state": state,
        "score": -1.5,
        "contact_age_s": None,
        "retry_s": None,
        "ban_s": None,
        "last_error": "",
    }
    return PeerFigures(**(values | fields))


def status(*peers: PeerFigures, **fields) -> HostStatus:
    values = {
        "swarm_id": "s",
        "phase": Phase.SERVING,
        "software_version": "1",
        "started_unix_s": 1_700_000_000.5,
        "read_unix_s": 1_700_000_100.25,
        "addresses": ("127.0.0.1:7",),
        "epoch": "e",
        "stored_groups": 12,
        "stored_bytes": 3_000,
        "stored_publishers": 1,
        "unverified_groups": 2,
        "outbox_groups": 0,
        "nodes": (),
        "peers": peers,
        "counters": {},
    }
    return HostStatus(**(values | fields))


HOLDS = "; the store holds 12 groups of 1 publisher"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (status(), f"alone: no peer known yet, listening at 127.0.0.1:7{HOLDS}"),
        (status(addresses=()), f"alone: no peer known and not listening; give it a peer to join{HOLDS}"),
        (status(*[peer(PeerState.UNREACHABLE)] * 3), f"alone: no peer reachable, 3 tried{HOLDS}"),
        (status(peer(PeerState.KNOWN)), f"alone: 1 peer known, none tried yet{HOLDS}"),
        (status(peer(PeerState.BANNED)), f"alone: no peer known yet, listening at 127.0.0.1:7{HOLDS}"),
        (status(peer(PeerState.CONNECTED)), f"in touch with 1 peer{HOLDS}"),
        (
            status(*[peer(PeerState.CONNECTED)] * 2, peer(PeerState.CALLING), peer(PeerState.UNREACHABLE)),
            f"in touch with 2 peers, called by 1 peer, 1 unreachable{HOLDS}",
        ),
        (status(peer(PeerState.CALLING)), f"called by 1 peer{HOLDS}"),
        (
            status(peer(PeerState.CONNECTED), outbox_groups=4),
            f"in touch with 1 peer{HOLDS}, 4 own to hand to more peers",
        ),
        (status(peer(PeerState.CONNECTED), phase=Phase.DRAINING), f"stopping: in touch with 1 peer{HOLDS}"),
        (status(phase=Phase.STARTING), "starting: not serving yet"),
    ],
)
def test_one_line_names_each_state(given, line):
    assert headline(given) == line


def test_a_status_survives_its_message():
    node = NodeFigures(
        node_id=Identity.generate().node_id, alias="calm-otter", round=7, published=3, pulled=2, waiting=1
    )
    full = status(
        peer(PeerState.CONNECTED, contact_age_s=1.5),
        peer(PeerState.CALLING, contact_age_s=80.0),
        peer(PeerState.KNOWN),
        peer(PeerState.UNREACHABLE, retry_s=2.25, last_error="connection refused", node_id=""),
        peer(PeerState.BANNED, ban_s=3600.0),
        nodes=(node,),
        counters={"groups/missed": 4},
        publishers={node.node_id: 9},
        warnings=("look here",),
        phase=Phase.DRAINING,
    )
    raw = status_to_message(full).SerializeToString()
    assert status_from_message(pb.GetStatusResponse.FromString(raw)) == full


def test_the_operator_sees_bans_and_unbans(hubs, scored, tmp_path):
    a = hubs.make("a", "a2", directory=tmp_path, on_drain=lambda: None)
    b = hubs.make("b", peers=[a])
    b.connect("b").publish([scored((0, 1), "b", 1)])
    Collected(a.connect("a")).wait([1])
    a.connect("a").publish([scored((0, 1), "a", 2, round=3)])
    b_id = b.identity("b").node_id
    with AdminClient(tmp_path) as client:
        seen = client.status()
        assert [(n.round, n.published, n.pulled, n.waiting) for n in seen.nodes] == [(3, 1, 1, 0), (0, 0, 0, 2)]
        assert seen.publishers == {b_id: 1} and seen.counters["groups/verified_external"] == 1
        assert seen.swarm_id == "test-swarm" and seen.addresses == a.host.addresses

        client.ban(b_id, 100.0)
        assert a.host.scores.is_banned(b_id)
        client.ban(b_id, 10.0)  # sets a new end
        assert a.host.scores.banned()[b_id] <= 10.0
        assert [p.state for p in client.status().peers if p.node_id == b_id] == [PeerState.BANNED]
        b.connect("b").publish([scored((0, 1), "b", 4, round=1)])
        wait_for(lambda: not b.host.links.ready(), "b is refused and stays away")
        assert a.external_publishers() == {b_id: 1}
        client.unban(b_id)
        client.unban(b_id)
        assert not a.host.scores.is_banned(b_id)
        with pytest.raises(AdminError, match="BanPeer: node_id: "):
            client.ban("nobody")
        with pytest.raises(AdminError, match="duration: must be above 0"):
            client.ban(b_id, 0.0)


def test_drain_asks_the_process_to_stop(hubs, tmp_path):
    asked = threading.Event()
    hubs.make("a", directory=tmp_path, on_drain=asked.set)
    with AdminClient(tmp_path) as client:
        client.drain()
        client.drain()
    assert asked.is_set()


def test_t20_only_the_owner_can_open_the_socket(hubs, tmp_path):
    hubs.make("a", directory=tmp_path, on_drain=lambda: None)
    folder = tmp_path / SOCKET_DIRECTORY
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    far = folder / FAR_SOCKET_FILE
    socket = type(folder)(far.read_text()) if far.exists() else folder / SOCKET_FILE
    assert stat.S_ISSOCK(socket.stat().st_mode) and stat.S_IMODE(socket.stat().st_mode) == 0o600


@pytest.mark.parametrize("verb", ["GetStatus", "Drain", "BanPeer", "UnbanPeer"])
def test_t20_admin_verbs_on_the_public_port_are_refused(hubs, tmp_path, verb):
    asked = threading.Event()
    trust = Trust(mode=TrustMode.INSECURE_LOOPBACK)
    hub = hubs.make("a", directory=tmp_path, trust=trust, on_drain=asked.set)
    with grpc.insecure_channel(hub.host.addresses[0]) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/{verb}")(b"", timeout=10.0)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED and not asked.is_set()


def test_unknown_calls_and_broken_messages_have_documented_codes(hubs, tmp_path):
    hubs.make("a", directory=tmp_path, on_drain=lambda: None)
    with AdminClient(tmp_path) as client:
        for verb, body, code in (
            ("Checkpoint", b"", grpc.StatusCode.UNIMPLEMENTED),
            ("BanPeer", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
            ("UnbanPeer", b"", grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                client._channel.unary_unary(f"/{SERVICE}/{verb}")(body, timeout=10.0)
            assert caught.value.code() is code


def test_a_socket_left_by_a_killed_process_is_replaced(hubs, tmp_path):
    folder = tmp_path / SOCKET_DIRECTORY
    folder.mkdir()
    (folder / SOCKET_FILE).write_text("left over")
    hubs.make("a", directory=tmp_path, on_drain=lambda: None)
    with AdminClient(tmp_path) as client:
        assert client.status().phase is Phase.SERVING


def test_a_long_path_works_as_well(hubs, tmp_path):
    directory = tmp_path / ("long" * 25)
    directory.mkdir()
    hub = hubs.make("a", directory=directory, on_drain=lambda: None)
    with AdminClient(directory) as client:
        assert client.status().swarm_id == "test-swarm"
    hubs.close(hub)
    with pytest.raises(AdminError, match="no host of a swarm runs there"):
        AdminClient(directory)


def test_nobody_home_is_one_line(tmp_path):
    with pytest.raises(AdminError, match="no host of a swarm runs there"):
        AdminClient(tmp_path)
    folder = tmp_path / SOCKET_DIRECTORY
    folder.mkdir()
    (folder / SOCKET_FILE).touch()
    with AdminClient(tmp_path) as client, pytest.raises(AdminError, match="no host of a swarm runs there now"):
        client.status()
