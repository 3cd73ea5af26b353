"""Synchronous data-parallel training for Keras where `batch_size` keeps its meaning.

Everything public is listed in `__all__` and imported on first use: importing this package loads
neither TensorFlow nor MPI, so that `--help` is quick and `init` can still set up both.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
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
    from .prediction import predict
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
    "predict",
    "rank",
    "size",
]

_MODULES = {
    "Checkpoint": "checkpoint",
    "evaluate": "training",
    "fingerprint": "replicas",
    "fit": "training",
    "init": "runtime",
    "load": "loading",
    "local_rank": "runtime",
    "predict": "prediction",
    "rank": "runtime",
    "size": "runtime",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """This package: a module of it that has the name of a function here does not hide it.

    Importing `ddp_gd.predict`, the command, sets an attribute of that name, which Python would
    find before it asks `__getattr__`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
