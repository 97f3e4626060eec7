"""What a command needs to start, join or go on in a swarm: trust, swarm id, first peers, and the invite it hands out.

Everything of the network that outlives a process lies in one directory below the work directory, so
starting the same command again is the same host in the same swarm.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapo_jax.swarm.calls.certificate import CertificateError
from sapo_jax.swarm.calls.invite import Invite, InviteError
from sapo_jax.swarm.calls.trust import Trust, TrustError, TrustMode, choose_trust
from sapo_jax.swarm.mesh.network_host import GivenPeer
from sapo_jax.swarm.store.file import StoreError
from sapo_jax.swarm.wire.addresses import AddressError, split_address
from sapo_jax.swarm.wire.errors import WireError
from sapo_jax.swarm.wire.field_rules import check_address
from sapo_jax.swarm.wire.identity import Identity, IdentityError
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS
from sapo_jax.swarm.wire.private_file import PrivateFileError, read_or_create_private, read_private

SWARM_DIRECTORY = "swarm"  # below the work directory
INVITE_FILE = "invite"
SWARM_ID_FILE = "swarm_id"
_SWARM_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class JoinError(ValueError):
    """Flags that do not name a swarm to take part in; the message names them."""


SWARM_USAGE_ERRORS = (JoinError, TrustError, InviteError, AddressError)
SWARM_FAILURES = (IdentityError, CertificateError, StoreError, PrivateFileError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Joining:
    """How a host takes part; `directory` is where its swarm files lie."""

    directory: Path
    swarm_id: str
    trust: Trust
    peers: tuple[GivenPeer, ...]

    def identity(self, name: str) -> Identity:
        """Returns the identity of one node of this host, made at the first start.

        Raises:
            IdentityError: its key file cannot be used.
        """
        return Identity.load_or_create(self.directory / f"{name}.key")

    def write_invite(self, addresses: Sequence[str]) -> Path | None:
        """Writes the invite to this host, replacing an older one; returns its file, None if the mode has none.

        Raises:
            InviteError: the file cannot be written.
        """
        if self.trust.mode is not TrustMode.CLOSED or not addresses:
            return None
        path = self.directory / INVITE_FILE
        invite = self.trust.invite(self.swarm_id, addresses)
        with contextlib.suppress(FileNotFoundError, PrivateFileError):
            if read_private(path, "invite file") == f"{invite.to_line()}\n".encode():
                return path
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InviteError(f"invite file {path}: cannot be replaced ({error.strerror})") from error
        invite.save(path)
        return path

    def invitation(self, addresses: Sequence[str]) -> str:
        """Writes the invite to this host; returns one line on how others join it, empty if nobody can dial it.

        Raises:
            InviteError: the file cannot be written.
        """
        if not addresses:
            return ""
        invite = self.write_invite(addresses)
        how = "--insecure_loopback" if invite is None else f"--invite={invite}"
        return f"others join with --join={addresses[0]} {how}"


def plan_joining(
    workdir: Path,
    *,
    join: Sequence[str] = (),
    advertise: Sequence[str] = (),
    invite_path: Path | None = None,
    swarm_id: str = "",
    insecure_loopback: bool = False,
    now: datetime.datetime,
) -> Joining:
    """Returns how the host of a work directory takes part in a swarm; makes its certificate, token and swarm id.

    Args:
        workdir: the work directory.
        join: "host:port" of hosts to dial first. With an invite they are other addresses of the host
            that wrote it.
        advertise: "host:port" that others should dial; only checked here.
        invite_path: the invite file; None: start a swarm, or go on in the one of an earlier start.
        swarm_id: name of a new swarm; empty: a random one.
        insecure_loopback: plain text, on this machine only.
        now: with a time zone.

    Raises:
        JoinError: the flags contradict each other or the earlier start, or nobody could dial `advertise`.
        AddressError, InviteError, TrustError: one of them cannot be used.
        CertificateError: this host's own certificate cannot be used.
        PrivateFileError: a file of the directory cannot be read or written, or holds something else.
    """
    directory = workdir / SWARM_DIRECTORY
    for address in join:
        split_address(address)
    _check_advertised(advertise)
    if insecure_loopback and invite_path is not None:
        raise JoinError("--insecure_loopback and --invite: plain text needs no invite; give one of them")
    invite = None if invite_path is None else Invite.load(invite_path, now)
    if join and invite is None and not insecure_loopback:
        raise JoinError(
            f"{', '.join(join)}: needs the --invite of that host, the file {SWARM_DIRECTORY}/{INVITE_FILE} "
            "in its workdir"
        )
    wanted = swarm_id if invite is None else invite.swarm_id
    if invite is not None and swarm_id and swarm_id != invite.swarm_id:
        raise JoinError(f"--swarm_id={swarm_id}: the invite is of swarm {invite.swarm_id}")
    if swarm_id and not _SWARM_ID.fullmatch(swarm_id):
        raise JoinError(f"--swarm_id={swarm_id!r}: must be 1 to 64 letters, digits, dots, - or _")
    if insecure_loopback and join and not wanted:
        wanted = "loopback"  # all hosts of one machine that say nothing else
    mode = TrustMode.INSECURE_LOOPBACK if insecure_loopback else TrustMode.CLOSED
    trust = choose_trust(mode, directory=directory, invite=invite, now=now)
    default = "loopback" if insecure_loopback else f"swarm-{os.urandom(6).hex()}"
    known = _load_or_create_swarm_id(directory / SWARM_ID_FILE, wanted or default)
    if wanted and known != wanted:
        raise JoinError(
            f"workdir {workdir}: belongs to swarm {known}, not {wanted}; use another one, or move "
            f"{directory} away to change swarms"
        )
    peers: list[GivenPeer] = []
    if invite is not None:
        addresses = tuple(dict.fromkeys((*join, *invite.addresses)))
        peers.append(GivenPeer(addresses=addresses, certificate=invite.certificate))
    else:
        peers += [GivenPeer(addresses=(address,)) for address in join]
    return Joining(directory=directory, swarm_id=known, trust=trust, peers=tuple(peers))


def _check_advertised(addresses: Sequence[str]) -> None:
    """Raises JoinError for what a peer record cannot hold."""
    limits = DEFAULT_WIRE_LIMITS
    if len(addresses) > limits.max_addresses:
        raise JoinError(
            f"--advertise={','.join(addresses)}: {len(addresses)} addresses, at most {limits.max_addresses}"
        )
    for address in addresses:
        try:
            check_address(address, limits.max_address_bytes, f"--advertise={address}")
        except WireError as error:
            raise JoinError(str(error)) from error


def _load_or_create_swarm_id(path: Path, new: str) -> str:
    what = "swarm id file"
    text = read_or_create_private(path, f"{new}\n".encode(), what).decode("utf-8", errors="replace").strip()
    if not 0 < len(text.encode()) <= 64 or not text.isprintable():
        raise PrivateFileError(
            f"{what} {path}: holds no swarm id; restore it, or move {path.parent} away and join again"
        )
    return text
