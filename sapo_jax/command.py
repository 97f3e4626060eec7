"""What the commands that use jax share: one clear line for everything a user can get wrong.

Flags and exit codes are `command_line`'s, which commands without jax use directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import jax
from absl import flags, logging

from sapo_jax.checkpoint import CheckpointError
from sapo_jax.command_line import UsageError, exit_with, parse_flags, run_main
from sapo_jax.config import ConfigError
from sapo_jax.errors import first_line
from sapo_jax.memory_fit import OUT_OF_MEMORY_ADVICE
from sapo_jax.metrics import MetricsError
from sapo_jax.models.package_weights import cache_folder
from sapo_jax.models.weight_table import ModelFilesError
from sapo_jax.process_start import GroupError
from sapo_jax.swarm.calls.server_metrics import MetricsAddressError
from sapo_jax.swarm.mesh.joining import SWARM_FAILURES, SWARM_USAGE_ERRORS
from sapo_jax.tasks.examples import ExamplesError
from sapo_jax.tasks.held_out import HeldOutError
from sapo_jax.tasks.scorers import RefusedDatasetError
from sapo_jax.tasks.specialty import CatalogError
from sapo_jax.tasks.stream import StreamError
from sapo_jax.tasks.system_prompts import SystemPromptError
from sapo_jax.tasks.worker_supply import ScorerStartError
from sapo_jax.text.encode import PromptTooLongError
from sapo_jax.text.tokenizer import TokenizerError
from sapo_jax.workdir import WorkdirError

USAGE_ERRORS = (
    UsageError,
    ConfigError,
    CatalogError,
    ExamplesError,
    HeldOutError,
    PromptTooLongError,
    RefusedDatasetError,
    StreamError,
    SystemPromptError,
    WorkdirError,
    MetricsAddressError,
    *SWARM_USAGE_ERRORS,
)
FAILURES = (
    CheckpointError,
    MetricsError,
    GroupError,
    ModelFilesError,
    ScorerStartError,
    TokenizerError,
    *SWARM_FAILURES,
    OSError,
)

__all__ = ["FAILURES", "USAGE_ERRORS", "UsageError", "parse_flags", "run_command"]


def run_command(main: Callable[[], None], options: flags.FlagValues) -> NoReturn:
    """Parses the command line into `options`, runs `main` and exits with the agreed code.

    Args:
        main: reads its flags through the holders it defined on `options`.
        options: the flags of this command alone, so that commands can be imported side by side.
    """
    logging.set_verbosity(logging.ERROR)  # the libraries narrate every checkpoint

    def guarded() -> None:
        _cache_compilations()
        try:
            main()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in (line := first_line(error)):
                raise
            exit_with(1, f"out of device memory; {OUT_OF_MEMORY_ADVICE} ({line})")
        except MemoryError as error:
            exit_with(1, f"out of memory; {OUT_OF_MEMORY_ADVICE} ({str(error) or 'nothing more is known'})")

    run_main(guarded, options, usage_errors=USAGE_ERRORS, failures=FAILURES)


def _cache_compilations() -> None:
    """Keeps compiled programs across processes, unless the environment names a place of its own."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
