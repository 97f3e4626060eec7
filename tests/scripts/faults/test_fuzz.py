from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter

import pytest

from sapo_jax.swarm.calls.service import ExchangeService
from sapo_jax.swarm.wire import group_codec
from sapo_jax.swarm.wire.errors import WireReason
from scripts.faults import fuzz, fuzz_abuse, fuzz_calls, fuzz_server
from scripts.faults.figures import Setting
from scripts.faults.fuzz_calls import Caller
from scripts.faults.fuzz_worker import CURRENT_FILE, Worker, read_current
from scripts.faults.request_fuzz import RequestFuzz, crafted_requests, simple_request

# Those that the handlers alone can show; the others are the pipeline's.
OF_CALLS = {
    WireReason.UNAUTHENTICATED,
    WireReason.NOT_ALLOWED,
    WireReason.NO_DEADLINE,
    WireReason.CONCURRENCY,
    WireReason.UNSUPPORTED_VERSION,
    WireReason.TIMEOUT,
    WireReason.NOT_IMPLEMENTED,
}


@pytest.fixture
def worker(tmp_path):
    made = Worker(tmp_path, seed=0)
    yield made
    made.host.close()


def setting_of(tmp_path, scale=1e-3) -> Setting:
    return Setting(scale=scale, seed=0, workdir=tmp_path, say=lambda text: None)


def test_every_reason_is_met_and_every_outcome_is_as_expected(worker):
    worker.run(4_000)
    tally = worker.tally
    assert (tally.wrong, tally.unhandled, tally.undocumented, tally.crafted_wrong) == (0, 0, 0, 0), tally.kept
    assert tally.resigned > 0.5 * tally.messages >= 2_000
    assert tally.crafted >= 60
    expected = set(WireReason) - OF_CALLS - set(fuzz.NOT_ANSWERED)
    assert set(tally.reasons) == {reason.value for reason in expected}
    assert min(tally.outcomes[outcome] for outcome in ("accepted", "duplicate", "rejected")) > 0


def test_a_seed_brings_the_same_messages_back(tmp_path):
    bodies = []
    for _ in range(2):
        requests = RequestFuzz(random.Random(7), epoch="e")
        bodies.append([requests.next().body for _ in range(50)])
    assert bodies[0] == bodies[1]


def test_a_rule_that_is_not_checked_is_noticed_and_the_message_kept(worker, monkeypatch):
    monkeypatch.setattr(group_codec, "check_signature", lambda *_: None)
    worker.run(300)
    assert worker.tally.wrong > 0 and worker.tally.crafted_wrong > 0
    kept = (worker._folder / "offending_0.txt").read_text()
    assert "bad_signature" in kept.lower() and len(bytes.fromhex(kept.splitlines()[-1])) > 32


def test_an_exception_of_a_handler_is_noticed(worker, monkeypatch):
    def broken(self, request):
        raise KeyError("a defect")

    monkeypatch.setattr(ExchangeService, "get_groups", broken)
    worker.call(simple_request("get", random.Random(0), worker.host.store.epoch))
    assert worker.tally.unhandled == 1
    assert "a defect" in (worker._folder / "offending_0.txt").read_text()


def test_a_worker_that_crashes_leaves_its_last_message(tmp_path, monkeypatch):
    program = (
        "import os, pathlib, sys\n"
        "from scripts.faults.fuzz_worker import Worker\n"
        "from scripts.faults.request_fuzz import simple_request\n"
        "folder = pathlib.Path(sys.argv[1].partition('=')[2])\n"
        "worker = Worker(folder, 0)\n"
        "worker._note(simple_request('get 65', worker._rng, ''))\n"
        "os.abort()\n"
    )
    monkeypatch.setattr(fuzz, "WORKER", (sys.executable, "-c", program))
    found = fuzz.Found(counts=Counter(), reasons=Counter(), kept=[], exits=[])
    with fuzz.Worker(setting_of(tmp_path), 0) as process:
        process.collect(found)
    assert len(found.exits) == 1 and "get 65" in found.exits[0]
    folder = tmp_path / "worker_0"
    assert (folder / "last_message.txt").read_text().startswith("get 65\n0a20")
    assert read_current(folder)[1] == "get 65" and (folder / CURRENT_FILE).exists()
    figures = {figure.name: figure for figure in fuzz.figures(setting_of(tmp_path), found, fuzz_calls.CallTally())}
    assert not figures["processes that exited"].is_met


def test_calls_over_connections_end_as_expected_and_others_are_noticed(tmp_path):
    async def calls(server: fuzz_server.Server) -> None:
        async with Caller(server, tmp_path) as caller:
            requests.epoch = server.epoch
            await fuzz_calls.send_all(
                caller, list(crafted_requests(requests, rng, server.epoch, requests.publishers[0]))
            )
            await fuzz_calls.fuzz(caller, requests, 40)
            await fuzz_abuse.abuse(caller, rng, lambda count: 1)
            assert (caller.tally.wrong, caller.tally.undocumented) == (0, 0), caller.tally
            assert caller.tally.abuses == len(fuzz_abuse.ABUSES)
            await fuzz_calls.send_all(caller, [simple_request("info", rng, "") for _ in range(2)])
            wrong = simple_request("info cut off", rng, "")
            object.__setattr__(wrong, "expected", WireReason.FIELD)
            await fuzz_calls.send_all(caller, [wrong])
            assert caller.tally.wrong == 1 and "MALFORMED" in (tmp_path / "offending_call_0.txt").read_text()

    rng = random.Random(0)
    requests = RequestFuzz(rng, epoch="", with_damaged_records=False)
    folder = tmp_path / "server"
    folder.mkdir()
    with fuzz_server.served(folder, banned=requests.banned.node_id) as server:
        asyncio.run(calls(server))
        assert server.is_alive() and server.defects() == []
    assert server.process.returncode == 0


def test_a_server_that_is_gone_in_the_end_is_noticed(tmp_path, monkeypatch):
    async def kill(caller: Caller, *_: object) -> None:
        caller.server.process.kill()
        caller.server.process.wait()

    monkeypatch.setattr(fuzz, "_attack", kill)
    found = fuzz.Found(counts=Counter(), reasons=Counter(), kept=[], exits=[])
    asyncio.run(fuzz.over_connections(setting_of(tmp_path), found))
    assert found.exits == ["the server with code -9"]


@pytest.mark.slow
def test_a_small_run_meets_every_target(tmp_path):
    figures = fuzz.measure(setting_of(tmp_path, scale=0.02))
    assert all(figure.is_met for figure in figures), [figure for figure in figures if not figure.is_met]
    names = [figure.name for figure in figures]
    assert "messages fuzzed" in names and "least hits over all reasons to refuse" in names


def test_workers_can_be_started_as_programs():
    command = [*fuzz.WORKER, "--help"]
    assert subprocess.run(command, cwd=fuzz.ROOT, capture_output=True, check=False).returncode == 0
