"""Fairness over publishers: who is drawn from, how much a flood holds and changes, what a replay brings.

All of it goes through the code that hosts use: the pool and selection rules of a training node, and
the publish and sample calls of a host on a store on disk with its default limits. Groups are signed
once. The clock is moved by hand, so that hours of a swarm pass in seconds.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapo_jax.config import SharingConfig
from sapo_jax.seeding import generator
from sapo_jax.swarm.calls.quota import CLOSED_QUOTAS, OPEN_QUOTAS, QuotaLimits, Quotas
from sapo_jax.swarm.calls.service import ExchangeService, Phase
from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.pool import Pool
from sapo_jax.swarm.sealing import Sealer
from sapo_jax.swarm.selection import select
from sapo_jax.swarm.store.clock import Clock
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.requests import PublishOutcome, PublishRequest, SampleRequest
from sapo_jax.swarm.wire.signed_content import GeneratorInfo, SignedGroup
from sapo_jax.types import Completion, FinishReason, Rollout, ScoredRollout, Task, TaskRef
from scripts.faults.figures import Figure, Setting

HONEST = 16  # publishers, beside the greedy one; with it an odd number, see `upper_tail`
GREEDY_SHARE = 0.9
DRAWS, GROUPS, REPLAYS = 100_000, 20_000, 100_000
MIN_P = 0.001
SWARM = "selection"
TTL_S = 3600.0
BATCH = 32


def measure(setting: Setting) -> list[Figure]:
    """Returns all figures of selection, flood and replay."""
    setting.say("draws of a training node")
    figures = measure_pool(setting)
    total = setting.scaled(GROUPS, least=10 * HONEST * 10)
    setting.say(f"signing {total} groups")
    groups = make_groups(total, setting.seed)
    setting.say("a flood in a closed swarm")
    with_flood = Intake(setting.workdir / "closed.sqlite", CLOSED_QUOTAS, setting.seed)
    figures += measure_flood("closed", with_flood, groups, honest_per_s=1.0, flood_prefix="10.0.0")
    setting.say("draws from a store")
    figures += measure_store(setting, with_flood)
    setting.say("replays")
    figures += measure_replay(setting, with_flood, groups)
    with_flood.store.close()
    setting.say("a flood in an open swarm")
    with_flood = Intake(setting.workdir / "open.sqlite", OPEN_QUOTAS, setting.seed)
    # Slower, within what an open swarm allows to the honest; the flood comes from a network of its own.
    figures += measure_flood("open", with_flood, groups, honest_per_s=0.25, flood_prefix="10.0.1")
    with_flood.store.close()
    return figures


# What a training node draws.


def measure_pool(setting: Setting) -> list[Figure]:
    """Draws one group at a time from a pool of unequal publishers, of which one owns nine tenths."""
    sizes = publisher_sizes(0.7 * SharingConfig().pool_rollouts)
    names = [f"node-{i:02d}" for i in range(len(sizes))]
    owners = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    generator(setting.seed, "arrivals").shuffle(owners)
    pool = Pool(max_rollouts=SharingConfig().pool_rollouts, max_age_rounds=0, max_uses=1)
    pool.add([_scored(name, i) for i, name in enumerate(owners)], 1)
    candidates = pool.candidates(1)
    draws = setting.scaled(DRAWS)
    figures: list[Figure] = []
    for rule, is_fair in (("publisher_uniform", True), (SharingConfig().selection, False)):
        rng = generator(setting.seed, "draws", rule)
        drawn = Counter(
            item.rollout.node_id
            for _ in range(draws if is_fair else draws // 10)
            for item in select(candidates, 1, rule, rng)
        )
        figures += _draw_figures(
            f"rule {rule}, {'opt-in' if is_fair else 'the default'}", drawn, names, is_judged=is_fair
        )
    return figures


def publisher_sizes(total: float) -> list[int]:
    """Returns how many groups each publisher has: honest ones from one upwards, and a greedy one with 90 % last."""
    honest_total = total * (1 - GREEDY_SHARE)
    # A geometric row from 1 to whatever makes the sum right, found by halving.
    low, high = 1.0, 2.0
    for _ in range(60):
        ratio = (low + high) / 2
        low, high = (low, ratio) if sum(ratio**i for i in range(HONEST)) > honest_total else (ratio, high)
    honest = [max(1, round(low**i)) for i in range(HONEST)]
    return [*honest, math.ceil(sum(honest) * GREEDY_SHARE / (1 - GREEDY_SHARE))]


def upper_tail(chi_square: float, degrees: int) -> float:
    """Returns the probability of at least `chi_square`; exact, for an even number of degrees of freedom."""
    if degrees % 2:
        raise ValueError(f"degrees = {degrees} must be even")
    half = chi_square / 2
    return math.exp(-half) * math.fsum(half**i / math.factorial(i) for i in range(degrees // 2))


def p_value(drawn: Counter[str], names: Sequence[str]) -> float:
    """Returns the p-value of the hypothesis that every one of `names` is drawn with the same probability."""
    expected = drawn.total() / len(names)
    return upper_tail(sum((drawn[name] - expected) ** 2 / expected for name in names), len(names) - 1)


def _draw_figures(who: str, drawn: Counter[str], names: Sequence[str], *, is_judged: bool) -> list[Figure]:
    """Returns uniformity and the share of the greedy publisher, which is the last of `names`."""
    how = f"{drawn.total():,} draws, {len(names)} publishers, the greedy one with {GREEDY_SHARE:.0%} of the groups"
    share = Figure(
        name=f"{who}: share of the greedy publisher among the drawn",
        value=drawn[names[-1]] / max(1, drawn.total()),
        at_most=1.1 / len(names) if is_judged else None,
        detail=how if is_judged else f"{how}; the default, as in the paper; a host in a network says so",
    )
    if not is_judged:
        return [share]
    p = p_value(drawn, names)
    return [Figure(name=f"{who}: p-value of uniformity over publishers", value=p, at_least=MIN_P, detail=how), share]


def _scored(node_id: str, index: int) -> ScoredRollout:
    ref = TaskRef(dataset="chain_sum", config_digest="ab" * 32, seed=1, index=index)
    texts = ("<answer>1</answer>", "<answer>2</answer>")
    rollout = Rollout(
        task_ref=ref,
        node_id=node_id,
        round=1,
        policy_version=0,
        completions=tuple(Completion(text=text, finish_reason=FinishReason.STOP) for text in texts),
    )
    task = Task(ref=ref, specialty="chain_sum", question="1 + 0 =", ground_truth="1", metadata={})
    return ScoredRollout(rollout=rollout, task=task, scores=(1.0, 0.0))


# What a host takes in.


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """Signed groups with their publishers, each publisher's in its order; the greedy one is the last of `names`."""

    names: tuple[str, ...]
    signed: tuple[tuple[str, SignedGroup], ...]


