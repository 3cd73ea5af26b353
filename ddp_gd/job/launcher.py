"""A job that this process starts and sees through to its end: its signals, its exit status."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from ddp_gd import settings

# A second signal ends the job at once. What comes sooner is the first one again: `timeout` sends it
# to the process and to its group.
_SECONDS_OF_THE_FIRST = 1.0
_STOPS = (0, 128 + signal.SIGINT, 128 + signal.SIGUSR1, 128 + signal.SIGTERM)

# What mpirun says after a worker has said why it failed, or was asked to stop. What it says of a
# worker that died, or of itself, is not among it.
_LINE = b"-" * 74 + b"\n"
_NOTICE = re.compile(
    _LINE + rb"(?:Primary job +terminated normally|mpirun detected that one or more|"
    rb"mpirun noticed that process rank [^\n]+ exited on signal 10 )"  # SIGUSR1: as it was asked to
    rb"(?:(?!-{74}).)*" + _LINE + rb"|^mpirun: Forwarding signal \d+ to job\n",
    re.DOTALL | re.MULTILINE,
)
_SECONDS_OF_A_NOTICE = 0.2


class Job:
    """A job of mpirun's, or one process, started by this one.

    Args:
        words: the command. Its first program is mpirun, or the one worker itself.
        environ: its variables.
        stdout: as for `subprocess.Popen`.
        show_error: gets what comes on standard error; None writes it to this process's.
    """

    def __init__(
        self,
        words: Sequence[str],
        environ: Mapping[str, str],
        stdout: Any = None,
        show_error: Callable[[bytes], object] | None = None,
    ):
        self._is_mpirun = "mpirun" in os.path.basename(words[0])
        self._show_error = show_error or (lambda block: os.write(2, block))
        filtered = show_error is not None or (self._is_mpirun and not settings.is_verbose())
        # Reading a terminal from another process group would stop the job.
        stdin = subprocess.DEVNULL if sys.stdin is None or sys.stdin.isatty() else None
        self._process = subprocess.Popen(  # noqa: S603
            words,
            env=environ,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE if filtered else None,
            bufsize=0,
            process_group=0,  # Ctrl-C on a terminal is for this process, which hands it on
        )
        self._stopped_by = 0
        self._asked = 0.0
        self._was_ended = False
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        if filtered:
            self._reader.start()

    def stop(self, number: int) -> None:
        """Ask the workers to save and stop, or, when that was asked before, end them now.

        mpirun hands SIGUSR1 on. SIGTERM it takes as the order to end its workers, which then have a
        second.
        """
        now = time.monotonic()
        if not self._stopped_by:
            self._stopped_by, self._asked = number, now
            self._process.send_signal(signal.SIGUSR1 if self._is_mpirun else number)
        elif now - self._asked > _SECONDS_OF_THE_FIRST:
            self.end(number)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End the job now."""
        if self._process.poll() is None:
            self._was_ended = True
            os.killpg(self._process.pid, number)

    def lines(self) -> Iterator[str]:
        """Give what comes on standard output, with `stdout=subprocess.PIPE`, line by line."""
        assert self._process.stdout is not None
        with open(self._process.stdout.fileno(), errors="replace", closefd=False) as stream:
            yield from stream

    def wait(self) -> int:
        """Wait for its end; return its exit status, or 128 + the number of the signal behind it."""
        status = self._process.wait()
        if self._reader.is_alive():
            self._reader.join(timeout=5)  # a process that outlives the job may hold the pipe
        if not self._reader.is_alive():
            for stream in (self._process.stdout, self._process.stderr):
                if stream is not None:
                    stream.close()
        status = 128 - status if status < 0 else status
        killed = self._was_ended and status == 128 + signal.SIGKILL
        # An error of its own stays.
        return (
            128 + self._stopped_by if self._stopped_by and (status in _STOPS or killed) else status
        )

    def _pass_on(self) -> None:
        """Write what comes on standard error, without mpirun's notices that say nothing new."""
        assert self._process.stderr is not None
        pipe = self._process.stderr.fileno()
        held = b""
        while block := os.read(pipe, 65536):
            held = _NOTICE.sub(b"", held + block)
            if _LINE in held:  # the rest of a notice may be on its way
                time.sleep(_SECONDS_OF_A_NOTICE)
                os.set_blocking(pipe, False)
                try:
                    held = _NOTICE.sub(b"", held + (os.read(pipe, 65536)))
                except BlockingIOError:
                    pass
                finally:
                    os.set_blocking(pipe, True)
            if held:
                self._show_error(held)
            held = b""


def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a job to its end; signals to this process let the workers save and stop.

    Call it in the main thread: Python handles signals there.

    Returns:
        The exit status, see `Job.wait`.
    """
    early: list[int] = []
    job: Job | None = None

    def on_signal(number: int, _: FrameType | None) -> None:
        if job is None:
            early.append(number)
        else:
            job.stop(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    # What is ignored stays so, as nohup wants it.
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in heeded}
    try:
        job = Job(words, environ)
        for number in early:
            job.stop(number)
        return job.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
