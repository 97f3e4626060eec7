"""Groups that are as dear to judge as a stranger can make them, and what honest publishers notice of them.

Publishers of whom one group was verified send more at a steady rate, once without and then with 25 bombs
before them: all of one publisher, or each of a new one. Verification has its usual quarter of a core.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sapo_jax.swarm.wire.signed_content import SignedGroup
from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.held_out import is_held_out
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.specialty import Specialty
from scripts.faults.figures import Figure, Setting
from scripts.faults.verified_host import VerifiedHost, signed_group
from scripts.faults.wire_fuzz import make_identities

BOMBS = 25
HONEST_PUBLISHERS = 4
GROUPS_PER_S = 8.0  # honest ones, of all publishers together
WINDOW_S = 60.0
LEAST_SHARE = 0.8
_COMPLETIONS = 8
# The library applies every move of such an answer, 0.16 s for 16 KB; 31 of them exceed the budget of a group.
_DEAR_ANSWER, _DEAR_COMPLETIONS = "R " * 8_000, 31
# Its tasks take up to four seconds to rebuild, and a stranger may choose which.
_DEAR_TASKS = "sokoban"


@dataclass(kw_only=True, slots=True)
class Seen:
    """What became of the honest groups within the window."""

    sent: int
    verified: int
    longest_wait_s: float
    busy_s: float  # of the scorers
    kills: int


def measure(setting: Setting) -> list[Figure]:
    """Measures the honest rate without bombs, with those of one publisher, and with those of 25."""
    specialties = resolve("easy", ("chain_sum", "rubiks_cube", _DEAR_TASKS))
    window_s = max(10.0, WINDOW_S * setting.scale)
    seen: list[Seen] = []
    for name, publishers in (("no bombs", 0), ("one bomber", 1), ("25 bombers", BOMBS)):
        rng = random.Random(f"bombs {setting.seed}")
        bombs = make_bombs(specialties, publishers, rng) if publishers else []
        with VerifiedHost(setting.workdir / name.replace(" ", "_"), specialties) as host:
            seen.append(watch(host, specialties[0], bombs, window_s, rng))
        setting.say(f"{name}: {seen[-1]}")
    normal, of_one, of_many = seen
    return [
        _figure(f"honest groups verified while one peer sends {BOMBS} bombs, of the normal number", of_one, normal),
        _figure(f"honest groups verified while {BOMBS} new peers send one bomb each", of_many, normal),
    ]


def make_bombs(specialties: Sequence[Specialty], publishers: int, rng: random.Random) -> list[SignedGroup]:
    """Returns the bombs, shared out among that many new publishers."""
    source = ReasoningGymSource(specialties)
    _, cube, warehouse = specialties
    keys = make_identities(rng, publishers)
    texts = [f"<answer>{_DEAR_ANSWER}</answer>"] * _DEAR_COMPLETIONS
    bombs: list[SignedGroup] = []
    for number in range(BOMBS):
        key = keys[number % publishers]
        seed = rng.randrange(2**32)
        if number % 2 == 0:
            bombs.append(signed_group(key, source.ref(cube, seed, number), texts))
        else:
            bombs.append(signed_group(key, source.ref(warehouse, seed, number), ["<answer>L</answer>"] * 2))
    return bombs


def watch(
    host: VerifiedHost, specialty: Specialty, bombs: Sequence[SignedGroup], window_s: float, rng: random.Random
) -> Seen:
    """Sends bombs, then honest groups at their rate, and counts those that come through within the window."""
    source = ReasoningGymSource((specialty,))
    keys = make_identities(rng, HONEST_PUBLISHERS)
    honest_ids = {key.node_id for key in keys}
    tasks = [
        task
        for task in (source.task(source.ref(specialty, 5, i)) for i in range(200))
        if not is_held_out(task.question)
    ]
    texts = [f"<answer>{i}</answer>" for i in range(_COMPLETIONS - 1)]
    host.through([signed_group(key, tasks[0].ref, texts) for key in keys])
    if bombs:
        host.publish(bombs)
    start_s = time.monotonic()
    sent_at_s: dict[str, float] = {}
    waits_s: list[float] = []
    sent = verified = 0
    while (now_s := time.monotonic() - start_s) < window_s:
        due = int(min(now_s, window_s - 1.0) * GROUPS_PER_S) - sent
        if due > 0:
            groups = []
            for _ in range(due):
                key, task = keys[sent % HONEST_PUBLISHERS], tasks[sent % len(tasks)]
                mark = f"<answer>{task.ground_truth}</answer>{sent}"
                groups.append(signed_group(key, task.ref, [mark, *texts]))
                sent_at_s[mark] = time.monotonic()
                sent += 1
            host.publish(groups)
        time.sleep(0.1)
        for item in host.pull():
            if item.rollout.node_id in honest_ids:
                verified += 1
                waits_s.append(time.monotonic() - sent_at_s[item.rollout.completions[0].text])
    if verified < sent:
        waits_s.append(window_s)
    return Seen(
        sent=sent,
        verified=verified,
        longest_wait_s=max(waits_s, default=0.0),
        busy_s=host.pool.busy_s("external"),
        kills=host.pool.kills,
    )


def _figure(name: str, seen: Seen, normal: Seen) -> Figure:
    return Figure(
        name=name,
        value=seen.verified / max(1, normal.verified),
        at_least=LEAST_SHARE,
        detail=f"{seen.verified} of {seen.sent} in the window against {normal.verified} of {normal.sent} without; the "
        f"longest wait {seen.longest_wait_s:.1f} s, {seen.busy_s:.1f} s of scoring, {seen.kills} scorers ended at "
        "their budget",
    )
