"""What the benchmark commands share: processes that answer with JSON, lists of names, progress."""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class BenchError(RuntimeError):
    """A process failed, or results that must agree differ."""


def run_json(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Returns what `python -m module` printed in its last line; raises BenchError with its last words if it failed."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{' '.join(command[1:])} ended with {done.returncode}: {last_words(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def last_words(text: str) -> str:
    """Returns the last line of what a process printed that is not empty."""
    words = [line.strip() for line in text.splitlines() if line.strip()]
    return words[-1] if words else "no output"


def resident_peak_bytes() -> int:
    """Returns the most resident memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Returns a parser of comma-separated names, for argparse."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def say(text: str) -> None:
    """Prints a line with the time of day, apart from the result."""
    print(f"{datetime.datetime.now():%H:%M:%S}  {text}", file=sys.stderr, flush=True)
