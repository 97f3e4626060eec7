"""The contract of `Exchange`, checked on every back end; a new one joins by a factory in `BACK_ENDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from sapo_jax.swarm.exchange import Exchange, ExchangeClosedError, without_local_fields
from sapo_jax.swarm.memory_exchange import MemoryHub
from tests.swarm.network_hubs import Hubs

Connect = Callable[[Sequence[str]], Sequence[Exchange]]


def _memory(node_ids: Sequence[str], hubs: Hubs) -> Sequence[Exchange]:
    hub = MemoryHub(node_ids, mailbox_rollouts=64)
    return [hub.connect(node_id) for node_id in node_ids]


def _siblings(node_ids: Sequence[str], hubs: Hubs) -> Sequence[Exchange]:
    hub = hubs.make(*node_ids)
    return [hub.connect(node_id) for node_id in node_ids]


def _network(node_ids: Sequence[str], hubs: Hubs) -> Sequence[Exchange]:
    return hubs.settled(node_ids)


BACK_ENDS: dict[str, Callable[[Sequence[str], Hubs], Sequence[Exchange]]] = {
    "memory": _memory,
    "siblings": _siblings,  # nodes of one host of a network
    "network": _network,  # one host per node, over loopback
}


@pytest.fixture(params=list(BACK_ENDS.values()), ids=list(BACK_ENDS))
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    hubs = Hubs()
    yield lambda node_ids: request.param(node_ids, hubs)
    hubs.close_all()


def test_each_other_node_gets_what_was_published(connect, scored):
    a, b, c = connect(["a", "b", "c"])
    first, second = scored((0, 1), "a", 1), scored((0, 1), "a", 2)
    a.publish([first, second])
    expected = [without_local_fields(first), without_local_fields(second)]
    assert b.pull() == expected
    assert c.pull() == expected


def test_a_node_never_pulls_its_own(connect, scored):
    a, b = connect(["a", "b"])
    a.publish([scored((0, 1), "a")])
    b.publish([scored((0, 1), "b")])
    assert [item.rollout.node_id for item in a.pull()] == ["b"]
    assert [item.rollout.node_id for item in b.pull()] == ["a"]


def test_only_text_crosses(connect, scored):
    a, b = connect(["a", "b"])
    sent = scored((0, 1, 0.5), "a")
    assert all(completion.token_ids and completion.behavior_logprobs for completion in sent.rollout.completions)
    a.publish([sent])
    (received,) = b.pull()
    assert [c.text for c in received.rollout.completions] == [c.text for c in sent.rollout.completions]
    assert [c.finish_reason for c in received.rollout.completions] == [
        c.finish_reason for c in sent.rollout.completions
    ]
    assert all(c.token_ids is None and c.behavior_logprobs is None for c in received.rollout.completions)
    assert received.rollout.task_ref == sent.rollout.task_ref
    assert (received.task, received.scores) == (sent.task, sent.scores)


def test_pull_gives_each_arrival_once_in_order_of_publication(connect, scored):
    a, b, c = connect(["a", "b", "c"])
    b.publish([scored((0, 1), "b", 1)])
    a.publish([scored((0, 1), "a", 2), scored((0, 1), "a", 3)])
    b.publish([scored((0, 1), "b", 4)])
    assert [item.rollout.task_ref.index for item in c.pull()] == [1, 2, 3, 4]
    assert c.pull() == []
    a.publish([scored((0, 1), "a", 5)])
    assert [item.rollout.task_ref.index for item in c.pull()] == [5]


def test_pull_of_nothing_and_publish_of_nothing(connect):
    a, b = connect(["a", "b"])
    a.publish([])
    assert b.pull() == []


def test_a_node_alone_can_publish_and_pull(connect, scored):
    (alone,) = connect(["a"])
    alone.publish([scored((0, 1), "a")])
    assert alone.pull() == []


def test_a_silent_or_closed_node_holds_nobody_up(connect, scored):
    a, b, c = connect(["a", "b", "c"])
    c.close()
    a.publish([scored((0, 1), "a", 7)])
    assert [item.rollout.task_ref.index for item in b.pull()] == [7]


def test_the_pulled_list_belongs_to_the_caller(connect, scored):
    a, b, c = connect(["a", "b", "c"])
    a.publish([scored((0, 1), "a", 1)])
    b.pull().clear()
    assert [item.rollout.task_ref.index for item in c.pull()] == [1]


def test_publishing_for_another_node_is_refused_as_a_whole(connect, scored):
    a, b = connect(["a", "b"])
    with pytest.raises(ValueError, match="'a' cannot publish a rollout of node 'b'"):
        a.publish([scored((0, 1), "a"), scored((0, 1), "b")])
    a.publish([scored((0, 1), "a", 2)])
    assert [item.rollout.task_ref.index for item in b.pull()] == [2]


def test_closing_twice_is_fine_and_use_after_it_is_an_error(connect, scored):
    a, _ = connect(["a", "b"])
    a.close()
    a.close()
    with pytest.raises(ExchangeClosedError, match="'a' is closed"):
        a.pull()
    with pytest.raises(ExchangeClosedError, match="'a' is closed"):
        a.publish([scored((0, 1), "a")])


def test_without_local_fields_changes_nothing_else(scored):
    full = scored((0, 1, 0, 0.25), "a", 3, round=9)
    bare = without_local_fields(full)
    assert (bare.task, bare.scores) == (full.task, full.scores)
    rollout = bare.rollout
    assert (rollout.task_ref, rollout.node_id, rollout.round, rollout.policy_version) == (full.task.ref, "a", 9, 9)
    assert without_local_fields(bare) == bare
    assert full.rollout.completions[0].token_ids == (1, 2, 3)  # the node's own copy keeps its tokens
