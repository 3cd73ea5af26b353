"""How long an epoch takes whose mini-batches take 50 ms each to make; and what streams cost.

`input_bound.py items` prints the seconds of an epoch of 40 items; `input_bound.py stream MODEL`
the milliseconds of a step on arrays, and on the same arrays through a generator.
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

COUNT, SECONDS = 40, 0.05
BATCH, STEPS, ROUNDS = 256, 20, 5


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


def model_of(name: str) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A model of the benchmark, and rows for it."""
    random = np.random.default_rng(0)
    if name == "cnn":
        x = random.normal(size=(BATCH * STEPS, 28, 28, 1)).astype("float32")
        stack: list[Any] = [
            layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(),
            layers.Flatten(), layers.Dense(10),
        ]  # fmt: skip
        model = keras.Sequential([keras.Input((28, 28, 1)), *stack])
    else:
        x = random.integers(0, 1000, (BATCH * STEPS, 32)).astype("int32")
        inputs = keras.Input((32,), dtype="int32")
        hidden = layers.Embedding(1000, 64)(inputs)
        hidden = layers.MultiHeadAttention(4, 16)(hidden, hidden) + hidden
        outputs = layers.Dense(10)(layers.GlobalAveragePooling1D()(hidden))
        model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    return model, x, random.integers(0, 10, BATCH * STEPS)


def stream(name: str) -> None:
    """Both ways in turn, so that what else the machine does meets both."""
    found: dict[str, list[float]] = {"arrays": [], "stream": []}

    def batches(x: np.ndarray, y: np.ndarray) -> Iterator[Any]:
        while True:
            for start in range(0, len(x), BATCH):
                yield x[start : start + BATCH], y[start : start + BATCH]

    model, x, y = model_of(name)
    for _ in range(ROUNDS):
        for way in found:
            clock = Clock()
            options: dict[str, Any] = {"epochs": 3, "verbose": 0, "callbacks": [clock]}
            if way == "arrays":
                ddp_gd.fit(model, x, y, BATCH, shuffle=False, **options)
            else:
                ddp_gd.fit(model, batches(x, y), steps_per_epoch=STEPS, **options)
            found[way].append(min(clock.seconds[1:]) / STEPS * 1000)
    if ddp_gd.rank() == 0:
        arrays, streams = (float(np.median(found[way])) for way in ("arrays", "stream"))
        print(f"{name}: {arrays:.2f} ms, through a stream {streams:.2f} ms, {streams / arrays:.3f}")


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
