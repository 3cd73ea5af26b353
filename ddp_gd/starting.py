"""A limit for the start, where workers wait for each other: one that never comes ends the job.

Before they have met they can't tell each other anything. Those of one host see each other's
processes, though: they are children of the same launcher, and one that has come to the start holds
an empty file in memory open, by a name that shows in /proc. So the one that is missing is named.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

from . import processes
from .comm import environment

_NAME = "ddp_gd_has_come"
# Seconds that are left to another worker to say so; the launcher then ends all.
_FOR_ANOTHER = 2.0


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """End this process if what is done inside, where workers wait for each other, takes longer.

    What is done inside must let other threads of Python run.

    Args:
        seconds: the limit; 0 for none.
    """
    os.memfd_create(_NAME)  # for as long as the process lives: others may come later
    done = threading.Event()

    def wait() -> None:
        if not done.wait(seconds / 2):
            _, seen = _look()
            if not done.wait(seconds / 2):
                _give_up(seconds, seen)

    if seconds:
        threading.Thread(target=wait, name="ddp_gd_start", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _give_up(seconds: float, seen: set[int]) -> None:
    """Say who is missing, unless another worker does, and end this process.

    Args:
        seconds: that were waited.
        seen: those of this host that had come before. Where one is gone, it has spoken.
    """
    try:
        mine = environment.launch()
        missing, come = _look()
        if mine.rank > min(come, default=mine.rank) or seen - come:
            time.sleep(2 * _FOR_ANOTHER)
        if not missing:  # then another host lacks one
            time.sleep(_FOR_ANOTHER)
        host = socket.gethostname()
        waited = f"rank {mine.rank} has waited {seconds:g} s for it to start"
        text = f"rank {mine.rank} on {host} has waited {seconds:g} s for the other workers to start"
        if missing:
            rank, (process, what) = min(missing.items())
            where = f"(process {process} on {host})" if process else f"(on {host})"
            others = [str(other) for other in sorted(missing) if other != rank]
            text = f"rank {rank} {where} {what}; {waited}"
            if others:
                text += f", and for rank{'s' * (len(others) > 1)} {', '.join(others)}"
        sys.stderr.write(
            f"ddp_gd: error: {text}. See what the process does before ddp_gd.init, or whether it "
            "was started; DDP_GD_STALL_SECONDS changes the limit.\n"
        )
        sys.stderr.flush()
    finally:
        os._exit(1)


def _look() -> tuple[dict[int, tuple[int, str]], set[int]]:
    """Look at the workers of this host.

    Returns:
        Those that are missing, by rank: process (0 if it's gone) and what is wrong with it. And
        the ranks of those that have come.
    """
    missing: dict[int, tuple[int, str]] = {}
    come = set()
    size = environment.launch().size
    launcher = os.getppid()
    if environment.launch(processes.environment(launcher)).variable:
        return {}, set()  # a program in between, one for each worker
    all_here = environment.workers_here() == size
    for process, status in processes.children(launcher).items():
        place = environment.launch(processes.environment(process))
        files = processes.open_files(process)
        if not place.variable or files is None:
            all_here = False  # it may be one of them
        elif status.state in "Tt":
            missing[place.rank] = process, "is stopped"
        elif any(_NAME in name for name in files):
            come.add(place.rank)
        else:
            missing[place.rank] = process, "has not come to ddp_gd.init"
    if all_here:
        for rank in set(range(size)) - missing.keys() - come:
            missing[rank] = 0, "has ended before it came to ddp_gd.init"
    return missing, come
