"""The status of a host as a message of its admin service, and back."""

from __future__ import annotations

from sapo_jax.swarm.calls.service import Phase
from sapo_jax.swarm.mesh.host_status import HostStatus, NodeFigures, PeerFigures, PeerState
from sapo_jax.swarm.wire.generated import node_admin_pb2 as pb
from sapo_jax.swarm.wire.spans import duration_from_seconds, seconds_of, timestamp_from_seconds

# Verified groups by publisher travel among the counters, under this prefix.
_PUBLISHER_COUNTER = "external/"

_PHASES = {
    Phase.STARTING: pb.HOST_STATE_STARTING,
    Phase.SERVING: pb.HOST_STATE_SERVING,
    Phase.DRAINING: pb.HOST_STATE_DRAINING,
}
_PEER_STATES = {
    PeerState.CONNECTED: pb.PEER_STATE_CONNECTED,
    PeerState.CALLING: pb.PEER_STATE_CONNECTED,  # with an empty address
    PeerState.KNOWN: pb.PEER_STATE_KNOWN,
    PeerState.UNREACHABLE: pb.PEER_STATE_UNREACHABLE,
    PeerState.BANNED: pb.PEER_STATE_BANNED,
}


def status_to_message(status: HostStatus) -> pb.GetStatusResponse:
    """Returns a status as the message of the admin service."""
    counters = dict(status.counters)
    counters |= {f"{_PUBLISHER_COUNTER}{node_id}": count for node_id, count in status.publishers.items()}
    return pb.GetStatusResponse(
        swarm_id=status.swarm_id,
        state=_PHASES[status.phase],
        software_version=status.software_version,
        start_time=timestamp_from_seconds(status.started_unix_s),
        read_time=timestamp_from_seconds(status.read_unix_s),
        addresses=status.addresses,
        nodes=[
            pb.NodeStatus(
                node_id=node.node_id,
                alias=node.alias,
                round=node.round,
                published_groups=node.published,
                pulled_groups=node.pulled,
                waiting_groups=node.waiting,
            )
            for node in status.nodes
        ],
        store=pb.StoreStatus(
            epoch=status.epoch,
            stored_groups=status.stored_groups,
            stored_bytes=status.stored_bytes,
            stored_publishers=status.stored_publishers,
            unverified_groups=status.unverified_groups,
            outbox_groups=status.outbox_groups,
        ),
        peers=[_peer_to_message(peer, status.read_unix_s) for peer in status.peers],
        counters=[pb.Counter(name=name, total=counters[name]) for name in sorted(counters)],
        warnings=status.warnings,
    )


def status_from_message(message: pb.GetStatusResponse) -> HostStatus:
    """Returns the status that the host's own admin service sent."""
    phases = {number: phase for phase, number in _PHASES.items()}
    counters = {counter.name: counter.total for counter in message.counters}
    read_unix_s = seconds_of(message.read_time)
    return HostStatus(
        swarm_id=message.swarm_id,
        phase=phases.get(message.state, Phase.SERVING),
        software_version=message.software_version,
        started_unix_s=seconds_of(message.start_time),
        read_unix_s=read_unix_s,
        addresses=tuple(message.addresses),
        epoch=message.store.epoch,
        stored_groups=message.store.stored_groups,
        stored_bytes=message.store.stored_bytes,
        stored_publishers=message.store.stored_publishers,
        unverified_groups=message.store.unverified_groups,
        outbox_groups=message.store.outbox_groups,
        nodes=tuple(
            NodeFigures(
                node_id=node.node_id,
                alias=node.alias,
                round=node.round,
                published=node.published_groups,
                pulled=node.pulled_groups,
                waiting=node.waiting_groups,
            )
            for node in message.nodes
        ),
        peers=tuple(_peer_from_message(peer, read_unix_s) for peer in message.peers),
        counters={name: count for name, count in counters.items() if not name.startswith(_PUBLISHER_COUNTER)},
        publishers={
            name.removeprefix(_PUBLISHER_COUNTER): count
            for name, count in counters.items()
            if name.startswith(_PUBLISHER_COUNTER)
        },
        warnings=tuple(message.warnings),
    )


def _peer_to_message(peer: PeerFigures, now_unix_s: float) -> pb.PeerStatus:
    return pb.PeerStatus(
        node_id=peer.node_id,
        address=peer.address,
        state=_PEER_STATES[peer.state],
        score=peer.score,
        contact_age=None if peer.contact_age_s is None else duration_from_seconds(peer.contact_age_s),
        retry_delay=None if peer.retry_s is None else duration_from_seconds(peer.retry_s),
        ban_expire_time=None if peer.ban_s is None else timestamp_from_seconds(now_unix_s + peer.ban_s),
        last_error=peer.last_error,
    )


def _peer_from_message(message: pb.PeerStatus, now_unix_s: float) -> PeerFigures:
    states = {
        pb.PEER_STATE_CONNECTED: PeerState.CONNECTED if message.address else PeerState.CALLING,
        pb.PEER_STATE_KNOWN: PeerState.KNOWN,
        pb.PEER_STATE_BANNED: PeerState.BANNED,
    }
    return PeerFigures(
        node_id=message.node_id,
        address=message.address,
        state=states.get(message.state, PeerState.UNREACHABLE),
        score=message.score,
        contact_age_s=seconds_of(message.contact_age) if message.HasField("contact_age") else None,
        retry_s=seconds_of(message.retry_delay) if message.HasField("retry_delay") else None,
        ban_s=seconds_of(message.ban_expire_time) - now_unix_s if message.HasField("ban_expire_time") else None,
        last_error=message.last_error,
    )
