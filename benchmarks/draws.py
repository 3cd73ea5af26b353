"""What it costs that draws belong to rows: a share's draws, beside drawing for the share alone.

    python -m benchmarks.draws [--workers 8] [--rounds 21]

One process computes the share of one of so many workers, so other workers don't disturb it: models
that do nothing but draw.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from ddp_gd.steps.rows import draws

ROWS, WIDTH, LAYERS, CALLS = 256, 1024, 8, 30


def _layers(kind: Any) -> Callable[[Any], Any]:
    stack = [kind(0.5, seed=seed) for seed in range(LAYERS)]
    return lambda x: functools.reduce(lambda y, layer: layer(y, training=True), stack, x)


def truncated(x: Any) -> Any:
    """Add truncated noise."""
    for seed in range(LAYERS):
        x += tf.random.stateless_truncated_normal(tf.shape(x), [seed, 1])
    return x


# Uniform and normal draws begin at the share's first row; the others are made whole, and cut.
MODELS = {
    "Dropout": lambda: _layers(keras.layers.Dropout),
    "GaussianNoise": lambda: _layers(keras.layers.GaussianNoise),
    "truncated normal": lambda: truncated,
}


def compiled(model: Callable[[Any], Any], workers: int, of_rows: bool) -> Callable[[Any], Any]:
    """The model on the share of the last of so many workers."""
    count = ROWS // workers
    rows = draws.Rows(tf.constant(ROWS - count), tf.constant(count), tf.constant(ROWS))

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH])], autograph=False)
    def step(x: Any) -> Any:
        if not of_rows:
            return model(x)
        with draws.of_rows(rows):
            return model(x)

    return step


def milliseconds(step: Callable[[Any], Any], x: Any) -> float:
    """Of one call."""
    began = time.perf_counter()
    for _ in range(CALLS):
        step(x).numpy()
    return (time.perf_counter() - began) / CALLS * 1e3


def main() -> None:
    """Measure both in turns, and print the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    x = tf.ones([ROWS // options.workers, WIDTH])
    print(f"{len(x)} of {ROWS} rows, {WIDTH} numbers each, {LAYERS} layers, ms a forward pass")
    for name, make in MODELS.items():
        model = make()
        steps = [compiled(model, options.workers, of_rows) for of_rows in (False, True)]
        for step in steps:
            step(x)
        rounds = [[milliseconds(step, x) for step in steps] for _ in range(options.rounds)]
        alone, of_rows = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = sorted(b / a for a, b in rounds)
        print(
            f"{name}: {alone:.2f} for the share alone, {of_rows:.2f} of the whole; ratio "
            f"{statistics.median(ratios):.2f} ({ratios[1]:.2f} to {ratios[-2]:.2f})"
        )


if __name__ == "__main__":
    main()
