"""Completions and task references of strangers that attack the scorers, through the whole way to the learner.

Four things must not happen: that text runs as code, that a reward outside [0, 1] reaches a learner,
that a group with a task that is not there does, and that dear groups of a few keep others waiting.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sapo_jax.swarm.wire.signed_content import SignedGroup
from sapo_jax.tasks.audit import audit
from sapo_jax.tasks.catalog import CATALOGS, resolve
from sapo_jax.tasks.verifier import MAX_COMPLETION_BYTES
from sapo_jax.types import ScoredRollout, Task, TaskRef
from scripts.faults import verifier_bombs
from scripts.faults.exploits import CODE_PATHS, RUN_BY_LIBRARY, code_that_writes, escapes, odd_answers
from scripts.faults.figures import ROOT, Figure, Setting
from scripts.faults.verified_host import VerifiedHost, signed_group
from scripts.faults.wire_fuzz import field_bytes, make_identities

ESCAPES = 100_000
GROUPS_PER_DATASET = 20
COMPLETIONS = 16
LIARS_GROUPS = 320
MOST_LIES = 80  # of one peer before it is banned
_TASKS = 3  # of one dataset
_BANNED_PATIENCE_S = 3.0
_GROUPS_PER_KEY = 4  # a publisher whose group cost a scorer is paused, and others shall not wait for it
_QUESTION, _TRUTH, _METADATA = 4, 5, 6  # numbers of fields that this protocol has reserved and never reads


def measure(setting: Setting) -> list[Figure]:
    """Attacks the scorers in every way we know."""
    rng = random.Random(f"verifier {setting.seed}")
    return [
        *code_figures(setting, rng),
        *reward_figures(setting, rng),
        *verifier_bombs.measure(setting),
    ]


def completion(answer: str) -> str:
    """Returns a completion of the answer that no receiver refuses for its size."""
    text = f"<answer>{answer}</answer>".encode("utf-8", "replace")
    return text[:MAX_COMPLETION_BYTES].decode("utf-8", "ignore")


# Text that runs.


class Listener:
    """Counts connections to a port of this machine: a program that runs elsewhere would make one."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._count, name="listener", daemon=True).start()

    def close(self) -> None:
        """Frees the port."""
        self._socket.close()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()


def code_figures(setting: Setting, rng: random.Random) -> list[Figure]:
    """Sends exploits and their mutations to every dataset whose library scorer runs text, and to the paper's nine."""
    marks = setting.workdir / "marks"
    marks.mkdir()
    control = _control(setting.workdir)
    specialties = (*resolve("paper"), *resolve("easy", RUN_BY_LIBRARY))
    sent = 0
    with (
        contextlib.closing(Listener()) as listener,
        VerifiedHost(setting.workdir / "exploits", specialties, core_share=1.0) as host,
    ):
        scores: list[float] = []
        for specialty in specialties:
            name, known = specialty.name, host.tasks(specialty, _TASKS, rng)
            wanted = max(COMPLETIONS, setting.scaled(ESCAPES) // len(specialties))
            groups = []
            for number in range(math.ceil(wanted / COMPLETIONS)):
                if number % _GROUPS_PER_KEY == 0:
                    (identity,) = make_identities(rng, 1)
                task = rng.choice(known)
                # A file of its own for each dataset, so that a mark says whose scorer ran it.
                file = marks / name
                answers = code_that_writes(file) if number == 0 else []
                answers += escapes(
                    COMPLETIONS - len(answers), truth=task.ground_truth or "1", file=file, port=listener.port, rng=rng
                )
                code = rng.choice(answers)
                beside = field_bytes(_QUESTION, code.encode("utf-8", "replace"))
                beside += field_bytes(_TRUTH, code.encode("utf-8", "replace"))
                beside += field_bytes(_METADATA, json.dumps({"problem": code, "integrand": code}).encode())
                texts = [completion(answer) for answer in answers]
                groups.append(signed_group(identity, task.ref, texts, unknown_fields=beside))
                sent += len(texts)
            scores += [score for item in host.through(groups) for score in item.scores]
            setting.say(f"{name}: {sent:,} exploits so far, {host.pool.kills} scorer processes lost")
        verdicts = host.verdicts()
        lost, connections = host.pool.kills, listener.connections
    left = sorted(path.name for path in marks.iterdir())
    kept = f"; marks of {', '.join(left)}" if left else ""
    return [
        Figure(
            name="code executions",
            value=len(left) + connections + lost,
            at_least=0,
            at_most=0,
            detail=f"{len(left)} files, {connections} connections, {lost} scorers that ended, were ended or hung; "
            f"{sent:,} exploits over {len(specialties)} datasets, signed and published over gRPC, {_list(verdicts)}"
            f"{kept}",
        ),
        Figure(
            name="exploits that came back from a scorer",
            value=len(scores) / max(1, sent),
            at_least=0.99,
            detail=f"{len(scores):,} of {sent:,} have a score; with fewer the one above says little",
        ),
        Figure(
            name="known paths on which the library itself runs the same text",
            value=sum(ran for _, _, ran in control),
            at_least=len(CODE_PATHS),
            at_most=len(CODE_PATHS),
            detail="the control: 9 by the answer, 2 by the truth, 3 by metadata, which no message carries",
        ),
    ]


def _control(workdir: Path) -> list[tuple[str, str, bool]]:
    """Returns for each known path whether the library's own scorer runs text on it."""
    folder = workdir / "control"
    folder.mkdir()
    command = [sys.executable, "-m", "scripts.faults.library_control", str(folder)]
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=300)
    return json.loads(found.stdout)


