"""What signals do to a process that trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from ddp_gd.job.signals import Interrupts

# What the main thread does here, as a step does, comes back to Python only after minutes.
LONG_STEP = """
import hashlib
from ddp_gd.job.signals import Interrupts
with Interrupts(active=True):
    print("began", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
"""


def test_a_second_signal_ends_a_long_step() -> None:
    """At once, also in the middle of a call; one that comes with the first is the first."""
    with subprocess.Popen(
        [sys.executable, "-c", LONG_STEP], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "began\n"
            for number in (signal.SIGTERM, signal.SIGUSR1):
                process.send_signal(number)
            time.sleep(1.5)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=600) == 128 + signal.SIGTERM
        finally:
            process.kill()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other threads: TensorFlow's
def test_everything_is_as_before_at_the_end() -> None:
    """Handlers and Python's wakeup descriptor; in a child that is forked off at once."""
    before = signal.getsignal(signal.SIGUSR1)
    with Interrupts(active=True) as interrupts:
        signal.raise_signal(signal.SIGUSR1)
        assert interrupts.received == signal.SIGUSR1
        assert signal.getsignal(signal.SIGUSR1) != before
        child = os.fork()
        if child == 0:
            os._exit(10 + signal.set_wakeup_fd(-1) + (signal.getsignal(signal.SIGUSR1) == before))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.set_wakeup_fd(-1) == -1
