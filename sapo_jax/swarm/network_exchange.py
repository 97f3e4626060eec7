"""The exchange of nodes whose swarm is spread over the network: what a training process holds of it.

Publishing signs a group and commits it to the store; pulling takes what lies in the node's mailbox.
Neither touches the network, which a thread of its own serves, nor the verifier, which another thread
feeds from the store. Nodes of one host see each other's rollouts at once, as with a `MemoryHub`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sapo_jax
from sapo_jax.swarm.calls.trust import Trust
from sapo_jax.swarm.exchange import Exchange, RebuildTask, without_local_fields
from sapo_jax.swarm.inbox import Inbox
from sapo_jax.swarm.mesh.admin_server import AdminServer
from sapo_jax.swarm.mesh.host_status import HostStatus, NodeFigures, status_of
from sapo_jax.swarm.mesh.network_host import GivenPeer, HostLimits, NetworkHost
from sapo_jax.swarm.sealing import Sealer
from sapo_jax.swarm.store.clock import Clock
from sapo_jax.swarm.store.file import StoreError
from sapo_jax.swarm.store.outbox import OutboxKey
from sapo_jax.swarm.verifying import Verify, Verifying, VerifyLimits
from sapo_jax.swarm.wire.errors import WireError
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.signed_content import GeneratorInfo, SignedGroup
from sapo_jax.types import Rollout, ScoredRollout

logger = logging.getLogger(__name__)

STOP_VERIFY_S = 6.0  # a group at hand may use up its budget


class NetworkHub:
    """Owns the network host, the verifying thread and the mailboxes of a process's nodes."""

    def __init__(
        self,
        identities: Mapping[str, Identity],
        *,
        swarm_id: str,
        trust: Trust,
        verify: Verify,
        mailbox_rollouts: int,
        listen: str | None,
        advertise: Sequence[str] = (),
        peers: Sequence[GivenPeer] = (),
        directory: Path | None,
        catalog_digests: Sequence[str] = (),
        generator: GeneratorInfo | None = None,
        verifier_version: str = "",
        limits: HostLimits | None = None,
        verify_limits: VerifyLimits | None = None,
        with_reflection: bool = False,
        on_drain: Callable[[], None] | None = None,
        clock: Clock | None = None,
        busy_s: Callable[[], float] | None = None,
        is_resuming: bool = False,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Opens the store and the port, looks for peers and starts to verify.

        Args:
            identities: this host's nodes, by the node id that their own rollouts carry; to others they go
                by the id of their identity. The first one signs for the host.
            swarm_id: the swarm to take part in.
            trust: how hosts prove themselves to each other.
            verify: judges foreign rollouts, in order; called in one thread of the hub's.
            mailbox_rollouts: bound of each node's mailbox.
            listen: "host:port", port 0 for a free one; None: only dial out.
            advertise: what others should dial, if that is not `listen`.
            peers: whom to dial first.
            directory: where the store and the peer book are kept; None: in memory.
            catalog_digests: config digests (hex) of the tasks that `verify` knows; empty: any.
            generator: what to tell about the policies.
            verifier_version: version of the task library, for others.
            limits: bounds of the network.
            verify_limits: bounds of the verification.
            with_reflection: lets tools list the services; for debugging.
            on_drain: called when the operator asks the host to stop, by way of the admin socket in `directory`;
                None: there is no such socket.
            clock: wall and monotonic time.
            busy_s: CPU seconds that `verify` has used so far; without, wall time counts.
            is_resuming: begin to verify at `start_verifying` only, after the state of an earlier process is restored.
            rng: decides every random choice on the network.

        Raises:
            ValueError: no identity, or a bound below 1.
            StoreError, ServerAddressError, TrustError, AddressError: see `NetworkHost`.
            AdminError: the admin socket cannot be opened.
        """
        if not identities:
            raise ValueError("a hub needs at least one node; a host without nodes is a relay")
        self._identities = dict(identities)
        limits = limits or HostLimits()
        own_ids = {identity.node_id for identity in identities.values()}
        self._unpublished = 0
        self._published: Counter[str] = Counter()
        self._pulled: Counter[str] = Counter()
        self._rounds: Counter[str] = Counter()  # the highest each node has published
        self._trouble = ""  # why own groups are not published now
        self._verifying: Verifying | None = None
        self._admin: AdminServer | None = None
        self._is_closed = False
        self.host = NetworkHost(
            next(iter(identities.values())),
            swarm_id=swarm_id,
            trust=trust,
            listen=listen,
            advertise=advertise,
            peers=peers,
            directory=directory,
            own_ids=own_ids,
            catalog_digests=catalog_digests,
            on_stored=self._nudge_verify,
            backlog=self._verify_backlog,
            limits=limits,
            with_reflection=with_reflection,
            clock=clock,
            rng=rng,
        )
        self._sealer = Sealer(
            swarm_id=swarm_id,
            generator=generator or GeneratorInfo(),
            verifier_version=verifier_version,
            wall_clock=self.host.wall_clock,
            limits=limits.wire,
        )
        try:
            self._inbox = Inbox(
                list(self._identities),
                mailbox_rollouts=mailbox_rollouts,
                epoch=self.host.store.epoch,
                opened_seq=self.host.store.opened_seq,
            )
            self._verifying = Verifying(
                self.host.store,
                self._inbox,
                self.host.scores,
                verify,
                open_stored=self._open_stored,
                own_ids=own_ids,
                catalog_digests=catalog_digests,
                on_informative=self.host.pusher.offer_relay,
                limits=verify_limits or VerifyLimits(),
                clock=time.monotonic,
                busy_s=busy_s,
            )
            if not is_resuming:
                self._verifying.start()
            if on_drain is not None and directory is not None:
                self._admin = AdminServer(directory, status=self.status, drain=on_drain, scores=self.host.scores)
                self.host.loop().run(self._admin.start())
        except BaseException:
            if self._verifying is not None:
                self._verifying.stop(STOP_VERIFY_S)
            self.host.close(flush_s=0.0, grace_s=0.0)
            raise

    def start_verifying(self) -> None:
        """Begins to verify foreign groups; for a hub that was made `is_resuming`."""
        assert self._verifying is not None
        self._verifying.start()

    def connect(self, node_id: str) -> Exchange:
        """Returns the exchange of `node_id`; raises ValueError if the hub has no such node."""
        if node_id not in self._identities:
            raise ValueError(f"node id {node_id!r} is not one of {list(self._identities)}")
        return Exchange(self, node_id)

    def identity(self, node_id: str) -> Identity:
        """Returns the identity of a node."""
        return self._identities[node_id]

    def counts(self) -> Mapping[str, int]:
        """Returns totals since the start (missed ones since the first start), by metric name."""
        verifying = self._verifying
        verdicts = {} if verifying is None else verifying.counts()
        rejected = {
            f"groups/rejected_external_{name.removeprefix('rejected_')}": count
            for name, count in verdicts.items()
            if name.startswith("rejected_")
        }
        return {
            "groups/missed": self._inbox.missed,
            "groups/verified_external": verdicts.get("verified", 0),
            "groups/unpublished": self._unpublished,
            "swarm/accepted": self.host.pusher.accepted,
            "swarm/relayed": self.host.pusher.relayed,
            **rejected,
        }

    def external_publishers(self) -> Mapping[str, int]:
        """Returns how many verified groups came from whom since the start, by node id."""
        return {} if self._verifying is None else dict(self._verifying.by_publisher)

    def node_figures(self) -> list[NodeFigures]:
        """Returns what each node has published, pulled and has waiting."""
        waiting = self._inbox.waiting()
        return [
            NodeFigures(
                node_id=identity.node_id,
                alias=identity.alias,
                round=self._rounds[node_id],
                published=self._published[node_id],
                pulled=self._pulled[node_id],
                waiting=waiting[node_id],
            )
            for node_id, identity in self._identities.items()
        ]

    def status(self) -> HostStatus:
        """Returns the state of the host and its nodes; any thread may call."""
        return status_of(
            self.host,
            software_version=sapo_jax.__version__,
            nodes=self.node_figures(),
            counters=self.counts(),
            publishers=self.external_publishers(),
            warnings=[f"own groups are not published: {self._trouble}"] if self._trouble else [],
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what a resumed process needs besides the store: siblings' rollouts and the place in the store."""
        return self._inbox.to_json()

    def restore_json(self, state: Mapping[str, Any], rebuild_task: RebuildTask) -> None:
        """Takes over what `to_json` wrote; what nodes had not taken by then is delivered again.

        Raises:
            CodecError: the state belongs to other nodes or is damaged; the hub is then unchanged.
        """
        self._inbox.restore_json(state, rebuild_task)
        self._nudge_verify()

    def close(self, *, flush_s: float = 10.0) -> None:
        """Stops verifying, hands own groups over for at most `flush_s` and leaves the swarm; twice is allowed."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._verifying is not None:
            self._verifying.stop(STOP_VERIFY_S)
        try:
            if self._admin is not None:
                self.host.loop().run(self._admin.stop())
        finally:
            self.host.close(flush_s=flush_s)

    # For the exchanges.

    def publish(self, node_id: str, scored: Sequence[ScoredRollout]) -> None:
        """Delivers a node's rollouts, as text only, to its siblings and puts them into the outbox.

        A disk that is full, or a text larger than others accept, is counted and never an error.
        """
        self._inbox.deliver(node_id, [without_local_fields(item) for item in scored])
        identity = self._identities[node_id]
        repeats: Counter[OutboxKey] = Counter()
        for item in scored:
            self._rounds[node_id] = max(self._rounds[node_id], item.rollout.round)
            key = self._sealer.key(identity, item.rollout)
            repeats[key] += 1
            key = dataclasses.replace(key, repeat=repeats[key] - 1)
            try:
                self.host.store.publish(key, self._sealer.maker(identity, item.rollout, item.scores))
            except (StoreError, WireError) as error:  # a full disk, or a text too large for others
                self._unpublished += 1
                if not self._trouble:
                    logger.warning("own groups are not published: %s; training goes on, more are only counted", error)
                self._trouble = str(error)
            else:
                self._trouble = ""
                self._published[node_id] += 1
        if scored:
            self.host.nudge_push()

    def take(self, node_id: str) -> list[ScoredRollout]:
        """Returns and empties a node's mailbox."""
        taken = self._inbox.take(node_id)
        self._pulled[node_id] += len(taken)
        return taken

    def _open_stored(self, signed: SignedGroup) -> Rollout:
        return self._sealer.reopen(signed).rollout

    def _verify_backlog(self) -> tuple[int, int]:
        return (0, 0) if self._verifying is None else self._verifying.backlog()

    def _nudge_verify(self) -> None:
        if self._verifying is not None:
            self._verifying.nudge()
