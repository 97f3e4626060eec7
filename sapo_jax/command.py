"""What the commands share: flag parsing and one clear line for everything a user can get wrong.

Exit codes: 0 done or stopped politely, 1 a failure (files, disk, network), 2 a usage error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from sapo_jax.checkpoint import CheckpointError
from sapo_jax.config import ConfigError
from sapo_jax.metrics import MetricsError
from sapo_jax.models.package_weights import cache_folder
from sapo_jax.models.weight_table import ModelFilesError
from sapo_jax.tasks.catalog import CatalogError
from sapo_jax.tasks.examples import ExamplesError
from sapo_jax.tasks.held_out import HeldOutError
from sapo_jax.tasks.scorers import RefusedDatasetError
from sapo_jax.tasks.stream import StreamError
from sapo_jax.text.encode import PromptTooLongError
from sapo_jax.text.tokenizer import TokenizerError
from sapo_jax.workdir import WorkdirError

USAGE_ERRORS = (
    ConfigError,
    CatalogError,
    ExamplesError,
    HeldOutError,
    PromptTooLongError,
    RefusedDatasetError,
    StreamError,
    WorkdirError,
)
FAILURES = (CheckpointError, MetricsError, ModelFilesError, TokenizerError, OSError)


def run_command(main: Callable[[], None]) -> None:
    """Parses the flags, runs `main` and exits with the agreed code."""

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _exit(2, f"unexpected argument {argv[1]!r}; every option is a --flag")
        logging.set_verbosity(logging.ERROR)  # the libraries narrate every checkpoint
        _cache_compilations()
        try:
            main()
        except USAGE_ERRORS as error:
            _exit(2, str(error))
        except FAILURES as error:
            _exit(1, str(error))

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except ConfigError as error:
        _exit(2, str(error))
    except FileNotFoundError as error:
        _exit(2, f"no such config file: {error.filename}")
    except flags.Error as error:
        _exit(2, str(error))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # A key that does not exist or a value of another type, raised by the config flags.
        _exit(2, " ".join(str(error).split()))


def _cache_compilations() -> None:
    """Keeps compiled programs across processes, unless the environment names a place of its own."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _exit(code: int, message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
