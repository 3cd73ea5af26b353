"""Every environment variable of this package, read in one place.

DDP_GD_CACHE: folder for converted data; default: ddp_gd/data in the user's folder of caches.
DDP_GD_CACHE_BYTES: how many bytes it may hold; default: 64 GB.
DDP_GD_COMMAND: what was typed to start the job; the launchers set it, for messages.
DDP_GD_STALL_SECONDS: how long a worker may say nothing before the job is ended; 0: for ever.
DDP_GD_TRACE: folder for what `verify` compares; it is set by that command alone.
DDP_GD_TRACEBACK: 1 shows errors of this package with a traceback.
DDP_GD_VERBOSE: 1 shows what TensorFlow and other libraries print while they are loaded.
"""

import os
from pathlib import Path

from ddp_gd.errors import ConfigError

DEFAULT_CACHE_LIMIT = 64 * 10**9  # bytes
DEFAULT_STALL_SECONDS = 120.0
COMMAND = "DDP_GD_COMMAND"
TRACE = "DDP_GD_TRACE"


def cache_folder() -> Path:
    """The folder for converted data."""
    if chosen := os.environ.get("DDP_GD_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ddp_gd" / "data"


def cache_limit() -> int:
    """How many bytes that folder may hold.

    Raises:
        ConfigError: it is not a whole number.
    """
    text = os.environ.get("DDP_GD_CACHE_BYTES", str(DEFAULT_CACHE_LIMIT))
    if not text.isdigit():
        raise ConfigError(f"DDP_GD_CACHE_BYTES={text!r} must be a whole number of bytes.")
    return int(text)


def stall_seconds() -> float:
    """How long a worker may say nothing; 0 for ever.

    Raises:
        ConfigError: it isn't a number of seconds.
    """
    text = os.environ.get("DDP_GD_STALL_SECONDS", "")
    try:
        limit = float(text) if text else DEFAULT_STALL_SECONDS
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise ConfigError(
            f"DDP_GD_STALL_SECONDS={text!r} must be a number of seconds, 0 for no limit."
        )
    return limit


def command() -> str:
    """What was typed to start the job; empty where that is unknown."""
    return os.environ.get(COMMAND, "")


def trace_folder() -> Path | None:
    """The folder for what `verify` compares, if that command asks for it."""
    return Path(os.environ[TRACE]) if os.environ.get(TRACE) else None


def shows_traceback() -> bool:
    """Whether errors of this package come with a traceback."""
    return os.environ.get("DDP_GD_TRACEBACK") == "1"


def is_verbose() -> bool:
    """Whether to show what libraries print while they are loaded."""
    return os.environ.get("DDP_GD_VERBOSE") == "1"
