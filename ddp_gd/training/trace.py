"""What every step leaves behind, written for `ddp_gd.verify` to compare two trainings by."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ddp_gd.comm.base import Communicator
from ddp_gd.job import bitwise, runtime
from ddp_gd.steps import graph
from ddp_gd.steps.state import other_variables
from ddp_gd.training.loop import Instrument, Loop
from ddp_gd.training.replicas import fingerprint, optimizers

_SAMPLES = 16


class Tracer(Instrument):
    """Writes one JSON line before the first step and one after each, and the weights at the end.

    Args:
        where: the folder; the files are numbered, one for each call of `fit`.
    """

    def __init__(self, where: Path):
        super().__init__()
        self._where = where
        self._start: dict[str, Any] | None = None
        self._epoch = 0

    def attach(self, communicator: Communicator, loop: Loop) -> None:
        """Begin a file, and remember what the training is, for the first line."""
        self._where.mkdir(parents=True, exist_ok=True)
        self._path = self._where / f"fit-{len(list(self._where.glob('fit-*.jsonl')))}.jsonl"
        steps = loop.steps
        self._start = {
            "bitwise": runtime.is_bitwise(),
            "micro_batch_size": loop.source.micro_batch_size,
            "facts": bitwise.facts(),
            "constant_seeds": graph.constant_seeds(steps.traced),
        }

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Write the start, before the first step: rank 0's, on all workers."""
        self._epoch = epoch
        self._write_start()

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
        self._write_start()  # there may have been no epoch
        self._write({"logs": logs, "fingerprint": fingerprint(self.model)})
        weights = [keras.ops.convert_to_numpy(v) for v in self.model.weights]
        np.savez(self._path.with_suffix(".npz"), *weights)

    def _write_start(self) -> None:
        if self._start is not None:
            self._write(self._start | {"variables": self._variables()})
            self._start = None

    def _variables(self) -> dict[str, list[Any]]:
        variables = [*self.model.trainable_variables, *other_variables(self.model)]
        named: dict[str, list[Any]] = {}
        for optimizer in optimizers(self.model):
            variables += optimizer.variables
        for variable in variables:
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
