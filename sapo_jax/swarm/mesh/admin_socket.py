"""Where the admin socket of a host lies, for the host that opens it and for commands that look for it."""

from __future__ import annotations

import contextlib
from pathlib import Path

SERVICE = "sapo.admin.v1.NodeAdminService"
SOCKET_DIRECTORY = ".admin"
SOCKET_FILE = "socket"
FAR_SOCKET_FILE = "socket_path"  # where the socket is if the directory's own path is too long for one
MAX_SOCKET_PATH_BYTES = 100  # the system's limit is 107, less where a suffix is added


class AdminError(OSError):
    """A host that cannot be asked; one line for the operator."""


def find_socket(directory: Path) -> Path:
    """Returns the socket of the host in `directory`; raises AdminError if none has run there."""
    folder = directory / SOCKET_DIRECTORY
    path = folder / SOCKET_FILE
    with contextlib.suppress(OSError, UnicodeError):
        path = Path((folder / FAR_SOCKET_FILE).read_text(encoding="utf-8").strip())
    if not path.exists():
        raise AdminError(f"workdir {directory}: no host of a swarm runs there")
    return path
