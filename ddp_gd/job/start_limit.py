"""A limit for the start, where workers wait for each other: one that never comes ends the job.

Before they have met they can't tell each other anything. Those of one host see each other's
processes, though: they are children of one launcher, and those that have come to the start hold
this file open, which shows in /proc. So one of them can name who is missing.
"""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ddp_gd.comm import environment
from ddp_gd.job import procfs

_FILE = os.path.join("/ddp_gd", "job", os.path.basename(__file__))
# Seconds in which the launcher ends all workers when one of them has spoken and ended.
_FOR_THE_LAUNCHER = 2.5


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """End this process if what is done inside, where workers wait for each other, takes longer.

    What is done inside must let other threads of Python run.

    Args:
        seconds: the limit; 0 for none.
    """
    if not seconds:
        yield
        return
    with contextlib.suppress(OSError):
        os.open(__file__, os.O_RDONLY)  # for as long as the process lives: others may come later
    done = threading.Event()
    waiter = threading.Thread(target=_wait, args=[done, seconds], name="ddp_gd_start", daemon=True)
    waiter.start()
    try:
        yield
    finally:
        done.set()


class _Missing(NamedTuple):
    process: int  # 0 if it has ended
    why: str


def _wait(done: threading.Event, seconds: float) -> None:
    """Wait so long, and some more while it's for another worker to speak; then end this process."""
    if done.wait(seconds / 2):
        return
    _, seen = _look()
    if done.wait(seconds / 2):
        return
    rank = environment.launch().rank
    missing, come = _look(seen)
    seen |= come
    turn = sorted(come).index(rank) if missing and rank in come else rank
    of_other_hosts = 0 if missing else seconds / 10  # one of them may see who is missing
    if done.wait(turn * _FOR_THE_LAUNCHER + of_other_hosts):
        return
    missing, come = _look(seen)
    has_spoken = seen - come - missing.keys()  # one that had come is gone
    if not (has_spoken and done.wait(_FOR_THE_LAUNCHER)):
        _give_up(rank, seconds, missing)


def _give_up(rank: int, seconds: float, missing: dict[int, _Missing]) -> None:
    """Say who is missing, and end this process."""
    try:
        host = socket.gethostname()
        text = f"rank {rank} on {host} has waited {seconds:g} s for the other workers to start"
        if missing:
            first, *others = sorted(missing)
            process, why = missing[first]
            where = f"process {process} on {host}" if process else f"on {host}"
            text = f"rank {first} ({where}) {why}; rank {rank} has waited {seconds:g} s for it to "
            text += "start"
            if others:
                text += f", and for rank{'s' * (len(others) > 1)} {', '.join(map(str, others))}"
        sys.stderr.write(
            f"ddp_gd: error: {text}. See what the process does before ddp_gd.init, or whether it "
            "was started; DDP_GD_STALL_SECONDS changes the limit.\n"
        )
        sys.stderr.flush()
    finally:
        os._exit(1)


def _look(known: Collection[int] = ()) -> tuple[dict[int, _Missing], set[int]]:
    """Look at the workers of this host: who is missing, by rank, and which ranks have come.

    Nobody where others can't be seen. Of `known` ranks, which had come, none is missing.
    """
    missing: dict[int, _Missing] = {}
    come: set[int] = set()
    here = environment.launch()
    launcher = os.getppid()
    launchers = procfs.environment(launcher)
    if not launchers or environment.launch(launchers) == here:
        return missing, come  # a program in between, one for each worker
    all_here = environment.workers_here() == here.size
    with contextlib.suppress(OSError):
        for process, status in procfs.children(launcher).items():
            worker = environment.launch(procfs.environment(process))
            files = procfs.open_files(process)
            if not worker.variable or files is None:
                all_here = False  # it may be one of them
            elif status.state in "Tt":
                missing[worker.rank] = _Missing(process, "is stopped")
            elif any(name.endswith(_FILE) for name in files):
                come.add(worker.rank)
            else:
                missing[worker.rank] = _Missing(process, "has not come to ddp_gd.init")
        if all_here:
            for rank in set(range(here.size)) - missing.keys() - come - set(known):
                missing[rank] = _Missing(0, "has ended before it came to ddp_gd.init")
    return missing, come
