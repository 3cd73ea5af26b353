"""SIGTERM, SIGUSR1 and SIGINT while a training runs: the step is finished and saved first.

SIGUSR1 because mpirun and srun hand it on to the workers, and do nothing else; SIGTERM they take as
the order to end the job, and give it little time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# What comes sooner after the first signal is that one again: `timeout` sends it to the process and
# to its group, scancel to the job's steps and, through its script, once more.
_SECONDS_OF_THE_FIRST = 1.0


class Interrupts:
    """Notes the first signal instead of ending the process; a second one ends it at once.

    Python runs its handlers in the main thread, when that comes back from TensorFlow: in time for
    the first signal, but a second one may mean a step that takes for ever. So a thread counts them.

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
        # Signals that are ignored stay so, as nohup wants it.
        heeded = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        if self.active and heeded and threading.current_thread() is threading.main_thread():
            read, self._write = os.pipe()  # Python writes each signal's number to it, at once
            os.set_blocking(self._write, False)
            self._wakeup_before = signal.set_wakeup_fd(self._write)
            self._before = {number: signal.signal(number, self._note) for number in heeded}
            threading.Thread(target=self._count, args=[read], daemon=True).start()
            # Signals to a child that is forked off are not for this process, and shall end it.
            os.register_at_fork(after_in_child=self.__exit__)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._write)  # ends the thread

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = number

    def _count(self, pipe: int) -> None:
        first = None
        with open(pipe, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] not in self._before:
                    continue
                first = first or time.monotonic()
                if time.monotonic() - first > _SECONDS_OF_THE_FIRST:
                    os._exit(128 + number[0])
