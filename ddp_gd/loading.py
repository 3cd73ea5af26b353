"""Loading libraries without the lines that they print meanwhile, which look like errors.

TensorFlow speaks of processor features, of GPUs that are not there and of its own logging, before
it reads any setting that would stop it. These lines are kept, and shown where loading fails.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from ddp_gd import settings

# Keeps what is written to a pipe. A process of its own, so that it can show what a library said
# that ends this one, as TensorFlow does on a processor that it was not built for.
_KEEPER = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
kept = b""
while b"\\0" not in kept and b"\\1" not in kept and (block := os.read(0, 65536)):
    kept += block
if b"\\0" not in kept:
    os.write(2, kept.replace(b"\\1", b""))
"""
_WELL, _FAILED = b"\0", b"\1"

_is_open = False


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what is written to file descriptor 2; show it if an exception or a crash ends that.

    `DDP_GD_VERBOSE=1` lets everything through. What other threads write meanwhile is kept, too: do
    nothing inside that waits for other workers.
    """
    global _is_open
    if _is_open or settings.is_verbose() or not sys.executable:
        yield
        return
    # Read by what TensorFlow says later: no lines about the processor at the first operation.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        shown = os.dup(2)
    except OSError:  # this process was started without one
        yield
        return
    _flush()
    keeper = subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", "-c", _KEEPER], stdin=subprocess.PIPE, stderr=shown, bufsize=0
    )
    assert keeper.stdin is not None
    os.dup2(keeper.stdin.fileno(), 2)
    _is_open, end = True, _WELL
    try:
        yield
    except Exception:
        end = _FAILED
        raise
    finally:
        _is_open = False
        _flush()
        os.dup2(shown, 2)
        os.close(shown)
        with contextlib.suppress(OSError):
            keeper.stdin.write(end)
            keeper.stdin.close()
        keeper.wait()


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """Let nothing import these packages, unless they are loaded."""
    missing = [name for name in packages if name not in sys.modules]
    for name in missing:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's "not installed"
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def _flush() -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there may be no stderr
        sys.stderr.flush()
