"""What the kernel tells of the processes of this host, and of the control groups of this one.

A container's limits are those of its control group. Groups of version 1 have a folder for each
controller.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


class Status(NamedTuple):
    """What one process is doing."""

    state: str  # R or S: runs or sleeps; T or t: stopped by a signal or a debugger; X: gone
    parent: int
    began: int  # clock ticks since the machine started: process numbers are used again


GONE = Status("X", 0, 0)


def status(process: int) -> Status | None:
    """Return the status of a process; `GONE` if it has ended, None if that can't be told."""
    try:
        # Fields 3 and following; the name before them may hold anything.
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return GONE
    except OSError:  # no file descriptor left, say
        return None
    return GONE if fields[0] in "ZX" else Status(fields[0], int(fields[1]), int(fields[19]))


def children(parent: int) -> dict[int, Status]:
    """Return the processes that have this parent, by number."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (child := status(int(name))) and child.parent == parent:
            found[int(name)] = child
    return found


def environment(process: int) -> dict[str, str]:
    """Return the variables that a process was started with; none if they can't be read."""
    try:
        text = os.fsdecode(Path(f"/proc/{process}/environ").read_bytes())
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def open_files(process: int) -> list[str] | None:
    """Return the names of what a process holds open; None if they can't be read."""
    folder = Path(f"/proc/{process}/fd")
    names = []
    try:
        for name in os.listdir(folder):
            try:
                names.append(os.readlink(folder / name))
            except FileNotFoundError:  # just closed
                continue
    except OSError:
        return None
    return names


def cores_limit(root: Path = _ROOT, own: Path = _OWN) -> float:
    """Return how many cores' time the group may use; infinity without a limit.

    Args:
        root: where control groups are mounted.
        own: the file that says which ones this process is in.
    """
    least = math.inf
    for folder in _folders("cpu", root, own):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "cpu.max").exists():  # version 2
                limit, period = (folder / "cpu.max").read_text().split()
            else:
                limit = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text()
            if limit not in ("max", "-1"):
                least = min(least, int(limit) / int(period))
    return least


def memory_limit(root: Path = _ROOT, own: Path = _OWN) -> float:
    """Return how many bytes the group may hold; infinity without a limit."""
    least = math.inf
    for folder in _folders("memory", root, own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                limit = int((folder / name).read_text())
                least = min(least, limit if limit < 2**62 else math.inf)
    return least


def memory_kills(root: Path = _ROOT, own: Path = _OWN) -> int:
    """Return how many processes of the group the kernel has killed for memory; 0 if unknown."""
    for folder in _folders("memory", root, own):
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                lines = (folder / name).read_text().splitlines()
                return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0


def _folders(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """This process's groups, each followed by those that it is in: their limits hold, too."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers
        group = base / path.lstrip("/")
        for folder in [group, *group.parents]:
            yield folder
            if folder == base:
                break
