"""The command line of every command, without jax: parsing flags, help, and one line for what goes wrong.

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

from absl import flags

from sapo_jax.config import ConfigError, field_type


class UsageError(ValueError):
    """A command line that cannot be understood; the message names the flag."""


def run_main(
    main: Callable[[], None],
    options: flags.FlagValues,
    *,
    usage_errors: tuple[type[Exception], ...],
    failures: tuple[type[Exception], ...],
) -> NoReturn:
    """Parses the command line into `options`, runs `main` and exits with the agreed code.

    Args:
        main: reads its flags through the holders it defined on `options`.
        options: the flags of this command alone, so that commands can be imported side by side.
        usage_errors: what exits with 2, beside UsageError and ConfigError; the message is all that is shown.
        failures: what exits with 1.
    """
    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        print(_help(options))
        sys.exit(0)
    try:
        parse_flags(sys.argv, options)
        main()
    except (UsageError, ConfigError, *usage_errors) as error:
        exit_with(2, str(error))
    except failures as error:
        exit_with(1, str(error))
    except KeyboardInterrupt:
        exit_with(130, "interrupted")
    sys.exit(0)


def parse_flags(argv: Sequence[str], options: flags.FlagValues) -> None:
    """Parses `argv` into `options`; `--config` and its overrides are checked here, by their dotted paths.

    Raises:
        UsageError: an unknown flag, a missing or unreadable value, a config file that fails.
        ConfigError: an unknown key, or a value of another type.
    """
    argv = [_underscored(argument) for argument in argv]
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


def _underscored(argument: str) -> str:
    """Returns `--some-flag=x` as `--some_flag=x`: both spellings are a habit somewhere."""
    name, equals, value = argument.partition("=")
    return f"{name[:2]}{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument


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


def exit_with(code: int, message: str) -> NoReturn:
    """Ends the process with one line on stderr."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