def make_groups(total: int, seed: int) -> Groups:
    """Returns about `total` signed groups, nine tenths of them by one publisher, spread evenly over the whole."""
    sealer = Sealer(
        swarm_id=SWARM, generator=GeneratorInfo(model_name="any"), verifier_version="1", wall_clock=lambda: 0.0
    )
    placed: list[tuple[float, str, SignedGroup]] = []
    rng = generator(seed, "groups")
    identities = [Identity.generate() for _ in range(HONEST + 1)]
    for identity, size in zip(identities, publisher_sizes(total), strict=True):
        for i in range(size):
            rollout = _scored(identity.node_id, i).rollout
            opened = sealer.maker(identity, rollout)(i + 1)
            placed.append(((i + rng.random()) / size, identity.node_id, SignedGroup(envelope=opened.envelope)))
    placed.sort(key=lambda each: each[0])
    return Groups(
        names=tuple(identity.node_id for identity in identities),
        signed=tuple((name, signed) for _, name, signed in placed),
    )


class Intake:
    """A host's publish and sample calls on a store on disk, with a clock that only `wait` moves."""

    def __init__(self, path: Path, quotas: QuotaLimits, seed: int) -> None:
        self.now_s = 0.0
        self.limits = StoreLimits()
        clock = Clock(wall=lambda: 1.7e9 + self.now_s, monotonic=lambda: self.now_s, boot="by hand")
        self.store = GroupStore(path, limits=self.limits, clock=clock)
        self.outcomes: Counter[tuple[str, PublishOutcome | str]] = Counter()
        self.service = ExchangeService(
            self.store,
            Quotas(quotas, clock=clock.monotonic),
            swarm_id=SWARM,
            software_version="0",
            catalog_digests=(),
            peer_record=lambda: None,
            swap_peers=lambda request: request,
            is_banned=lambda node_id: False,
            wall_clock=clock.wall,
            clock=clock.monotonic,
            rng=generator(seed, "samples"),
        )
        self.service.phase = Phase.SERVING

    def wait(self, seconds: float) -> None:
        """Lets time pass."""
        self.now_s += seconds

    def publish(self, groups: Sequence[tuple[str, SignedGroup]], prefix: str) -> None:
        """Makes one publish call from an address prefix and counts what became of each group."""
        try:
            self.service.charge_call(prefix)
            response = self.service.publish(PublishRequest(groups=tuple(signed for _, signed in groups)), prefix=prefix)
        except ServiceError as error:
            self.outcomes.update((name, error.reason.value) for name, _ in groups)
            return
        self.outcomes.update((name, each.outcome) for (name, _), each in zip(groups, response.results, strict=True))

    def held(self) -> Counter[str]:
        """Returns how many groups of each publisher the store holds."""
        return Counter(each.publisher for each in self.store.after(0, self.limits.max_groups))


