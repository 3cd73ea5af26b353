"""What proc(5) tells of the processes of this host."""

import os
from pathlib import Path
from typing import NamedTuple


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
