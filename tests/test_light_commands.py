"""The commands that need no jax, as processes: relay, status, contribute."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from sapo_jax.tasks.catalog import resolve
from tests.e2e import runs
from tests.e2e.runs import Outcome

DEADLINE_S = 60.0


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", f"sapo_jax.{name}", *map(str, arguments)]


def call(name: str, *arguments: object, stdin: str = "") -> Outcome:
    with mock.patch.object(sys, "stdin", io.StringIO(stdin)):
        return runs.call(name, *arguments)


class Relay:
    """A relay process and what it has printed."""

    def __init__(self, workdir: Path, *arguments: object, listen: str = "127.0.0.1:0") -> None:
        self.workdir = workdir
        self.process = subprocess.Popen(
            command("relay", f"--workdir={workdir}", f"--listen={listen}", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first.startswith("relaying for swarm "), first + self.process.communicate()[1]
        self.swarm, self.address = first.split()[3], first.split()[5]

    @property
    def invite(self) -> Path:
        return self.workdir / "swarm" / "invite"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Sends a signal; returns exit code and stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors


@pytest.fixture
def relays():
    made: list[Relay] = []

    def make(*arguments, **options) -> Relay:
        made.append(Relay(*arguments, **options))
        return made[-1]

    yield make
    for relay in made:
        if relay.process.poll() is None:
            relay.process.kill()
            relay.process.communicate()


def wait_for_status(workdir: Path, text: str) -> str:
    end_s = time.monotonic() + DEADLINE_S
    while text not in (shown := call("status", f"--workdir={workdir}")).out:
        time.sleep(0.05)
        assert time.monotonic() < end_s, f"never said {text!r}; last: {shown.out}{shown.err}"
    return shown.out


def gcd_answer(seed: int) -> str:
    (digest,) = [specialty.digest for specialty in resolve("easy") if specialty.name == "gcd"]
    line = {"dataset": "gcd", "config_digest": digest, "seed": seed, "index": 0, "answer": "4"}
    return json.dumps(line) + "\n"


def test_answers_travel_from_a_contributor_over_two_relays(relays, tmp_path):
    first = relays(tmp_path / "first")
    second = relays(tmp_path / "second", f"--join={first.address}", f"--invite={first.invite}")
    assert second.swarm == first.swarm
    wait_for_status(second.workdir, "in touch with 1 peer")

    who = [f"--peer={first.address}", f"--invite={first.invite}", f"--workdir={tmp_path / 'me'}"]
    done = call("contribute", *who, "--answers=-", stdin=gcd_answer(1) + "\n" + gcd_answer(2))
    assert done.code == 0, done.err
    assert done.out.startswith("published 2 as ")
    wait_for_status(second.workdir, "the store holds 2 groups of 1 publisher")

    # What the swarm works on is asked first, then fresh questions of the same specialty.
    listed = call("contribute", *who[:2], f"--workdir={tmp_path / 'other'}", "--list", "--count=4")
    assert listed.code == 0, listed.err
    questions = [json.loads(line) for line in listed.out.splitlines()]
    assert len(questions) == 4 and {question["dataset"] for question in questions} == {"gcd"}
    assert 1 in {question["seed"] for question in questions}  # 2 is kept for evaluation
    assert all("Greatest Common Divisor" in question["question"] for question in questions)

    # At a terminal: an answer, a skip, the end.
    typed = call("contribute", *who[:2], f"--workdir={tmp_path / 'other'}", "--count=3", stdin="12\n\n")
    assert typed.code == 0, typed.err
    assert typed.out.count("Greatest Common Divisor") == 3 and "published 1 as " in typed.out
    table = wait_for_status(first.workdir, "the store holds 3 groups of 2 publishers")
    assert "calls us" in table and first.address in table

    code, errors = second.stop()
    assert (code, errors) == (0, "")
    assert call("status", f"--workdir={first.workdir}", "--drain").out.startswith("asked to stop\n")
    first.process.communicate(timeout=DEADLINE_S)
    assert first.process.returncode == 0
    gone = call("status", f"--workdir={first.workdir}")
    assert gone.code == 1 and gone.err.count("\n") == 1 and "no host of a swarm runs there" in gone.err


def test_a_killed_relay_is_the_same_host_again(relays, tmp_path):
    first = relays(tmp_path / "relay")
    me = [f"--invite={first.invite}", f"--workdir={tmp_path / 'me'}"]
    assert call("contribute", f"--peer={first.address}", *me, "--answers=-", stdin=gcd_answer(1)).code == 0
    first.stop(signal.SIGKILL)

    lost = call("contribute", f"--peer={first.address}", *me, "--answers=-", "--wait_s=1", stdin=gcd_answer(2))
    assert lost.code == 1 and "1 answers could not be handed over" in lost.err
    again = relays(tmp_path / "relay", listen=first.address)
    assert (again.swarm, again.address) == (first.swarm, first.address)
    kept = wait_for_status(again.workdir, "alone: ")
    assert "the store holds 1 group of 1 publisher" in kept
    done = call("contribute", f"--peer={first.address}", *me, "--answers=-", stdin=gcd_answer(3))
    assert done.code == 0, done.err
    wait_for_status(again.workdir, "the store holds 3 groups of 1 publisher")


@pytest.mark.parametrize(
    ("name", "arguments", "code", "message"),
    [
        ("relay", ["--listen=127.0.0.1:0"], 2, "--workdir is required"),
        ("relay", ["--workdir={tmp}", "--listen=nowhere"], 2, "address 'nowhere' must have the form host:port"),
        ("relay", ["--workdir={tmp}", "--listen=127.0.0.1:0", "--join=127.0.0.1:1"], 2, "needs the --invite"),
        ("relay", ["--workdir={tmp}", "--listen=127.0.0.1:0", "--invite={tmp}/none"], 2, "does not exist"),
        ("relay", ["--workdir={tmp}", "--listen=0.0.0.0:0", "--insecure_loopback"], 2, "in plain text is refused"),
        ("relay", ["--workdir={tmp}", "--listen=127.0.0.1:0", "surplus"], 2, "unexpected argument 'surplus'"),
        ("status", ["--workdir={tmp}"], 1, "no host of a swarm runs there"),
        ("contribute", [], 2, "--peer is required"),
        ("contribute", ["--peer=127.0.0.1:1", "--workdir={tmp}"], 2, "needs the --invite"),
        (
            "contribute",
            ["--peer=127.0.0.1:1", "--workdir={tmp}", "--insecure_loopback", "--answers={tmp}/bad.jsonl"],
            2,
            "bad.jsonl, line 2: must be a JSON object with 'dataset'",
        ),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(tmp_path, name, arguments, code, message):
    (tmp_path / "bad.jsonl").write_text("\n[]\n")
    result = call(name, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.code == code, result.err
    assert message in result.err and result.err.startswith("error: ") and result.err.count("\n") == 1


def test_one_workdir_is_for_one_process(relays, tmp_path):
    first = relays(tmp_path / "relay")
    result = call("relay", f"--workdir={first.workdir}", "--listen=127.0.0.1:0")
    assert result.code == 1 and "in use" in result.err and result.err.count("\n") == 1
    assert call("status", f"--workdir={first.workdir}").code == 0  # the first one is still there


def test_help_says_what_a_command_is_for():
    result = subprocess.run(command("relay", "--help"), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert result.returncode == 0 and result.stdout.startswith("Runs a host that only keeps and passes on groups")
    assert "--listen: HOST:PORT" in result.stdout