# Rewards and references.


def reward_figures(setting: Setting, rng: random.Random) -> list[Figure]:
    """Sends odd answers to every dataset, then lies about tasks and scores."""
    names = [dataset.name for dataset in audit() if dataset.allowed]
    if setting.scale < 0.05:
        names = sorted(rng.sample(names, max(4, round(len(names) * setting.scale))))
    specialties = resolve("easy", [name if name in _EASY else f'{name}:{{"size": 500}}' for name in names])
    with VerifiedHost(setting.workdir / "rewards", specialties, core_share=1.0) as host:
        pulled: list[ScoredRollout] = []
        completions = 0
        known_of = {specialty.dataset: host.tasks(specialty, _TASKS, rng) for specialty in specialties}
        setting.say(f"tasks of {len(specialties)} datasets are made")
        for known in filter(None, known_of.values()):
            (identity,) = make_identities(rng, 1)
            groups = []
            for _ in range(setting.scaled(GROUPS_PER_DATASET, 2)):
                task = rng.choice(known)
                answers = odd_answers(COMPLETIONS - 1, truth=task.ground_truth or "", rng=rng)
                texts = [completion(answer) for answer in answers] + [("\u20ac" * 2**15)[: MAX_COMPLETION_BYTES // 3]]
                texts = _within(texts)
                completions += len(texts)
                groups.append(signed_group(identity, task.ref, texts))
            pulled += host.through(groups)
        setting.say(f"{len(pulled)} groups of odd answers came through: {_list(host.verdicts())}")
        verdicts = host.verdicts()
        outside = [item for item in pulled if not all(_is_reward(score) for score in item.scores)]
        rewards = sum(len(item.scores) for item in pulled)
        seen = {item.rollout.task_ref.dataset for item in pulled}
        unseen = sorted({specialty.dataset for specialty in specialties} - seen)
        wrong = wrong_reference_figures(setting, rng, host, known_of)
    return [
        Figure(
            name="rewards outside [0, 1] at the learner",
            value=sum(not _is_reward(score) for item in pulled for score in item.scores),
            at_least=0,
            at_most=0,
            detail=f"of {rewards:,}, from {completions:,} odd completions; {_list(verdicts)}"
            + "".join(f"; {item.rollout.task_ref.dataset}: {item.scores}" for item in outside[:3]),
        ),
        Figure(
            name="datasets without a single reward",
            value=len(unseen),
            at_least=0,
            at_most=0,
            detail=f"of {len(specialties)}; {', '.join(unseen)}" if unseen else f"of {len(specialties)}",
        ),
        *wrong,
    ]


def wrong_reference_figures(
    setting: Setting, rng: random.Random, host: VerifiedHost, known_of: Mapping[str, Sequence[Task]]
) -> list[Figure]:
    """The groups of some peers are all of tasks that are not there; another lies about scores, question and truth."""
    groups: list[SignedGroup] = []
    refs = list(wrong_refs(rng, known_of, host.held_out, setting.scaled(LIARS_GROUPS, 16)))
    liars: set[str] = set()
    for number, ref in enumerate(refs):
        if number % _GROUPS_PER_KEY == 0:  # none is banned before its last group is looked at
            (liar,) = make_identities(rng, 1)
            liars.add(liar.node_id)
        groups.append(signed_group(liar, ref, ["<answer>1</answer>", "<answer>2</answer>"]))
    before = Counter(host.verdicts())
    pulled = host.through(groups)
    judged = Counter(host.verdicts()) - before

    (stubborn, boaster) = make_identities(rng, 2)
    lies = [signed_group(stubborn, ref, ["<answer>1</answer>", "<answer>2</answer>"]) for ref in refs[:MOST_LIES]]
    for start in range(0, len(lies), 8):
        pulled += host.through(lies[start : start + 8], _BANNED_PATIENCE_S)
    liars.add(stubborn.node_id)
    banned = host.hub.host.scores.is_banned(stubborn.node_id)

    honest: list[tuple[TaskRef, list[str], tuple[float, ...]]] = []
    believed = compared = 0
    known = [task for each in known_of.values() for task in each if task.ground_truth is not None][:40]
    groups = []
    for task in known:
        texts = [completion(answer) for answer in odd_answers(4, truth=task.ground_truth or "", rng=rng)]
        lie = field_bytes(_QUESTION, b"What is 1 + 1?") + field_bytes(_TRUTH, texts[0][8:-9].encode())
        groups.append(signed_group(boaster, task.ref, texts, claimed_scores=(1.0,) * 4, unknown_fields=lie))
        own = host.pool.score([(task.ref, texts)], lane="external")[0]
        if all(isinstance(score, float) for score in own):
            honest.append((task.ref, texts, tuple(own)))  # pyright: ignore[reportArgumentType]
    expected = {(ref, tuple(texts)): scores for ref, texts, scores in honest}
    for item in host.through(groups):
        if item.rollout.node_id in liars:
            pulled.append(item)
        key = item.rollout.task_ref, tuple(each.text for each in item.rollout.completions)
        compared += key in expected
        believed += key in expected and expected[key] != item.scores
    return [
        Figure(
            name="groups with a wrong task that reached the learner",
            value=len(pulled),
            at_least=0,
            at_most=0,
            detail="digests of no or another dataset, items beyond the last, questions kept for evaluations",
        ),
        Figure(
            name="groups with a wrong task that were judged",
            value=judged.total(),
            at_least=len(refs),
            detail=f"of {len(refs)} by {len(liars) - 1} peers: {_list(judged)}",
        ),
        Figure(
            name="a peer whose tasks are all wrong is banned",
            value=int(banned),
            at_least=1,
            detail=f"within {len(lies)} groups",
        ),
        Figure(
            name="groups whose lies about score, question or truth were believed",
            value=believed,
            at_least=0,
            at_most=0,
            detail="beside a message of ours there is no place for question and truth",
        ),
        Figure(
            name="groups with such lies whose scores were compared with our own",
            value=compared,
            at_least=len(expected),
            detail=f"of {len(known)} sent",
        ),
    ]


def wrong_refs(
    rng: random.Random, known_of: Mapping[str, Sequence[Task]], held_out: Sequence[TaskRef], count: int
) -> Iterator[TaskRef]:
    """Yields references of tasks that are not there, or that nobody may publish for."""
    refs = [known[0].ref for known in known_of.values() if known]
    for number in range(count):
        right, other = rng.sample(refs, 2)
        match number % 5:
            case 0:
                yield replace(right, config_digest=rng.randbytes(32).hex())
            case 1:
                yield replace(right, config_digest=other.config_digest)
            case 2:
                yield replace(right, index=rng.choice((500, 2**40, 2**63 - 1)))
            case 3:
                yield replace(right, dataset=rng.choice(("composite", "no_such_dataset", "x" * 64)))
            case _:
                yield rng.choice(held_out) if held_out else replace(right, index=500)


_EASY = frozenset(specialty.name for specialty in CATALOGS["easy"])
_MAX_GROUP_TEXT_BYTES = 500 * 1024


def _within(texts: Sequence[str]) -> list[str]:
    """Returns as many of the texts as fit into one group, the last one always among them."""
    kept, size = [texts[-1]], len(texts[-1].encode())
    for text in texts[:-1]:
        size += len(text.encode())
        if size > _MAX_GROUP_TEXT_BYTES:
            break
        kept.append(text)
    return kept


def _is_reward(score: float) -> bool:
    return math.isfinite(score) and 0.0 <= score <= 1.0


def _list(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