def measure_flood(
    trust: str, intake: Intake, groups: Groups, *, honest_per_s: float, flood_prefix: str
) -> list[Figure]:
    """Publishes everything at an even pace, one group a call; the honest send `honest_per_s` each on average."""
    *honest, greedy = groups.names
    sent = Counter(name for name, _ in groups.signed)
    seconds = sum(sent[name] for name in honest) / (honest_per_s * len(honest))
    for each in groups.signed:
        intake.wait(seconds / len(groups.signed))
        intake.publish([each], flood_prefix if each[0] == greedy else "10.0.0")
    held = intake.held()
    accepted = {name: intake.outcomes[name, PublishOutcome.ACCEPTED] for name in groups.names}
    total_honest = sum(sent[name] for name in honest)
    how = (
        f"{sent[greedy]:,} groups at {sent[greedy] / seconds:.0f}/s, {accepted[greedy]:,} accepted, against "
        f"{total_honest:,} of {len(honest)} others at {honest_per_s:g}/s each"
    )
    return [
        Figure(
            name=f"flood, {trust}: its share of the store's room",
            value=held[greedy] / intake.limits.max_groups,
            at_most=1 / 8,
            detail=f"{held[greedy]} of {intake.limits.max_groups} places, {held.total()} taken; {how}",
        ),
        Figure(
            name=f"flood, {trust}: groups of others refused",
            value=total_honest - sum(accepted[name] for name in honest),
            at_most=0,
            detail=how,
        ),
        Figure(
            name=f"flood, {trust}: groups of others pushed out",
            value=sum(min(accepted[name], intake.limits.publisher_max_groups) - held[name] for name in honest),
            at_most=0,
            detail="accepted within its publisher's own share, and not held at the end",
        ),
    ]


def measure_store(setting: Setting, intake: Intake) -> list[Figure]:
    """Draws one group at a time from what the store holds after the flood, as a peer's pull does."""
    held = intake.held()
    names = sorted(held, key=lambda name: held[name])
    drawn: Counter[str] = Counter()
    publisher_of = {each.signed.envelope.public_key: each.publisher for each in intake.store.after(0, held.total())}
    for _ in range(setting.scaled(DRAWS)):
        drawn.update(
            publisher_of[each.envelope.public_key] for each in intake.service.sample(SampleRequest(count=1)).groups
        )
    p = p_value(drawn, names)
    few, many = held[names[0]], held[names[-1]]
    how = f"{drawn.total():,} draws from {held.total()} groups of {len(names)} publishers with {few} to {many} each"
    return [
        Figure(name="store's sample: p-value of uniformity over publishers", value=p, at_least=MIN_P, detail=how),
        Figure(
            name="store's sample: share of the greedy publisher among the drawn",
            value=drawn[names[-1]] / drawn.total(),
            at_most=1.1 / len(names),
            detail=how,
        ),
    ]


def measure_replay(setting: Setting, intake: Intake, groups: Groups) -> list[Figure]:
    """Sends old groups again: held, pushed out, expired, and after the memory of them has ended."""
    before = intake.store.stats().accepted
    outcomes: Counter[PublishOutcome | str] = Counter()
    # Both before and after all have expired, the last time shortly before the first is forgotten.
    moments_s = (intake.now_s, intake.now_s, TTL_S + 200.0, TTL_S + 200.0, TTL_S + 500.0)
    count = max(BATCH, setting.scaled(REPLAYS) // len(moments_s))
    for moment_s in moments_s:
        intake.wait(max(0.0, moment_s - intake.now_s))
        intake.store.expire()  # as every arrival of something new does
        outcomes += _replay(intake, list(itertools.islice(itertools.cycle(groups.signed), count)))
    new = intake.store.stats().accepted - before
    intake.wait(2 * TTL_S + intake.limits.seen_grace_s + 200.0)
    intake.store.expire()
    late = _replay(intake, groups.signed[: 10 * BATCH])
    known = outcomes[PublishOutcome.DUPLICATE]
    return [
        Figure(
            name="replay: groups that entered the store again",
            value=new,
            at_most=0,
            detail=f"of {outcomes.total():,} sends of {len(groups.signed):,} old groups: held, pushed out or expired",
        ),
        Figure(
            name="replay: sends that were recognized",
            value=known / outcomes.total(),
            at_least=1.0,
            detail="the others were refused before anybody looked",
        ),
        Figure(
            name="replay: accepted again once the ids are forgotten",
            value=late[PublishOutcome.ACCEPTED] / late.total(),
            detail="with its age set back, later than two lifetimes and ten minutes: the memory is bounded by design",
        ),
    ]


def _replay(intake: Intake, groups: Sequence[tuple[str, SignedGroup]]) -> Counter[PublishOutcome | str]:
    """Sends groups in full calls from a network of its own; returns what became of them."""
    intake.outcomes.clear()
    for i in range(0, len(groups), BATCH):
        intake.wait(0.01)  # within the quotas, so that none is refused before it is looked up
        intake.publish(groups[i : i + BATCH], "10.0.2")
    outcomes: Counter[PublishOutcome | str] = Counter()
    for (_, outcome), number in intake.outcomes.items():
        outcomes[outcome] += number
    return outcomes
