"""What can go wrong with a worker, on purpose."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Struck(Exception):
    """The exception of the kind `exception`."""


def _exception() -> NoReturn:
    raise Struck("this is the fault")


def _memory() -> None:
    bytearray(2**60)


def _signal(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _loop() -> NoReturn:
    while True:
        pass


KINDS: dict[str, Callable[[], object]] = {
    "exception": _exception,
    "out of memory": _memory,
    "sys.exit(3)": lambda: sys.exit(3),
    "sys.exit(0)": lambda: sys.exit(0),
    "os._exit(3)": lambda: os._exit(3),
    "os._exit(0)": lambda: os._exit(0),
    "SIGKILL": _signal(signal.SIGKILL),
    "SIGSEGV": _signal(signal.SIGSEGV),
    "SIGSTOP": _signal(signal.SIGSTOP),
    "endless loop": _loop,
    # What asks a worker to stop: all save, and end.
    "SIGTERM": _signal(signal.SIGTERM),
    "SIGUSR1": _signal(signal.SIGUSR1),
    "SIGINT": _signal(signal.SIGINT),
}
PHASES = (
    "launch",  # before ddp_gd.init
    "start",  # right after it
    "data",
    "step",
    "reduction",
    "callback",
    "checkpoint",
    "evaluation",
    "exit",
)


class Strike:
    """A fault that is waiting for its moment.

    Args:
        kind: one of `KINDS`.
        when: at which call.
        note: file that gets the time of the strike.
    """

    def __init__(self, kind: str, when: int, note: Path):
        self._strike = KINDS[kind]
        self._left = when
        self._note = note

    def __call__(self) -> None:
        """Strike, if it is time to."""
        self._left -= 1
        if self._left == 0:
            self._note.write_text(repr(time.time()))
            self._strike()
