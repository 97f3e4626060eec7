"""How long a user waits for the first training step of a host whose swarm cannot be reached.

A process of `sapo_jax.main` with `configs/tiny.py` and the invite of a host that is gone, from its
start until `metrics.jsonl` shows its first round.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapo_jax.swarm.mesh.joining import plan_joining
from sapo_jax.workdir import METRICS_FILE
from scripts.faults.figures import ROOT
from scripts.faults.process_samples import cpu_s

LIMIT_S = 300.0
_POLL_S = 0.02

# What comes before the first round and can be asked for or not: supervised steps from random weights, and most of
# the first evaluation, of which one question with its completions is the least.
PLAIN = ("--config.cold_start.steps=0", "--config.eval.questions=1", "--config.eval.greedy=False")


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Seconds since the process was started."""

    first_word_s: float  # to the first line of output: the libraries are loaded
    first_step_s: float  # to the end of the first round; infinite: it did not come within `LIMIT_S`
    cpu_s: float  # CPU time that the process used until then, whatever else the machine did


def first_step(workdir: Path, *, cache: Path, absent_address: str, overrides: Sequence[str] = ()) -> Start:
    """Starts a host, waits for its first round and ends it.

    Args:
        workdir: where the run and its log go; made here.
        cache: the user's cache folder, in which compiled programs are kept; new: nothing is compiled yet.
        absent_address: "host:port" that nobody answers from.
        overrides: of the configuration.

    Raises:
        RuntimeError: the process ended before its first round.
    """
    workdir.mkdir(parents=True)
    away = plan_joining(workdir / "away", now=datetime.datetime.now(datetime.UTC))
    invite = away.write_invite([absent_address])
    run, log = workdir / "run", workdir / "log.txt"
    command = [sys.executable, "-m", "sapo_jax.main", "--config=configs/tiny.py", f"--workdir={run}"]
    command += ["--listen=127.0.0.1:0", f"--join={absent_address}", f"--invite={invite}", *overrides]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment["XDG_CACHE_HOME"] = str(cache)
    began_s = time.monotonic()
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            first_word_s = 0.0
            while True:
                now_s = time.monotonic() - began_s
                if not first_word_s and log.stat().st_size:
                    first_word_s = now_s
                is_done = has_first_round(run / METRICS_FILE)
                if is_done or now_s > LIMIT_S:
                    return Start(
                        first_word_s=first_word_s,
                        first_step_s=now_s if is_done else math.inf,
                        cpu_s=cpu_s(process.pid),
                    )
                if process.poll() is not None:
                    raise RuntimeError(f"the process ended after {now_s:.0f} s without a first round, see {log}")
                time.sleep(_POLL_S)
        finally:
            process.kill()  # its scorers end with it


def has_first_round(path: Path) -> bool:
    """Returns whether a metrics file shows a round that was played."""
    with contextlib.suppress(OSError, ValueError):
        lines = path.read_text(encoding="utf-8").splitlines()
        return any("time/round_s" in record and record["round"] >= 1 for record in map(json.loads, lines))
    return False
