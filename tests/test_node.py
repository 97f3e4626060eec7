from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import pytest

from sapo_jax import wiring
from sapo_jax.config import SapoConfig, SharingConfig, TasksConfig
from sapo_jax.node import Node, generate, play_round, score_own
from sapo_jax.prompting import Prompter
from sapo_jax.swarm.exchange import Exchange
from sapo_jax.swarm.memory_exchange import MemoryHub
from sapo_jax.swarm.wire.identity import alias_of
from sapo_jax.tasks.verifier import InProcessVerifier
from sapo_jax.types import Completion, FinishReason, Rejection, RejectionReason, Rollout, ScoredRollout, Task
from tests.fakes import Rule, RuleHost, build_prompter, build_tasks, small_config, truths_of


class _Recorded:
    """An exchange that writes down what is done through it."""

    def __init__(self, exchange: Exchange, node_id: str, events: list[str]) -> None:
        self._exchange = exchange
        self._node_id = node_id
        self._events = events
        self.published: list[Rollout] = []

    def publish(self, scored: Sequence[ScoredRollout]) -> None:
        self._events.append(f"publish {self._node_id}")
        self.published += [item.rollout for item in scored]
        self._exchange.publish(scored)

    def pull(self) -> list[ScoredRollout]:
        self._events.append(f"pull {self._node_id}")
        return self._exchange.pull()

    def close(self) -> None:
        self._exchange.close()


@dataclass
class _Swarm:
    config: SapoConfig
    tasks: wiring.TaskSide
    prompter: Prompter
    host: Any
    hub: MemoryHub
    nodes: list[Node]
    exchanges: list[_Recorded]

    def play(self, round: int = 1) -> list[dict[str, float]]:
        return play_round(self.nodes, self.host, round)


def _swarm(
    config: SapoConfig,
    rule: Rule | None = None,
    strangers: Sequence[str] = (),
    tasks: wiring.TaskSide | None = None,
) -> _Swarm:
    """Returns a swarm whose nodes follow `rule`: by default even completions are right, odd ones cut short."""
    tasks = tasks or build_tasks(config)
    prompter = build_prompter(config, tasks)
    truths = _truths(config, tasks)

    def half(node: int, question: str, g: int) -> tuple[str, bool]:
        return (f"<answer>{truths[question]}</answer>", True) if g % 2 == 0 else ("well, the answer", False)

    host: Any = RuleHost(config, prompter, rule or half)
    ids = [f"node-{index}" for index in range(config.nodes)]
    hub = MemoryHub([*ids, *strangers], mailbox_rollouts=100)
    exchanges = [_Recorded(hub.connect(node_id), node_id, host.events) for node_id in ids]
    nodes = [
        Node(
            node_id,
            config,
            stream=wiring.build_stream(config, tasks, node_id),
            prompter=prompter,
            verifier=tasks.verifier,
            exchange=exchange,
        )
        for node_id, exchange in zip(ids, exchanges, strict=True)
    ]
    return _Swarm(config, tasks, prompter, host, hub, nodes, exchanges)


def _truths(config: SapoConfig, tasks: wiring.TaskSide) -> Mapping[str, str]:
    prompter = build_prompter(config, tasks)
    streams = [wiring.build_stream(config, tasks, f"node-{n}") for n in range(config.nodes)]
    return truths_of([task for stream in streams for task in stream.take(0, 12, prompter.fits).tasks])


def _sharing(local: int, external: int, **changes: Any) -> SharingConfig:
    return SharingConfig(local=local, external=external, max_uses=1, **changes)


def _foreign(task: Task, texts: Sequence[str]) -> ScoredRollout:
    """Returns a stranger's rollout: right answers score 1, all others 0."""
    completions = tuple(Completion(text=text, finish_reason=FinishReason.STOP) for text in texts)
    rollout = Rollout(task_ref=task.ref, node_id="stranger", round=1, policy_version=0, completions=completions)
    right = f"<answer>{task.ground_truth}</answer>"
    return ScoredRollout(rollout=rollout, task=task, scores=tuple(float(text == right) for text in texts))


