"""`python -m ddp_gd.train`: parse, build, call `fit`. This file is intentionally kept short."""

from __future__ import annotations

import contextlib
import os
import time

import tyro

from .comm.environment import launch
from .config import TrainConfig


def main() -> None:
    """Train as the command line says, on all workers of the job."""
    config = _parse()
    from .experiment import run  # imports TensorFlow: not for --help

    run(config)


def _parse() -> TrainConfig:
    """Read the command line; of several workers, rank 0 says what is wrong with it."""
    prog = "python -m ddp_gd.train"
    if launch().rank == 0:
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
