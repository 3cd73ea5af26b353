"""Synchronous data-parallel training for Keras where `batch_size` keeps its meaning.

Everything public is listed in `__all__` and imported on first use: importing this package loads
neither TensorFlow nor MPI, so that `--help` is quick and `init` can still set up both.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddp_gd.data.load import load
    from ddp_gd.errors import (
        AuditError,
        CheckpointError,
        ConfigError,
        DataError,
        DdpGdError,
        LaunchError,
        MismatchError,
        ModelError,
        NumericsError,
        ReplicaError,
    )
    from ddp_gd.job.launch import launch
    from ddp_gd.job.runtime import init, local_rank, rank, size
    from ddp_gd.steps.rows.meeting import gather_rows
    from ddp_gd.training.evaluate import evaluate
    from ddp_gd.training.fit import fit
    from ddp_gd.training.predict import predict
    from ddp_gd.training.replicas import fingerprint
    from ddp_gd.training.saving.checkpoint import Checkpoint
    from ddp_gd.training.step import step

__version__ = "0.1.0"

__all__ = [
    "AuditError",
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
    "gather_rows",
    "init",
    "launch",
    "load",
    "local_rank",
    "predict",
    "rank",
    "size",
    "step",
]

_MODULES = {
    "Checkpoint": "training.saving.checkpoint",
    "evaluate": "training.evaluate",
    "fingerprint": "training.replicas",
    "fit": "training.fit",
    "gather_rows": "steps.rows.meeting",
    "init": "job.runtime",
    "launch": "job.launch",
    "load": "data.load",
    "local_rank": "job.runtime",
    "predict": "training.predict",
    "rank": "job.runtime",
    "size": "job.runtime",
    "step": "training.step",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"{__name__}.{_MODULES.get(name, 'errors')}"
    if module not in sys.modules and "tensorflow" not in sys.modules:
        from ddp_gd.loading import quietly

        with quietly():
            importlib.import_module(module)
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
