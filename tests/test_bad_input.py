"""What goes wrong around a swarm: one line that names the thing, the agreed exit code, and nothing lost.

Exit codes: 1 for files, disk and network, 2 for what the command line asks.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from sapo_jax.metrics import read_metrics
from sapo_jax.swarm.calls.certificate import HostCertificate
from sapo_jax.swarm.calls.invite import Invite
from sapo_jax.swarm.calls.trust import CERTIFICATE_FILE, TOKEN_FILE
from sapo_jax.swarm.mesh.joining import INVITE_FILE, SWARM_DIRECTORY, SWARM_ID_FILE, plan_joining
from sapo_jax.swarm.mesh.network_host import STORE_FILE
from sapo_jax.workdir import METRICS_FILE
from tests.e2e import runs
from tests.e2e.runs import ROOT, Outcome, tiny
from tests.small_disk import fill, small_disk

NOW = datetime.datetime.now(datetime.UTC)
LONG_AGO = NOW - datetime.timedelta(days=4000)
KEYS = {"main": "node-0.key", "relay": "relay.key", "contribute": "contributor.key"}
COMMANDS = tuple(KEYS)
DEADLINE_S = 120.0


def call(command: str, workdir: Path, *arguments: object, stdin: str = "") -> Outcome:
    """Runs a command that takes part in a swarm, with what it needs besides `arguments`."""
    given = [str(argument) for argument in arguments]

    def default(flag: str, value: str) -> list[str]:
        return [] if any(argument.startswith(flag) for argument in given) else [f"{flag}={value}"]

    if command == "main":
        own = [*tiny(workdir, "--config.nodes=1", "--config.cold_start.steps=0", "--config.rounds=1")]
        own += default("--listen", "127.0.0.1:0")
    else:
        own = [f"--workdir={workdir}"]
        own += default("--listen", "127.0.0.1:0") if command == "relay" else default("--peer", "127.0.0.1:1")
        own += ["--answers=-"] if command == "contribute" else []
    with mock.patch.object(sys, "stdin", io.StringIO(stdin)):
        return runs.call(command, *own, *given)


def fails(outcome: Outcome, code: int, *parts: object) -> None:
    """Asserts one line on stderr with all of `parts` in it."""
    assert outcome.code == code, outcome
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert all(str(part) in outcome.err for part in parts), (outcome.err, parts)


def content_of(directory: Path) -> dict[str, bytes]:
    """Returns every file below `directory`, but the store, which counts its starts."""
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not path.name.startswith(STORE_FILE)}


def member(command: str, workdir: Path, invite: Path | None = None) -> Path:
    """Makes the files of a host that has taken part before; returns their directory."""
    joining = plan_joining(workdir, invite_path=invite, now=NOW)
    joining.identity(KEYS[command].removesuffix(".key"))
    return joining.directory


@pytest.fixture
def invite(tmp_path: Path) -> Path:
    """An invite to a host that is not there."""
    path = tmp_path / "given_invite"
    certificate = HostCertificate.generate(NOW).der
    Invite(swarm_id="garden", token="t" * 40, addresses=("127.0.0.1:1",), certificate=certificate).save(path)
    return path


# Address in use.


@pytest.mark.parametrize(("command", "flag"), [("main", "--listen"), ("relay", "--listen"), ("relay", "--metrics")])
def test_an_address_in_use(tmp_path: Path, command: str, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        before = content_of(member(command, tmp_path))
        outcome = call(command, tmp_path, f"{flag}={address}")
    if flag == "--listen":
        fails(outcome, 1, f"error: cannot listen on {address}: address already in use\n")
    else:
        fails(outcome, 2, address, "in use")
    after = content_of(tmp_path / SWARM_DIRECTORY)
    assert before.items() <= after.items()


# Keys and other secrets that cannot be read.


def spoil_content(path: Path) -> None:
    path.unlink()
    path.write_text("not what belongs here")
    path.chmod(0o600)


def spoil_kind(path: Path) -> None:
    path.unlink()
    path.mkdir()


def spoil_mode(path: Path) -> None:
    path.chmod(0o644)


def spoil_length(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


SPOIL = {"content": spoil_content, "directory": spoil_kind, "open to others": spoil_mode, "cut": spoil_length}
SECRETS = {"key": "", "certificate": CERTIFICATE_FILE, "token": TOKEN_FILE}


# A shorter token is another token, and the training command shares its code with the relay but is slow to start.
CASES = [
    (command, what, how)
    for command in COMMANDS
    for what in SECRETS
    for how in SPOIL
    if (what, how) != ("token", "cut") and (command != "main" or (what, how) == ("key", "content"))
]


def forms_of(secret: bytes) -> tuple[bytes, bytes, bytes]:
    """Returns what a log or a message might hold of it."""
    return secret, secret.hex().encode(), repr(secret)[2:-1].encode()


@pytest.mark.parametrize(("command", "what", "how"), CASES)
def test_t19_a_secret_that_cannot_be_used_is_named_and_left_alone(
    tmp_path: Path, invite: Path, command: str, what: str, how: str
) -> None:
    directory = member(command, tmp_path / "run", invite)
    path = directory / (SECRETS[what] or KEYS[command])
    whole = path.read_bytes()
    # What a cut leaves: most of a key or token, and of a certificate's file the first line of its private key.
    secret = whole.splitlines()[1] if what == "certificate" else whole[-32:-5]
    SPOIL[how](path)
    before = content_of(directory)
    outcome = call(command, tmp_path / "run", f"--invite={invite}")
    fails(outcome, 1, path)
    assert content_of(directory) == before
    said = (outcome.err + outcome.out).encode(errors="surrogateescape")
    assert not any(form in said for form in forms_of(secret))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_swarm_id_file_without_a_swarm_id(tmp_path: Path, invite: Path, command: str) -> None:
    path = member(command, tmp_path, invite) / SWARM_ID_FILE
    path.write_text("\x1b[31m")
    fails(call(command, tmp_path, f"--invite={invite}"), 1, path, "holds no swarm id")


# Certificates outside their time.


@pytest.mark.parametrize("command", COMMANDS)
def test_an_expired_certificate_of_this_host(tmp_path: Path, invite: Path, command: str) -> None:
    path = member(command, tmp_path, invite) / CERTIFICATE_FILE
    old = HostCertificate.generate(LONG_AGO)
    path.write_bytes(old.key_pem + old.certificate_pem)
    fails(call(command, tmp_path, f"--invite={invite}"), 1, path, "the certificate expired on ")
    assert path.read_bytes() == old.key_pem + old.certificate_pem


@pytest.mark.parametrize("command", COMMANDS)
def test_an_expired_invite(tmp_path: Path, command: str) -> None:
    path = tmp_path / "old_invite"
    certificate = HostCertificate.generate(LONG_AGO).der
    Invite(swarm_id="garden", token="t" * 40, addresses=("127.0.0.1:1",), certificate=certificate).save(path)
    outcome = call(command, tmp_path / "run", f"--invite={path}")
    fails(outcome, 2, path, "the certificate expired on ", "ask its host for a new invite")
    assert not (tmp_path / "run" / SWARM_DIRECTORY).exists()


# Another swarm.


@pytest.mark.parametrize("command", COMMANDS)
def test_an_invite_to_another_swarm(tmp_path: Path, invite: Path, command: str) -> None:
    directory = member(command, tmp_path / "run")
    before = content_of(directory)
    fails(call(command, tmp_path / "run", f"--invite={invite}"), 2, directory, "another swarm")
    assert content_of(directory) == before


@pytest.mark.parametrize("command", ["main", "relay"])
def test_another_swarm_id(tmp_path: Path, invite: Path, command: str) -> None:
    directory = member(command, tmp_path / "run", invite)
    before = content_of(directory)
    outcome = call(command, tmp_path / "run", "--swarm_id=orchard")
    fails(outcome, 2, tmp_path / "run", "belongs to swarm garden, not orchard")
    fails(
        call(command, tmp_path / "run", "--swarm_id=orchard", f"--invite={invite}"), 2, "--swarm_id=orchard", "garden"
    )
    fails(call(command, tmp_path / "new", "--swarm_id=a b"), 2, "--swarm_id='a b'", "1 to 64 letters")
    assert content_of(directory) == before


# Addresses that no peer could dial.


@pytest.mark.parametrize(
    ("addresses", "limit"), [("nowhere", "must be host:port"), (",".join(["10.0.0.1:5"] * 9), "at most 8")]
)
def test_an_advertised_address_that_cannot_be_dialed(tmp_path: Path, addresses: str, limit: str) -> None:
    outcome = call("relay", tmp_path / "run", f"--advertise={addresses}")
    fails(outcome, 2, f"--advertise={addresses}: ", limit)
    assert not (tmp_path / "run" / SWARM_DIRECTORY).exists()


# A catalog that nobody knows.


def test_an_unknown_catalog(tmp_path: Path) -> None:
    outcome = call("main", tmp_path / "run", "--config.tasks.catalog=nope")
    fails(outcome, 2, "config.tasks.catalog = 'nope'")


class Relay:
    """A relay in a process of its own."""

    def __init__(self, workdir: Path, *arguments: object) -> None:
        self.workdir = workdir
        command = [sys.executable, "-W", "error", "-m", "sapo_jax.relay", f"--workdir={workdir}"]
        self.process = subprocess.Popen(
            [*command, "--listen=127.0.0.1:0", *map(str, arguments)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        assert self.said.startswith("relaying for swarm "), self.process.communicate()
        self.address = self.said.split()[5]

    @property
    def invite(self) -> Path:
        return self.workdir / SWARM_DIRECTORY / INVITE_FILE

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=DEADLINE_S)
        self.said += out
        return self.process.returncode, err


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    made = Relay(tmp_path / "relay")
    yield made
    made.process.kill()
    made.process.communicate()


def answer(**changes: object) -> str:
    line = {"dataset": "gcd", "config_digest": "ab" * 32, "seed": 1, "index": 0, "answer": "4"}
    return json.dumps(line | changes) + "\n"


def test_a_swarm_whose_catalog_a_contributor_does_not_know(tmp_path: Path, relay: Relay) -> None:
    who = (f"--peer={relay.address}", f"--invite={relay.invite}")
    outcome = call("contribute", tmp_path / "me", *who, "--answers=", "--list")
    fails(outcome, 1, relay.address, "names 0 specialties and holds 0 groups", "knows none of their tasks")
    # An answer to a task of theirs all the same: it is kept and handed on, since the relay judges nothing.
    assert call("contribute", tmp_path / "me", *who, stdin=answer()).code == 0
    outcome = call("contribute", tmp_path / "me", *who, "--answers=", "--list")
    fails(outcome, 1, "names 0 specialties", "knows none of their tasks")


def test_what_an_operator_asks_of_a_host_and_cannot_have(tmp_path: Path, relay: Relay) -> None:
    for flag in ("--ban=nobody", "--unban=nobody"):
        fails(runs.call("status", f"--workdir={relay.workdir}", flag), 1, "node_id: ")
    fails(runs.call("status", f"--workdir={tmp_path / 'nowhere'}"), 1, tmp_path / "nowhere")
    fails(runs.call("status", f"--workdir={relay.workdir}", "--ban_hours=0"), 2, "ban_hours")
    fails(runs.call("status"), 2, "--workdir is required")
    # A socket that nobody listens at any more.
    relay.process.kill()
    relay.process.communicate()
    fails(runs.call("status", f"--workdir={relay.workdir}"), 1, relay.workdir, "no host of a swarm runs there")


# A full disk.


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("is_new", [True, False], ids=["first start", "later start"])
def test_t18_a_full_disk_at_the_start(tmp_path: Path, invite: Path, command: str, is_new: bool) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        workdir = disk / "run"
        workdir.mkdir()
        if not is_new:
            member(command, workdir, invite)
        fill(disk)
        before = content_of(workdir)
        outcome = call(command, workdir, f"--invite={invite}", stdin=answer())
        # A workdir that cannot be used is a matter of the command line, a store is one of the disk.
        fails(outcome, 2 if command == "main" else 1, workdir, "o space left" if is_new else "")
        after = content_of(workdir)
        assert before.items() <= after.items() and not any(after[name] for name in after.keys() - before.keys())


def test_t18_on_a_nearly_full_disk_a_node_trains_on_alone(tmp_path: Path) -> None:
    """Less is left than the reserve: own groups are counted as unpublished, and the run ends as always."""
    with small_disk(tmp_path / "disk", 48 * 1024) as disk:
        workdir = disk / "run"
        outcome = call("main", workdir, "--insecure_loopback")
        assert outcome.code == 0, outcome
        records = [record for record in read_metrics(workdir / METRICS_FILE) if record.node is None]
        assert max(record.metrics.get("groups/unpublished", 0) for record in records) > 0
        assert max(record.round for record in records) == 1


def test_t18_a_contributors_answer_on_a_nearly_full_disk_is_said_to_be_lost(tmp_path: Path, relay: Relay) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        who = (f"--peer={relay.address}", f"--invite={relay.invite}")
        outcome = call("contribute", disk / "me", *who, stdin=answer())
        fails(outcome, 1, disk / "me", "bytes are left on the disk")


# Secrets.


def test_t19_no_secret_leaves_the_files_it_belongs_to(tmp_path: Path, relay: Relay) -> None:
    """Process list, what is printed, status and every other file, of three hosts that talk to each other."""
    second = Relay(tmp_path / "second", f"--invite={relay.invite}")
    try:
        arguments = "\0".join(
            (Path("/proc") / str(host.process.pid) / "cmdline").read_text() for host in (relay, second)
        )
        who = (f"--peer={relay.address}", f"--invite={relay.invite}")
        contributed = call("contribute", tmp_path / "me", *who, stdin=answer())
        assert contributed.code == 0, contributed
        end_s = time.monotonic() + DEADLINE_S
        while "in touch" not in (shown := runs.call("status", f"--workdir={second.workdir}")).out:
            assert time.monotonic() < end_s, shown
        wrong = tmp_path / "wrong_invite"
        wrong.write_text(relay.invite.read_text()[:-2])
        wrong.chmod(0o600)
        refused = call("relay", tmp_path / "third", f"--invite={wrong}")
        fails(refused, 2, wrong)
    finally:
        ends = [second.stop(), relay.stop()]
    assert [code for code, _ in ends] == [0, 0]
    texts = [arguments, *contributed[1:], *shown[1:], *refused[1:], relay.said, second.said, *(err for _, err in ends)]
    secrets: dict[str, bytes] = {"token": (relay.workdir / SWARM_DIRECTORY / TOKEN_FILE).read_bytes().strip()}
    private: set[Path] = set()
    for workdir in (relay.workdir, second.workdir, tmp_path / "me"):
        directory = workdir / SWARM_DIRECTORY
        private |= {directory / TOKEN_FILE, directory / CERTIFICATE_FILE, directory / INVITE_FILE}
        pem = (directory / CERTIFICATE_FILE).read_bytes()
        secrets[f"TLS key of {workdir.name}"] = pem.splitlines()[1]
        (key,) = directory.glob("*.key")
        private.add(key)
        secrets[f"key of {workdir.name}"] = key.read_bytes()[-32:]
    for name, secret in secrets.items():
        forms = forms_of(secret)
        for text in texts:
            assert not any(form in text.encode(errors="surrogateescape") for form in forms), name
        for path in tmp_path.rglob("*"):
            if path.is_file() and path not in private and path.name != "wrong_invite":
                assert not any(form in path.read_bytes() for form in forms), (name, path)
    for path in private:
        assert not path.exists() or path.stat().st_mode & 0o777 == 0o600, path


# The launcher.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file: "),
        ("HOSTS = (", "its HOSTS cannot be read"),
        ("HOSTS = tuple(range(3))", "its HOSTS cannot be read"),
        ("HOSTS = 3", "its HOSTS cannot be read"),
    ],
)
def test_a_file_that_the_launcher_cannot_read(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "hosts.py"
    if text is not None:
        path.write_text(text)
    fails(launch(f"--configs={path}", f"--workdir={tmp_path / 'swarm'}"), 2, message, path)
    assert not (tmp_path / "swarm").exists()


def launch(*arguments: object) -> Outcome:
    """Runs the launcher inside this process."""
    path, out, err = str(ROOT / "scripts" / "launch_swarm.py"), io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [path, *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        runpy.run_path(path, run_name="__main__")
    assert isinstance(caught.value.code, int)
    return Outcome(caught.value.code, out.getvalue(), err.getvalue())


def test_what_the_launcher_is_asked_and_cannot_do(tmp_path: Path) -> None:
    config = f"{ROOT}/configs/tiny.py"
    fails(launch(f"--configs={config}"), 2, "--workdir")
    fails(launch(f"--configs={config}", "--workdir=x", "--surplus=1"), 2, "--surplus=1")
    (tmp_path / "file").write_text("kept")
    fails(launch(f"--configs={config}", f"--workdir={tmp_path / 'file'}"), 1, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_the_launcher_says_what_its_first_host_said(tmp_path: Path) -> None:
    """In a process of its own, since it starts one, and this one may have threads."""
    script, config = ROOT / "scripts" / "launch_swarm.py", ROOT / "configs" / "tiny.py"
    done = subprocess.run(
        [sys.executable, script, f"--configs={config}", f"--workdir={tmp_path}", "--", "--config.no.such=1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=DEADLINE_S,
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    fails(outcome, 1, "tiny ended before it listened", "config.no", "unknown key", tmp_path)
