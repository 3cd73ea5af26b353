"""How a command of this package starts jobs of several workers itself."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ddp_gd.comm.environment import launcher_settings, outside_of_a_job


def command(workers: int, program: Sequence[str]) -> list[str]:
    """Return the command that runs `program` with so many workers; one of them needs no mpirun.

    Raises:
        SystemExit: there is no mpirun.
    """
    if workers == 1:
        return list(program)
    if not shutil.which(_mpirun()):
        sys.exit("ddp_gd: error: there is no mpirun. bash launch/setup.sh installs one.")
    return [_mpirun(), "-np", str(workers), *program]


def environment() -> dict[str, str]:
    """Return the variables for that command: the user's, and what a launcher wants set."""
    return launcher_settings(sys.prefix, _mpirun()) | outside_of_a_job()


def _mpirun() -> str:
    """The one that was installed with this Python, which need not be on PATH, or else another."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else "mpirun"
