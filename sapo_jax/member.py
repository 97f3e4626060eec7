"""A training process as a member of a swarm on the network: its hub, the operator's door, what it has to tell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from sapo_jax.config import SapoConfig
from sapo_jax.swarm.mesh.host_status import headline
from sapo_jax.swarm.network_exchange import NetworkHub
from sapo_jax.swarm.verifying import Verify
from sapo_jax.swarm.wire.addresses import split_address
from sapo_jax.swarm.wire.signed_content import GeneratorInfo
from sapo_jax.swarm_flags import SwarmRequest
from sapo_jax.tasks.specialty import library_version


class Member:
    """Owns the hub of a process and its metrics page. Made running; `close` ends it."""

    def __init__(
        self,
        request: SwarmRequest,
        config: SapoConfig,
        *,
        node_ids: Sequence[str],
        verify: Verify,
        busy_s: Callable[[], float],
        catalog_digests: Sequence[str],
        drain: Callable[[], None],
    ) -> None:
        """Opens store and port and looks for peers.

        Args:
            request: what the command line asks for.
            config: of the run.
            node_ids: the nodes of this process.
            verify: judges rollouts of others; called in a thread of the hub's, from `hub.start_verifying` on.
            busy_s: CPU seconds that `verify` has used so far.
            catalog_digests: of the tasks that `verify` knows.
            drain: asks the run to stop politely, for the operator's `status --drain`.

        Raises:
            IdentityError, StoreError, ServerAddressError, AdminError, MetricsAddressError, InviteError: what
                cannot be used, in one line.
        """
        joining = request.joining
        with contextlib.ExitStack() as opened:  # closes what is open if something below fails
            self.hub = NetworkHub(
                {node_id: joining.identity(node_id) for node_id in node_ids},
                swarm_id=joining.swarm_id,
                trust=joining.trust,
                verify=verify,
                busy_s=busy_s,
                is_resuming=True,
                on_drain=drain,
                mailbox_rollouts=config.sharing.pool_rollouts,
                listen=request.listen,
                advertise=request.advertise,
                peers=joining.peers,
                directory=joining.directory,
                catalog_digests=catalog_digests,
                generator=GeneratorInfo(
                    model_name=config.model.source[:128],
                    temperature=config.sampling.temperature,
                    top_p=config.sampling.top_p,
                    max_new_tokens=config.sampling.max_new_tokens,
                ),
                verifier_version=library_version(),
            )
            opened.callback(self.hub.close)
            if request.metrics:
                page = self.hub.host.metrics.serve(*split_address(request.metrics))
                opened.callback(page.close)
            self._invitation = joining.invitation(self.hub.host.addresses)
            self._opened = opened.pop_all()
        self._told = ""

    def welcome(self) -> str:
        """Returns one line on where this host is and how others join it."""
        addresses = self.hub.host.addresses
        if not addresses:
            return f"member of swarm {self.hub.host.swarm_id}, dialing out only"
        return f"member of swarm {self.hub.host.swarm_id}, listening at {', '.join(addresses)}; {self._invitation}"

    def news(self) -> str | None:
        """Returns one line on the state of the swarm if it has changed since the last call."""
        line = headline(self.hub.status()).partition(";")[0]  # what follows, on the store, changes all the time
        if line == self._told:
            return None
        self._told = line
        return line

    def close(self) -> None:
        """Hands own groups over and leaves the swarm."""
        self._opened.close()
