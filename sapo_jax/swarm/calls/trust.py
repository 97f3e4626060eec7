"""Whom a host believes, chosen in one place: `choose_trust`.

closed: calls go over TLS to hosts whose certificate is pinned through an invite or a peer record,
and carry the token that all members share. insecure loopback: plain text, this machine only, for
tests and first steps. open: strangers prove themselves call by call; that mode plugs in here and is
refused until it exists.

Content needs none of this: groups and peer records are signed, whoever hands them over.
"""

from __future__ import annotations

import datetime
import enum
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sapo_jax.swarm.calls.certificate import HostCertificate, check_certificate
from sapo_jax.swarm.calls.invite import Invite
from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.wire.addresses import is_loopback, split_address
from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.private_file import PrivateFileError, read_or_create_private

TOKEN_HEADER = "sapo-token"
CERTIFICATE_FILE = "certificate.pem"
TOKEN_FILE = "token"
_TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22,128}")


class TrustError(ValueError):
    """A trust mode that cannot be had like this; one line for the operator."""


class TrustMode(enum.Enum):
    """How callers and hosts prove themselves; the value is what flags say."""

    CLOSED = "closed"
    INSECURE_LOOPBACK = "insecure-loopback"
    OPEN = "open"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """The means of one host to prove itself and to check others; made by `choose_trust`.

    Attributes:
        mode: what was chosen.
        certificate: shown to callers; None: plain text.
        token: what callers must show, and what we show; None: nothing.
    """

    mode: TrustMode
    certificate: HostCertificate | None = None
    token: str | None = field(default=None, repr=False)

    def check_listen_address(self, host: str) -> None:
        """Raises TrustError if this host may not listen on `host` in its mode."""
        if self.certificate is None and not is_loopback(host):
            raise TrustError(
                f"listening on {host} in plain text is refused: --insecure-loopback is for 127.0.0.1, ::1 and localhost"
            )

    def check_peer(self, address: str, certificate: bytes | None, now: datetime.datetime) -> None:
        """Checks that a peer may be dialed.

        Args:
            address: its "host:port".
            certificate: what it is pinned to, DER; None if nothing is known.
            now: with a time zone.

        Raises:
            TrustError: without TLS: the address is not on this machine; with TLS: no certificate is known.
            CertificateError: the certificate is unusable or outside its time.
            AddressError: the address is none.
        """
        host, _ = split_address(address)
        if self.mode is TrustMode.INSECURE_LOOPBACK:
            if not is_loopback(host):
                raise TrustError(f"dialing {address} in plain text is refused: --insecure-loopback is for this machine")
        elif certificate is None:
            raise TrustError(f"dialing {address} is refused: no certificate is known for it; give its invite")
        else:
            check_certificate(certificate, now, f"peer {address}")

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the headers that our calls carry."""
        return () if self.token is None else ((TOKEN_HEADER, self.token),)

    def authenticate(self, tokens: Sequence[str | bytes]) -> None:
        """Checks the token headers of a call, in a time that does not depend on where they differ.

        Raises:
            ServiceError: UNAUTHENTICATED; missing and wrong are told apart nowhere.
        """
        if self.token is None:
            return
        shown = tokens[0] if len(tokens) == 1 else b""
        given = shown.encode("utf-8", errors="replace") if isinstance(shown, str) else shown
        if not hmac.compare_digest(given, self.token.encode()):
            raise ServiceError(WireReason.UNAUTHENTICATED, "the invite token is missing or wrong")

    def invite(self, swarm_id: str, addresses: Sequence[str]) -> Invite:
        """Returns an invite to this host; raises TrustError in a mode without invites."""
        if self.certificate is None or self.token is None:
            raise TrustError(f"trust mode {self.mode.value} has no invites: hosts are dialed by their address alone")
        return Invite(swarm_id=swarm_id, token=self.token, addresses=tuple(addresses), certificate=self.certificate.der)


def choose_trust(mode: TrustMode, *, directory: Path | None, invite: Invite | None, now: datetime.datetime) -> Trust:
    """Returns the trust of a host: the one place where the mode is decided.

    Args:
        mode: what the operator asked for.
        directory: where certificate and token are kept, made on the first start; mode closed only.
        invite: of the swarm to join; None: start one, or go on in the one joined before.
        now: with a time zone.

    Raises:
        TrustError: the mode is not available, needs a directory, or the invite belongs to another swarm than
            the one this directory joined.
        PrivateFileError: the token file is unusable or cannot be written.
        CertificateError: the host's own certificate is unusable or expired.
    """
    if mode is TrustMode.INSECURE_LOOPBACK:
        return Trust(mode=mode)
    if mode is TrustMode.OPEN:
        raise TrustError("trust mode open is not available in this version; use closed with an invite")
    if directory is None:
        raise TrustError("trust mode closed needs a directory to keep its certificate and token in")
    certificate = HostCertificate.load_or_create(directory / CERTIFICATE_FILE, now)
    wanted = None if invite is None else invite.token
    token = _load_or_create_token(directory / TOKEN_FILE, wanted or secrets.token_urlsafe(_TOKEN_BYTES))
    if wanted is not None and not hmac.compare_digest(token.encode(), wanted.encode()):
        raise TrustError(
            f"token file {directory / TOKEN_FILE}: is of another swarm than the invite; use another directory, "
            "or move the file away to change swarms"
        )
    return Trust(mode=mode, certificate=certificate, token=token)


def _load_or_create_token(path: Path, new: str) -> str:
    what = "token file"
    token = read_or_create_private(path, f"{new}\n".encode(), what).decode("ascii", errors="replace").strip()
    if not _TOKEN.fullmatch(token):
        raise PrivateFileError(f"{what} {path}: holds no token; restore it from a copy, or move it away and join again")
    return token
