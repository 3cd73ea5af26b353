"""What every contender trains: the same rows, initial weights and updates. Needs NumPy only."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from pathlib import Path

import numpy as np

EPOCHS = 4  # the first one, with tracing and warming up, is not timed


@dataclasses.dataclass(frozen=True)
class Workload:
    """A training.

    Attributes:
        title: for tables.
        features: shape of one observation.
        classes: of the targets; 0 for a regression.
        batch_size: rows of one update, over all workers together.
        steps: updates in one epoch; a multiple of 16, for Keras's `steps_per_execution=16`.
        rate: learning rate of plain SGD.
        vocabulary: the features are so many different tokens; 0 for floats.
    """

    title: str
    features: tuple[int, ...]
    classes: int
    batch_size: int
    steps: int
    rate: float
    vocabulary: int = 0

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Features and targets, in the order of training."""
        r = np.random.default_rng(0)
        rows = self.batch_size * self.steps
        if self.vocabulary:
            x = r.integers(0, self.vocabulary, (rows, *self.features), dtype=np.int32)
        else:
            x = r.normal(size=(rows, *self.features)).astype(np.float32)
        if self.classes:
            return x, r.integers(0, self.classes, rows, dtype=np.int64)
        y = x @ np.linspace(-1, 1, x.shape[1]) + r.normal(size=rows)
        return x, y[:, None].astype(np.float32)


WORKLOADS = {
    "linear": Workload("linear 13-1, batch 20", (13,), 0, 20, 480, 0.01),
    "mlp": Workload("MLP 784-1024-1024-10, batch 256", (784,), 10, 256, 48, 0.01),
    "cnn": Workload("CNN 28x28, batch 256", (28, 28, 1), 10, 256, 32, 0.01),
    "wide": Workload("MLP 1024-2048-2048-10, batch 256", (1024,), 10, 256, 32, 0.01),
    "attention": Workload("Embedding and attention, batch 64", (32,), 2, 64, 64, 0.01, 2000),
}


def chosen() -> dict[str, Workload]:
    """The workloads to run: all, or those that the variable BENCH_WORKLOADS names.

    BENCH_STEPS makes their epochs shorter, to try the benchmark out.
    """
    names = os.environ.get("BENCH_WORKLOADS", " ".join(WORKLOADS)).split()
    steps = int(os.environ.get("BENCH_STEPS", "0"))
    return {
        name: dataclasses.replace(WORKLOADS[name], steps=steps) if steps else WORKLOADS[name]
        for name in names
    }


def initial_weights(name: str) -> list[np.ndarray]:
    """The weights that every contender starts from, in Keras's order and layout."""
    with np.load(f"{os.environ['BENCH_FOLDER']}/{name}.npz") as file:
        return [file[f"arr_{number}"] for number in range(len(file.files))]


def record(contender: str, name: str, seconds: list[float], weights: list[np.ndarray]) -> None:
    """Leave what a contender measured for `bench.py`: one process of a job calls it.

    Args:
        contender: its name.
        name: of the workload.
        seconds: of each timed epoch.
        weights: in the end, in Keras's order and layout.
    """
    folder = Path(os.environ["BENCH_FOLDER"])
    np.savez(folder / f"{contender}-{name}.npz", *weights)
    milliseconds = statistics.median(seconds) / chosen()[name].steps * 1e3
    (folder / f"{contender}-{name}.json").write_text(json.dumps(milliseconds))
