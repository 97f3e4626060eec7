"""The exchange as one node sees it: hand over own rollouts, take what others sent.

Back ends differ in where the others are (same process, other machines) and share the contract
below, which one test suite checks on all of them. What `pull` returns was scored by this process's
own verifier: a sibling's rollouts when they were made, a stranger's when they arrived. Scores are
never sent to another process, and none that another process sends is believed. What is eligible
and what is selected is not the exchange's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sapo_jax.types import ScoredRollout, Task, TaskRef

RebuildTask = Callable[[TaskRef], Task]


class ExchangeClosedError(RuntimeError):
    """The node used its exchange after closing it."""


class Hub(Protocol):
    """What a process shares between its nodes: the back end of their exchanges, which survives a restart with them."""

    def connect(self, node_id: str) -> Exchange:
        """Returns the exchange of `node_id`; raises ValueError if the hub has no such node."""
        ...

    def publish(self, node_id: str, scored: Sequence[ScoredRollout]) -> None:
        """Offers a node's own rollouts to every other node, without their local-only fields."""
        ...

    def take(self, node_id: str) -> list[ScoredRollout]:
        """Returns what has arrived for a node, oldest arrival first, and forgets it."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Returns how often what has happened so far, by metric name such as `groups/missed`."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Returns what a resumed process needs of the hub, JSON-ready."""
        ...

    def restore_json(self, state: Mapping[str, Any], rebuild_task: RebuildTask) -> None:
        """Takes over what `to_json` wrote; raises CodecError for damaged state and is then unchanged."""
        ...

    def close(self) -> None:
        """Stops whatever runs for the hub; closing twice is allowed."""
        ...


class Exchange:
    """One node's access to the swarm; made by `Hub.connect`.

    Neither call waits for another node, and neither raises because of the network: an exchange
    that reaches nobody accepts what is published and returns nothing. That lets a node go on
    training on its own rollouts whatever happens to the others (arXiv 2509.08721, Algorithm 1:
    no step of a node depends on the others' pace).
    """

    def __init__(self, hub: Hub, node_id: str) -> None:
        self._hub: Hub | None = hub
        self._node_id = node_id

    def publish(self, scored: Sequence[ScoredRollout]) -> None:
        """Offers own rollouts to every other node, without their local-only fields.

        Raises:
            ValueError: a rollout carries another node's `node_id`.
            ExchangeClosedError: after `close`.
        """
        hub = self._open_hub()
        for item in scored:
            if item.rollout.node_id != self._node_id:
                raise ValueError(f"node {self._node_id!r} cannot publish a rollout of node {item.rollout.node_id!r}")
        hub.publish(self._node_id, scored)

    def pull(self) -> list[ScoredRollout]:
        """Returns the other nodes' rollouts that arrived since the last pull, oldest arrival first.

        Never this node's own, and each arrival once; a rollout published twice arrives twice
        unless the back end recognizes it.

        Raises:
            ExchangeClosedError: after `close`.
        """
        return self._open_hub().take(self._node_id)

    def close(self) -> None:
        """Detaches from the hub, where the node's mailbox stays and keeps its bound; closing twice is allowed."""
        self._hub = None

    def _open_hub(self) -> Hub:
        if self._hub is None:
            raise ExchangeClosedError(f"the exchange of node {self._node_id!r} is closed")
        return self._hub


def without_local_fields(scored: ScoredRollout) -> ScoredRollout:
    """Returns `scored` with its rollout as text only: token ids and behavior log-probs mean nothing elsewhere."""
    completions = tuple(
        dataclasses.replace(completion, token_ids=None, behavior_logprobs=None)
        for completion in scored.rollout.completions
    )
    return dataclasses.replace(scored, rollout=dataclasses.replace(scored.rollout, completions=completions))
