"""What proc(5) tells of the processes of this host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Status(NamedTuple):
    """Of one process: its state, its parent, and when it began.

    The state is `R` or `S` while it runs or sleeps, `T` or `t` where a signal or a debugger stopped
    it, `X` when it is gone. It began so many clock ticks after the machine: its number alone may be
    that of an earlier one.
    """

    state: str
    parent: int
    began: int


GONE = Status("X", 0, 0)


def status(process: int) -> Status | None:
    """The status of a process; `GONE` if it has ended, None if that can't be told."""
    try:
        # Fields 3 and following; the name before them may hold anything.
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return GONE
    except OSError:  # no file descriptor left, say
        return None
    return GONE if fields[0] in "ZX" else Status(fields[0], int(fields[1]), int(fields[19]))


def children(parent: int) -> dict[int, Status]:
    """The processes that have this parent, by number."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (theirs := status(int(name))) and theirs.parent == parent:
            found[int(name)] = theirs
    return found


def environment(process: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it can't be read."""
    try:
        text = os.fsdecode(Path(f"/proc/{process}/environ").read_bytes())
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def open_files(process: int) -> list[str] | None:
    """The names of what a process holds open; None if they can't be read."""
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
