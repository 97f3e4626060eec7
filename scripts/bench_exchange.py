r"""Measures how fast one host takes in published groups over loopback, with all checks and its store on disk.

    python scripts/bench_exchange.py
    python scripts/bench_exchange.py --groups=20000 --batches=1,16 --json=bench.json

A server process and a client process, as on two hosts: each group is parsed, its id and its
repetition looked up, its signature, fields and quotas checked, and it is committed before the answer
counts. Groups are signed before the clock starts. Latency is that of a whole call as its caller sees
it, retries included.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import datetime
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sapo_jax.swarm.calls.client_pool import ClientPool
from sapo_jax.swarm.calls.grpc_server import GrpcServer
from sapo_jax.swarm.calls.quota import QuotaLimits, Quotas
from sapo_jax.swarm.calls.service import ExchangeService
from sapo_jax.swarm.calls.trust import Trust, TrustMode, choose_trust
from sapo_jax.swarm.store.clock import system_clock
from sapo_jax.swarm.store.group_store import GroupStore
from sapo_jax.swarm.store.retention import StoreLimits
from sapo_jax.swarm.wire.group_codec import pack_group, seal_group
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.limits import CallLimits
from sapo_jax.swarm.wire.requests import PublishOutcome, PublishRequest
from sapo_jax.swarm.wire.signed_content import GeneratorInfo, SignedGroup
from sapo_jax.types import Completion, FinishReason, Rollout, TaskRef

SWARM = "bench"
PUBLISHERS = 16
COMPLETIONS = 8
TARGET_GROUPS_PER_S, TARGET_P99_MS = 1_000.0, 50.0

# Checked like any others, and never spent.
QUOTAS = QuotaLimits(
    groups_per_s=1e6, burst_groups=1e6, bytes_per_s=1e12, burst_bytes=1e12, calls_per_s=1e6, burst_calls=1e6
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What one case measured; times are those of a call with `batch` groups, `calls` of them at a time."""

    transport: str
    batch: int
    calls: int
    groups: int
    groups_per_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms_per_group: float


def make_groups(
    count: int, size_bytes: int, *, swarm_id: str = SWARM, publishers: int = PUBLISHERS
) -> list[SignedGroup]:
    """Returns `count` different groups of about `size_bytes`, of several new publishers."""
    identities = [Identity.generate() for _ in range(publishers)]
    text = "The answer follows from the rule. " * (1 + size_bytes // (34 * COMPLETIONS))
    text = text[: max(1, (size_bytes - 400) // COMPLETIONS)]
    groups: list[SignedGroup] = []
    for i in range(count):
        identity = identities[i % publishers]
        rollout = Rollout(
            task_ref=TaskRef(dataset="chain_sum", config_digest="ab" * 32, seed=1, index=i),
            node_id=identity.node_id,
            round=i,
            policy_version=i,
            completions=(Completion(text=text, finish_reason=FinishReason.STOP),) * COMPLETIONS,
        )
        payload = pack_group(
            rollout,
            swarm_id=swarm_id,
            sequence=i + 1,
            created_unix_s=time.time(),
            ttl_s=3600.0,
            generator=GeneratorInfo(model_name="bench"),
        )
        groups.append(SignedGroup(envelope=seal_group(payload, identity)))
    return groups


async def serve(workdir: Path, mode: TrustMode) -> None:
    """Serves until standard input ends; says how to be reached in one line, and what it used in another."""
    trust = choose_trust(mode, directory=workdir, invite=None, now=datetime.datetime.now(datetime.UTC))
    store = GroupStore(workdir / "store.sqlite", limits=StoreLimits(), clock=system_clock())
    service = ExchangeService(
        store,
        Quotas(QUOTAS, clock=time.monotonic),
        swarm_id=SWARM,
        software_version="bench",
        catalog_digests=(),
        peer_record=lambda: None,
        swap_peers=lambda request: request,
        is_banned=lambda node_id: False,
        wall_clock=time.time,
        clock=time.monotonic,
        rng=np.random.default_rng(),
    )
    server = GrpcServer(service, trust, address="127.0.0.1:0")
    await server.start()
    certificate = "" if trust.certificate is None else base64.b64encode(trust.certificate.der).decode()
    print(json.dumps({"port": server.port, "certificate": certificate, "token": trust.token}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime}), flush=True)
    await server.stop(grace_s=1.0)
    store.close()


async def publish(
    address: str, trust: Trust, certificate: bytes | None, groups: Sequence[SignedGroup], batch: int, calls: int
) -> tuple[float, list[float]]:
    """Publishes all groups, `calls` at a time; returns seconds in all, and those of each call."""
    pool = ClientPool(
        trust,
        sleep=asyncio.sleep,
        rng=np.random.default_rng(),
        now=lambda: datetime.datetime.now(datetime.UTC),
    )
    client = pool.connect(address, certificate)
    await client.get_node_info()
    requests = iter([PublishRequest(groups=tuple(groups[i : i + batch])) for i in range(0, len(groups), batch)])
    latencies_s: list[float] = []

    async def work() -> None:
        for request in requests:
            start = time.perf_counter()
            response = await client.publish_groups(request)
            latencies_s.append(time.perf_counter() - start)
            bad = [result for result in response.results if result.outcome is not PublishOutcome.ACCEPTED]
            if bad:
                raise RuntimeError(f"a group was not accepted: {bad[0]}")

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(calls)))
    total_s = time.perf_counter() - start
    await pool.close()
    return total_s, latencies_s