def _training_tasks(swarm: _Swarm, count: int) -> tuple[Task, ...]:
    return wiring.build_stream(swarm.config, swarm.tasks, "stranger").take(0, count).tasks


def _same(first: Any, second: Any) -> bool:
    equal = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), first, second)
    return jax.tree.all(equal)


def test_the_beats_come_in_order() -> None:
    swarm = _swarm(small_config())
    swarm.play()
    assert swarm.host.events == [
        "sample",
        "publish node-0",
        "publish node-1",
        "pull node-0",
        "pull node-1",
        "update",
    ]


def test_the_training_set_is_i_own_and_j_foreign_groups() -> None:
    swarm = _swarm(small_config(nodes=3, sharing=_sharing(2, 3)))
    tasks = [node.draw() for node in swarm.nodes]
    rows = generate(swarm.nodes, swarm.host, tasks, 1)
    own = score_own(swarm.nodes, tasks, rows, 1)
    for node, rollouts in zip(swarm.nodes, own, strict=True):
        assert [scored.rollout.node_id for scored in rollouts] == [node.node_id] * 2
        node.publish(rollouts)
    for node in swarm.nodes:
        node.pull(1)
    for node, rollouts in zip(swarm.nodes, own, strict=True):
        training = node.select(rollouts, 1)
        assert training[:2] == rollouts
        others = [scored.rollout for scored in training[2:]]
        assert len(others) == 3 and node.node_id not in {rollout.node_id for rollout in others}
        published = [r for exchange in swarm.exchanges for r in exchange.published if r.node_id != node.node_id]
        texts = [tuple(completion.text for completion in rollout.completions) for rollout in published]
        assert all(tuple(c.text for c in rollout.completions) in texts for rollout in others)
        assert all(c.token_ids is None and c.behavior_logprobs is None for r in others for c in r.completions)


def test_a_round_lays_the_training_set_out() -> None:
    swarm = _swarm(small_config(nodes=3, sharing=_sharing(2, 3)))
    metrics = swarm.play()
    (batches,) = swarm.host.batches
    for batch, values in zip(batches, metrics, strict=True):
        assert batch.external.tolist() == [False, False, True, True, True]
        assert batch.valid.all()
        np.testing.assert_array_equal(batch.rewards, [[1, 0, 1, 0]] * 5)
        np.testing.assert_array_equal(batch.truncated, [[False, True, False, True]] * 5)
        assert batch.prompt_tokens.shape == batches[0].prompt_tokens.shape  # one shape for all nodes
        assert (values["groups/local"], values["groups/external"]) == (2, 3)
        assert values["tokens/trained"] == batch.completion_mask.sum()
        assert values["tokens/truncated_frac"] == 0.5
        positions = 0  # that hold a token, counted one by one
        for prompt, group in zip(batch.prompt_mask, batch.completion_mask, strict=True):
            positions += sum(prompt.tolist()) + sum(sum(row) for row in group.tolist())
        size = batch.prompt_tokens.size + batch.completion_tokens.size
        assert 0 < positions < size
        assert values["tokens/padding_frac"] == pytest.approx(1 - positions / size)


def test_rows_that_only_fill_the_shape_count_as_padding() -> None:
    """Without anybody to pull from, two of four groups are fillers: half of all positions, and more."""
    swarm = _swarm(small_config(nodes=1, sharing=_sharing(2, 2)))
    (metrics,) = swarm.play()
    ((batch,),) = swarm.host.batches
    assert batch.valid.any(axis=1).tolist() == [True, True, False, False]
    assert metrics["tokens/padding_frac"] >= 0.5


def test_the_round_draws_with_seeds_of_its_own() -> None:
    swarm = _swarm(small_config())
    for round in (1, 2):
        swarm.play(round)
    seeds = [seed for call in swarm.host.sampled for seed in call["seeds"]]
    assert len(set(seeds)) == 4
    questions = [question for call in swarm.host.sampled for row in call["questions"] for question in row]
    assert len(questions) == 8 and len(set(questions)) > 4
    assert {(call["group_size"], call["temperature"]) for call in swarm.host.sampled} == {(4, 1.0)}


