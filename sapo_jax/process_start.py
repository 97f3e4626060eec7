"""How a process joins its group: what `--distributed` asks for, jax's devices, how long to wait, and what can fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from sapo_jax.command_line import UsageError
from sapo_jax.errors import first_line

START_TIMEOUT_S = 300  # for all processes to be there
END_TIMEOUT_S = 10.0  # for a follower to end once the leader failed; it may be waiting for an array that never comes
HEARTBEAT_TIMEOUT_S = 60  # of jax's service, which notices a machine that is gone without a word


class GroupError(RuntimeError):
    """A process group that cannot form or has broken; the message names the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRequest:
    """What `--distributed=HOST:PORT,COUNT,INDEX` asks for: this process is number INDEX of COUNT."""

    host: str  # an IPv6 address without its brackets
    port: int
    count: int
    index: int

    @property
    def address(self) -> str:
        """HOST:PORT, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_request(text: str) -> GroupRequest | None:
    """Returns what `--distributed` asks for; None: "auto", jax finds the processes itself.

    Raises:
        UsageError: anything else.
    """
    if text == "auto":
        return None
    address, *numbers = text.split(",")
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    # Brackets belong around an IPv6 address and nothing else, or its end could be taken for a port.
    is_host = bare != "" and host == (f"[{bare}]" if ":" in bare else bare)
    if not (is_host and colon and len(numbers) == 2 and all(part.isdecimal() for part in (port, *numbers))):
        raise UsageError(f"--distributed={text}: must be auto or HOST:PORT,COUNT,INDEX (IPv6: [HOST]:PORT)")
    request = GroupRequest(host=bare, port=int(port), count=int(numbers[0]), index=int(numbers[1]))
    if not (0 < request.port < 2**16 and request.index < request.count):
        raise UsageError(f"--distributed={text}: needs a port below 65536 and an INDEX below COUNT")
    return request


def initialize(request: GroupRequest | None) -> None:
    """Joins the devices of all processes; call it before anything touches a device.

    Raises:
        GroupError: not all processes came, or jax found out about none.
    """
    # Its handler of SIGTERM would be in the way of ours.
    jax.config.update("jax_enable_preemption_service", False)
    places: dict[str, Any] = {}
    if request is not None:
        places = {
            "coordinator_address": request.address,
            "num_processes": request.count,
            "process_id": request.index,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **places,
            initialization_timeout=START_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=int(END_TIMEOUT_S),
        )
    except (RuntimeError, ValueError) as error:
        wanted = "auto" if request is None else f"{request.address},{request.count},{request.index}"
        raise GroupError(f"--distributed={wanted}: {first_line(error)}") from error
