"""Calls the commands, in this process or in one of their own, on runs of seconds."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from sapo_jax.command import parse_flags
from sapo_jax.config import from_config_dict
from sapo_jax.progress import Progress
from sapo_jax.signals import StopRequest
from sapo_jax.training import Training
from sapo_jax.workdir import open_workdir

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.py"

# A run that spends no time on a large model, nor on evaluations, and still earns a reward now and then.
SMALL = (
    "--config.rounds=2",
    "--config.model.init.width=32",
    "--config.model.init.mlp_width=64",
    "--config.model.init.layers=1",
    "--config.model.init.heads=2",
    "--config.model.init.kv_heads=1",
    '--config.tasks.specialties=("leap_year",)',
    "--config.sampling.group_size=4",
    "--config.cold_start.steps=30",
    "--config.cold_start.batch_rows=8",
    "--config.cold_start.learning_rate=0.02",
    "--config.cold_start.true_frac=1.0",
    "--config.eval.every_rounds=0",
    "--config.eval.questions=2",
    "--config.eval.samples=4",
    "--config.checkpoint.every_rounds=0",
)

# The longer run that several tests look at, as the changes of `SMALL` that make it.
ROUNDS = 40
SAVED_EVERY = 10
OVERRIDES = (
    f"--config.rounds={ROUNDS}",
    f"--config.checkpoint.every_rounds={SAVED_EVERY}",
    "--config.eval.every_rounds=20",
    "--config.eval.samples=8",  # enough for pass@8
    "--config.sharing.max_age_rounds=2",  # the pool holds something at every moment
    "--config.learner.learning_rate=0.003",
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
        sys.modules.pop("config_config", None)  # the name ml_collections gives every config file
        try:
            runpy.run_module(f"sapo_jax.{module}", run_name="__main__")
        except SystemExit as exit:
            code = exit.code
    assert isinstance(code, int), code
    return Outcome(code, out.getvalue(), err.getvalue())


def train(arguments: Sequence[str]) -> str:
    """Does what `main` does save the reports, inside this process, and returns what it printed."""
    options = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=options, sys_argv=["main", *arguments])
    workdir = flags.DEFINE_string("workdir", None, "", flag_values=options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
        parse_flags(["main", *arguments], options)
    settings = from_config_dict(config.value)
    out = io.StringIO()
    with (
        mock.patch("sapo_jax.training.write_report"),  # a second for every evaluation, and nobody reads it
        open_workdir(workdir.value or "", settings) as opened,
        Progress(settings.rounds, console=Console(file=out)) as progress,
        Training(settings, opened, progress, StopRequest()) as training,
    ):
        assert training.run() == settings.rounds
    return out.getvalue()


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
