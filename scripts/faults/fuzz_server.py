"""A whole host on the network, to be fuzzed: `python -m scripts.faults.fuzz_server`, started by `fuzz` alone.

Closed trust with TLS and token, store on disk, mesh, quotas: what `relay` runs. It serves until its
standard input ends.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import json
import logging
import re
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from sapo_jax.swarm.calls.trust import TrustMode, choose_trust
from sapo_jax.swarm.mesh.network_host import NetworkHost
from sapo_jax.swarm.wire.identity import Identity
from scripts.faults.figures import ROOT
from scripts.faults.wire_fuzz import SWARM_ID

LOG_FILE = "log.txt"
_DEFECT = re.compile(r"failed, error id|Traceback|exception", re.IGNORECASE)
STOP_S = 60.0


@dataclass(kw_only=True)
class Server:
    """A serving process and how to reach it.

    Attributes:
        process: it.
        folder: its files.
        address: where it listens.
        certificate: what it shows, DER.
        token: what it wants to be shown.
        epoch: of its store.
        is_asked: whether it was alive when it was asked to stop.
    """

    process: subprocess.Popen[str]
    folder: Path
    address: str
    certificate: bytes
    token: str
    epoch: str
    is_asked: bool = False

    def is_alive(self) -> bool:
        """Returns whether the process runs."""
        return self.process.poll() is None

    def defects(self) -> list[str]:
        """Returns the lines of its log that tell of a defect."""
        lines = (self.folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if _DEFECT.search(line)]


@contextlib.contextmanager
def served(folder: Path, *, banned: str) -> Generator[Server]:
    """Starts a server process that has `banned` on its list, and asks it to stop in the end."""
    command = [sys.executable, "-m", "scripts.faults.fuzz_server", f"--folder={folder}", f"--banned={banned}"]
    with (
        (folder / LOG_FILE).open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            hello = json.loads(process.stdout.readline())
            server = Server(
                process=process,
                folder=folder,
                address=f"127.0.0.1:{hello['port']}",
                certificate=base64.b64decode(hello["certificate"]),
                token=hello["token"],
                epoch=hello["epoch"],
            )
            yield server
            server.is_asked = server.is_alive()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        finally:
            process.kill()


def main() -> None:
    """Serves; says how to be reached in one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--banned", required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    trust = choose_trust(
        TrustMode.CLOSED, directory=options.folder, invite=None, now=datetime.datetime.now(datetime.UTC)
    )
    host = NetworkHost(
        Identity.generate(),
        swarm_id=SWARM_ID,
        trust=trust,
        listen="127.0.0.1:0",
        directory=options.folder,
        relays_unverified=True,
    )
    host.scores.ban(options.banned, 1e9)
    assert trust.certificate is not None
    hello = {
        "port": int(host.addresses[0].rpartition(":")[2]),
        "certificate": base64.b64encode(trust.certificate.der).decode(),
        "token": trust.token,
        "epoch": host.store.epoch,
    }
    print(json.dumps(hello), flush=True)
    sys.stdin.read()
    host.close(flush_s=0.0, grace_s=2.0)


if __name__ == "__main__":
    main()
