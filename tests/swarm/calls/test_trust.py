from __future__ import annotations

import base64
import datetime
import hashlib
import json
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sapo_jax.swarm.calls.certificate import (
    TLS_NAME,
    CertificateError,
    ExpiredCertificateError,
    HostCertificate,
    check_certificate,
    pem_of,
)
from sapo_jax.swarm.calls.invite import ExpiredInviteError, Invite, InviteError
from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.calls.trust import CERTIFICATE_FILE, TOKEN_FILE, Trust, TrustError, TrustMode, choose_trust
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.private_file import PrivateFileError
from tests.swarm.calls.hosts import NOW, TOKEN

DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def certificate() -> HostCertificate:
    return HostCertificate.generate(NOW)


@pytest.fixture
def invite(certificate) -> Invite:
    return Invite(swarm_id="garden", token=TOKEN, addresses=("192.0.2.1:7000", "[::1]:1"), certificate=certificate.der)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def closed(directory: Path, invite: Invite | None = None) -> Trust:
    return choose_trust(TrustMode.CLOSED, directory=directory, invite=invite, now=NOW)


# Certificates.


def test_a_certificate_is_made_once_and_private(tmp_path):
    path = tmp_path / "deep" / "certificate.pem"
    first = HostCertificate.load_or_create(path, NOW)
    assert mode_of(path) == 0o600
    assert HostCertificate.load_or_create(path, NOW + DAY) == first
    assert [child.name for child in path.parent.iterdir()] == [path.name]


def test_a_certificate_pins_a_p256_key_and_a_name_that_is_no_domain(certificate):
    parsed = x509.load_der_x509_certificate(certificate.der)
    assert isinstance(parsed.public_key(), ec.EllipticCurvePublicKey)
    assert parsed.issuer == parsed.subject and TLS_NAME.endswith(".invalid")
    assert pem_of(certificate.der) == certificate.certificate_pem
    check_certificate(certificate.der, NOW, "here")


@pytest.mark.parametrize("skew", [-DAY, DAY])
def test_clocks_a_day_apart_accept_each_others_new_certificates(skew):
    check_certificate(HostCertificate.generate(NOW + skew).der, NOW - skew, "here")


@pytest.mark.parametrize(("when", "what"), [(4000 * DAY, "expired on 2039-12-31"), (-10 * DAY, "begins on 2029-12-30")])
def test_a_certificate_outside_its_time_is_an_error_of_its_own(tmp_path, when, what):
    path = tmp_path / "certificate.pem"
    before = HostCertificate.load_or_create(path, NOW)
    with pytest.raises(ExpiredCertificateError, match=f"{path}: the certificate {what}"):
        HostCertificate.load_or_create(path, NOW + when)
    assert HostCertificate.load_or_create(path, NOW) == before


def _damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "open":
        path.chmod(0o644)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "mixed":
        path.write_bytes(HostCertificate.generate(NOW).key_pem + content[content.index(b"-----BEGIN CERT") :])
    elif kind == "huge":
        path.write_bytes(content * 200)
    elif kind == "directory":
        path.unlink()
        path.mkdir(mode=0o700)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("open", "others may read it"),
        ("empty", "holds no key and certificate"),
        ("cut", "holds no key and certificate"),
        ("mixed", "do not belong together"),
        ("huge", "bytes, at most"),
        ("directory", "no regular file"),
    ],
)
def test_an_unusable_certificate_file_is_named_and_left_alone(tmp_path, kind, what):
    path = tmp_path / "certificate.pem"
    HostCertificate.load_or_create(path, NOW)
    _damage(path, kind)
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(CertificateError, match=what) as caught:
        HostCertificate.load_or_create(path, NOW)
    assert str(path) in str(caught.value)
    assert path.is_dir() or path.read_bytes() == before


