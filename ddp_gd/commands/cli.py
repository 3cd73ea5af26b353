"""What the commands have in common: read the command line, run, say what is wrong."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import tyro

from ddp_gd import settings
from ddp_gd.comm.environment import launch
from ddp_gd.errors import DdpGdError, exit_status

Options = TypeVar("Options")


def parse(config: type[Options], command: str) -> Options:
    """Read the command line; of several workers, rank 0 says what is wrong with it.

    Args:
        config: the dataclass of the options.
        command: `train` for `python -m ddp_gd.train`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no lines about the CPU and absent GPUs
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
        # Of several workers one speaks and ends them all: runtime.init() saw to that.
        if launch().size > 1 or settings.shows_traceback():
            raise
        if isinstance(error, DdpGdError):
            print(f"ddp_gd: error: {error}", file=sys.stderr)
        sys.exit(exit_status(error))
