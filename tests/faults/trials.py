"""One fault, one job: was it down soon, with an error that names the right worker and reason?"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from tests import jobs
from tests.faults import messages
from tests.faults.kills import newest_whole
from tests.faults.strike import KINDS, PHASES

_HERE = Path(__file__).resolve().parent
_LAUNCHES = (("horovodrun", "horovod"), ("mpirun", "horovod"), ("mpirun", "mpi"))
_TIMEOUT = 90.0  # seconds; a job that isn't down by then hangs
_BY_HAND_TIMEOUT = 25.0
# Seconds after which each kind of hang is to be noticed, and the DDP_GD_STALL_SECONDS for that.
HANGS = {"SIGSTOP": (3.0, "3"), "endless loop": (8.0, "0.8")}
# Who hangs before ddp_gd.init is waited for at the start: 8 s from when another worker comes there,
# which may be 2 s later. So is who leaves with status 0 before the launcher has seen MPI start.
_AT_LAUNCH = (10.0, "0.8")
LARGEST = 5.0  # seconds to job down
_LARGEST_OF_A_HANG = 2.0  # more than its timeout
MEDIAN = 2.0  # seconds to job down, of many trials
# A worker that leaves after the training with exit status 0 has done nothing wrong; and one that
# computes after it may go on for ever.
_NO_FAULT = {("exit", "sys.exit(0)"), ("exit", "endless loop"), ("step", "endless loop")}
_NO_FAULT |= {("reduction", "endless loop")}  # in a graph: looks like a long step


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to which worker of how many, and when."""

    kind: str
    phase: str
    np: int
    rank: int
    launcher: str = "mpirun"
    backend: str = "horovod"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the job.

    Attributes:
        fault: that struck.
        status: the exit status; None if the job had to be killed.
        seconds: from the strike until the last process was gone, less the time after which a hang
            is to be noticed.
        orphans: processes that were left when the launcher had ended.
        left_in_shm: files that were left in shared memory.
        said: what is wrong with what was said of it; None if nothing.
        output: all of it.
    """

    fault: Fault
    status: int | None
    seconds: float
    orphans: int
    left_in_shm: int
    said: str | None
    output: str

    @property
    def problems(self) -> list[str]:
        """What isn't as promised."""
        expected = messages.ASKED.get(self.fault.kind, self.status)
        found = {
            "did not strike": math.isnan(self.seconds),
            "hangs": self.status is None,
            f"exit status {self.status}": self.status == 0 or self.status != expected,
            "orphans": self.orphans > 0,
            "left in shared memory": self.left_in_shm > 0,
            f"{self.said}": self.said is not None,
            f"took {self.seconds:.1f} s": self.seconds
            > (_LARGEST_OF_A_HANG if self.fault.kind in HANGS else LARGEST),
        }
        return [text for text, wrong in found.items() if wrong]


def faults(seed: int, counts: tuple[int, ...] = (2, 3, 4)) -> list[Fault]:
    """Every kind in every phase, at every count and rank, in a random order."""
    r = random.Random(seed)
    places = [(np, rank) for np in counts for rank in range(np)]
    found = []
    for kind, phase, (np, rank) in itertools.product(KINDS, PHASES, places):
        asked = kind in messages.ASKED and phase in ("launch", "start", "exit")
        if (phase, kind) not in _NO_FAULT and not asked:
            found.append(Fault(kind, phase, np, rank, *r.choice(_LAUNCHES)))
    r.shuffle(found)
    return found


def run(fault: Fault, by_hand: bool = False) -> Outcome:
    """Inject a fault into a job of its own."""
    mark = uuid.uuid4().hex
    before = set(os.listdir("/dev/shm"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = _HERE / ("by_hand.py" if by_hand else "worker.py")
        argv = [str(program), fault.kind, fault.phase, str(fault.rank), name]
        allowed, limit = HANGS.get(fault.kind, (0.0, "60"))
        if fault.phase == "launch" and fault.kind in messages.WAITED_FOR:
            allowed, limit = _AT_LAUNCH
        env = {"DDP_GD_TRIAL": mark, "DDP_GD_STALL_SECONDS": limit, "PYTHONFAULTHANDLER": "0"}
        if not by_hand:
            argv.append(fault.backend)
        command, environ = jobs.command(fault.np, argv, fault.launcher, env)
        with (folder / "output").open("w+") as output:
            process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status: int | None = None
            try:
                status = process.wait(_BY_HAND_TIMEOUT if by_hand else _TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            ended = time.time()
            time.sleep(0.1)
            orphans = _marked(mark) if status is not None else []
            deadline = ended + 10
            while _marked(mark) and ended < deadline:
                time.sleep(0.1)
                ended = time.time()
            for left in _marked(mark):
                os.kill(left, signal.SIGKILL)
            output.seek(0)
            text = output.read()
        struck = (folder / "note").read_text() if (folder / "note").exists() else "nan"
        saved = messages.saved(text)
        lost = saved is not None and not _is_newest(saved[1], folder / "checkpoints")
    if fault.phase == "launch" and not messages.have_waited(text):
        allowed = 0.0  # the launcher saw it
    if by_hand:  # any word of it will do
        named = re.search(rf"rank {fault.rank}\b|\[\[\d+,1\],{fault.rank}\]", text)
        said = None if named else "no worker named"
    else:
        said = messages.wrong(fault.kind, fault.phase, fault.rank, socket.gethostname(), text)
    return Outcome(
        fault=fault,
        status=status,
        seconds=ended - float(struck) - allowed,
        orphans=len(orphans),
        left_in_shm=len(set(os.listdir("/dev/shm")) - before),
        said="what it says is saved is not, or not whole" if lost else said,
        output=text,
    )


def _is_newest(file: str, folder: Path) -> bool:
    """Whether a checkpoint's file is the newest one of a folder that is whole."""
    return int(Path(file).name.split("-")[1]) == newest_whole(folder)


def _marked(mark: str) -> list[int]:
    """The processes of the job, wherever they are."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def too_slow(outcomes: list[Outcome]) -> bool:
    """Whether half of the jobs, of at least 100, took longer than promised to be down."""
    return len(outcomes) >= 100 and statistics.median(_times(outcomes)) > MEDIAN


def summary(outcomes: list[Outcome]) -> str:
    """A table of what went wrong how often, and how long jobs took to be down."""
    wrong: dict[str, int] = {}
    for outcome in outcomes:
        for problem in outcome.problems:
            key = re.sub(r"took .*", "took too long", problem)
            wrong[key] = wrong.get(key, 0) + 1
    text = f"{len(outcomes)} trials: " + (json.dumps(wrong) if wrong else "nothing wrong")
    times = _times(outcomes)
    text += f"; seconds to job down: median {statistics.median(times):.2f}, largest {times[-1]:.2f}"
    return text + f"; the median is over {MEDIAN:g} s" * too_slow(outcomes)


def _times(outcomes: list[Outcome]) -> list[float]:
    """Seconds to job down; one that had to be killed, or was not struck, never was."""
    return sorted(
        math.inf if outcome.status is None or math.isnan(outcome.seconds) else outcome.seconds
        for outcome in outcomes
    )
