"""What a scorer process gives up before it sees the first completion.

The scorers never run text as code; this is for the day on which one of them does. Limits and the
audit hook end a process that writes files, opens sockets or starts programs. They do not stop
native code, which at least finds no network where the system lets us leave it. All this stands behind
the scorers' own care, never in its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import subprocess
import sys
import time
from typing import Any

# A warm worker has mapped a tenth of this; what goes beyond raises MemoryError in the scorer.
MAX_MEMORY_BYTES = 1 << 31
MAX_OPEN_FILES = 64

EXIT_FORBIDDEN = 97  # exit code of a process that the audit hook ended

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = frozenset(
    {
        "ctypes.dlopen",
        "os.chmod",
        "os.chown",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.kill",
        "os.killpg",
        "os.link",
        "os.mkdir",
        "os.posix_spawn",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.spawn",
        "os.symlink",
        "os.system",
        "os.truncate",
        "os.utime",
        "pty.spawn",
        "sqlite3.connect",
        "subprocess.Popen",
        "syslog.syslog",
    }
)


def follow_parent(parent_id: int) -> None:
    """Ties this process to the one that started it: killed with it on Linux, gone now if that is gone.

    Elsewhere the end of the pipe and the limit of `allow_cpu` end it a little later.
    """
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_id:
        sys.exit(0)


def confine() -> None:
    """Gives up memory beyond a limit, writing, new processes, the network and privileges.

    Only for a process of its own, without threads.

    Modules and data can still be read: libraries import lazily.
    """
    sys.dont_write_bytecode = True  # else a lazy import would look like an attempt to write
    if sys.platform == "linux":
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    leave_network()
    for limit, value in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),  # it holds for everybody but root
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # not every system has each of them
            resource.setrlimit(limit, (value, value))
    sys.addaudithook(_end_if_forbidden)


def leave_network() -> bool:
    """Moves this process into a network of its own that leads nowhere; returns whether the system allows it."""
    if sys.platform != "linux":
        return False
    # Others than root need a user namespace for it. Root would lose in one what lets it read the files of others,
    # libraries among them.
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    return ctypes.CDLL(None).unshare(flags) == 0


def can_leave_network() -> bool:
    """Returns whether scorer processes are without a network on this system, by trying it in a process."""
    program = f"import sys; from {__name__} import leave_network; sys.exit(not leave_network())"
    return subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def allow_cpu(seconds: float) -> None:
    """Lets the system end this process after `seconds` more of CPU time, should nobody else do it."""
    limit = math.ceil(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _end_if_forbidden(event: str, arguments: tuple[Any, ...]) -> None:
    forbidden = event in _FORBIDDEN or event.startswith("socket.")
    if event == "open":
        # (path, mode, flags): flags are the system's, whichever call it was.
        forbidden = bool(arguments[2] & _WRITING)
    if forbidden:
        os._exit(EXIT_FORBIDDEN)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)
