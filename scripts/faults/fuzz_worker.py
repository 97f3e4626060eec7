"""Fuzzes the handlers of one host in this process: `python -m scripts.faults.fuzz_worker`, started by `fuzz` alone.

Each request goes through decoding, quotas, store and encoding, and what comes of it is held against
what the request says must come of it. The request at hand lies in a file that outlives a crash.
"""

from __future__ import annotations

import argparse
import json
import logging
import mmap
import random
import struct
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapo_jax.swarm.calls.status_codes import failure_of
from sapo_jax.swarm.wire.errors import STATUS_CODE, WireError, WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.group_calls_codec import (
    get_response_from_message,
    list_response_from_message,
    publish_response_from_message,
    sample_response_from_message,
)
from sapo_jax.swarm.wire.host_calls_codec import node_info_from_message, peers_response_from_message
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS
from sapo_jax.swarm.wire.parse import parse
from sapo_jax.swarm.wire.requests import PublishOutcome, PublishResult
from scripts.faults.fuzzed_host import FLOOD_PREFIX, Condition, FuzzedHost
from scripts.faults.request_fuzz import ANY, DUPLICATE, OPEN, Expected, Request, RequestFuzz, crafted_requests
from scripts.faults.wire_fuzz import damage

CURRENT_FILE = "current.bin"  # the request at hand: counts, then name and body
_CURRENT_BYTES = 6 * 2**20
_HEAD = struct.Struct("<QII")  # messages so far, bytes of the name, bytes of the body
MAX_KEPT = 20  # offending messages that are written to files

DOCUMENTED = frozenset(STATUS_CODE.values()) - {STATUS_CODE[WireReason.INTERNAL]}

CYCLE = 2_000  # calls; in each cycle the host goes once through all its conditions
_CONDITIONS = {  # condition -> its calls in a cycle
    Condition.STARTING: 40,
    Condition.DRAINING: 40,
    Condition.DISK_FULL: 60,
    Condition.QUEUE_FULL: 40,
    Condition.STORE_CLOSED: 40,
    Condition.STORE_DAMAGED: 60,
}
_FLOOD_CALLS, _FLOOD_GROUPS, _FLOOD_INFOS = 48, 8, 320
_CALL_S = 2.0  # between calls, so that none but floods meets a quota


@dataclass(kw_only=True)
class Tally:
    """What came of the messages so far."""

    messages: int = 0
    resigned: int = 0
    calls: int = 0
    unhandled: int = 0
    wrong: int = 0
    undocumented: int = 0
    responses: int = 0  # damaged answers that were given to the client's decoders
    crafted: int = 0
    crafted_wrong: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    kept: list[str] = field(default_factory=list)

    def to_json(self) -> Mapping[str, Any]:
        """Returns it JSON-ready."""
        return {**vars(self), "reasons": dict(self.reasons), "outcomes": dict(self.outcomes)}


def decoded(request: Request, response: bytes) -> tuple[PublishResult, ...]:
    """Checks a response as the client does; returns the results of a publication.

    Raises:
        WireError: a client of ours would not accept the response.
    """
    match request.rpc:
        case "PublishGroups":
            message = parse(pb.PublishGroupsResponse, response)
            asked = request.asked if request.expected == OPEN else len(message.results)
            return publish_response_from_message(message, asked=asked).results
        case "SampleGroups":
            sample_response_from_message(parse(pb.SampleGroupsResponse, response), asked=request.asked)
        case "ListGroups":
            list_response_from_message(parse(pb.ListGroupsResponse, response), asked=request.asked)
        case "GetGroups":
            get_response_from_message(parse(pb.GetGroupsResponse, response), asked=request.asked)
        case "GetNodeInfo":
            node_info_from_message(parse(pb.GetNodeInfoResponse, response))
        case _:
            peers_response_from_message(parse(pb.ExchangePeersResponse, response))
    return ()