def test_own_and_training_rewards_are_told_apart() -> None:
    """Node 0 solves nothing, node 1 half: node 0's training reward is not its own."""
    config = small_config(sharing=_sharing(2, 2))
    truths = _truths(config, build_tasks(config))

    def rule(node: int, question: str, g: int) -> tuple[str, bool]:
        return f"<answer>{truths[question] if node == 1 and g < 2 else 'x'}</answer>", True

    first, second = _swarm(config, rule).play()
    assert (first["reward/own_mean"], second["reward/own_mean"]) == (0.0, 0.5)
    assert (first["reward/own_strict_frac"], second["reward/own_strict_frac"]) == (0.0, 0.5)
    # Two own groups at 0 and two foreign ones at 1/2; node 1 gets nothing: no group of node 0 informs.
    assert (first["reward/train_mean"], first["groups/external"]) == (0.25, 2)
    assert (second["reward/train_mean"], second["groups/external"]) == (0.5, 0)
    assert first["reward/own_stopped_frac"] == 1.0
    assert not any(name.startswith("eval/") for name in first | second)
    assert first["time/round_s"] >= first["time/sample_s"] + first["time/verify_s"] + first["time/update_s"]


def test_own_tokens_are_counted_with_their_end_token() -> None:
    config = small_config(nodes=1, sharing=_sharing(2, 0))
    (metrics,) = _swarm(config, lambda node, question, g: ("ab", g == 0)).play()
    assert metrics["tokens/generated"] == 2 * (4 * 2 + 1)
    assert metrics["reward/own_stopped_frac"] == 0.25


def test_publishers_that_share_an_alias_are_added_up() -> None:
    swarm = _swarm(small_config(nodes=1))
    (task,) = _training_tasks(swarm, 1)
    ids: dict[str, str] = {}
    for number in range(10_000):
        other = f"{number:052d}"  # as long as the node ids of a network
        one = ids.setdefault(alias_of(other), other)
        if one != other:
            break
    else:
        raise AssertionError("no two ids share an alias")
    foreign = _foreign(task, ["x", "y"])
    training = [replace(foreign, rollout=replace(foreign.rollout, node_id=name)) for name in (one, other, other)]
    metrics = swarm.nodes[0].round_metrics([], training)
    assert {name: value for name, value in metrics.items() if name.startswith("groups/from/")} == {
        f"groups/from/{alias_of(one)}": 3.0
    }


def test_few_candidates_make_a_smaller_training_set() -> None:
    """J = 5, but of the two groups of the other node one has no spread of rewards."""
    config = small_config(sharing=_sharing(2, 5))
    truths = _truths(config, build_tasks(config))
    flat = sorted(truths)[::2]

    def rule(node: int, question: str, g: int) -> tuple[str, bool]:
        return f"<answer>{truths[question] if question not in flat and g == 0 else 'x'}</answer>", True

    swarm = _swarm(config, rule)
    informative = [sum(question not in flat for question in row) for row in _asked(swarm)]
    assert sum(informative) not in (0, 4)  # else this shows nothing
    metrics = swarm.play()
    for node, batch in enumerate(swarm.host.batches[0]):
        expected = 2 + informative[1 - node]
        assert batch.valid.any(axis=1).tolist() == [True] * expected + [False] * (7 - expected)
        assert metrics[node]["groups/external"] == informative[1 - node]
        assert not batch.completion_mask[expected:].any()


def _asked(swarm: _Swarm) -> list[list[str]]:
    streams = [wiring.build_stream(swarm.config, swarm.tasks, node.node_id) for node in swarm.nodes]
    return [[task.question for task in stream.take(0, 2, swarm.prompter.fits).tasks] for stream in streams]