def test_two_that_start_at_once_agree_on_one_certificate(tmp_path):
    found: list[HostCertificate] = []
    threads = [
        threading.Thread(target=lambda: found.append(HostCertificate.load_or_create(tmp_path / "c.pem", NOW)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def _other_certificate(curve: ec.EllipticCurve, name: str) -> bytes:
    key = ec.generate_private_key(curve)
    subject = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30\x82",
        b"x" * 4000,
        _other_certificate(ec.SECP384R1(), TLS_NAME),
        _other_certificate(ec.SECP256R1(), "a.b"),
    ],
    ids=["empty", "cut", "large", "other curve", "other name"],
)
def test_foreign_certificates_are_not_pinned(der):
    with pytest.raises(CertificateError, match="^peer x: "):
        check_certificate(der, NOW, "peer x")


# Invites.


def test_an_invite_is_one_line_and_reads_back(tmp_path, invite):
    path = tmp_path / "invite"
    invite.save(path)
    assert mode_of(path) == 0o600
    assert path.read_text().count("\n") == 1
    assert Invite.load(path, NOW) == invite
    assert Invite.from_line(f"  {invite.to_line()} \n", NOW) == invite
    with pytest.raises(InviteError, match="exists"):
        invite.save(path)


@pytest.mark.parametrize("cut", [1, 9, 10, 100])
def test_a_cut_invite_is_noticed(invite, cut):
    with pytest.raises(InviteError, match="damaged or cut"):
        Invite.from_line(invite.to_line()[:-cut], NOW)


def test_every_changed_character_is_noticed(invite):
    line = invite.to_line()
    for i in range(len("sapo-invite-1."), len(line)):
        with pytest.raises(InviteError):
            Invite.from_line(line[:i] + ("A" if line[i] != "A" else "B") + line[i + 1 :], NOW)


def _line(fields: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")
    return f"sapo-invite-1.{body}.{hashlib.sha256(f'sapo-invite-1.{body}'.encode()).hexdigest()[:8]}"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"swarm": ""}, "swarm"),
        ({"swarm": "é" * 33}, "swarm"),
        ({"swarm": 5}, "swarm"),
        ({"swarm": "\x1b[31mred"}, "swarm"),
        ({"swarm": "\u202egarden"}, "swarm"),
        ({"token": "short"}, "token"),
        ({"token": "white space " * 4}, "token"),
        ({"addresses": []}, "addresses"),
        ({"addresses": ["a:1"] * 9}, "addresses"),
        ({"addresses": [7]}, "addresses"),
        ({"addresses": ["nowhere"]}, "host:port"),
        ({"certificate": None}, "certificate"),
        ({"certificate": "AAAA"}, "certificate"),
        ({"certificate": "???"}, "damaged"),
    ],
)
def test_an_invite_with_an_unusable_field_names_it(invite, change, what):
    fields = {
        "swarm": invite.swarm_id,
        "token": invite.token,
        "addresses": list(invite.addresses),
        "certificate": base64.b64encode(invite.certificate).decode(),
    }
    assert Invite.from_line(_line(fields), NOW) == invite
    with pytest.raises(InviteError, match=f"^invite: .*{what}"):
        Invite.from_line(_line({**fields, **change}), NOW)


@pytest.mark.parametrize("text", ["", "hello", "sapo-invite-2.abc.def", "sapo-invite-1", "sapo-invite-1.é.x", "\0"])
def test_what_is_no_invite_is_said_to_be_none(text):
    with pytest.raises(InviteError, match="^invite: is "):
        Invite.from_line(text, NOW)


@pytest.mark.parametrize("fields", [[], "text", None, 5])
def test_an_invite_that_holds_something_else_is_damaged(fields):
    with pytest.raises(InviteError, match="is damaged"):
        Invite.from_line(_line(fields), NOW)


def test_an_expired_certificate_in_an_invite_is_an_error_of_its_own(tmp_path, invite):
    path = tmp_path / "invite"
    invite.save(path)
    with pytest.raises(ExpiredInviteError, match=f"{path}: the certificate expired on 2039-12-31"):
        Invite.load(path, NOW + 4000 * DAY)


def test_an_invite_file_that_is_missing_or_open_is_named(tmp_path, invite):
    path = tmp_path / "invite"
    with pytest.raises(InviteError, match=f"{path}: does not exist"):
        Invite.load(path, NOW)
    invite.save(path)
    path.chmod(0o640)
    with pytest.raises(InviteError, match=f"chmod 600 {path}"):
        Invite.load(path, NOW)


def test_a_directory_that_cannot_be_written_is_named(tmp_path, invite):
    (tmp_path / "file").write_text("")
    with pytest.raises(InviteError, match="cannot be written"):
        invite.save(tmp_path / "file" / "invite")


# Trust.


def test_a_new_swarm_makes_certificate_and_token_and_keeps_them(tmp_path):
    trust = closed(tmp_path)
    assert trust.token is not None and len(trust.token) >= 40
    assert {child.name: mode_of(child) for child in tmp_path.iterdir()} == {CERTIFICATE_FILE: 0o600, TOKEN_FILE: 0o600}
    assert closed(tmp_path) == trust


