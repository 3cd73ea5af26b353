"""What the commands have in common: read the command line, run, say what is wrong."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from typing import Any

import tyro

from .comm.environment import launch
from .errors import DdpGdError, exit_status


def main(config: type, command: str, module: str) -> None:
    """Run a command on all workers of the job.

    Args:
        config: the dataclass of its options.
        command: its name, `train` for `python -m ddp_gd.train`.
        module: of this package; its `run(options)` does it.
    """
    options = _parse(config, f"python -m ddp_gd.{command}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no lines about the CPU and absent GPUs
    # Most import TensorFlow: not for --help.
    run = importlib.import_module(f".{module}", __package__).run
    try:
        run(options)
    except (DdpGdError, KeyboardInterrupt) as error:
        # Of several workers one speaks and ends them all: runtime.init() saw to that.
        if launch().size > 1 or os.environ.get("DDP_GD_TRACEBACK") == "1":
            raise
        if isinstance(error, DdpGdError):
            print(f"ddp_gd: error: {error}", file=sys.stderr)
        sys.exit(exit_status(error))


def _parse(config: type, prog: str) -> Any:
    """Read the command line; of several workers, rank 0 says what is wrong with it."""
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
