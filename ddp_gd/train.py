"""`python -m ddp_gd.train`: parse, build, call `fit`. This file is intentionally kept short."""

from __future__ import annotations

import contextlib
import os
import sys
import time

import tyro

from .comm.environment import launch
from .config import TrainConfig
from .errors import DdpGdError


def main() -> None:
    """Train as the command line says, on all workers of the job."""
    config = _parse()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no lines about the CPU and absent GPUs
    # They import TensorFlow: not for --help.
    from .experiment import run
    from .runtime import exit_status

    try:
        run(config)
    except (DdpGdError, KeyboardInterrupt) as error:
        # Of several workers one speaks and ends them all: runtime.init() saw to that.
        if launch().size > 1 or os.environ.get("DDP_GD_TRACEBACK") == "1":
            raise
        if isinstance(error, DdpGdError):
            print(f"ddp_gd: error: {error}", file=sys.stderr)
        sys.exit(exit_status(error))


def _parse() -> TrainConfig:
    """Read the command line; of several workers, rank 0 says what is wrong with it."""
    prog = "python -m ddp_gd.train"
    job = launch()
    if job.size > 1:
        os.environ["TERM"] = "dumb"  # a launcher's pseudo-terminals look as if they had colours
    if job.rank == 0:
        return tyro.cli(TrainConfig, prog=prog)
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):  # noqa: SIM117
            with contextlib.redirect_stdout(null):
                return tyro.cli(TrainConfig, prog=prog)
    except SystemExit:
        time.sleep(3)  # the launcher ends rank 0 with the first that fails: let it speak before
        raise


if __name__ == "__main__":
    main()
