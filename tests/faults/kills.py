"""A bitwise training that is killed at a random moment and resumed with other workers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
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
_SECONDS = 4.0  # about as long as it takes until the first checkpoint
_BETWEEN = 0.2  # seconds; longer than it takes from one checkpoint to the next
_STEPS = 54  # of the training
# Of 10 or more kills, so many have to leave a file half written, and so many a whole one to go on
# from; otherwise they were not what they are meant to try. Half of them are aimed at the first.
_ENOUGH = 0.25


@dataclasses.dataclass(frozen=True)
class Kill:
    """How a training was killed, and how the one that went on from there ended.

    Attributes:
        np: workers of the first one.
        resumed_np: workers of the second one.
        rank: the worker that was killed.
        saving: whether that was aimed at the writing of a checkpoint.
        half_written: whether a file was left half written.
        newest: updates in the newest whole checkpoint that was left; 0 without one.
        began: updates that the second one had behind it when it began; None if it never did.
        equal: whether it ended as one that was never killed.
    """

    np: int
    resumed_np: int
    rank: int
    saving: bool
    half_written: bool
    newest: int
    began: int | None
    equal: bool

    @property
    def problems(self) -> list[str]:
        """What isn't as promised."""
        found = {
            f"began after {self.began} updates, not {self.newest}": self.began != self.newest,
            "ended otherwise": not self.equal,
        }
        return [text for text, wrong in found.items() if wrong]


def never_killed() -> dict[str, Any]:
    """Weights, optimizer state and History of the training."""
    with tempfile.TemporaryDirectory() as name:
        return _finish(1, "single", Path(name))


def run(seed: int, saving: bool, expected: dict[str, Any]) -> Kill:
    """Kill a training, and go on with it.

    Args:
        seed: of the moment, the worker, the numbers of workers, the backends.
        saving: kill the worker that writes checkpoints, while it writes one.
        expected: what `never_killed` returned.
    """
    r = random.Random(seed)
    while True:
        np, resumed_np = r.randint(1, 4), r.randint(1, 4)
        rank = 0 if saving else r.randrange(np)
        backends = [r.choice(["horovod", "mpi"]), r.choice(["horovod", "mpi"])]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            steps = r.randrange(_STEPS) if saving else r.choice([0, r.randrange(_STEPS)])
            delay = 0 if saving else r.uniform(0, _BETWEEN if steps else _SECONDS)
            if not _kill(np, backends[0], rank, steps, delay, saving, folder):
                continue  # it had ended before
            half_written = any((folder / "saved").glob("*.partial"))
            newest = newest_whole(folder / "saved")
            equal = _finish(resumed_np, backends[1], folder) == expected
            note = folder / "ended.began"
            began = int(note.read_text()) if note.exists() else None
        return Kill(np, resumed_np, rank, saving, half_written, newest, began, equal)


def summary(done: list[Kill]) -> tuple[str, bool]:
    """What became of the trainings, and whether something is wrong with that."""
    count = len(done)
    half_written = sum(kill.half_written for kill in done)
    from_one = sum(kill.newest > 0 for kill in done)
    text = (
        f"{sum(kill.equal for kill in done)} of {count} killed trainings ended in the same bits as "
        f"one never killed; {sum(kill.began == kill.newest for kill in done)} went on from the "
        f"newest whole checkpoint, or began where there was none ({count - from_one}); "
        f"{half_written} left one half written"
    )
    few = count >= 10 and min(half_written, from_one) < _ENOUGH * count
    return text + ": too few" * few, few or any(kill.problems for kill in done)


def newest_whole(folder: Path) -> int:
    """Updates in the newest checkpoint whose content is what its name says; 0 without one."""
    whole = [0]
    for path in folder.glob("step-*.safetensors"):
        _, step, digest = path.stem.split("-")
        if hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest):
            whole.append(int(step))
    return max(whole)


def _kill(
    np: int, backend: str, rank: int, steps: int, delay: float, saving: bool, folder: Path
) -> bool:
    """Start the training and kill one worker; tell whether it was still at work.

    Args:
        np: workers.
        backend: of the job.
        rank: the one to kill.
        steps: wait for the first checkpoint after more steps; 0: only for the beginning.
        delay: seconds to wait after that.
        saving: wait for the file that is being written, not for the whole one.
        folder: for what it leaves.

    Raises:
        RuntimeError: it failed by itself.
    """
    argv = [_PROGRAM, str(folder / "killed"), str(folder / "saved")]
    env = {"BACKEND": backend, "BEGAN": str(folder / "began")}
    command, environ = jobs.command(np, argv, "mpirun", env)
    with (
        (folder / "output").open("w+") as output,
        subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as job,
    ):
        note = folder / f"began.{rank}"
        while not note.exists() and job.poll() is None:
            time.sleep(0.01)
        victim = int(note.read_text()) if note.exists() else 0
        ending = ".partial" if saving else ".safetensors"
        while (saving or steps) and job.poll() is None:
            names = os.listdir(folder / "saved") if (folder / "saved").exists() else []
            if any(int(name.split("-")[1]) > steps for name in names if name.endswith(ending)):
                break
            time.sleep(0.0005)  # the workers need the cores
        time.sleep(delay)
        killed = False
        if victim and job.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.kill(victim, signal.SIGKILL)
                killed = True
        status = job.wait(_TIMEOUT)
        ended = (folder / "killed").exists()
        if not (ended if status == 0 else killed):
            text = (folder / "output").read_text()
            raise RuntimeError(f"not killed, but it ended with status {status}:\n{text}")
        return not ended


def _finish(np: int, backend: str, folder: Path) -> dict[str, Any]:
    """Go on with the training to its end."""
    argv = [_PROGRAM, str(folder / "ended"), str(folder / "saved")]
    backend = "single" if np == 1 else backend
    job = jobs.run_job(np, argv, "mpirun", {"BACKEND": backend}, timeout=_TIMEOUT)
    if job.returncode != 0:
        return {"failed": job.stderr}
    left: dict[str, Any] = json.loads((folder / "ended").read_text())
    return left