def test_without_sharing_a_swarm_is_many_solo_runs_bit_for_bit() -> None:
    swarm = _swarm(small_config(sharing=_sharing(2, 0)))
    solo = _swarm(small_config(nodes=1, sharing=_sharing(2, 0)))
    for round in (1, 2, 3):
        metrics, solo_metrics = swarm.play(round), solo.play(round)
        assert _same(swarm.host.batches[-1][0], solo.host.batches[-1][0])
        assert not _same(swarm.host.batches[-1][1], solo.host.batches[-1][0])
        ours = {name: value for name, value in metrics[0].items() if not name.startswith(("time/", "groups/"))}
        assert ours == {name: solo_metrics[0][name] for name in ours}
    assert swarm.host.sampled[-1]["seeds"][0] == solo.host.sampled[-1]["seeds"][0]


def test_own_rollouts_that_cannot_be_scored_are_counted_and_not_published() -> None:
    config = small_config()
    long = _asked(_swarm(config))[0][0]

    def rule(node: int, question: str, g: int) -> tuple[str, bool]:
        return ("x" * 70_000 if question == long and g == 1 else "y"), True

    swarm = _swarm(config, rule)
    first, second = swarm.play(1), swarm.play(2)
    assert [values.get("groups/rejected_own_completion_size") for values in first] == [1, None]
    assert [values["groups/local"] for values in first] == [1, 2]
    assert len(swarm.exchanges[0].published) == 3  # one in the first round, two in the second
    assert not any("rejected" in name for values in second for name in values)


def test_a_foreign_question_that_is_too_long_for_us_is_counted() -> None:
    tasks = TasksConfig(catalog="easy", specialties=("leap_year",), shots=0)  # questions of several lengths
    wide = _swarm(small_config(tasks=tasks))
    task = max(_training_tasks(wide, 20), key=lambda task: len(wide.prompter.encode(task)))
    length = len(wide.prompter.encode(task))
    for buckets, count in (((length - 1,), 1.0), ((length,), None)):
        sampling = replace(wide.config.sampling, prompt_buckets=buckets)
        swarm = _swarm(small_config(tasks=tasks, sampling=sampling), strangers=["stranger"])
        answers = [f"<answer>{task.ground_truth}</answer>", "x"]
        swarm.hub.connect("stranger").publish([_foreign(task, answers)])
        assert swarm.play()[0].get("groups/rejected_prompt_too_long") == count


def test_over_long_questions_are_skipped_and_counted() -> None:
    tasks = TasksConfig(catalog="easy", specialties=("leap_year",), shots=0)
    wide = _swarm(small_config(tasks=tasks))
    limit = max(len(wide.prompter.encode(task)) for task in _training_tasks(wide, 20)) - 1
    config = small_config(tasks=tasks, sampling=replace(wide.config.sampling, prompt_buckets=(limit,)))
    swarm = _swarm(config)
    rejected: list[str] = []

    def is_short(task: Task) -> bool:
        if len(wide.prompter.encode(task)) > limit:
            rejected.append(task.question)
            return False
        return True

    expected: list[list[float]] = []  # of each round, of each node
    for round in (1, 2, 3):
        expected.append([])
        for node in swarm.nodes:
            before = len(rejected)
            wiring.build_stream(config, swarm.tasks, node.node_id).take(2 * (round - 1), 2, is_short)
            expected[-1].append(len(rejected) - before)
    found = [[values.get("tasks/skipped_not_accepted", 0.0) for values in swarm.play(round)] for round in (1, 2, 3)]
    assert found == expected
    assert len({count for counts in expected for count in counts}) > 2  # else this shows little
    asked = [question for call in swarm.host.sampled for row in call["questions"] for question in row]
    assert len(asked) == 12 and not set(rejected) & set(asked)


def test_a_smaller_foreign_group_leaves_rows_empty() -> None:
    swarm = _swarm(small_config(nodes=1, sharing=_sharing(2, 1)), strangers=["stranger"])
    (task,) = _training_tasks(swarm, 1)
    answers = [f"<answer>{task.ground_truth}</answer>", "x"]
    swarm.hub.connect("stranger").publish([_foreign(task, answers)])
    swarm.play()
    ((batch,),) = swarm.host.batches
    assert batch.valid[2].tolist() == [True, True, False, False]
    assert batch.rewards[2].tolist() == [1, 0, 0, 0]


