"""Mailboxes and the place in the store: what is counted as missed."""

from __future__ import annotations

from sapo_jax.swarm.inbox import Inbox


def test_groups_that_left_the_store_unread_are_missed_but_not_those_of_an_earlier_process() -> None:
    inbox = Inbox(["a"], mailbox_rollouts=4, epoch="e", opened_seq=10)
    inbox.begin(0, 9, [7, 9])
    assert inbox.missed == 0
    inbox.begin(0, 20, [10, 12, 15, 20])
    assert inbox.missed == 7  # of the places 11 to 20 three are left
    inbox.begin(0, 21, [21])
    assert inbox.missed == 7
