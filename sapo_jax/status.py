"""Shows what a running host does in its swarm: `python -m sapo_jax.status --workdir=DIR`.

The first line says how it is; being alone is a normal state. `--drain` asks the host to stop politely,
`--ban=NODE_ID` and `--unban=NODE_ID` decide about one identity.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from sapo_jax.command_line import run_main
from sapo_jax.swarm.mesh.admin_client import AdminClient
from sapo_jax.swarm.mesh.host_status import HostStatus, PeerFigures, headline
from sapo_jax.swarm.mesh.joining import SWARM_DIRECTORY, SWARM_FAILURES, SWARM_USAGE_ERRORS
from sapo_jax.swarm.wire.identity import alias_of

_OPTIONS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run or relay.", flag_values=_OPTIONS)
_DRAIN = flags.DEFINE_bool("drain", False, "Ask the host to hand over its groups, save and end.", flag_values=_OPTIONS)
_BAN = flags.DEFINE_string("ban", "", "Refuse everything of this node id.", flag_values=_OPTIONS)
_BAN_HOURS = flags.DEFINE_float("ban_hours", 1.0, "How long --ban lasts.", lower_bound=0.001, flag_values=_OPTIONS)
_UNBAN = flags.DEFINE_string("unban", "", "Lift the ban of this node id.", flag_values=_OPTIONS)
flags.mark_flag_as_required("workdir", flag_values=_OPTIONS)

ALIAS_CHARS = 12  # of a node id beside its alias


def main() -> None:
    """Does what was asked, then prints the state of the host."""
    with AdminClient(Path(_WORKDIR.value or "").expanduser().absolute() / SWARM_DIRECTORY) as client:
        if _BAN.value:
            until_unix_s = client.ban(_BAN.value, _BAN_HOURS.value * 3600.0)
            print(f"banned {_BAN.value} until {_local_time(until_unix_s)}")
        if _UNBAN.value:
            client.unban(_UNBAN.value)
            print(f"not banned: {_UNBAN.value}")
        if _DRAIN.value:
            client.drain()
            print("asked to stop")
        print(describe(client.status()))


def describe(status: HostStatus) -> str:
    """Returns a status as text: one line, warnings, then tables."""
    lines = [headline(status), *(f"warning: {text}" for text in status.warnings), ""]
    lines.append(
        f"swarm {status.swarm_id}, version {status.software_version}, since {_local_time(status.started_unix_s)}"
    )
    if status.addresses:
        lines.append(f"listening at {', '.join(status.addresses)}")
    lines.append(
        f"store: {status.stored_groups} groups, {status.stored_bytes / 2**20:.1f} MiB, {status.unverified_groups} own "
        f"or not yet verified; {status.outbox_groups} own to hand to more peers"
    )
    if status.nodes:
        rows = [
            (name_of(n.node_id), str(n.round), str(n.published), str(n.pulled), str(n.waiting)) for n in status.nodes
        ]
        lines += ["", *_table(("node", "round", "published", "pulled", "waiting"), rows)]
    if status.peers:
        lines += ["", *_table(("peer", "address", "state", "score", "heard", "note"), map(_peer_row, status.peers))]
    if status.publishers:
        ordered = sorted(status.publishers.items(), key=lambda item: (-item[1], item[0]))
        rows = [(name_of(node_id), str(count)) for node_id, count in ordered]
        lines += ["", *_table(("external groups came from", "verified"), rows)]
    counted = [(name, str(count)) for name, count in sorted(status.counters.items()) if count]
    if counted:
        lines += ["", *_table(("since the start", "total"), counted)]
    return "\n".join(lines)


def name_of(node_id: str) -> str:
    """Returns a node id as people read it: its alias and its beginning."""
    return f"{alias_of(node_id)} {node_id[:ALIAS_CHARS]}" if node_id else "?"


def _peer_row(peer: PeerFigures) -> tuple[str, ...]:
    heard = "never" if peer.contact_age_s is None else f"{peer.contact_age_s:.0f} s ago"
    notes = [peer.last_error] if peer.last_error else []
    if peer.ban_s is not None:
        notes.append(f"banned for {peer.ban_s:.0f} s more")
    elif peer.retry_s is not None and peer.state.value == "unreachable":
        notes.append(f"next try in {peer.retry_s:.0f} s")
    return name_of(peer.node_id), peer.address or "-", peer.state.value, f"{peer.score:+.1f}", heard, "; ".join(notes)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]] | map[tuple[str, ...]]) -> list[str]:
    cells = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _local_time(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


if __name__ == "__main__":
    run_main(main, _OPTIONS, usage_errors=SWARM_USAGE_ERRORS, failures=(*SWARM_FAILURES, OSError))
