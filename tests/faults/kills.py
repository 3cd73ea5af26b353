"""A bitwise training that is killed at a random moment and resumed with other workers."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import jobs

_PROGRAM = str(Path(__file__).resolve().parents[1] / "programs" / "resumed.py")
_TIMEOUT = 120.0  # seconds
_SECONDS = 4.0  # about as long as the training takes


@dataclasses.dataclass(frozen=True)
class Kill:
    """How a training was killed, and how the one that went on from there ended.

    Attributes:
        np: workers of the first one.
        resumed_np: workers of the second one.
        rank: the worker that was killed.
        saving: whether that happened while a checkpoint was being written.
        equal: whether it ended as one that was never killed.
    """

    np: int
    resumed_np: int
    rank: int
    saving: bool
    equal: bool


def never_killed() -> dict[str, Any]:
    """Weights, optimizer state and History of the training."""
    with tempfile.TemporaryDirectory() as name:
        return _finish(1, "single", Path(name))


def run(seed: int, saving: bool, expected: dict[str, Any]) -> Kill:
    """Kill a training, and go on with it.

    Args:
        seed: of the moment, the worker, the numbers of workers, the backends.
        saving: kill while a checkpoint is being written.
        expected: what `never_killed` returned.
    """
    r = random.Random(seed)
    while True:
        np, resumed_np = r.randint(1, 4), r.randint(1, 4)
        rank = r.randrange(np)
        backends = [r.choice(["horovod", "mpi"]), r.choice(["horovod", "mpi"])]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if not _kill(np, backends[0], rank, r.uniform(0, _SECONDS), saving, folder):
                continue  # it had ended before
            equal = _finish(resumed_np, backends[1], folder) == expected
        return Kill(np, resumed_np, rank, saving, equal)


def _kill(np: int, backend: str, rank: int, delay: float, saving: bool, folder: Path) -> bool:
    """Start the training and kill one worker; tell whether it was still at work."""
    argv = [_PROGRAM, str(folder / "killed"), str(folder / "saved")]
    env = {"BACKEND": backend, "BEGAN": str(folder / "began")}
    command, environ = jobs.command(np, argv, "mpirun", env)
    with subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as job:
        note = folder / f"began.{rank}"
        while not note.exists() and job.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        while saving and job.poll() is None and not list((folder / "saved").glob("*.partial")):
            pass
        if (folder / "killed").exists() or job.poll() is not None:
            job.wait(_TIMEOUT)
            return False
        try:
            os.kill(int(note.read_text()), signal.SIGKILL)
        except ProcessLookupError:  # it ended just now
            job.wait(_TIMEOUT)
            return False
        assert job.wait(_TIMEOUT) != 0
        return True


def _finish(np: int, backend: str, folder: Path) -> dict[str, Any]:
    """Go on with the training to its end."""
    argv = [_PROGRAM, str(folder / "ended"), str(folder / "saved")]
    backend = "single" if np == 1 else backend
    job = jobs.run_job(np, argv, "mpirun", {"BACKEND": backend}, timeout=_TIMEOUT)
    if job.returncode != 0:
        return {"failed": job.stderr}
    left: dict[str, Any] = json.loads((folder / "ended").read_text())
    return left
