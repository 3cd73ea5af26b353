"""Milliseconds a step of networks of several sizes: python -m benchmarks.run_cost WIDTHS ROWS.

Both are lists, joined by commas; ROWS are those of a share. Prints a JSON line for each pair.
"""

import json
import statistics
import sys

import keras
import numpy as np

import ddp_gd
from benchmarks.keras_models import EpochSeconds

STEPS, EPOCHS = 12, 6

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
        clock = EpochSeconds()
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
            ms = statistics.median(clock.seconds) / STEPS * 1e3
            weights = model.count_params()
            print(json.dumps({"weights": weights, "rows": share, "ms": ms}), flush=True)
