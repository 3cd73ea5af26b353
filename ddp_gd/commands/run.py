"""`ddp-gd run`: a script started as a job of several workers, on this machine."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ddp_gd.comm.environment import launch
from ddp_gd.errors import ConfigError
from ddp_gd.job import launcher, mpirun

_ABOUT = """Start a Python script as a job of N workers on this machine, through MPI: it finds
mpirun, sets what a job wants set, passes signals on (the first lets a training save and stop, a
second one ends it) and ends with the job's exit status. For several machines: docs/cluster.md."""


def main(arguments: Sequence[str]) -> int:
    """Run what the command line names; return its exit status.

    Raises:
        ConfigError: it can't be.
    """
    parser = argparse.ArgumentParser(prog="ddp-gd run", description=_ABOUT, allow_abbrev=False)
    parser.add_argument(
        *("-np", "-n", "--np"),
        type=int,
        default=None,
        metavar="N",
        help="workers; default: as many as this process may use cores",
    )
    parser.add_argument("-m", action="store_true", dest="module", help="SCRIPT is a module's name")
    parser.add_argument("script", metavar="SCRIPT", help="a Python file")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    options = parser.parse_args(arguments)
    if options.np is not None and options.np < 1:
        raise ConfigError(f"-np {options.np}: there must be at least one worker.")
    if not options.module and not Path(options.script).is_file():
        raise ConfigError(f"SCRIPT {options.script!r}: there is no such file.")
    program = ["-m", options.script] if options.module else [options.script]
    return start(options.np or len(os.sched_getaffinity(0)), [*program, *options.arguments])


def start(workers: int, arguments: Sequence[str]) -> int:
    """Run `python ARGUMENTS` with so many workers; return the job's exit status.

    Raises:
        ConfigError: this process is itself a worker of a job.
        LaunchError: there is no mpirun.
    """
    job = launch()
    if job.size > 1:
        raise ConfigError(
            f"{job.variable}={job.size}: this process is one of {job.size} workers already. Start "
            "the job once: leave out -np, or the launcher around it."
        )
    sys.stdout.flush()
    words = mpirun.command(workers, [sys.executable, *arguments])
    return launcher.run(words, mpirun.environment())
