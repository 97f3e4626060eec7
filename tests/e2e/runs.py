"""Calls the commands, in this process or in one of their own, on runs of seconds."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.py"

# A run that spends its time on rounds, not on evaluations.
SMALL = (
    "--config.rounds=2",
    "--config.sampling.group_size=4",
    "--config.cold_start.steps=2",
    "--config.cold_start.batch_rows=8",
    "--config.eval.every_rounds=0",
    "--config.eval.questions=2",
    "--config.eval.samples=4",
    "--config.checkpoint.every_rounds=0",
)


class Outcome(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def call(module: str, *arguments: object) -> Outcome:
    """Runs `python -m sapo_jax.MODULE ARGUMENTS` inside this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with (
        mock.patch.object(sys, "argv", [module, *map(str, arguments)]),
        mock.patch.dict(sys.modules),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        # ml_collections 1.1 loads config files through a deprecated call of importlib.
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
        sys.modules.pop(f"sapo_jax.{module}", None)
        try:
            runpy.run_module(f"sapo_jax.{module}", run_name="__main__")
        except SystemExit as exit:
            code = exit.code
    assert isinstance(code, int), code
    return Outcome(code, out.getvalue(), err.getvalue())


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    """Starts the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", f"sapo_jax.{module}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def tiny(workdir: Path, *overrides: str, variant: str = "2_2") -> tuple[str, ...]:
    """Returns the arguments of a small run of `configs/tiny.py`."""
    return (f"--config={TINY}:{variant}", f"--workdir={workdir}", *SMALL, *overrides)
