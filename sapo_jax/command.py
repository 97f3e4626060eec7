"""What the commands share: flag parsing and one clear line for everything a user can get wrong.

Exit codes: 0 done or stopped politely, 1 a failure (files, disk, memory, network), 2 a usage error,
130 interrupted from the keyboard.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from absl import flags, logging

from sapo_jax.checkpoint import CheckpointError
from sapo_jax.config import ConfigError, field_type
from sapo_jax.metrics import MetricsError
from sapo_jax.models.package_weights import cache_folder
from sapo_jax.models.weight_table import ModelFilesError
from sapo_jax.tasks.catalog import CatalogError
from sapo_jax.tasks.examples import ExamplesError
from sapo_jax.tasks.held_out import HeldOutError
from sapo_jax.tasks.scorers import RefusedDatasetError
from sapo_jax.tasks.stream import StreamError
from sapo_jax.tasks.system_prompts import SystemPromptError
from sapo_jax.text.encode import PromptTooLongError
from sapo_jax.text.tokenizer import TokenizerError
from sapo_jax.workdir import WorkdirError


class UsageError(ValueError):
    """A command line that cannot be understood; the message names the flag."""


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
)
FAILURES = (CheckpointError, MetricsError, ModelFilesError, TokenizerError, OSError)


def run_command(main: Callable[[], None], options: flags.FlagValues) -> NoReturn:
    """Parses the command line into `options`, runs `main` and exits with the agreed code.

    Args:
        main: reads its flags through the holders it defined on `options`.
        options: the flags of this command alone, so that commands can be imported side by side.
    """
    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        print(_help(options))
        sys.exit(0)
    logging.set_verbosity(logging.ERROR)  # the libraries narrate every checkpoint
    _cache_compilations()
    try:
        parse_flags(sys.argv, options)
        main()
    except USAGE_ERRORS as error:
        _exit(2, str(error))
    except FAILURES as error:
        _exit(1, str(error))
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        _exit(
            1,
            "out of device memory; lower config.learner.micro_batch_groups, config.host.nodes_per_program or "
            f"config.nodes, or set config.learner.remat ({str(error).splitlines()[0]})",
        )
    except KeyboardInterrupt:
        _exit(130, "interrupted")
    sys.exit(0)


def parse_flags(argv: Sequence[str], options: flags.FlagValues) -> None:
    """Parses `argv` into `options`; `--config` and its overrides are checked here, by their dotted paths.

    Raises:
        UsageError: an unknown flag, a missing or unreadable value, a config file that fails.
        ConfigError: an unknown key, or a value of another type.
    """
    config_file = ""
    if "config" in options:
        config_file = _config_file(argv)
        for argument in argv[1:]:
            _check_override(argument)
    try:
        rest = options(argv)
    except flags.Error as error:
        raise _explained(error, config_file) from error
    except Exception as error:  # a config file is a program: it may raise anything
        raise _explained(error, config_file) from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; every option is a --flag")


def _config_file(argv: Sequence[str]) -> str:
    """Returns the path that `--config` names, empty if it names none; the file must be there."""
    for index, argument in enumerate(argv[1:], start=1):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            value = value if equals else "".join(argv[index + 1 : index + 2])
            path = value.partition(":")[0]
            if not Path(path).is_file():
                raise UsageError(f"--config={value}: no such file: {path}")
            return path
    return ""


def _check_override(argument: str) -> None:
    match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
    if match and dataclasses.is_dataclass(group := field_type(match[1])):
        keys = ", ".join(field.name for field in dataclasses.fields(group))
        raise ConfigError(f"config.{match[1]}: a group of keys, to be set one by one ({keys})")


def _explained(error: Exception, config_file: str) -> ValueError:
    """Returns the error to show for what flag parsing raised."""
    for cause in _causes(error):
        if isinstance(cause, ConfigError) and str(cause).startswith("config"):
            return cause  # raised by the config file, wrapped on its way through the flag library
    text = " ".join(str(error).split())
    if match := re.match(r"flag --(\S+)=None: .*other than None", text):
        return UsageError(f"--{match[1]} is required; --help explains")
    if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", text):
        return ConfigError(f"config.{match[1]} = {match[2]!r}: must be {_type_name(field_type(match[1]))}")
    if isinstance(error, flags.Error) and not text.startswith("flag --config="):
        return UsageError(text)
    chain = [error, *_causes(error)]
    # The flag library adds its own report around some errors: show the one that the file itself raised.
    root, line = next(((raised, line) for raised in chain if (line := _line_in(config_file, raised))), (error, 0))
    where = f"{config_file}, line {line}" if line else config_file
    return UsageError(f"{where}: {type(root).__name__}: {' '.join(str(root).split()):.200}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause


def _line_in(file: str, error: BaseException) -> int:
    """Returns the last line of `file` that `error` came through, 0 if it did not."""
    lines = [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] if lines else 0


def _type_name(hint: type) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, f"a {hint}".replace("[", " of ").replace(", ...]", ""))


def _help(options: flags.FlagValues) -> str:
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), ""]
    for name in sorted(options):
        flag = options[name]
        default = "" if flag.default is None else f" (default: {flag.default})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)


def _cache_compilations() -> None:
    """Keeps compiled programs across processes, unless the environment names a place of its own."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _exit(code: int, message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
