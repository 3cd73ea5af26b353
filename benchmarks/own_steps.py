"""How fast a training step of one's own is: python -m benchmarks.own_steps [--workers 2]

A variational autoencoder with a `train_step` of its own, as in Keras's examples, trained by one
process with `keras.Model.fit` and with `ddp_gd.fit`, or by several with `ddp_gd.fit` and a loop by
hand over Horovod with default settings. Jobs in turns; prints medians and the ratio's interval.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.bench import interval

ROWS, BATCH, EPOCHS, PIXELS, CODES = 16384, 256, 3, 784, 32
WAYS = {1: ("keras", "ddp_gd"), 2: ("horovod", "ddp_gd")}


def main() -> None:
    """Start the jobs, and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_steps", description=__doc__)
    parser.add_argument("--workers", type=int, default=1, help="(default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(f"ms a step: {_train(options.way)}", flush=True)
        return
    ways = WAYS[min(options.workers, 2)]
    took: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(options.rounds):
        for way in ways if number % 2 else reversed(ways):
            took[way].append(_job(options.workers, way))
    ratios = [other / ours for other, ours in zip(*took.values(), strict=True)]
    for way, values in took.items():
        print(f"{way}, {options.workers} workers: {interval(values)[0]:.2f} ms a step")
    middle, low, high = interval(ratios)
    print(f"ddp_gd is {middle:.2f} times as fast ({low:.2f} to {high:.2f}, {len(ratios)} rounds)")


def _job(workers: int, way: str) -> float:
    words = [sys.executable, "-m", "benchmarks.own_steps", "--way", way]
    if workers > 1:
        words = ["mpirun", "-np", str(workers), *words]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return max(float(s.split()[0]) for s in done.stdout.split("ms a step: ")[1:])


def _train(way: str) -> float:
    """Milliseconds a step, after a first epoch."""
    import ddp_gd

    if way == "ddp_gd":
        ddp_gd.init()
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    x = np.random.default_rng(0).uniform(size=(ROWS, PIXELS)).astype("float32")
    model = _autoencoder(keras, tf)
    if way == "horovod":
        return _by_hand(model, x, keras, tf)
    model.compile(keras.optimizers.Adam(1e-3))
    watch = _Watch()
    callback = keras.callbacks.LambdaCallback(on_epoch_end=watch.epoch_ended)
    fit = ddp_gd.fit if way == "ddp_gd" else type(model).fit
    fit(model, x, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[callback])
    return watch.milliseconds


class _Watch:
    """The seconds of all epochs but the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def epoch_ended(self, epoch: int, logs: Any = None) -> None:
        self.ends.append(time.perf_counter())

    @property
    def milliseconds(self) -> float:
        return 1e3 * (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1) / (ROWS // BATCH)


def _autoencoder(keras: Any, tf: Any) -> Any:
    layers, ops = keras.layers, keras.ops

    class Autoencoder(keras.Model):
        """https://keras.io/examples/generative/vae, with dense layers."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = keras.Sequential([layers.Dense(512, "relu"), layers.Dense(2 * CODES)])
            self.decoder = keras.Sequential([layers.Dense(512, "relu"), layers.Dense(PIXELS)])
            self.seeds = keras.random.SeedGenerator(1)
            self.tracker = keras.metrics.Mean(name="loss")

        @property
        def metrics(self) -> list[Any]:
            return [self.tracker]

        def call(self, rows: Any) -> Any:
            mean, log_variance = ops.split(self.encoder(rows), 2, axis=-1)
            noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
            decoded = self.decoder(mean + ops.exp(0.5 * log_variance) * noise)
            divergence = 1 + log_variance - ops.square(mean) - ops.exp(log_variance)
            return decoded, -0.5 * ops.sum(divergence, axis=1)

        def loss_of(self, rows: Any) -> Any:
            decoded, divergence = self(rows)
            wrong = ops.sum(ops.binary_crossentropy(rows, decoded, from_logits=True), axis=1)
            return ops.mean(wrong) + ops.mean(divergence)

        def train_step(self, rows: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self.loss_of(rows)
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            self.tracker.update_state(loss)
            return {"loss": self.tracker.result()}

    return Autoencoder()


def _by_hand(model: Any, x: np.ndarray, keras: Any, tf: Any) -> float:
    """The same with Horovod's collectives, each worker on its part of each global mini-batch."""
    import horovod.tensorflow as hvd

    hvd.init()
    model(x[:1])  # builds it
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    hvd.broadcast_variables([v.value for v in model.variables + optimizer.variables], root_rank=0)
    data = tf.data.Dataset.from_tensor_slices(x).shard(hvd.size(), hvd.rank())
    data = data.shuffle(len(x)).batch(BATCH // hvd.size(), drop_remainder=True).prefetch(2)

    @tf.function
    def step(rows: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = model.loss_of(rows)
        weights = model.trainable_variables
        gradients = [hvd.allreduce(g) for g in tape.gradient(loss, weights)]
        optimizer.apply(gradients, weights)
        return hvd.allreduce(loss)

    watch = _Watch()
    for _ in range(EPOCHS):
        for rows in data:
            step(rows)
        watch.epoch_ended(0)
    return watch.milliseconds


if __name__ == "__main__":
    main()
