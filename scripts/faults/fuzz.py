"""Fuzzes a host: a million messages through its handlers in two processes, and a share over real connections.

A message is one signed group or peer record, or a request without any. Most are valid but for one rule
and signed again, so that they get as far as that rule. What must come of each is known beforehand,
except for damaged bytes, of which it is enough that they are refused for a documented reason or
taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from sapo_jax.swarm.wire.errors import WireReason
from scripts.faults import fuzz_abuse, fuzz_calls, fuzz_server
from scripts.faults.figures import ROOT, Figure, Setting
from scripts.faults.fuzz_calls import Caller, CallTally
from scripts.faults.fuzz_worker import read_current
from scripts.faults.process_samples import peak_mib
from scripts.faults.request_fuzz import RequestFuzz, crafted_requests
from scripts.faults.wire_fuzz import valid_case

WORKER = (sys.executable, "-m", "scripts.faults.fuzz_worker")
WORKERS = 2
MESSAGES = 1_000_000  # through the handlers; what goes over connections comes on top
CALLS = 25_000  # over connections
LEAST_HITS = 1_000  # of every reason to refuse
_PROGRESS_S = 15.0

# Reasons that no call is ever refused for, and why.
NOT_ANSWERED: Mapping[WireReason, str] = {
    WireReason.UNKNOWN_TASK: "shows when a group is verified, long after the answer",
    WireReason.INTERNAL: "is a defect, counted as an undocumented status",
}
# Reasons that lie in the host and not in the message: it was put into that state.
OF_THE_HOST = (
    WireReason.STARTING,
    WireReason.DRAINING,
    WireReason.STORE_FULL,
    WireReason.QUEUE_FULL,
    WireReason.STORE_BUSY,
    WireReason.DATA_LOSS,
)


@dataclass(kw_only=True)
class Found:
    """What the processes found, added up."""

    counts: Counter[str]
    reasons: Counter[str]
    kept: list[str]
    exits: list[str]  # processes that ended by themselves, and how


def measure(setting: Setting) -> list[Figure]:
    """Fuzzes in two processes and, meanwhile, over connections to a third."""
    found = Found(counts=Counter(), reasons=Counter(), kept=[], exits=[])
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(setting, i)) for i in range(WORKERS)]
        wire = asyncio.run(_beside(workers, setting, found))
        for worker in workers:
            worker.collect(found)
    return figures(setting, found, wire)


class Worker:
    """One fuzzing process."""

    def __init__(self, setting: Setting, number: int) -> None:
        """Prepares the process; the `with` statement starts it, and ends it if it still runs."""
        self._folder = setting.workdir / f"worker_{number}"
        self._folder.mkdir(parents=True)
        self._command = [
            *WORKER,
            f"--folder={self._folder}",
            f"--messages={setting.scaled(MESSAGES) // WORKERS + 1}",
            f"--seed={setting.seed * WORKERS + number}",
        ]
        self._process: subprocess.Popen[str] | None = None
        self._stderr: IO[str] | None = None

    def __enter__(self) -> Worker:
        self._stderr = (self._folder / "stderr.txt").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self._stderr, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._stderr is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def is_running(self) -> bool:
        """Returns whether it has not come to its end."""
        return self._process is not None and self._process.poll() is None

    def messages(self) -> int:
        """Returns how many messages it has sent so far."""
        return read_current(self._folder)[0]

    def collect(self, found: Found) -> None:
        """Waits for the end and adds up what it says; a process that ended otherwise leaves its last message."""
        assert self._process is not None
        output, _ = self._process.communicate()
        try:
            tally: dict[str, Any] = json.loads(output)
        except ValueError:
            tally = {}
        if self._process.returncode != 0 or not tally:
            messages, name, body = read_current(self._folder)
            path = self._folder / "last_message.txt"
            path.write_text(f"{name}\n{body.hex()}\n", encoding="utf-8")
            found.kept.append(str(path))
            found.exits.append(f"{self._folder.name} with code {self._process.returncode} at {name[:100]!r}")
            found.counts["messages"] += messages
            return
        found.reasons.update(tally.pop("reasons"))
        found.kept += tally.pop("kept")
        found.counts.update({name: value for name, value in tally.items() if isinstance(value, int)})


async def _beside(workers: Sequence[Worker], setting: Setting, found: Found) -> CallTally:
    """Fuzzes over connections while the workers work; returns when all have come to their end."""
    progress = asyncio.create_task(_tell(workers, setting))
    try:
        tally = await over_connections(setting, found)
        while any(worker.is_running() for worker in workers):
            await asyncio.sleep(0.2)
    finally:
        progress.cancel()
    return tally


async def _tell(workers: Sequence[Worker], setting: Setting) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_S)
        setting.say(f"{sum(worker.messages() for worker in workers):,} messages through the handlers")


async def over_connections(setting: Setting, found: Found) -> CallTally:
    """Fuzzes a serving process over connections; it must be there, and well, in the end."""
    folder = setting.workdir / "server"
    folder.mkdir(parents=True)
    rng = random.Random(f"calls {setting.seed}")
    fuzz = RequestFuzz(rng, epoch="", with_damaged_records=False)
    with fuzz_server.served(folder, banned=fuzz.banned.node_id) as server:
        fuzz.epoch = server.epoch
        async with Caller(server, setting.workdir) as caller:
            attack = asyncio.ensure_future(_attack(caller, fuzz, rng, setting, found))
            end = asyncio.ensure_future(_end_of(server))
            await asyncio.wait({attack, end}, return_when=asyncio.FIRST_COMPLETED)
            for task in (attack, end):
                task.cancel()
            await asyncio.gather(end, return_exceptions=True)
            with contextlib.suppress(asyncio.CancelledError):
                await attack
            setting.say(f"{caller.tally.calls:,} calls over connections are through")
        if not server.is_alive():
            found.exits.append(f"the server with code {server.process.returncode}")
        found.counts["server_mib"] = round(peak_mib(server.process.pid)) if server.is_alive() else 0
    if server.process.returncode != 0 and server.is_asked:
        found.exits.append(f"the server, when it was asked to stop, with code {server.process.returncode}")
    found.counts["unhandled"] += len(server.defects())
    return caller.tally


async def _attack(caller: Caller, fuzz: RequestFuzz, rng: random.Random, setting: Setting, found: Found) -> None:
    crafted = list(crafted_requests(fuzz, rng, caller.server.epoch, fuzz.publishers[0]))
    await fuzz_calls.send_all(caller, crafted)
    found.counts["crafted"] += len(crafted)
    found.counts["crafted_wrong"] += caller.tally.wrong + caller.tally.undocumented
    setting.say("crafted calls are through; fuzzed ones, abuse and silence follow")
    await asyncio.gather(
        fuzz_calls.fuzz(caller, fuzz, setting.scaled(CALLS)),
        fuzz_abuse.abuse(caller, random.Random(f"abuse {setting.seed}"), setting.scaled),
    )
    await fuzz_abuse.stall(caller, setting.scaled(LEAST_HITS))  # last: it takes places that others want
    # The host still takes in what is right.
    await fuzz_calls.send_all(caller, [fuzz.publish([valid_case(rng, fuzz.publishers[0])])])


async def _end_of(server: fuzz_server.Server) -> None:
    while server.is_alive():
        await asyncio.sleep(0.5)


def figures(setting: Setting, found: Found, wire: CallTally) -> list[Figure]:
    """Returns what is held against the targets."""
    counts = found.counts
    kept = found.kept + wire.kept
    where = f"; see {', '.join(kept[:3])}" if kept else ""
    messages = counts["messages"] + wire.messages
    resigned = counts["resigned"] + wire.resigned
    reasons = found.reasons + wire.reasons
    judged = [reason for reason in WireReason if reason not in NOT_ANSWERED]
    rarest = min(judged, key=lambda reason: reasons[reason.value])
    by_host = ", ".join(reason.value for reason in OF_THE_HOST)
    never = ", ".join(f"{reason.value} ({why})" for reason, why in NOT_ANSWERED.items())
    over = f"{wire.calls:,} calls ({wire.abuses:,} of them abuse) over TLS, seed {setting.seed}"
    return [
        Figure(
            name="messages fuzzed",
            value=messages,
            at_least=setting.scaled(MESSAGES),
            detail=f"{counts['messages']:,} in {counts['calls']:,} calls of the handlers, {wire.messages:,} in {over}; "
            f"{counts['responses']:,} damaged answers beside them",
        ),
        Figure(name="share validly signed again", value=resigned / max(1, messages), at_least=0.5),
        Figure(
            name="processes that exited",
            value=len(found.exits),
            at_least=0,
            at_most=0,
            detail="; ".join(found.exits) or f"of {WORKERS + 1}; the server used {counts['server_mib']} MiB at most",
        ),
        Figure(
            name="unhandled exceptions",
            value=counts["unhandled"],
            at_least=0,
            at_most=0,
            detail=f"in handlers, client decoders and the server's log{where}",
        ),
        Figure(
            name="messages with another outcome than their case demands",
            value=counts["wrong"] + wire.wrong,
            at_least=0,
            at_most=0,
            detail=f"{len(judged)} reasons told apart{where}",
        ),
        Figure(
            name="statuses outside the documented set",
            value=counts["undocumented"] + wire.undocumented,
            at_least=0,
            at_most=0,
            detail=f"UNKNOWN and INTERNAL among them; seen over TLS: {_list(wire.codes)}{where}",
        ),
        Figure(
            name="least hits over all reasons to refuse",
            value=reasons[rarest.value],
            at_least=setting.scaled(LEAST_HITS),
            detail=f"{rarest.value}; {len(judged)} reasons, {by_host} by putting the host into that state; never an "
            f"answer: {never}",
        ),
        Figure(
            name="calls without an answer within their deadline",
            value=wire.late,
            detail=f"of {wire.calls:,}; callers wait up to 14 s; {wire.busy:,} found no place and were made again",
        ),
        Figure(
            name="crafted corpus, cases",
            value=counts["crafted"],
            detail="each rule of a field, payload, envelope, record and call, in each process",
        ),
        Figure(
            name="crafted corpus, cases with a wrong outcome",
            value=counts["crafted_wrong"],
            at_least=0,
            at_most=0,
            detail=where.removeprefix("; "),
        ),
    ]


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
