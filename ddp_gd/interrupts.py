"""SIGTERM, SIGUSR1 and SIGINT while a training runs: the step is finished and saved first.

SIGUSR1 because mpirun and srun hand it on to the workers, and do nothing else; SIGTERM they take as
the order to end the job, and give it little time.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupts:
    """Notes the first signal instead of ending the process; a second one ends it at once.

    Args:
        active: False changes nothing. Outside the main thread, where Python allows no handlers,
            nothing changes either.

    Attributes:
        active: whether signals are awaited, the same on every worker.
        received: the signal's number, or None.
    """

    def __init__(self, active: bool):
        self.received: int | None = None
        self.active = active
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if self.active and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
