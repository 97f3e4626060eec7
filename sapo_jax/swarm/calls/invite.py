"""Invites: one line of text that lets a host join a closed swarm.

It holds what cannot be looked up anywhere: the swarm's id and token, where one host listens, and
that host's certificate. Whoever has the line is in, so its file is private and it is never logged.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sapo_jax.swarm.calls.certificate import CertificateError, ExpiredCertificateError, check_certificate
from sapo_jax.swarm.wire.addresses import AddressError, split_address
from sapo_jax.swarm.wire.limits import WireLimits
from sapo_jax.swarm.wire.private_file import PrivateFileError, create_private, read_private

VERSION = 1
_PREFIX = f"sapo-invite-{VERSION}"
_CHECK_CHARS = 8
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22,128}")  # at least 128 bits, safe in a header
_WHAT = "invite file"


class InviteError(ValueError):
    """An invite that cannot be used; the text names the file and what is wrong, never the token."""


class ExpiredInviteError(InviteError):
    """The certificate in the invite is outside its time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Invite:
    """What a newcomer needs.

    Attributes:
        swarm_id: the swarm.
        token: the secret all its members share.
        addresses: "host:port" of the inviting host, best first.
        certificate: its TLS certificate as DER.
    """

    swarm_id: str
    token: str = field(repr=False)
    addresses: tuple[str, ...]
    certificate: bytes = field(repr=False)

    def to_line(self) -> str:
        """Returns the invite as one line, with a check sum that a cut copy fails."""
        fields = {
            "swarm": self.swarm_id,
            "token": self.token,
            "addresses": list(self.addresses),
            "certificate": base64.b64encode(self.certificate).decode(),
        }
        body = base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).decode().rstrip("=")
        return f"{_PREFIX}.{body}.{_check(body)}"

    @classmethod
    def from_line(cls, line: str, now: datetime.datetime, where: str = "invite") -> Invite:
        """Returns the invite that `to_line` wrote.

        Args:
            line: white space around it does not matter.
            now: with a time zone; decides whether the certificate has expired.
            where: begins error messages.

        Raises:
            InviteError: it is cut, damaged, of another version, or holds something unusable.
            ExpiredInviteError: its certificate is outside its time.
        """
        name, _, rest = line.strip().partition(".")
        body, _, check = rest.partition(".")
        if not name.startswith("sapo-invite-"):
            raise InviteError(f"{where}: is no invite, one starts with {_PREFIX}.")
        if name != _PREFIX:
            raise InviteError(f"{where}: is of another version than {VERSION}; update this host or the inviting one")
        if check != _check(body):
            raise InviteError(f"{where}: is damaged or cut, its check sum does not fit; copy the whole line")
        try:
            data = json.loads(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True))
            return cls._from_fields(data, now, where)
        except (binascii.Error, UnicodeError, json.JSONDecodeError, RecursionError) as error:
            raise InviteError(f"{where}: is damaged") from error

    @classmethod
    def _from_fields(cls, data: Any, now: datetime.datetime, where: str) -> Invite:
        if not isinstance(data, dict):
            raise InviteError(f"{where}: is damaged")
        fields = cast(dict[str, Any], data)
        swarm_id, token, addresses = fields.get("swarm"), fields.get("token"), fields.get("addresses")
        certificate = fields.get("certificate")
        limits = WireLimits()
        if not isinstance(swarm_id, str) or not 0 < len(swarm_id.encode()) <= limits.max_swarm_id_bytes:
            raise InviteError(f"{where}: swarm must be text of 1 to {limits.max_swarm_id_bytes} bytes")
        if not swarm_id.isprintable():
            raise InviteError(f"{where}: swarm must be printable text")  # it is shown, and written into files
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise InviteError(f"{where}: token must be 22 to 128 letters, digits, - or _")
        texts = cast(list[Any], addresses) if isinstance(addresses, list) else []
        if not 1 <= len(texts) <= limits.max_addresses or not all(isinstance(text, str) for text in texts):
            raise InviteError(f"{where}: addresses must be 1 to {limits.max_addresses} texts")
        if not isinstance(certificate, str):
            raise InviteError(f"{where}: certificate is missing")
        try:
            for address in texts:
                split_address(address)
        except AddressError as error:
            raise InviteError(f"{where}: {error}") from error
        der = base64.b64decode(certificate, validate=True)
        try:
            check_certificate(der, now, where)
        except CertificateError as error:
            kind = ExpiredInviteError if isinstance(error, ExpiredCertificateError) else InviteError
            raise kind(str(error)) from error
        return cls(swarm_id=swarm_id, token=token, addresses=tuple(texts), certificate=der)

    def save(self, path: Path) -> None:
        """Writes the line to a new file with mode 0600.

        Raises:
            InviteError: the file exists or cannot be written.
        """
        try:
            create_private(path, f"{self.to_line()}\n".encode(), _WHAT)
        except FileExistsError as error:
            raise InviteError(f"{_WHAT} {path}: exists; move it away or name another one") from error
        except PrivateFileError as error:
            raise InviteError(str(error)) from error

    @classmethod
    def load(cls, path: Path, now: datetime.datetime) -> Invite:
        """Returns the invite in a private file; raises like `from_line`, or InviteError about the file."""
        try:
            content = read_private(path, _WHAT)
        except FileNotFoundError as error:
            raise InviteError(f"{_WHAT} {path}: does not exist") from error
        except PrivateFileError as error:
            raise InviteError(str(error)) from error
        return cls.from_line(content.decode("ascii", errors="replace"), now, f"{_WHAT} {path}")


def _check(body: str) -> str:
    return hashlib.sha256(f"{_PREFIX}.{body}".encode("utf-8", errors="replace")).hexdigest()[:_CHECK_CHARS]
