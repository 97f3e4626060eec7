"""The exchange as one node sees it: hand over own rollouts, take what others sent.

Back ends differ in where the others are (same process, other machines) and share the contract
below, which one test suite checks on all of them. Validation, scoring and selection are not the
exchange's business: whatever `pull` returns is untrusted text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from sapo_jax.types import Rollout


class ExchangeClosedError(RuntimeError):
    """The node used its exchange after closing it."""


class Exchange(Protocol):
    """One node's access to the swarm.

    Neither call waits for another node, and neither raises because of the network: an exchange
    that reaches nobody accepts what is published and returns nothing. That lets a node go on
    training on its own rollouts whatever happens to the others (arXiv 2509.08721, Algorithm 1:
    no step of a node depends on the others' pace).
    """

    def publish(self, rollouts: Sequence[Rollout]) -> None:
        """Offers `rollouts` to every other node, without their local-only fields.

        Raises:
            ValueError: a rollout carries another node's `node_id`.
            ExchangeClosedError: after `close`.
        """
        ...

    def pull(self) -> list[Rollout]:
        """Returns the other nodes' rollouts that arrived since the last pull, oldest arrival first.

        Never this node's own, and each arrival once; a rollout published twice arrives twice
        unless the back end recognizes it.

        Raises:
            ExchangeClosedError: after `close`.
        """
        ...

    def close(self) -> None:
        """Leaves the swarm and frees what the exchange holds; closing twice is allowed."""
        ...


def without_local_fields(rollout: Rollout) -> Rollout:
    """Returns `rollout` as text only: token ids and behavior log-probs mean nothing to another node."""
    completions = tuple(
        dataclasses.replace(completion, token_ids=None, behavior_logprobs=None) for completion in rollout.completions
    )
    return dataclasses.replace(rollout, completions=completions)
