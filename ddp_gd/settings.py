"""Every environment variable of this package, read in one place."""

from __future__ import annotations

import os
from pathlib import Path

from ddp_gd.errors import ConfigError

DEFAULT_CACHE_LIMIT = 64 * 10**9  # bytes


def cache_folder() -> Path:
    """`$DDP_GD_CACHE`, or the user's folder for such things."""
    chosen = os.environ.get("DDP_GD_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ddp_gd" / "data"


def cache_limit() -> int:
    """`$DDP_GD_CACHE_BYTES`, or 64 GB.

    Raises:
        ConfigError: it is not a whole number.
    """
    text = os.environ.get("DDP_GD_CACHE_BYTES", str(DEFAULT_CACHE_LIMIT))
    if not text.isdigit():
        raise ConfigError(f"DDP_GD_CACHE_BYTES={text!r} must be a whole number of bytes.")
    return int(text)


def shows_traceback() -> bool:
    """Tell whether errors of this package shall come with a traceback (`DDP_GD_TRACEBACK=1`)."""
    return os.environ.get("DDP_GD_TRACEBACK") == "1"


TRACE = "DDP_GD_TRACE"  # names the folder; set by verify alone


def trace_folder() -> Path | None:
    """The folder that verify asks for a trace in, if it does."""
    return Path(os.environ[TRACE]) if os.environ.get(TRACE) else None


DEFAULT_STALL_SECONDS = 120.0  # seconds


def stall_seconds() -> float:
    """The value of DDP_GD_STALL_SECONDS, or the default.

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
