"""The exchange of nodes that share one process: a hub with one mailbox per node.

Nothing is concurrent here. A host publishes for its nodes one after the other, and what arrives
where, and in which order, follows from the order of those calls alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from sapo_jax.swarm.codec_json import CodecError, fields_from_json, scored_from_json, scored_to_json, typed
from sapo_jax.swarm.exchange import Exchange, RebuildTask, without_local_fields
from sapo_jax.types import ScoredRollout


class MemoryHub:
    """Owns the mailboxes of a fixed set of nodes.

    A full mailbox drops its oldest rollout for every new one and counts it in `dropped`, so a
    node that never pulls costs bounded memory and holds nobody up.
    """

    def __init__(self, node_ids: Sequence[str], *, mailbox_rollouts: int) -> None:
        """Opens one empty mailbox per node, each for at most `mailbox_rollouts` rollouts.

        Raises:
            ValueError: a node id appears twice, or the bound is below 1.
        """
        if len(set(node_ids)) != len(node_ids):
            raise ValueError(f"node ids {list(node_ids)} must not repeat")
        if mailbox_rollouts < 1:
            raise ValueError(f"mailbox_rollouts = {mailbox_rollouts} must be at least 1")
        self._mailboxes: dict[str, deque[ScoredRollout]] = {
            node_id: deque(maxlen=mailbox_rollouts) for node_id in node_ids
        }
        self._dropped = dict.fromkeys(node_ids, 0)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Rollouts dropped so far from each node's full mailbox, by the id of the node that missed them."""
        return dict(self._dropped)

    def connect(self, node_id: str) -> Exchange:
        """Returns the exchange of `node_id`; raises ValueError if the hub has no such node."""
        if node_id not in self._mailboxes:
            raise ValueError(f"node id {node_id!r} is not one of {list(self._mailboxes)}")
        return Exchange(self, node_id)

    def counts(self) -> Mapping[str, int]:
        """Returns the rollouts dropped so far from full mailboxes, as `groups/missed`."""
        return {"groups/missed": sum(self._dropped.values())}

    def publish(self, node_id: str, scored: Sequence[ScoredRollout]) -> None:
        """Puts `scored`, as text only, into every mailbox but the node's own, in order."""
        texts = [without_local_fields(item) for item in scored]
        for other_id, mailbox in self._mailboxes.items():
            if other_id == node_id:
                continue
            for item in texts:
                if len(mailbox) == mailbox.maxlen:
                    self._dropped[other_id] += 1
                mailbox.append(item)

    def take(self, node_id: str) -> list[ScoredRollout]:
        """Returns the content of a mailbox, oldest first, and empties it."""
        taken = list(self._mailboxes[node_id])
        self._mailboxes[node_id].clear()
        return taken

    def to_json(self) -> dict[str, Any]:
        """Returns mailboxes and drop counts as JSON-ready data, for a checkpoint."""
        return {
            "mailboxes": {
                node_id: [scored_to_json(item) for item in mailbox] for node_id, mailbox in self._mailboxes.items()
            },
            "dropped": dict(self._dropped),
        }

    def restore_json(self, state: Mapping[str, Any], rebuild_task: RebuildTask) -> None:
        """Replaces mailboxes and drop counts with those that `to_json` wrote.

        Raises:
            CodecError: the state belongs to other nodes, holds more than a mailbox takes, or is damaged;
                the hub is then unchanged.
        """
        top = fields_from_json(state, "exchange", ("mailboxes", "dropped"))
        mailboxes = fields_from_json(top["mailboxes"], "exchange.mailboxes", self._mailboxes)
        counts = fields_from_json(top["dropped"], "exchange.dropped", self._mailboxes)
        restored: dict[str, list[ScoredRollout]] = {}
        for node_id, mailbox in self._mailboxes.items():
            path = f"exchange.mailboxes.{node_id}"
            items = typed(mailboxes[node_id], list, path)
            if mailbox.maxlen is not None and len(items) > mailbox.maxlen:
                raise CodecError(f"{path} holds {len(items)} rollouts, the limit is {mailbox.maxlen}")
            restored[node_id] = [scored_from_json(item, f"{path}[{i}]", rebuild_task) for i, item in enumerate(items)]
        dropped = {node_id: typed(counts[node_id], int, f"exchange.dropped.{node_id}") for node_id in self._mailboxes}
        for node_id, content in restored.items():
            self._mailboxes[node_id].clear()
            self._mailboxes[node_id].extend(content)
        self._dropped = dropped

    def close(self) -> None:
        """Does nothing: the hub holds memory only."""
