from __future__ import annotations

from collections import Counter

from sapo_jax.swarm.inbox import Inbox
from sapo_jax.swarm.mesh.scores import Scores
from sapo_jax.swarm.store.clock import Clock
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.retention import GroupState, StoreLimits
from sapo_jax.swarm.verify_queue import VerifyQueue, WaitingGroup
from sapo_jax.swarm.verifying import Verifying, VerifyLimits
from sapo_jax.swarm.wire.group_codec import reopen_group
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.types import Rejection, RejectionReason, Rollout, ScoredRollout
from tests.swarm.calls.hosts import SWARM, FakeClock, opened, signed_group
from tests.swarm.conftest import make_task


def waiting(seq: int, publisher: str, size_bytes: int = 10) -> WaitingGroup:
    return WaitingGroup(seq=seq, group_id=bytes([seq]) * 32, publisher=publisher, size_bytes=size_bytes)


def drain(queue: VerifyQueue, costs: dict[str, float]) -> list[tuple[str, int]]:
    order = []
    while (group := queue.next()) is not None:
        queue.charge(group.publisher, costs.get(group.publisher, 1.0))
        order.append((group.publisher, group.seq))
    return order


def opened_group(identity: Identity, *, index: int, sequence: int = 1):
    return opened(signed_group(identity, index=index, sequence=sequence))


# The queue.


def test_publishers_take_turns_and_each_keeps_its_order():
    queue = VerifyQueue(max_groups=100, max_bytes=10_000, clock=FakeClock())
    for seq, publisher in enumerate("aaaabbc"):
        queue.add(waiting(seq, publisher))
    order = drain(queue, {})
    assert [publisher for publisher, _ in order[:3]] == ["a", "b", "c"]
    assert [publisher for publisher, _ in order[3:5]] == ["a", "b"]
    for publisher in "abc":
        seqs = [seq for name, seq in order if name == publisher]
        assert seqs == sorted(seqs)
    assert len(queue) == 0 and queue.size_bytes == 0


def test_t5_dear_groups_delay_their_own_publisher_only():
    queue = VerifyQueue(max_groups=100, max_bytes=10_000, clock=FakeClock())
    for seq in range(20):
        queue.add(waiting(seq, "bomber"))
    for seq in range(20, 60):
        queue.add(waiting(seq, "honest"))
    order = drain(queue, {"bomber": 4.0, "honest": 0.1})
    first_all_honest = order.index(("honest", 59))
    assert sum(publisher == "bomber" for publisher, _ in order[:first_all_honest]) == 1


def test_a_publisher_that_rested_gets_no_credit_for_it():
    queue = VerifyQueue(max_groups=100, max_bytes=10_000, clock=FakeClock())
    for seq in range(10):
        queue.add(waiting(seq, "busy"))
    for _ in range(5):
        assert queue.next() is not None
        queue.charge("busy", 1.0)
    for seq in range(10, 20):
        queue.add(waiting(seq, "late"))
    order = [publisher for publisher, _ in drain(queue, {})]
    assert Counter(order[:8]) == {"busy": 4, "late": 4}


def test_a_paused_publisher_waits_and_nobody_else_does():
    clock = FakeClock()
    queue = VerifyQueue(max_groups=100, max_bytes=10_000, clock=clock)
    queue.add(waiting(1, "a"))
    queue.add(waiting(2, "b"))
    queue.pause("a", 10.0)
    assert drain(queue, {}) == [("b", 2)] and len(queue) == 1
    clock.now_s += 10.0
    assert drain(queue, {}) == [("a", 1)]


def test_t9_a_full_queue_drops_from_whoever_has_most_waiting():
    queue = VerifyQueue(max_groups=10, max_bytes=10_000, clock=FakeClock())
    for seq in range(9):
        assert queue.add(waiting(seq, "flood")) == []
    assert queue.add(waiting(100, "honest")) == []
    dropped = [queue.add(waiting(seq, "flood")) for seq in range(9, 12)]
    assert dropped == [[waiting(seq, "flood")] for seq in range(3)]
    assert queue.add(waiting(101, "honest")) == [waiting(3, "flood")]
    assert {seq for publisher, seq in drain(queue, {}) if publisher == "honest"} == {100, 101}


