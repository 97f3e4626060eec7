"""What a confined process can no longer do. All attempts are made in forks of one process, which imports once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sapo_jax.tasks.confinement import EXIT_FORBIDDEN, can_leave_network

FORBIDDEN = {
    "open for writing": "open(target, 'w')",
    "open for appending": "open(target, 'ab')",
    "os.open": "os.open(target, os.O_CREAT | os.O_WRONLY)",
    "an existing file": "open(present, 'r+')",
    "pathlib": "pathlib.Path(target).write_text('x')",
    "touch": "pathlib.Path(target).touch()",
    "temporary file": "tempfile.mkstemp()",
    "mkdir": "os.mkdir(target)",
    "remove": "os.remove(present)",
    "rename": "os.rename(present, target)",
    "truncate": "os.truncate(present, 0)",
    "chmod": "os.chmod(present, 0o777)",
    "symlink": "os.symlink(present, target)",
    "sqlite": "sqlite3.connect(target)",
    "socket": "socket.socket()",
    "name lookup": "socket.getaddrinfo('localhost', 80)",
    "os.system": "os.system(f'touch {target}')",
    "subprocess": "subprocess.run(['touch', target])",
    "popen": "os.popen(f'touch {target}').read()",
    "fork": "os.fork()",
    "exec": "os.execv('/bin/sh', ['sh', '-c', f'touch {target}'])",
    "posix_spawn": "os.posix_spawn('/bin/sh', ['sh', '-c', f'touch {target}'], {})",
    "kill": "os.kill(os.getppid(), 0)",
    "a native library": "ctypes.CDLL('libm.so.6')",
}
FAILING = {
    "memory": "bytearray(1 << 32)",
    "files": "[open(os.devnull) for _ in range(200)]",
}
ALLOWED = {
    "reading": "open(present).read()",
    "a lazy import": "import colorsys, wave",
    "a lazy import without bytecode": "sys.path.insert(0, folder); import fresh_module",
    "printing": "print('x')",
    "computing": "sum(range(1000))",
}

SCRIPT = """
import ctypes, json, os, pathlib, socket, sqlite3, subprocess, sys, tempfile
from sapo_jax.tasks.confinement import confine

attempts, folder, target, present = json.loads(sys.argv[1]), *sys.argv[2:]
ends = {}
for name, code in attempts.items():
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        confine()
        try:
            exec(code)
        except (MemoryError, OSError):
            os._exit(1)
        os._exit(7)
    _, status = os.waitpid(child, 0)
    ends[name] = os.waitstatus_to_exitcode(status)
print(json.dumps(ends))
"""
FAILED, SUCCEEDED = 1, 7


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Exit codes of the attempts, by name; makes sure that none of them left anything."""
    folder = tmp_path_factory.mktemp("confined")
    (folder / "present").write_text("as it was")
    (folder / "fresh_module.py").write_text("")
    attempts = json.dumps(FORBIDDEN | FAILING | ALLOWED)
    paths = [str(path) for path in (folder, folder / "target", folder / "present")]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, attempts, *paths], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["fresh_module.py", "present"]
    assert (folder / "present").read_text() == "as it was"
    return json.loads(result.stdout)


@pytest.mark.parametrize("attempt", FORBIDDEN)
def test_t4_side_effects_end_the_process(ends: dict[str, int], attempt: str):
    assert ends[attempt] == EXIT_FORBIDDEN


@pytest.mark.parametrize("attempt", FAILING)
def test_t4_t5_what_goes_beyond_the_limits_fails(ends: dict[str, int], attempt: str):
    if sys.platform != "linux" and attempt == "memory":
        pytest.skip("only Linux enforces the limit on address space")
    assert ends[attempt] == FAILED


@pytest.mark.parametrize("attempt", ALLOWED)
def test_what_scorers_need_still_works(ends: dict[str, int], attempt: str):
    assert ends[attempt] == SUCCEEDED


OFFLINE = """
import os, socket, sys
from sapo_jax.tasks.confinement import leave_network

port, user = map(int, sys.argv[1:])
if user != os.geteuid():
    os.setuid(user)
if not leave_network():
    sys.exit(3)
open(os.__file__).close()  # what could be read still can
try:
    socket.create_connection(("127.0.0.1", port), 5)
except OSError:
    sys.exit(0)
sys.exit("connected")
"""
NOBODY = 65534


@pytest.mark.parametrize("user", sorted({os.geteuid(), NOBODY}))
def test_t4_a_process_that_left_the_network_reaches_nobody(user: int):
    if user != os.geteuid() and os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", OFFLINE, str(server.getsockname()[1]), str(user)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if result.returncode == 3:
        pytest.skip("this system does not let processes leave the network")
    assert result.returncode == 0, result.stderr


def test_whether_processes_can_leave_the_network_is_told_without_leaving_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", OFFLINE, str(server.getsockname()[1]), str(os.geteuid())]
        left = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2]).returncode == 0
        assert can_leave_network() is left
        socket.create_connection(server.getsockname(), 5).close()
