from __future__ import annotations

import json

import pytest

from sapo_jax.swarm.codec_json import CodecError
from sapo_jax.swarm.memory_exchange import MemoryHub


def _indices(rollouts):
    return [item.rollout.task_ref.index for item in rollouts]


@pytest.mark.parametrize(("published", "kept", "dropped"), [(2, [0, 1], 0), (3, [0, 1, 2], 0), (4, [1, 2, 3], 1)])
def test_mailbox_bound(scored, published, kept, dropped):
    hub = MemoryHub(["a", "b"], mailbox_rollouts=3)
    a, b = hub.connect("a"), hub.connect("b")
    for i in range(published):
        a.publish([scored((0, 1), "a", i)])
    assert hub.dropped == {"a": 0, "b": dropped}
    assert hub.counts() == {"groups/missed": dropped}
    assert _indices(b.pull()) == kept


def test_one_publication_larger_than_the_mailbox_keeps_its_newest(scored):
    hub = MemoryHub(["a", "b"], mailbox_rollouts=2)
    hub.connect("a").publish([scored((0, 1), "a", i) for i in range(5)])
    assert _indices(hub.connect("b").pull()) == [3, 4]
    assert hub.dropped["b"] == 3


def test_pulling_makes_room(scored):
    hub = MemoryHub(["a", "b"], mailbox_rollouts=1)
    a, b = hub.connect("a"), hub.connect("b")
    for i in range(3):
        a.publish([scored((0, 1), "a", i)])
        assert _indices(b.pull()) == [i]
    assert hub.dropped["b"] == 0


@pytest.mark.parametrize(
    ("node_ids", "bound", "message"),
    [(["a", "a"], 1, "must not repeat"), (["a"], 0, "mailbox_rollouts = 0 must be at least 1")],
)
def test_bad_hub(node_ids, bound, message):
    with pytest.raises(ValueError, match=message):
        MemoryHub(node_ids, mailbox_rollouts=bound)


def test_unknown_node_cannot_connect():
    with pytest.raises(ValueError, match="'c' is not one of"):
        MemoryHub(["a", "b"], mailbox_rollouts=1).connect("c")


def test_state_round_trip_continues_exactly(scored, rebuild_task):
    hub = MemoryHub(["a", "b", "c"], mailbox_rollouts=2)
    hub.connect("a").publish([scored((0, 1), "a", i) for i in range(3)])
    hub.connect("b").publish([scored((0, 1), "b", 9)])
    state = json.loads(json.dumps(hub.to_json(), sort_keys=True))

    restored = MemoryHub(["a", "b", "c"], mailbox_rollouts=2)
    restored.connect("c").publish([scored((0, 1), "c", 77)])  # must vanish
    restored.restore_json(state, rebuild_task)
    assert restored.dropped == hub.dropped == {"a": 0, "b": 1, "c": 2}
    for node_id in ("a", "b", "c"):
        assert restored.connect(node_id).pull() == hub.connect(node_id).pull()


@pytest.mark.parametrize(
    ("break_state", "message"),
    [
        (lambda s: s["mailboxes"].pop("b"), r"exchange\.mailboxes has the keys \['a'\]"),
        (lambda s: s["mailboxes"].update(c=[]), r"exchange\.mailboxes has the keys"),
        (lambda s: s.pop("dropped"), "exchange has the keys"),
        (lambda s: s["dropped"].update(b="1"), r"exchange\.dropped\.b is a str, expected int"),
        (lambda s: s["mailboxes"]["b"].append({}), r"mailboxes\.b\[1\] has the keys"),
        (lambda s: s["mailboxes"].update(b=s["mailboxes"]["b"] * 3), r"mailboxes\.b holds 3 rollouts, the limit is 2"),
    ],
)
def test_damaged_state_is_refused_and_changes_nothing(scored, rebuild_task, break_state, message):
    hub = MemoryHub(["a", "b"], mailbox_rollouts=2)
    hub.connect("a").publish([scored((0, 1), "a", 1)])
    before = hub.to_json()
    state = hub.to_json()
    break_state(state)
    with pytest.raises(CodecError, match=message):
        hub.restore_json(state, rebuild_task)
    assert hub.to_json() == before
