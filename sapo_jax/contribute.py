"""Answers open questions of a swarm: `python -m sapo_jax.contribute --peer=HOST:PORT --invite=FILE`.

For a person at a terminal, or for a script: `--list` prints questions as JSON lines, `--answers=FILE`
publishes such lines with an "answer" each (`-` reads them from stdin). FILE of `--invite` is swarm/invite in
the work directory of that host. Every answer is published as a group of one, signed with the key in `--workdir`; what
cannot be sent now goes out at the next start. Training hosts verify and count such groups; their updates compare the
answers of one group with each other, so one alone moves nothing there.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import flags

from sapo_jax.command_line import UsageError, run_main
from sapo_jax.seeding import hash_seed
from sapo_jax.swarm.mesh.fetch import FetchLimits
from sapo_jax.swarm.mesh.joining import SWARM_FAILURES, SWARM_USAGE_ERRORS, plan_joining
from sapo_jax.swarm.mesh.network_host import HostLimits, NetworkHost
from sapo_jax.swarm.sealing import Sealer
from sapo_jax.swarm.wire.errors import WireError
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.requests import NodeInfo, SampleRequest
from sapo_jax.swarm.wire.signed_content import GeneratorInfo
from sapo_jax.tasks.catalog import CATALOGS, resolve
from sapo_jax.tasks.held_out import is_held_out
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.source import GenerationError, UnknownTaskError
from sapo_jax.tasks.specialty import CatalogError, Specialty, library_version
from sapo_jax.types import Completion, FinishReason, Rollout, Task, TaskRef

_OPTIONS = flags.FlagValues()
_PEER = flags.DEFINE_string("peer", None, "HOST:PORT of a host of the swarm.", flag_values=_OPTIONS)
_INVITE = flags.DEFINE_string("invite", "", "Invite file of that host.", flag_values=_OPTIONS)
_WORKDIR = flags.DEFINE_string(
    "workdir", "~/.sapo/contribute", "Directory of your key and of answers on their way.", flag_values=_OPTIONS
)
_COUNT = flags.DEFINE_integer("count", 5, "Questions to show.", lower_bound=1, flag_values=_OPTIONS)
_LIST = flags.DEFINE_bool("list", False, "Print questions as JSON lines and end.", flag_values=_OPTIONS)
_ANSWERS = flags.DEFINE_string("answers", "", "File of JSON lines with answers; - for stdin.", flag_values=_OPTIONS)
_INSECURE = flags.DEFINE_bool("insecure_loopback", False, "Plain text, on this machine only.", flag_values=_OPTIONS)
_WAIT_S = flags.DEFINE_float(
    "wait_s", 10.0, "Seconds to wait for the peer before giving up.", lower_bound=0.0, flag_values=_OPTIONS
)
flags.mark_flag_as_required("peer", flag_values=_OPTIONS)

_ATTEMPTS_PER_QUESTION = 20  # some items cannot be built, some are kept for evaluation
_MAX_LEFT = 10_000
_NAME = "contributor"


class NobodyThereError(OSError):
    """The peer cannot be reached or has no questions that this version knows."""


class Contribution:
    """Owns the connection of one contributor."""

    def __init__(self, host: NetworkHost, identity: Identity, *, wall_clock: Callable[[], float]) -> None:
        """Uses a running host; `wall_clock` is Unix time in seconds."""
        self._host = host
        self._identity = identity
        self._sealer = Sealer(
            swarm_id=host.swarm_id,
            generator=GeneratorInfo(model_name=_NAME),
            verifier_version=library_version(),
            wall_clock=wall_clock,
        )
        self._round = int(wall_clock())  # each answer needs one of its own, also across starts
        self.published = 0

    def questions(self, count: int) -> Iterator[Task]:
        """Yields up to `count` open questions: those the swarm works on, then fresh ones of its specialties.

        Raises:
            NobodyThereError: the peer does not answer, or has no specialty that this version knows.
        """
        info = self._connect()
        sampled = self._sampled(count)
        source = ReasoningGymSource(known_specialties([*info.catalog_digests, *(ref.config_digest for ref in sampled)]))
        if not source.specialties:
            raise NobodyThereError(
                f"{_PEER.value}: names {len(info.catalog_digests)} specialties and holds {len(sampled)} groups; this "
                "version of the task library knows none of their tasks"
            )
        shown: set[TaskRef] = set()
        for ref in itertools.chain(sampled, self._fresh(count, source)):
            if len(shown) == count:
                return
            try:
                task = source.task(ref)
            except (UnknownTaskError, GenerationError):
                continue
            if ref not in shown and not is_held_out(task.question):
                shown.add(ref)
                yield task

    def answer(self, ref: TaskRef, answer: str) -> None:
        """Publishes an answer as a group of one; raises UsageError if others would refuse it."""
        self._round += 1
        text = answer if "<answer>" in answer else f"<answer>{answer}</answer>"
        rollout = Rollout(
            task_ref=ref,
            node_id=self._identity.node_id,
            round=self._round,
            policy_version=0,
            completions=(Completion(text=text, finish_reason=FinishReason.STOP),),
        )
        key = self._sealer.key(self._identity, rollout)
        try:
            self._host.store.publish(key, self._sealer.maker(self._identity, rollout))
        except WireError as error:
            raise UsageError(f"the answer cannot be published: {error}") from error
        self.published += 1
        self._host.nudge_push()

    def _connect(self) -> NodeInfo:
        end_s = self._host.monotonic() + _WAIT_S.value
        while True:
            for peer in self._host.links.ready():
                info = self._host.links.info(peer)
                if info is not None:
                    return info
            if self._host.monotonic() > end_s:
                trouble = next((peer.trouble for peer in self._host.book.peers() if peer.trouble), "no answer")
                raise NobodyThereError(f"{_PEER.value}: cannot be reached: {trouble}")
            time.sleep(0.02)

    def hand_over(self) -> int:
        """Waits until the peer has or refuses the answers, some seconds at most; returns how many still wait."""
        with contextlib.suppress(NobodyThereError):
            self._connect()
        self._host.flush(_WAIT_S.value)
        left = self._host.store.outbox_pending(_MAX_LEFT)
        return sum(group.copies == 0 and not group.refused_by for group in left)

    def _sampled(self, count: int) -> list[TaskRef]:
        """Returns tasks of random groups that the peer holds."""
        peers = self._host.links.ready()
        if not peers:
            return []
        request = SampleRequest(count=min(64, 2 * count), excluded_publishers=(self._identity.node_id,))
        call = self._host.links.call(peers[0], lambda client: client.sample_groups(request))
        response = self._host.loop().run(call)
        refs: list[TaskRef] = []
        for signed in () if response is None else response.groups:
            try:
                refs.append(self._host.open_group(signed).rollout.task_ref)
            except WireError:
                continue
        return refs

    def _fresh(self, count: int, source: ReasoningGymSource) -> Iterator[TaskRef]:
        specialties = source.specialties
        for number in range(_ATTEMPTS_PER_QUESTION * count):
            seed = hash_seed(self._identity.node_id, "contribute", self._round, number)
            yield source.ref(specialties[number % len(specialties)], seed, 0)


def known_specialties(digests: Sequence[str]) -> list[Specialty]:
    """Returns the specialties of our catalogs that have one of these digests, each once."""
    wanted = set(digests)
    found: dict[str, Specialty] = {}
    for name in CATALOGS:
        for specialty in resolve(name):
            if specialty.digest in wanted:
                found.setdefault(specialty.digest, specialty)
    # Metrics tell specialties apart by name; here two catalogs may use one name.
    names: dict[str, Specialty] = {}
    for specialty in found.values():
        names.setdefault(specialty.name, specialty)
    return list(names.values())


def main() -> None:
    """Shows questions and publishes answers."""
    workdir = Path(_WORKDIR.value).expanduser().absolute()
    joining = plan_joining(
        workdir,
        join=[_PEER.value or ""],
        invite_path=Path(_INVITE.value).expanduser() if _INVITE.value else None,
        insecure_loopback=_INSECURE.value,
        now=datetime.datetime.now(datetime.UTC),
    )
    identity = joining.identity(_NAME)
    host = NetworkHost(
        identity,
        swarm_id=joining.swarm_id,
        trust=joining.trust,
        listen=None,
        peers=joining.peers,
        directory=joining.directory,
        limits=HostLimits(fetch=FetchLimits(sample_groups=0, repair_pages=0)),
    )
    contribution = Contribution(host, identity, wall_clock=time.time)
    try:
        if _LIST.value:
            for task in contribution.questions(_COUNT.value):
                print(json.dumps(task_to_json(task)), flush=True)
            return
        if _ANSWERS.value:
            answer_lines(contribution, _ANSWERS.value)
        else:
            ask(contribution, contribution.questions(_COUNT.value), sys.stdin)
        left = contribution.hand_over()
        print(f"published {contribution.published} as {identity.alias} ({identity.node_id}){_refusals(host)}")
    finally:
        host.close(flush_s=0.0)
    if left:
        raise NobodyThereError(
            f"{_PEER.value}: {left} answers could not be handed over; they wait in {workdir} for the next start"
        )


def task_to_json(task: Task) -> dict[str, Any]:
    """Returns a question as `--list` prints it."""
    ref = task.ref
    return {
        "dataset": ref.dataset,
        "config_digest": ref.config_digest,
        "seed": ref.seed,
        "index": ref.index,
        "question": task.question,
    }


def ask(contribution: Contribution, questions: Iterator[Task], lines: TextIO) -> None:
    """Shows questions one by one and reads a line of answer to each; an empty one skips, the end of input ends."""
    for number, task in enumerate(questions, start=1):
        print(f"\n[{number}] {task.specialty}\n{task.question}\n")
        print("answer (empty: skip, Ctrl-D: end)> ", end="", flush=True)
        line = lines.readline()
        if not line:
            print()
            return
        if line.strip():
            contribution.answer(task.ref, line.strip())


def answer_lines(contribution: Contribution, name: str) -> None:
    """Publishes the answers of a file of JSON lines, `-` for stdin; raises UsageError naming the line that is wrong."""
    where = "stdin" if name == "-" else name
    try:
        text = sys.stdin.read() if name == "-" else Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--answers={name}: cannot be read: {error}") from error
    parsed: list[tuple[TaskRef, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            ref = TaskRef(
                dataset=_typed(data, "dataset", str),
                config_digest=_typed(data, "config_digest", str),
                seed=_typed(data, "seed", int),
                index=_typed(data, "index", int),
            )
            parsed.append((ref, _typed(data, "answer", str)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UsageError(f"{where}, line {number}: {error}") from error
    for ref, answer in parsed:
        contribution.answer(ref, answer)


def _refusals(host: NetworkHost) -> str:
    return "".join(f", {count} refused ({reason})" for reason, count in sorted(host.pusher.refused.items()))


def _typed(data: Any, name: str, kind: type) -> Any:
    if not isinstance(data, dict) or type(data.get(name)) is not kind:
        raise ValueError(f"must be a JSON object with {name!r}, which is of type {kind.__name__}")
    return data[name]


if __name__ == "__main__":
    run_main(
        main,
        _OPTIONS,
        usage_errors=(*SWARM_USAGE_ERRORS, CatalogError),
        failures=(*SWARM_FAILURES, OSError),
    )
