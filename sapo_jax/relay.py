"""Runs a host that only keeps and passes on groups: `python -m sapo_jax.relay --workdir=DIR --listen=HOST:PORT`.

It trains nothing and verifies nothing, so it needs no accelerator and does not load jax. With
`--join=HOST:PORT --invite=FILE` it joins a swarm; without, it starts one and writes an invite for others.
The same command again is the same host.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

from absl import flags

import sapo_jax
from sapo_jax.command_line import run_main
from sapo_jax.signals import StopRequest
from sapo_jax.swarm.calls.server_metrics import MetricsAddressError
from sapo_jax.swarm.mesh.admin_server import AdminServer
from sapo_jax.swarm.mesh.host_status import HostStatus, headline, status_of
from sapo_jax.swarm.mesh.joining import SWARM_FAILURES, SWARM_USAGE_ERRORS
from sapo_jax.swarm.mesh.network_host import NetworkHost
from sapo_jax.swarm.wire.addresses import split_address
from sapo_jax.swarm_flags import SwarmFlags

_OPTIONS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of keys, invite and store.", flag_values=_OPTIONS)
_SWARM = SwarmFlags(_OPTIONS)
flags.mark_flags_as_required(["workdir", "listen"], flag_values=_OPTIONS)

STATUS_S = 10.0  # between two looks at whether the state has changed


def main() -> None:
    """Relays until a signal or the operator asks to stop."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    request = _SWARM.request(Path(_WORKDIR.value or ""))
    assert request is not None, "--listen is required"
    joining, asked = request.joining, threading.Event()
    with contextlib.ExitStack() as opened:
        host = NetworkHost(
            joining.identity("relay"),
            swarm_id=joining.swarm_id,
            trust=joining.trust,
            listen=request.listen,
            advertise=request.advertise,
            peers=joining.peers,
            directory=joining.directory,
            relays_unverified=True,
        )
        opened.callback(host.close)
        if request.metrics:
            opened.callback(host.metrics.serve(*split_address(request.metrics)).close)
        admin = AdminServer(joining.directory, status=lambda: _status(host), drain=asked.set, scores=host.scores)
        host.loop().run(admin.start())
        opened.callback(lambda: host.loop().run(admin.stop()))
        how = joining.invitation(host.addresses)  # whoever reads the first line finds the invite
        print(f"relaying for swarm {joining.swarm_id} at {', '.join(host.addresses)}", flush=True)
        print(how, flush=True)
        with StopRequest(lambda _: print("stopping", flush=True)) as stop:
            _watch(host, asked, stop)


def _watch(host: NetworkHost, asked: threading.Event, stop: StopRequest) -> None:
    """Prints the state whenever it changes, until somebody asks to stop."""
    shown, since_s = "", STATUS_S
    while not stop and not asked.wait(0.2):
        since_s += 0.2
        if since_s >= STATUS_S:
            since_s = 0.0
            line = headline(_status(host)).partition(";")[0]  # the store changes all the time
            if line != shown:
                shown = line
                print(line, flush=True)


def _status(host: NetworkHost) -> HostStatus:
    return status_of(
        host,
        software_version=sapo_jax.__version__,
        counters={"swarm/relayed": host.pusher.relayed},
    )


if __name__ == "__main__":
    run_main(
        main, _OPTIONS, usage_errors=(*SWARM_USAGE_ERRORS, MetricsAddressError), failures=(*SWARM_FAILURES, OSError)
    )
