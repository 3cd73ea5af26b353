"""What the commands have in common: read the command line, run, say what is wrong."""

import ast
import contextlib
import importlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from ddp_gd import settings
from ddp_gd.comm.environment import launch
from ddp_gd.errors import DdpGdError, exit_status
from ddp_gd.loading import quietly, without

Options = TypeVar("Options")

# An argument of the library in a message. What stands in quotes or in a call is left as it is: it
# was typed, was read from a file, or is Python to be typed.
_ARGUMENT = re.compile(
    r"""
    (?<!\w) (?: '(?:\\.|[^'\\\n])*' | "(?:\\.|[^"\\\n])*" | `[^`\n]*` )
    | \w\([^()\n]*\)
    | (?<![\w./=-]) (?P<name>[a-z_]+) =
      (?P<value> '[^'\n]*' | "[^"\n]*" | \[[^]\n]*\] | \([^)\n]*\) | [\w.+-]+? )
      (?= [\s,;:)] | \.(?:\s|$) | $ )
    """,
    re.VERBOSE,
)


def start(config: type[Options], command: str, module: str) -> None:
    """Run a command from its command line to its end.

    Args:
        config: a dataclass of its options.
        command: its name, as in `python -m ddp_gd.COMMAND`.
        module: it has the function `run`, which takes these options. It and all that it imports is
            loaded when the command line is known to be right.
    """
    options = parse(config, command)
    typed = shlex.join(["python", "-m", f"ddp_gd.{command}", *sys.argv[1:]])
    os.environ.setdefault(settings.COMMAND, typed)  # a launcher may know better
    if launch().rank == 0:
        from ddp_gd.commands import beforehand  # it reads tables: not for --help

        try:
            beforehand.check(options)
        except DdpGdError as error:
            if settings.shows_traceback():
                raise
            print(f"ddp_gd: error: {translate(str(error), options)}", file=sys.stderr)
            sys.exit(exit_status(error))
    with quietly():
        # Keras imports both wherever they are installed: a second of each worker's start, for
        # wrappers and pictures that no command uses.
        with without("sklearn", "matplotlib"):
            importlib.import_module("keras")
        run = importlib.import_module(module).run
    execute(run, options)


def parse(config: type[Options], command: str) -> Options:
    """Read the command line of `python -m ddp_gd.COMMAND` into a dataclass of options.

    Of several workers, rank 0 says what is wrong with it.
    """
    prog = f"python -m ddp_gd.{command}"
    job = launch()
    if job.size > 1:
        os.environ["TERM"] = "dumb"  # a launcher's pseudo-terminals look as if they had colours
    if job.rank == 0:
        return tyro.cli(config, prog=prog)
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):  # noqa: SIM117
            with contextlib.redirect_stdout(null):
                return tyro.cli(config, prog=prog)
    except SystemExit:
        time.sleep(3)  # the launcher ends rank 0 with the first that fails: let it speak before
        raise


def execute(run: Callable[[Options], None], options: Options) -> None:
    """Run a command; an error that the user can mend ends it with its message alone."""
    try:
        run(options)
    except (DdpGdError, KeyboardInterrupt) as error:
        if isinstance(error, DdpGdError):
            error.args = (translate(str(error), options), *error.args[1:])
        # Of several workers one speaks and ends them all: runtime.init() saw to that.
        if launch().size > 1 or settings.shows_traceback():
            raise
        if isinstance(error, DdpGdError):
            print(f"ddp_gd: error: {error}", file=sys.stderr)
        sys.exit(exit_status(error))


def status_of(main: Callable[[], int]) -> int:
    """Return the exit status of a command that has no options' class; say what is wrong."""
    try:
        return main()
    except DdpGdError as error:
        if settings.shows_traceback():
            raise
        print(f"ddp_gd: error: {error}", file=sys.stderr)
        return exit_status(error)


def translate(message: str, options: Any) -> str:
    """Name options as they are typed: what the library calls `batch_size=8` is `--batch-size 8`.

    The options' fields have the names of the library's arguments, or their plurals where a field
    holds several values to try.
    """
    fields = vars(options)
    typed = [text for value in fields.values() for text in _list(value) if "=" in str(text)]

    def flag(match: re.Match[str]) -> str:
        name = match["name"]
        if isinstance(fields.get(f"{name}s"), tuple):
            name += "s"
        within = any(match[0] in str(text) and str(text) in message for text in typed)
        if name not in fields or within:
            return match[0]
        try:
            value = ast.literal_eval(match["value"])
        except (ValueError, SyntaxError):
            return match[0]
        option = name.replace("_", "-")
        if isinstance(value, bool):
            return f"--{option}" if value else f"--no-{option}"
        return " ".join([f"--{option}", *(shlex.quote(str(word)) for word in _list(value))])

    return _ARGUMENT.sub(flag, message)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]
