"""The contract of `Exchange`, checked on every back end; a new one joins by a factory in `BACK_ENDS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sapo_jax.swarm.exchange import Exchange, ExchangeClosedError, without_local_fields
from sapo_jax.swarm.memory_exchange import MemoryHub

Connect = Callable[[Sequence[str]], list[Exchange]]


def _memory(node_ids: Sequence[str]) -> list[Exchange]:
    hub = MemoryHub(node_ids, mailbox_rollouts=64)
    return [hub.connect(node_id) for node_id in node_ids]


BACK_ENDS: dict[str, Connect] = {"memory": _memory}


@pytest.fixture(params=list(BACK_ENDS.values()), ids=list(BACK_ENDS))
def connect(request: pytest.FixtureRequest) -> Connect:
    return request.param


def test_each_other_node_gets_what_was_published(connect, rollout):
    a, b, c = connect(["a", "b", "c"])
    first, second = rollout("a", 1), rollout("a", 2)
    a.publish([first, second])
    expected = [without_local_fields(first), without_local_fields(second)]
    assert b.pull() == expected
    assert c.pull() == expected


def test_a_node_never_pulls_its_own(connect, rollout):
    a, b = connect(["a", "b"])
    a.publish([rollout("a")])
    b.publish([rollout("b")])
    assert [item.node_id for item in a.pull()] == ["b"]
    assert [item.node_id for item in b.pull()] == ["a"]


def test_only_text_crosses(connect, rollout):
    a, b = connect(["a", "b"])
    sent = rollout("a", group_size=3)
    assert all(completion.token_ids and completion.behavior_logprobs for completion in sent.completions)
    a.publish([sent])
    (received,) = b.pull()
    assert [c.text for c in received.completions] == [c.text for c in sent.completions]
    assert [c.finish_reason for c in received.completions] == [c.finish_reason for c in sent.completions]
    assert all(c.token_ids is None and c.behavior_logprobs is None for c in received.completions)
    assert received.task_ref == sent.task_ref


def test_pull_gives_each_arrival_once_in_order_of_publication(connect, rollout):
    a, b, c = connect(["a", "b", "c"])
    b.publish([rollout("b", 1)])
    a.publish([rollout("a", 2), rollout("a", 3)])
    b.publish([rollout("b", 4)])
    assert [item.task_ref.index for item in c.pull()] == [1, 2, 3, 4]
    assert c.pull() == []
    a.publish([rollout("a", 5)])
    assert [item.task_ref.index for item in c.pull()] == [5]


def test_pull_of_nothing_and_publish_of_nothing(connect):
    a, b = connect(["a", "b"])
    a.publish([])
    assert b.pull() == []


def test_a_node_alone_can_publish_and_pull(connect, rollout):
    (alone,) = connect(["a"])
    alone.publish([rollout("a")])
    assert alone.pull() == []


def test_a_silent_or_closed_node_holds_nobody_up(connect, rollout):
    a, b, c = connect(["a", "b", "c"])
    c.close()
    a.publish([rollout("a", 7)])
    assert [item.task_ref.index for item in b.pull()] == [7]


def test_the_pulled_list_belongs_to_the_caller(connect, rollout):
    a, b, c = connect(["a", "b", "c"])
    a.publish([rollout("a", 1)])
    b.pull().clear()
    assert [item.task_ref.index for item in c.pull()] == [1]


def test_publishing_for_another_node_is_refused_as_a_whole(connect, rollout):
    a, b = connect(["a", "b"])
    with pytest.raises(ValueError, match="'a' cannot publish a rollout of node 'b'"):
        a.publish([rollout("a"), rollout("b")])
    assert b.pull() == []


def test_closing_twice_is_fine_and_use_after_it_is_an_error(connect, rollout):
    a, _ = connect(["a", "b"])
    a.close()
    a.close()
    with pytest.raises(ExchangeClosedError, match="'a' is closed"):
        a.pull()
    with pytest.raises(ExchangeClosedError, match="'a' is closed"):
        a.publish([rollout("a")])


def test_without_local_fields_changes_nothing_else(rollout):
    full = rollout("a", 3, group_size=4, round=9)
    bare = without_local_fields(full)
    assert (bare.task_ref, bare.node_id, bare.round, bare.policy_version) == (full.task_ref, "a", 9, 9)
    assert without_local_fields(bare) == bare
    assert full.completions[0].token_ids == (1, 2, 3)  # the node's own copy keeps its tokens
