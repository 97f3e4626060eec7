from __future__ import annotations

import datetime
import os
import stat

import pytest

from sapo_jax.swarm.calls.invite import Invite, InviteError
from sapo_jax.swarm.calls.trust import TrustError, TrustMode
from sapo_jax.swarm.mesh.joining import INVITE_FILE, SWARM_DIRECTORY, SWARM_ID_FILE, JoinError, plan_joining
from sapo_jax.swarm.wire.addresses import AddressError
from sapo_jax.swarm.wire.private_file import PrivateFileError

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def plan(workdir, **options):
    return plan_joining(workdir, now=NOW, **options)


def written_invite(joining, address="10.0.0.1:5"):
    path = joining.write_invite([address])
    assert path is not None
    return path


def test_a_new_swarm_and_the_same_again(tmp_path):
    first = plan(tmp_path)
    again = plan(tmp_path)
    assert first.trust.mode is TrustMode.CLOSED and first.peers == ()
    assert (again.swarm_id, again.trust.token) == (first.swarm_id, first.trust.token)
    assert again.trust.certificate == first.trust.certificate
    assert again.identity("n").node_id == first.identity("n").node_id != first.identity("m").node_id
    assert plan(tmp_path / "other").swarm_id != first.swarm_id


def test_an_invite_names_swarm_peer_and_certificate(tmp_path):
    host = plan(tmp_path / "a", swarm_id="ours")
    path = written_invite(host)
    assert path == tmp_path / "a" / SWARM_DIRECTORY / INVITE_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    joined = plan(tmp_path / "b", invite_path=path, join=["10.0.0.2:5"])
    assert joined.swarm_id == "ours" and joined.trust.token == host.trust.token
    (peer,) = joined.peers
    assert peer.addresses == ("10.0.0.2:5", "10.0.0.1:5") and peer.certificate == Invite.load(path, NOW).certificate
    # The same host again, without flags: it goes on in the swarm it joined.
    assert plan(tmp_path / "b").swarm_id == "ours"


def test_an_invite_is_written_anew_only_if_something_changed(tmp_path):
    host = plan(tmp_path)
    path = written_invite(host)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    written_invite(host)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    written_invite(host, "10.0.0.1:6")
    assert Invite.load(path, NOW).addresses == ("10.0.0.1:6",)
    os.chmod(path, 0o644)  # somebody else could read it: it is replaced
    written_invite(host, "10.0.0.1:6")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_host_that_only_dials_out_or_is_insecure_has_no_invite(tmp_path):
    assert plan(tmp_path / "a").write_invite([]) is None
    assert plan(tmp_path / "b", insecure_loopback=True).write_invite(["127.0.0.1:1"]) is None


def test_people_are_told_how_others_join(tmp_path):
    closed, insecure = plan(tmp_path / "a"), plan(tmp_path / "b", insecure_loopback=True)
    invite = closed.directory / "invite"
    line = closed.invitation(["10.0.0.1:5", "10.0.0.2:5"])
    assert line == f"others join with --join=10.0.0.1:5 --invite={invite}"
    assert Invite.load(invite, NOW).addresses == ("10.0.0.1:5", "10.0.0.2:5")
    assert insecure.invitation(["127.0.0.1:5"]) == "others join with --join=127.0.0.1:5 --insecure_loopback"
    assert closed.invitation([]) == ""


def test_insecure_hosts_meet_without_any_file(tmp_path):
    first = plan(tmp_path / "a", insecure_loopback=True)
    second = plan(tmp_path / "b", insecure_loopback=True, join=["127.0.0.1:5"])
    assert first.swarm_id == second.swarm_id and second.trust.mode is TrustMode.INSECURE_LOOPBACK
    assert [peer.addresses for peer in second.peers] == [("127.0.0.1:5",)]


def test_contradictions_are_named(tmp_path):
    invite = plan(tmp_path / "a", swarm_id="ours").write_invite(["10.0.0.1:5"])
    with pytest.raises(JoinError, match=r"10\.0\.0\.1:5: needs the --invite of that host, the file swarm/invite"):
        plan(tmp_path / "b", join=["10.0.0.1:5"])
    with pytest.raises(JoinError, match="--insecure_loopback and --invite"):
        plan(tmp_path / "b", insecure_loopback=True, invite_path=invite)
    with pytest.raises(JoinError, match="--swarm_id=theirs: the invite is of swarm ours"):
        plan(tmp_path / "b", swarm_id="theirs", invite_path=invite)
    with pytest.raises(JoinError, match="--swarm_id='a b': must be"):
        plan(tmp_path / "b", swarm_id="a b")
    with pytest.raises(AddressError, match="nowhere"):
        plan(tmp_path / "b", join=["nowhere"], invite_path=invite)
    with pytest.raises(InviteError, match="does not exist"):
        plan(tmp_path / "b", invite_path=tmp_path / "none")


@pytest.mark.parametrize("address", ["nowhere", "10.0.0.1:0", "10.0.0.1:x", "::1:5", "a" * 262 + ":5", "a\x1b:5"])
def test_an_address_that_nobody_could_dial_is_named_before_any_file_is_made(tmp_path, address):
    with pytest.raises(JoinError) as caught:
        plan(tmp_path, advertise=["10.0.0.1:5", address])
    assert str(caught.value).startswith(f"--advertise={address}: ") and not list(tmp_path.iterdir())


def test_more_addresses_than_a_peer_record_holds_are_refused(tmp_path):
    addresses = [f"[::1]:{port}" for port in range(1, 10)]
    with pytest.raises(JoinError, match=r"--advertise=\[::1\]:1,.*:9: 9 addresses, at most 8"):
        plan(tmp_path, advertise=addresses)
    assert plan(tmp_path, advertise=addresses[:8]).peers == ()


def test_another_swarm_is_refused_and_nothing_is_lost(tmp_path):
    ours = plan(tmp_path / "a", swarm_id="ours")
    invite = plan(tmp_path / "b", swarm_id="theirs").write_invite(["10.0.0.1:5"])
    with pytest.raises(TrustError, match="is of another swarm"):
        plan(tmp_path / "a", invite_path=invite)
    with pytest.raises(JoinError, match="belongs to swarm ours, not theirs"):
        plan(tmp_path / "a", swarm_id="theirs")
    assert plan(tmp_path / "a").trust.token == ours.trust.token


def test_a_damaged_swarm_id_is_named(tmp_path):
    plan(tmp_path)
    path = tmp_path / SWARM_DIRECTORY / SWARM_ID_FILE
    path.write_bytes(b"")
    with pytest.raises(PrivateFileError, match="holds no swarm id"):
        plan(tmp_path)