def calls_of(groups_in_flight: int, batch: int) -> int:
    """Returns how many calls at a time keep about so many groups under way, within what one peer may make."""
    return max(1, min(CallLimits().max_calls_per_peer, groups_in_flight // batch))


def measure(mode: TrustMode, groups: Sequence[SignedGroup], batch: int, calls: int) -> Figures:
    """Runs one case against a server process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, f"--serve={mode.value}", f"--workdir={folder}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None and server.stdout is not None
            try:
                hello = json.loads(server.stdout.readline())
                certificate = base64.b64decode(hello["certificate"]) or None
                # The client side needs a trust of its own; its certificate is never shown.
                with tempfile.TemporaryDirectory() as own:
                    now = datetime.datetime.now(datetime.UTC)
                    trust = choose_trust(mode, directory=Path(own), invite=None, now=now)
                trust = Trust(mode=mode, certificate=trust.certificate, token=hello["token"])
                address = f"127.0.0.1:{hello['port']}"
                total_s, latencies_s = asyncio.run(publish(address, trust, certificate, groups, batch, calls))
                server.stdin.close()
                cpu_s = json.loads(server.stdout.readline())["cpu_s"]
            except BaseException:
                server.kill()
                raise
    p50, p99 = np.percentile(np.array(latencies_s) * 1e3, (50, 99))
    return Figures(
        transport="plain" if mode is TrustMode.INSECURE_LOOPBACK else "TLS",
        batch=batch,
        calls=calls,
        groups=len(groups),
        groups_per_s=round(len(groups) / total_s, 1),
        p50_ms=round(float(p50), 2),
        p99_ms=round(float(p99), 2),
        server_cpu_ms_per_group=round(cpu_s * 1e3 / len(groups), 3),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, measures every case and prints a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=6_000, help="groups per case (default: %(default)s)")
    parser.add_argument("--size_bytes", type=int, default=8_192, help="of one group (default: %(default)s)")
    parser.add_argument("--batches", default="1,16", help="groups per call, comma-separated (default: %(default)s)")
    parser.add_argument(
        "--in_flight",
        type=int,
        default=32,
        help="groups under way at a time, in at most 8 calls (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--workdir", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        asyncio.run(serve(options.workdir, TrustMode(options.serve)))
        return
    try:
        batches = [int(batch) for batch in options.batches.split(",")]
    except ValueError:
        parser.error(f"--batches={options.batches}: must be numbers, comma-separated")
    for flag, value in (("groups", options.groups), ("in_flight", options.in_flight), ("batches", min(batches))):
        if value < 1:
            parser.error(f"--{flag}: must be at least 1")
    groups = make_groups(options.groups, options.size_bytes)
    modes = (TrustMode.INSECURE_LOOPBACK, TrustMode.CLOSED)
    cases = [
        measure(mode, groups, batch, calls_of(options.in_flight, batch))
        for mode, batch in itertools.product(modes, batches)
    ]
    names = ("batch", "calls", "groups/s", "p50 ms", "p99 ms", "server CPU ms/group")
    print(" " * 6 + "".join(f"{name:>{len(name) + 3}}" for name in names) + "  target")
    for case in cases:
        is_met = case.groups_per_s >= TARGET_GROUPS_PER_S and case.p99_ms <= TARGET_P99_MS
        print(
            f"{case.transport:6}{case.batch:8}{case.calls:8}{case.groups_per_s:11.0f}"
            f"{case.p50_ms:9.2f}{case.p99_ms:9.2f}{case.server_cpu_ms_per_group:22.3f}  {'met' if is_met else 'missed'}"
        )
    report = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "size_bytes": len(groups[0].envelope.payload),
        "targets": {"groups_per_s": TARGET_GROUPS_PER_S, "p99_ms": TARGET_P99_MS},
        "cases": [asdict(case) for case in cases],
    }
    print(json.dumps(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
