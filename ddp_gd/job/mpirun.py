"""How a command of this package starts jobs of several workers itself."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ddp_gd.comm.environment import launcher_settings, outside_of_a_job
from ddp_gd.errors import LaunchError

# An argument `:` is to mpirun the end of one program and the beginning of another. It gets a +,
# which this program takes away again before it becomes the worker.
_SEPARATOR = re.compile(r"\+*:")
_UNDO = """
import os, re, sys
words = [w[1:] if re.fullmatch(r"\\++:", w) else w for w in sys.argv[1:]]
os.execv(words[0], words)
"""


def command(workers: int, program: Sequence[str]) -> list[str]:
    """Return the command that runs `program` with so many workers; one of them needs no mpirun.

    Raises:
        LaunchError: there is no mpirun.
    """
    if workers == 1:
        return list(program)
    mpirun = shutil.which(path())
    if mpirun is None:
        raise LaunchError(
            "There is no mpirun, beside this Python or on PATH. `python -m ddp_gd.doctor` tells "
            "how to get one."
        )
    if any(_SEPARATOR.fullmatch(word) for word in program):
        escaped = [f"+{word}" if _SEPARATOR.fullmatch(word) else word for word in program]
        program = [sys.executable, "-I", "-S", "-c", _UNDO, *escaped]
    return [mpirun, *_options(mpirun), "-np", str(workers), *program]


def environment() -> dict[str, str]:
    """Return the variables for that command: the user's, and what a launcher wants set."""
    settings = launcher_settings(sys.prefix, path())
    return settings | outside_of_a_job()


def _options(mpirun: str) -> list[str]:
    """Bind nothing, and let workers share cores; Open MPI 4 reads that from the environment."""
    told = subprocess.run([mpirun, "--version"], capture_output=True, text=True)  # noqa: S603
    if "HYDRA" in told.stdout:
        return ["-bind-to", "none"]
    found = re.search(r"\(Open MPI\) (\d+)", told.stdout)
    if found and int(found[1]) >= 5:
        return ["--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE"]
    return []


def path() -> str:
    """Return the mpirun of this Python's environment, which need not be on PATH, or its name."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else "mpirun"