def test_who_joins_shares_the_token_and_has_a_certificate_of_its_own(tmp_path):
    first = closed(tmp_path / "a")
    invite = first.invite("garden", ["127.0.0.1:1"])
    second = closed(tmp_path / "b", invite)
    assert second.token == first.token and second.certificate != first.certificate
    assert closed(tmp_path / "b") == second  # later without the invite
    assert second.invite("garden", ["127.0.0.1:2"]).token == first.token


def test_an_invite_of_another_swarm_is_refused_and_nothing_changes(tmp_path, invite):
    before = closed(tmp_path)
    with pytest.raises(TrustError, match="is of another swarm than the invite"):
        closed(tmp_path, invite)
    assert closed(tmp_path) == before


@pytest.mark.parametrize(("content", "mode", "what"), [("", 0o600, "holds no token"), ("x" * 40, 0o644, "others may")])
def test_an_unusable_token_file_is_named(tmp_path, content, mode, what):
    path = tmp_path / TOKEN_FILE
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(PrivateFileError, match=what) as caught:
        closed(tmp_path)
    assert str(path) in str(caught.value) and path.read_text() == content


def test_open_mode_is_refused_in_one_line(tmp_path):
    with pytest.raises(TrustError, match="open is not available") as caught:
        choose_trust(TrustMode.OPEN, directory=tmp_path, invite=None, now=NOW)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_closed_mode_needs_a_place_for_its_secrets():
    with pytest.raises(TrustError, match="needs a directory"):
        choose_trust(TrustMode.CLOSED, directory=None, invite=None, now=NOW)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_t22_plain_text_is_refused_off_loopback(host, certificate):
    plain = choose_trust(TrustMode.INSECURE_LOOPBACK, directory=None, invite=None, now=NOW)
    with pytest.raises(TrustError, match="--insecure-loopback"):
        plain.check_listen_address(host)
    address = f"[{host}]:1" if ":" in host else f"{host}:1"
    with pytest.raises(TrustError, match="--insecure-loopback"):
        plain.check_peer(address, None, NOW)
    with pytest.raises(TrustError, match="--insecure-loopback"):
        plain.check_peer(address, certificate.der, NOW)
    plain.check_listen_address("127.0.0.1")
    plain.check_peer("[::1]:1", None, NOW)


def test_t22_closed_mode_dials_nobody_without_a_certificate(tmp_path, certificate):
    trust = closed(tmp_path)
    trust.check_listen_address("0.0.0.0")
    trust.check_peer("10.0.0.1:1", certificate.der, NOW)
    with pytest.raises(TrustError, match="no certificate is known"):
        trust.check_peer("127.0.0.1:1", None, NOW)
    with pytest.raises(ExpiredCertificateError, match="peer 10.0.0.1:1"):
        trust.check_peer("10.0.0.1:1", certificate.der, NOW + 4000 * DAY)


@pytest.mark.parametrize(
    "tokens",
    [[], [""], [TOKEN[:-1]], [TOKEN + "x"], [TOKEN.upper()], [TOKEN, TOKEN], ["wrong", TOKEN], [b"\xff"], ["\udcff"]],
)
def test_only_the_right_token_once_is_accepted(tokens, certificate):
    trust = Trust(mode=TrustMode.CLOSED, certificate=certificate, token=TOKEN)
    trust.authenticate([TOKEN])
    with pytest.raises(ServiceError) as caught:
        trust.authenticate(tokens)
    assert caught.value.reason is WireReason.UNAUTHENTICATED
    assert str(caught.value) == "the invite token is missing or wrong"


def test_t19_no_secret_is_in_what_is_printed(tmp_path, invite, certificate):
    trust = Trust(mode=TrustMode.CLOSED, certificate=certificate, token=TOKEN)
    texts = [repr(trust), str(trust), repr(invite), repr(certificate), f"{[trust, invite]}"]
    key_line = certificate.key_pem.decode().splitlines()[1]
    assert not any(TOKEN in text or key_line in text for text in texts)
    fields = {"swarm": "s", "token": TOKEN + "!", "addresses": ["a:1"], "certificate": ""}
    with pytest.raises(InviteError) as caught:
        Invite.from_line(_line(fields), NOW)
    assert TOKEN not in str(caught.value)