def test_t9_a_queue_full_of_bytes_drops_from_whoever_has_most_of_them():
    queue = VerifyQueue(max_groups=100, max_bytes=100, clock=FakeClock())
    for seq in range(3):
        assert queue.add(waiting(seq, "large", 30)) == []
    assert queue.add(waiting(10, "small", 10)) == []
    assert queue.add(waiting(11, "small", 10)) == [waiting(0, "large", 30)]
    assert queue.add(waiting(3, "large", 90)) == [
        waiting(1, "large", 30),
        waiting(2, "large", 30),
        waiting(3, "large", 90),
    ]
    assert (len(queue), queue.size_bytes) == (2, 20)
    queue.clear()
    assert queue.add(waiting(12, "large", 100)) == []


# The thread's work, step by step.


class Bench:
    """A store, an inbox and a verifier whose costs are set by dataset name or text."""

    def __init__(self, *, core_share: float = 0.25, catalog=()) -> None:
        self.clock = FakeClock()
        self.store = GroupStore(
            None, limits=StoreLimits(), clock=Clock(wall=self.clock, monotonic=self.clock, boot="test")
        )
        self.inbox = Inbox(["n"], mailbox_rollouts=1000, epoch=self.store.epoch)
        self.scores = Scores(self.clock)
        self.cost_s: dict[str, float] = {}
        self.busy_s = 0.0
        self.verdict: dict[str, RejectionReason] = {}
        self.informative: list[bytes] = []
        self.own = Identity.generate()
        self.verifying = Verifying(
            self.store,
            self.inbox,
            self.scores,
            self._verify,
            open_stored=lambda signed: reopen_group(signed, swarm_id=SWARM).rollout,
            own_ids=[self.own.node_id],
            catalog_digests=catalog,
            on_informative=lambda stored: self.informative.append(stored.group_id),
            limits=VerifyLimits(core_share=core_share),
            clock=self.clock,
        )

    def _verify(self, rollouts):
        (rollout,) = rollouts
        cost_s = self.cost_s.get(rollout.node_id, 0.001)
        self.clock.now_s += cost_s
        self.busy_s += cost_s
        reason = self.verdict.get(rollout.node_id)
        if reason is not None:
            return [Rejection(rollout=rollout, reason=reason, detail="test")]
        return [scored(rollout)]

    def run(self, seconds: float) -> None:
        """Works until `seconds` have passed on the clock."""
        end_s = self.clock.now_s + seconds
        while self.clock.now_s < end_s:
            self.clock.now_s += min(self.verifying.step(), 0.1)
            if not self.verifying.backlog()[0]:
                self.clock.now_s += 0.1

    def taken(self) -> list[str]:
        return [item.rollout.node_id for item in self.inbox.take("n")]


def scored(rollout: Rollout) -> ScoredRollout:
    scores = tuple(float(i % 2) for i in range(rollout.group_size))
    return ScoredRollout(rollout=rollout, task=make_task(rollout.task_ref), scores=scores)


def test_own_groups_are_not_delivered_and_foreign_ones_once():
    bench = Bench()
    other = Identity.generate()
    bench.store.put([opened_group(bench.own, index=1), opened_group(other, index=2)])
    bench.run(2.0)
    assert bench.taken() == [other.node_id]
    bench.run(2.0)
    assert bench.taken() == [] and bench.verifying.counts() == {"verified": 1}