def test_without_external_groups_nothing_foreign_is_judged() -> None:
    swarm = _swarm(small_config(sharing=_sharing(2, 0)))
    for round in (1, 2):
        for values in swarm.play(round):
            assert values["groups/pool"] == 0 and not any("external_" in name for name in values)
    assert not any(swarm.hub.to_json()["mailboxes"].values())  # emptied all the same


def test_with_nobody_there_a_node_trains_on_its_own() -> None:
    (metrics,) = _swarm(small_config(nodes=1)).play()
    assert (metrics["groups/local"], metrics["groups/external"]) == (2, 0)


def test_what_leaves_the_pool_is_counted() -> None:
    """Two groups arrive a round, one is used; the other is too old a round later."""
    swarm = _swarm(small_config(sharing=_sharing(2, 1)))
    first, second = swarm.play(1)[0], swarm.play(2)[0]
    assert first["groups/evicted_uses"] == 1 and "groups/evicted_age" not in first
    assert second["groups/evicted_uses"] == 1 and second["groups/evicted_age"] == 1
    assert first["groups/pool"] == second["groups/pool"] == 1


def test_every_round_and_node_selects_by_itself() -> None:
    sharing = SharingConfig(local=2, external=3, max_age_rounds=10, max_uses=64)
    swarm = _swarm(small_config(sharing=sharing), strangers=["stranger"])
    tasks = _training_tasks(swarm, 12)
    swarm.hub.connect("stranger").publish([_foreign(t, [f"<answer>{t.ground_truth}</answer>", "x"]) for t in tasks])
    drawn = []
    for node in swarm.nodes:
        node.pull(1)
        drawn += [tuple(s.task.question for s in node.select([], round)) for round in range(1, 6)]
    assert len(set(drawn)) > 8  # of ten


def test_a_restored_swarm_plays_on_as_it_would_have() -> None:
    config = small_config(sharing=_sharing(2, 1, max_age_rounds=2))
    whole, stopped, resumed = _swarm(config), _swarm(config), _swarm(config)
    for round in (1, 2):
        whole.play(round)
        stopped.play(round)
    for node, other in zip(resumed.nodes, stopped.nodes, strict=True):
        node.restore_json(other.to_json(), resumed.tasks.source.task)
    resumed.hub.restore_json(stopped.hub.to_json(), resumed.tasks.source.task)
    for round in (3, 4):
        expected, found = whole.play(round), resumed.play(round)
        assert _same(whole.host.batches[-1], resumed.host.batches[-1])
        for one, two in zip(expected, found, strict=True):
            assert {k: v for k, v in one.items() if k[:5] != "time/"} == {
                k: v for k, v in two.items() if k[:5] != "time/"
            }


def test_the_state_of_another_node_is_refused() -> None:
    swarm = _swarm(small_config())
    with pytest.raises(ValueError, match="'node-0' is not that of node 'node-1'"):
        swarm.nodes[1].restore_json(swarm.nodes[0].to_json(), swarm.tasks.source.task)


def test_own_groups_that_the_verifier_gives_up_are_counted_and_never_an_error() -> None:
    """A question takes too long to score in the first round: one node trains on less, the other as always."""

    class Impatient(InProcessVerifier):
        def verify(self, rollouts: Sequence[Rollout], *, lane: str = "own") -> list[ScoredRollout | Rejection]:
            assert [rollout.node_id for rollout in rollouts] == ["node-0"] * 2 + ["node-1"] * 2, "one batch for all"
            first, *rest = super().verify(rollouts, lane=lane)
            return [Rejection(rollout=first.rollout, reason=RejectionReason.TIMEOUT, detail="too slow"), *rest]

    config = small_config(sharing=_sharing(2, 0))
    tasks = build_tasks(config)
    swarm = _swarm(config, tasks=replace(tasks, verifier=Impatient(tasks.source)))
    first, second = swarm.play()
    assert first["groups/rejected_own_timeout"] == 1 and first["groups/local"] == 1
    assert "groups/rejected_own_timeout" not in second and second["groups/local"] == 2
