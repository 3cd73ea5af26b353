"""Synchronous data-parallel training for Keras where `batch_size` keeps its meaning.

Everything public is listed in `__all__` and imported on first use: importing this package loads
neither TensorFlow nor MPI, so that `--help` is quick and `init` can still set up both.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .errors import (
        ConfigError,
        DataError,
        DdpGdError,
        LaunchError,
        MismatchError,
        ModelError,
        NumericsError,
        ReplicaError,
    )
    from .loading import load
    from .replicas import fingerprint
    from .runtime import init, local_rank, rank, size
    from .training import evaluate, fit

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DdpGdError",
    "LaunchError",
    "MismatchError",
    "ModelError",
    "NumericsError",
    "ReplicaError",
    "evaluate",
    "fingerprint",
    "fit",
    "init",
    "load",
    "local_rank",
    "rank",
    "size",
]

# No module may have the name of a function here: importing it would hide the function.
_MODULES = {
    "Checkpoint": "checkpoint",
    "evaluate": "training",
    "fingerprint": "replicas",
    "fit": "training",
    "init": "runtime",
    "load": "loading",
    "local_rank": "runtime",
    "rank": "runtime",
    "size": "runtime",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
