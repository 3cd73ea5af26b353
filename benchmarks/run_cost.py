"""Milliseconds a step of networks of several sizes: python -m benchmarks.run_cost WIDTHS ROWS.

Both are lists, joined by commas; ROWS are those of a share. Prints a JSON line for each pair.
"""

import json
import statistics
import sys
import time
from typing import Any

import keras
import numpy as np

import ddp_gd

STEPS, EPOCHS = 12, 6


class StepSeconds(keras.callbacks.Callback):
    """Seconds of a step in every epoch but the first; what ends an epoch doesn't count."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._began = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop it."""
        if epoch > 0:
            self.seconds.append((time.perf_counter() - self._began) / STEPS)


ddp_gd.init()
widths, shares = ([int(number) for number in text.split(",")] for text in sys.argv[1:])
for width in widths:
    for share in shares:
        keras.backend.clear_session()
        keras.utils.set_random_seed(1)
        hidden = [keras.layers.Dense(width, activation="relu") for _ in range(2)]
        model = keras.Sequential([keras.Input((256,)), *hidden, keras.layers.Dense(10)])
        model.compile(
            keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        batch_size = share * ddp_gd.size()
        rows = batch_size * STEPS
        x = np.random.default_rng(0).normal(size=(rows, 256)).astype(np.float32)
        y = np.random.default_rng(1).integers(0, 10, rows)
        clock = StepSeconds()
        ddp_gd.fit(
            model,
            x,
            y,
            batch_size=batch_size,
            epochs=EPOCHS,
            shuffle=False,
            verbose=0,
            callbacks=[clock],
        )
        if ddp_gd.rank() == 0:
            ms = statistics.median(clock.seconds) * 1e3
            weights = model.count_params()
            print(json.dumps({"weights": weights, "rows": share, "ms": ms}), flush=True)
