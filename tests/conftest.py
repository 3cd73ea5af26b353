"""Settings that must be in place before a test imports TensorFlow."""

import atexit
import gc
import os
import shutil
import signal
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# The user's own cache is not for tests.
os.environ["DDP_GD_CACHE"] = tempfile.mkdtemp(prefix="ddp_gd-tests-cache-")
atexit.register(shutil.rmtree, os.environ["DDP_GD_CACHE"], ignore_errors=True)

# A test run in the background of a script inherits "ignore Ctrl-C", and would hand it on to the
# programs whose answer to Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Leave what is imported by now to no garbage collection: see `programs/cases.py`."""
    gc.freeze()
