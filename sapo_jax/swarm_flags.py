"""The flags by which a command takes part in a swarm over the network, the same for all commands.

They are flags and not part of a run's configuration: addresses and invites belong to a machine and a
day, and a resumed run may have others.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from sapo_jax.swarm.mesh.joining import JoinError, Joining, plan_joining


@dataclass(frozen=True, kw_only=True, slots=True)
class SwarmRequest:
    """How a process wants to take part.

    Attributes:
        joining: swarm, trust, first peers, and the directory of its network files.
        listen: "host:port"; None: only dial out.
        advertise: what others should dial, if not `listen`.
        metrics: "host:port" of a page for Prometheus on this machine; None: none.
    """

    joining: Joining
    listen: str | None
    advertise: tuple[str, ...]
    metrics: str | None


class SwarmFlags:
    """Defines the flags on the options of one command and reads them."""

    def __init__(self, options: flags.FlagValues) -> None:
        """Adds the flags to `options`."""
        self._listen = flags.DEFINE_string(
            "listen", None, "HOST:PORT to listen on; port 0 takes a free one.", flag_values=options
        )
        self._advertise = flags.DEFINE_list(
            "advertise", [], "HOST:PORT others should dial, if not --listen.", flag_values=options
        )
        self._join = flags.DEFINE_list("join", [], "HOST:PORT of a host of the swarm to join.", flag_values=options)
        self._invite = flags.DEFINE_string("invite", "", "Invite file of that host.", flag_values=options)
        self._swarm_id = flags.DEFINE_string(
            "swarm_id", "", "Name of a new swarm; without, a random one.", flag_values=options
        )
        self._insecure_loopback = flags.DEFINE_bool(
            "insecure_loopback", False, "Plain text, on this machine only.", flag_values=options
        )
        self._metrics = flags.DEFINE_string(
            "metrics", None, "HOST:PORT of this machine for a page that Prometheus reads.", flag_values=options
        )

    def request(self, workdir: Path) -> SwarmRequest | None:
        """Returns what the flags ask for, None without any; makes the network files of `workdir` that are missing.

        Raises:
            JoinError, AddressError, InviteError, TrustError, CertificateError, PrivateFileError: see `plan_joining`.
        """
        if not (self._listen.value or self._join.value or self._invite.value):
            for flag in (self._advertise, self._swarm_id, self._insecure_loopback, self._metrics):
                if flag.value:
                    raise JoinError(f"--{flag.name}: needs --listen, --join or --invite, which ask for a network")
            return None
        joining = plan_joining(
            workdir.expanduser().absolute(),
            join=self._join.value or [],
            advertise=self._advertise.value or [],
            invite_path=Path(self._invite.value).expanduser() if self._invite.value else None,
            swarm_id=self._swarm_id.value or "",
            insecure_loopback=bool(self._insecure_loopback.value),
            now=datetime.datetime.now(datetime.UTC),
        )
        return SwarmRequest(
            joining=joining,
            listen=self._listen.value,
            advertise=tuple(self._advertise.value or ()),
            metrics=self._metrics.value,
        )