def fits(expected: Expected, result: PublishResult) -> bool:
    """Returns whether the answer about one group is what was expected."""
    if result.reason is WireReason.INTERNAL:
        return False
    if expected == ANY:
        return True
    if expected == OPEN:
        return result.outcome is PublishOutcome.ACCEPTED
    if expected == DUPLICATE:
        return result.outcome is PublishOutcome.DUPLICATE
    return result.outcome is PublishOutcome.REJECTED and result.reason is expected


class Worker:
    """Owns a host and its fuzz."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self.host = FuzzedHost(folder, self._rng)
        self.fuzz = RequestFuzz(self._rng, epoch=self.host.store.epoch)
        self.host.scores.ban(self.fuzz.banned.node_id, 1e12)
        self.tally = Tally()
        with (folder / CURRENT_FILE).open("wb") as file:
            file.truncate(_CURRENT_BYTES)
        with (folder / CURRENT_FILE).open("r+b") as file:
            self._current = mmap.mmap(file.fileno(), _CURRENT_BYTES)

    def run(self, messages: int) -> None:
        """Fuzzes until that many messages are through, the crafted ones first."""
        for request in crafted_requests(self.fuzz, self._rng, self.host.store.epoch, self.fuzz.publishers[0]):
            wrong = self.tally.wrong + self.tally.unhandled + self.tally.undocumented
            self.call(request)
            self.tally.crafted += 1
            now_wrong = self.tally.wrong + self.tally.unhandled + self.tally.undocumented
            self.tally.crafted_wrong += now_wrong > wrong
        schedule = [condition for condition, calls in _CONDITIONS.items() for _ in range(calls)]
        schedule += [Condition.WELL] * (CYCLE - len(schedule))
        while self.tally.messages < messages:
            self._flood()
            for i in range(CYCLE):
                # The first calls find a well host, so that even a short run meets every condition.
                condition = schedule[i]
                if condition is not self.host.condition:
                    self.host.become(condition)
                self.host.now_s += _CALL_S
                self.call(self.fuzz.next())
                if self.tally.messages >= messages:
                    break
            self.host.become(Condition.WELL)
            self.host.now_s += self._rng.choice((0.0, 3600.0, 100_000.0))  # groups expire, ids are forgotten
            self.fuzz.forget()

    def call(self, request: Request, *, prefix: str = "", may_be_refused: WireReason | None = None) -> None:
        """Makes one call and judges what comes of it.

        Args:
            request: what is sent.
            prefix: the network that it comes from; empty: another one each time.
            may_be_refused: a reason that is as good as what the request expects.
        """
        tally = self.tally
        request = self.host.expectation(request)
        self._note(request)
        tally.calls += 1
        tally.messages += request.messages
        tally.resigned += request.resigned
        if not prefix:
            prefix = f"10.{tally.calls >> 8 & 0xFF}.{tally.calls & 0xFF}.0/24"
        try:
            response = self.host.answer(request, prefix)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._failed(request, error, may_be_refused)
            return
        try:
            results = decoded(request, response)
        except WireError as error:
            self._complain(request, f"the answer is nonsense: {error}")
            return
        tally.outcomes["answered"] += 1
        if request.expected not in (OPEN, ANY) or len(response) > DEFAULT_WIRE_LIMITS.max_message_bytes:
            self._complain(request, f"answered with {len(response)} bytes")
            return
        for i, result in enumerate(results):
            tally.outcomes[result.outcome.value] += 1
            if result.reason is not None:
                tally.reasons[result.reason.value] += 1
            expected = request.groups[i] if i < len(request.groups) else ANY
            if not fits(expected, result) and (may_be_refused is None or result.reason is not may_be_refused):
                self._complain(request, f"group {i} ({request.names[i]}): {result}, expected {expected}")
                return
        if self.host.condition is Condition.WELL:
            self.fuzz.went_through(request)
        if self._rng.random() < 0.05:
            self._answer_with(request, response)

    def _failed(self, request: Request, error: BaseException, may_be_refused: WireReason | None) -> None:
        """Judges a call that raised something."""
        tally = self.tally
        reason = getattr(error, "reason", None)
        if not isinstance(error, Exception) or not isinstance(reason, WireReason):
            tally.unhandled += 1
            self._keep(request, "".join(traceback.format_exception(error)))
            return
        code = failure_of(error, "").code.name
        tally.reasons[reason.value] += 1
        tally.outcomes[code] += 1
        if code not in DOCUMENTED:
            tally.undocumented += 1
            self._keep(request, f"status {code}")
        elif request.expected != ANY and reason not in (request.expected, may_be_refused):
            self._complain(request, f"refused for {reason.value}: {error}")

    def _answer_with(self, request: Request, response: bytes) -> None:
        """Gives a damaged answer to the client's decoder: a host that we call is a stranger too."""
        for _ in range(self._rng.choice((1, 1, 3))):
            response = damage(response, self._rng)
        self.tally.responses += 1
        try:
            decoded(request, response)
        except WireError:
            pass
        except BaseException as error:
            self.tally.unhandled += 1
            self._keep(request, f"as an answer {response.hex()}\n" + "".join(traceback.format_exception(error)))

    def _flood(self) -> None:
        """One publisher, and one network, far beyond their budgets in no time."""
        for _ in range(_FLOOD_CALLS):
            request = self.fuzz.flood(_FLOOD_GROUPS)
            self.call(request, prefix=FLOOD_PREFIX, may_be_refused=WireReason.QUOTA)
        info = Request(rpc="GetNodeInfo", name="flood of calls", body=b"")
        for _ in range(_FLOOD_INFOS):
            self.call(info, prefix=FLOOD_PREFIX, may_be_refused=WireReason.QUOTA)

    def _note(self, request: Request) -> None:
        name = request.name.encode()[:4096]
        body = request.body[: _CURRENT_BYTES - _HEAD.size - len(name)]
        self._current[: _HEAD.size] = _HEAD.pack(self.tally.messages, len(name), len(body))
        self._current[_HEAD.size : _HEAD.size + len(name) + len(body)] = name + body

    def _complain(self, request: Request, what: str) -> None:
        self.tally.wrong += 1
        self._keep(request, what)

    def _keep(self, request: Request, what: str) -> None:
        if len(self.tally.kept) < MAX_KEPT:
            path = self._folder / f"offending_{len(self.tally.kept)}.txt"
            keep_message(path, request, f"host {self.host.condition.value}; {what}")
            self.tally.kept.append(str(path))


def keep_message(path: Path, request: Request, what: str) -> None:
    """Writes down a message that was not answered as it must be."""
    text = (
        f"{request.rpc}: {request.name}\nexpected: {request.expected} {request.groups}\n{what}\n{request.body.hex()}\n"
    )
    path.write_text(text, encoding="utf-8")


def read_current(folder: Path) -> tuple[int, str, bytes]:
    """Returns how many messages a worker has sent, and name and body of the one at hand."""
    try:
        content = (folder / CURRENT_FILE).read_bytes()
    except FileNotFoundError:
        return 0, "", b""
    messages, name_bytes, body_bytes = _HEAD.unpack_from(content)
    name, body = content[_HEAD.size :][:name_bytes], content[_HEAD.size + name_bytes :][:body_bytes]
    return messages, name.decode(errors="replace"), body


def main() -> None:
    """Fuzzes and prints what came of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    logging.basicConfig(filename=options.folder / "log.txt", level=logging.WARNING)
    worker = Worker(options.folder, options.seed)
    start_s = time.monotonic()
    worker.run(options.messages)
    worker.host.close()
    print(json.dumps({**worker.tally.to_json(), "seconds": time.monotonic() - start_s, "cpu_s": time.process_time()}))


if __name__ == "__main__":
    main()