def test_t5_bombs_leave_honest_groups_at_their_rate_and_the_core_at_its_share():
    def verified(with_bombs: bool) -> tuple[int, float]:
        bench = Bench()
        bomber, honest = Identity.generate(), Identity.generate()
        bench.cost_s = {bomber.node_id: 4.0, honest.node_id: 0.01}
        bench.verdict = {bomber.node_id: RejectionReason.TIMEOUT}
        if with_bombs:
            bench.store.put([opened_group(bomber, index=i, sequence=i + 1) for i in range(25)])
        begin_s, index = bench.clock.now_s, 0
        while bench.clock.now_s < begin_s + 120.0:
            bench.store.put([opened_group(honest, index=index, sequence=index + 1)])  # two a second
            index += 1
            bench.run(0.5)
        return bench.verifying.counts()["verified"], bench.busy_s

    normal, _ = verified(with_bombs=False)
    under_attack, busy_s = verified(with_bombs=True)
    assert under_attack >= 0.8 * normal
    assert busy_s <= 8.0 + 4.0 + 0.25 * 140.0


def test_t5_bombs_of_many_new_publishers_leave_honest_groups_at_their_rate_too():
    bench = Bench()
    honest, bombers = Identity.generate(), [Identity.generate() for _ in range(25)]
    bench.cost_s = {honest.node_id: 0.01, **{bomber.node_id: 4.0 for bomber in bombers}}
    bench.verdict = {bomber.node_id: RejectionReason.TIMEOUT for bomber in bombers}
    bench.store.put([opened_group(honest, index=0)])
    bench.run(1.0)
    bench.store.put([opened_group(bomber, index=1) for bomber in bombers])
    for index in range(1, 121):
        bench.store.put([opened_group(honest, index=index, sequence=index + 1)])  # two a second
        bench.run(0.5)
    assert bench.verifying.counts()["verified"] >= 0.8 * 121
    assert bench.verifying.counts()["rejected_timeout"] >= 4  # and the new ones get their turn


def test_publishers_of_dear_groups_get_what_the_others_leave():
    bench = Bench()
    dear = [Identity.generate() for _ in range(4)]
    bench.cost_s = {identity.node_id: 3.0 for identity in dear}
    bench.store.put([opened_group(dear[i % 4], index=i, sequence=i + 1) for i in range(60)])
    bench.run(240.0)
    assert 0.9 * 0.25 * 240.0 <= bench.busy_s <= 8.0 + 4.0 + 0.25 * 240.0


def test_t5_a_publisher_of_bombs_is_paused_ever_longer():
    bench = Bench(core_share=1.0)
    bomber = Identity.generate()
    bench.cost_s = {bomber.node_id: 4.0}
    bench.verdict = {bomber.node_id: RejectionReason.TIMEOUT}
    bench.store.put([opened_group(bomber, index=i, sequence=i + 1) for i in range(40)])
    bench.run(60.0)
    assert bench.verifying.counts()["rejected_timeout"] == 3  # at 0, 15 + 4 and 30 + 4 s later


def test_a_verdict_is_kept_in_the_store():
    bench = Bench()
    good, bad = Identity.generate(), Identity.generate()
    bench.verdict = {bad.node_id: RejectionReason.SCORER_FAILED}
    single = opened_group(good, index=1)
    bench.store.put([single, opened_group(bad, index=2)])
    bench.run(2.0)
    (left,) = bench.store.after(0, 10)
    assert (left.group_id, left.state) == (single.group_id, GroupState.UNINFORMATIVE)  # one completion cannot differ
    assert bench.informative == []
    assert bench.scores.score(bad.node_id) < 0 == bench.scores.score(good.node_id)


def test_groups_of_banned_publishers_cost_nothing():
    bench = Bench()
    bad = Identity.generate()
    bench.store.put([opened_group(bad, index=1)])
    bench.scores.ban(bad.node_id)
    bench.run(2.0)
    assert bench.busy_s == 0.0 and bench.taken() == []


def test_t3_a_false_reference_under_our_own_catalog_is_the_publishers_fault():
    bench = Bench(catalog=["ab" * 32])
    liar = Identity.generate()
    bench.verdict = {liar.node_id: RejectionReason.UNKNOWN_TASK}
    bench.store.put([opened_group(liar, index=i, sequence=i + 1) for i in range(9)])
    bench.run(5.0)
    assert bench.scores.is_banned(liar.node_id)
