"""What every step leaves behind, written for `ddp_gd.verify` to compare two trainings by."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from . import bits
from .replicas import fingerprint
from .state import other_variables
from .step import Steps

VARIABLE = "DDP_GD_TRACE"  # names the folder; set by verify alone
_SAMPLES = 16


def folder() -> Path | None:
    """The folder that verify asks for a trace in, if it does."""
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


class Tracer(keras.callbacks.Callback):
    """Writes one JSON line before the first step and one after each, and the weights at the end.

    Args:
        where: the folder; the files are numbered, one for each call of `fit`.
        steps: the model's compiled steps.
        setting: what the training was, for the first line.
    """

    def __init__(self, where: Path, steps: Steps, setting: Mapping[str, Any]):
        super().__init__()
        where.mkdir(parents=True, exist_ok=True)
        self._path = where / f"fit-{len(list(where.glob('fit-*.jsonl')))}.jsonl"
        self._first_line = dict(setting) | {
            "facts": bits.facts(),
            "batch_statistics": steps.state.layers_seeing_shares(seeds=False),
            "random": steps.state.layers_seeing_shares(statistics=False),
            "constant_seeds": bits.constant_seeds(steps.micro_batch_function),
        }
        self._epoch = 0

    def write_start(self) -> None:
        """Write the setting and the state before the first step: rank 0's, on all workers."""
        self._write(self._first_line | {"variables": self._variables()})

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Write what the step left."""
        self._write(
            {
                "epoch": self._epoch,
                "step": batch,
                "loss": (logs or {}).get("loss"),
                "variables": self._variables(),
            }
        )

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Write how it ended."""
        self._write({"logs": logs, "fingerprint": fingerprint(self.model)})
        weights = [keras.ops.convert_to_numpy(v) for v in self.model.weights]
        np.savez(self._path.with_suffix(".npz"), *weights)

    def _variables(self) -> dict[str, list[Any]]:
        variables = [*self.model.trainable_variables, *other_variables(self.model)]
        named: dict[str, list[Any]] = {}
        for variable in [*variables, *self.model.optimizer.variables]:
            value = keras.ops.convert_to_numpy(variable)
            flat = value.reshape(-1)
            places = np.linspace(0, flat.size - 1, min(_SAMPLES, flat.size)).astype(int)
            digest = hashlib.sha256(value.tobytes()).hexdigest()[:16]
            scale = float(np.abs(flat.astype(np.float64)).max()) if flat.size else 0.0
            named[variable.path] = [digest, scale, *map(float, flat[places])]
        return named

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
