"""Starts real jobs of several workers for the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ddp_gd.job import mpirun

_BIN = Path(sys.executable).parent  # not resolved: a virtual environment's python is a link
_TESTS = Path(__file__).parent
# Limits of seconds are for jobs that hang: a machine that others use may be so many times slower.
PATIENCE = 5
_PATHS = (_TESTS.parent, _TESTS, _TESTS / "without")


def command(
    np: int, argv: Sequence[str], launcher: str, env: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """The command of a job, and its environment. The arguments are those of `run_job`."""
    # These jobs stay on this host, whatever job of Slurm the tests run in.
    inherited = mpirun.environment().items()
    environ = {k: v for k, v in inherited if not k.startswith("SLURM_")}
    environ |= {
        "PATH": f"{_BIN}{os.pathsep}{environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(filter(None, [*map(str, _PATHS), environ.get("PYTHONPATH")])),
        "PYTHONFAULTHANDLER": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
        **(env or {}),
    }
    start = {
        "horovodrun": [str(_BIN / "horovodrun"), "-np", str(np), "-H", f"localhost:{np}"],
        "mpirun": [str(_BIN / "mpirun"), "-np", str(np)],
        "python": [],
    }[launcher]
    return [*start, sys.executable, *argv], environ


def run_job(
    np: int,
    argv: Sequence[str],
    launcher: str = "mpirun",
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run `python *argv` as a job of `np` workers, and return what it printed and its exit status.

    Args:
        np: how many workers; more than there are cores is fine.
        argv: arguments of the Python interpreter: a script or `-m module`, and its arguments.
        launcher: `"mpirun"`, `"horovodrun"` (which itself imports TensorFlow: seconds a job), or
            `"python"` for a process of its own (`np` is 1).
        env: variables to add.
        timeout: seconds on a quiet machine. After `PATIENCE` times that the whole job is killed and
            `subprocess.TimeoutExpired` raised.
    """
    words, environ = command(np, argv, launcher, env)
    with subprocess.Popen(
        words,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a job that hangs can be killed with all its workers
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout * PATIENCE)
        except BaseException:
            # The launcher first ends its workers, which may be in sessions of their own.
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)
