r"""Times the start of a run: from the start of the process until the first sampled tokens are there.

    python scripts/time_start.py                                       SmolLM2-135M, a minute or two on two cores
    python scripts/time_start.py --config=configs/tiny.py --warm=3 --json=start.json
    python scripts/time_start.py --config=configs/qwen05b.py --set=nodes=8 --set=host.platform=gpu

The command is the usual one, in a directory of its own, and ends with the first completions that reach the host (those
of the evaluation before round 1). The first process finds no compiled program and leaves its own to the others, as
every run does; weights lie on this machine after the first process at the latest, so run twice where they do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` is not installed

from scripts.bench.processes import ROOT, BenchError, last_words, say

SAMPLED = "the first tokens are sampled"
# Runs `sapo_jax.main` with the arguments that follow, up to the first samples that the host reads.
PROGRAM = f"""
import runpy
from sapo_jax.host import Host
read = Host._read
def read_and_end(self, results):
    read(self, results)
    print({SAMPLED!r}, flush=True)
    raise SystemExit(0)
Host._read = read_and_end
runpy.run_module("sapo_jax.main", run_name="__main__")
"""


def main() -> None:
    """Prints the seconds of the first start and of the later ones; exit code 1 if one failed."""
    options = _options()
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for run in range(1 + options.warm):
                seconds.append(start_s(options, Path(folder), run))
                say(f"{'warm' if run else 'cold'}: {seconds[-1]:.1f} s")
        except BenchError as error:
            sys.exit(f"error: {error}")
    warm = seconds[1:]
    print(f"from the start of the process to the first sampled tokens, {options.config}:")
    print(f"nothing compiled before: {seconds[0]:.1f} s")
    if warm:
        print(f"programs compiled before: {statistics.median(warm):.1f} s ({min(warm):.1f} to {max(warm):.1f})")
    if options.json:
        result = {"config": options.config, "set": options.set, "cold_s": seconds[0], "warm_s": warm}
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


def start_s(options: argparse.Namespace, folder: Path, run: int) -> float:
    """Returns the seconds of one start; programs are kept in `folder`."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3", "PYTHONPATH": str(ROOT)}
    arguments = [f"--config={options.config}", f"--workdir={folder / str(run)}"]
    arguments += [f"--config.{change}" for change in options.set]
    log = folder / "log"
    began_s = time.perf_counter()
    with (
        log.open("w") as out,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        found_s = [time.perf_counter() - began_s for line in process.stdout if line.strip() == SAMPLED]
    if not found_s:
        raise BenchError(f"the run ended with {process.returncode}: {last_words(log.read_text())}")
    return found_s[0]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/smollm2_135m.py", help="what is started")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override of the config")
    parser.add_argument("--warm", type=int, default=2, help="starts after the first")
    parser.add_argument("--json", default="", help="file for the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
