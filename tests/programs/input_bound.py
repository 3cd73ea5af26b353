"""How long an epoch takes whose mini-batches take 50 ms each to make; and what streams cost.

`input_bound.py items` prints the seconds of an epoch of 40 items; `input_bound.py stream WORKLOAD`
the milliseconds of a step of the benchmark on arrays, and on the same arrays through a generator.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

import ddp_gd
from benchmarks.keras_models import untrained
from benchmarks.workloads import WORKLOADS

COUNT, SECONDS = 40, 0.05
EPOCHS, ROUNDS = 5, 7


class Slow(keras.utils.PyDataset):
    """Items that take their time."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        time.sleep(SECONDS)
        x = np.random.default_rng(index).normal(size=(32, 8)).astype("float32")
        return x, x.sum(axis=1, keepdims=True)


class Clock(keras.callbacks.Callback):
    """Notes how long each epoch takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def stream(name: str) -> None:
    """Both ways in turn, so that what else the machine does meets both."""
    workload = WORKLOADS[name]
    rows, steps = workload.batch_size, workload.steps
    x, y = workload.data()
    model = untrained(name, workload)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(workload.rate), loss)

    def batches() -> Iterator[Any]:
        while True:
            for start in range(0, len(x), rows):
                yield x[start : start + rows], y[start : start + rows]

    def seconds(way: str) -> list[float]:
        clock = Clock()
        options: dict[str, Any] = {"epochs": EPOCHS, "verbose": 0, "callbacks": [clock]}
        if way == "arrays":
            ddp_gd.fit(model, x, y, rows, shuffle=False, **options)
        else:
            ddp_gd.fit(model, batches(), steps_per_epoch=steps, **options)
        return clock.seconds[1:]

    found: dict[str, list[float]] = {"arrays": [], "stream": []}
    for number in range(ROUNDS):
        for way in sorted(found, reverse=bool(number % 2)):
            found[way].append(float(np.median(seconds(way))) / steps * 1000)
    if ddp_gd.rank() == 0:
        arrays, streams = (np.array(found[way]) for way in ("arrays", "stream"))
        print(
            f"{name}: medians {np.median(arrays):.2f} ms, through a stream "
            f"{np.median(streams):.2f} ms; ratio in {ROUNDS} rounds: "
            f"median {np.median(streams / arrays):.3f} of {np.round(streams / arrays, 3)}; "
            f"of the quickest {streams.min() / arrays.min():.3f}"
        )


def main() -> None:
    """Measure."""
    ddp_gd.init()
    if sys.argv[1] == "stream":
        stream(sys.argv[2])
        return
    clock = Clock()
    model = keras.Sequential([keras.Input((8,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    ddp_gd.fit(model, Slow(), epochs=3, verbose=0, callbacks=[clock])
    if ddp_gd.rank() == 0:
        print(min(clock.seconds[1:]))


if __name__ == "__main__":
    main()
