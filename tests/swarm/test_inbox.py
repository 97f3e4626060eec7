"""Mailboxes and the place in the store: what gives way in a full mailbox, and what is counted as missed."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest

from sapo_jax.swarm.inbox import Inbox
from sapo_jax.swarm.pool import MAX_TEXT_BYTES, text_bytes

KIB = 1024


def _sized(item, size_bytes):
    """Returns a rollout whose texts have `size_bytes` in all."""
    first, *rest = item.rollout.completions
    completions = [dataclasses.replace(first, text="x" * size_bytes), *(dataclasses.replace(c, text="") for c in rest)]
    return dataclasses.replace(item, rollout=dataclasses.replace(item.rollout, completions=tuple(completions)))


def _arrive(inbox, items):
    """Lets foreign rollouts arrive by way of the store."""
    generation, seq = inbox.position()
    for place, item in enumerate(items, seq + 1):
        assert inbox.begin(generation, place, [place]) == [place]
        inbox.settle(generation, place, item)


def _sources(items):
    return [(item.rollout.node_id, item.rollout.task_ref.index) for item in items]


def test_groups_that_left_the_store_unread_are_missed_but_not_those_of_an_earlier_process() -> None:
    inbox = Inbox(["a"], mailbox_rollouts=4, epoch="e", opened_seq=10)
    inbox.begin(0, 9, [7, 9])
    assert inbox.missed == 0
    inbox.begin(0, 20, [10, 12, 15, 20])
    assert inbox.missed == 7  # of the places 11 to 20 three are left
    inbox.begin(0, 21, [21])
    assert inbox.missed == 7


def test_t9_a_flood_pushes_out_only_itself_and_every_drop_is_missed(scored):
    inbox = Inbox(["a", "b"], mailbox_rollouts=9, epoch="e")
    _arrive(inbox, [scored((0, 1), "honest", i) for i in range(3)])
    inbox.deliver("b", [scored((0, 1), "b", i) for i in range(2)])
    _arrive(inbox, [scored((0, 1), "greedy", i) for i in range(50)])
    assert inbox.waiting() == {"a": 9, "b": 9}
    assert inbox.missed == (50 - 4) + (50 - 6)  # the node b gets no letter of its own
    _arrive(inbox, [scored((0, 1), "late", 0)])
    honest = [("honest", 0), ("honest", 1), ("honest", 2)]
    assert _sources(inbox.take("a")) == [
        *honest, ("b", 0), ("b", 1), ("greedy", 47), ("greedy", 48), ("greedy", 49), ("late", 0)
    ]  # fmt: skip
    assert _sources(inbox.take("b"))[:3] == honest
    assert inbox.missed == (50 - 3) + (50 - 5)


def test_t8_texts_fill_a_mailbox_up_to_its_bytes_and_whoever_has_most_gives_way(scored):
    inbox = Inbox(["a"], mailbox_rollouts=1024, epoch="e")
    _arrive(inbox, [scored((0, 1), "honest", i) for i in range(5)])
    _arrive(inbox, [_sized(scored((0, 1), "greedy", i), 512 * KIB) for i in range(100)])
    _arrive(inbox, [scored((0, 1), "honest", i) for i in range(5, 10)])
    taken = inbox.take("a")
    assert sum(text_bytes(item.rollout) for item in taken) <= MAX_TEXT_BYTES
    assert Counter(name for name, _ in _sources(taken)) == {"honest": 10, "greedy": 63}
    assert _sources(taken)[5] == ("greedy", 37)  # the newest 63
    assert inbox.missed == 37
    assert taken[5] == _sized(scored((0, 1), "greedy", 37), 512 * KIB)  # whole


def test_texts_count_as_utf8_even_if_they_are_broken(scored):
    item = scored((0, 1), "a")
    texts = ("\N{GREEK SMALL LETTER ALPHA}b", "\ud800")
    completions = [
        dataclasses.replace(each, text=text) for each, text in zip(item.rollout.completions, texts, strict=True)
    ]
    assert text_bytes(dataclasses.replace(item.rollout, completions=tuple(completions))) == 3 + 3


def test_an_emptied_mailbox_has_all_its_room_again(scored):
    inbox = Inbox(["a"], mailbox_rollouts=2, epoch="e", mailbox_text_bytes=100)
    for index in range(3):
        inbox.deliver("b", [_sized(scored((0, 1), "b", index), 50), _sized(scored((0, 1), "b", index), 50)])
        assert len(inbox.take("a")) == 2
    assert inbox.missed == 0


def test_what_gave_way_is_not_owed_after_a_restart(scored, rebuild_task):
    inbox = Inbox(["a"], mailbox_rollouts=2, epoch="e")
    inbox.deliver("b", [scored((0, 1), "b", 7)])
    _arrive(inbox, [scored((0, 1), "greedy", i) for i in range(4)])
    state = json.loads(json.dumps(inbox.to_json()))
    assert state["nodes"]["a"]["owed"] == [4] and len(state["nodes"]["a"]["siblings"]) == 1
    restored = Inbox(["a"], mailbox_rollouts=2, epoch="e", opened_seq=4)
    restored.restore_json(state, rebuild_task)
    assert restored.missed == inbox.missed == 3
    assert restored.begin(restored.position()[0], 4, [1, 2, 3, 4]) == [4]


def test_a_restored_mailbox_keeps_its_bytes_too(scored, rebuild_task):
    wide = Inbox(["a"], mailbox_rollouts=8, epoch="e")
    wide.deliver("b", [_sized(scored((0, 1), "b", index), 40) for index in range(4)])
    narrow = Inbox(["a"], mailbox_rollouts=8, epoch="e", mailbox_text_bytes=100)
    narrow.restore_json(wide.to_json(), rebuild_task)
    assert narrow.missed == 2
    assert _sources(narrow.take("a")) == [("b", 2), ("b", 3)]


def test_of_equal_shares_the_oldest_gives_way(scored):
    inbox = Inbox(["a"], mailbox_rollouts=1024, epoch="e")
    inbox.deliver("b", [scored((0, 1), f"publisher {i}", i) for i in range(2048)])
    assert inbox.missed == 1024
    assert _sources(inbox.take("a")) == [(f"publisher {i}", i) for i in range(1024, 2048)]


@pytest.mark.parametrize("bound", ["mailbox_rollouts", "mailbox_text_bytes"])
def test_bounds_that_keep_nothing_are_refused(bound):
    with pytest.raises(ValueError, match=f"{bound} = 0 must be at least 1"):
        Inbox(["a"], **{"mailbox_rollouts": 1, bound: 0}, epoch="e")
