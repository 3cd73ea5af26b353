"""Settings that must be in place before a test imports TensorFlow."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# The user's own cache is not for tests.
os.environ["DDP_GD_CACHE"] = tempfile.mkdtemp(prefix="ddp_gd-tests-cache-")
atexit.register(shutil.rmtree, os.environ["DDP_GD_CACHE"], ignore_errors=True)

# A test run in the background of a script inherits "ignore Ctrl-C", and would hand it on to the
# programs whose answer to Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


def idle_cores(seconds: float) -> float:
    """How many cores have nothing to do, on average over so many seconds."""

    def read() -> tuple[int, float]:
        fields = [
            int(number) for number in Path("/proc/stat").read_text().split("\n")[0].split()[1:]
        ]
        return fields[3] + fields[4], time.monotonic()

    before, began = read()
    time.sleep(seconds)
    after, ended = read()
    return (after - before) / os.sysconf("SC_CLK_TCK") / (ended - began)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let what measures seconds wait until nobody else computes; skip it if that doesn't come."""
    if item.get_closest_marker("timed") is None:
        return
    until = time.monotonic() + 60
    while idle_cores(1) < 0.7 * (os.cpu_count() or 1):
        if time.monotonic() > until:
            pytest.skip("others use this machine, so seconds say nothing")


# A file's tests stay together, so one that takes minutes begins first: else the last one is alone.
LONGEST = ("test_distributed.py", "test_bitwise.py", "test_own_steps.py", "test_sweep.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """Leave what is imported by now to no garbage collection: see `programs/cases.py`."""
    gc.freeze()
