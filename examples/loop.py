"""A training loop by hand: `@ddp_gd.step` in place of `@tf.function`. Any number of workers.

python examples/loop.py
ddp-gd run -np 4 examples/loop.py
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ddp_gd


def main() -> None:
    """Train a network, and print its loss once an epoch."""
    ddp_gd.init()
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(0)
    x = random.normal(size=(1000, 10)).astype("float32")
    y = np.sin(x.sum(axis=1, keepdims=True)).astype("float32")

    model = keras.Sequential(
        [keras.Input((10,)), layers.Dense(32, "tanh"), layers.Dropout(0.1), layers.Dense(1)]
    )
    optimizer = keras.optimizers.Adam(0.01)
    error = keras.metrics.MeanSquaredError()

    @ddp_gd.step
    def train(x, y):
        with tf.GradientTape() as tape:
            predicted = model(x, training=True)
            loss = tf.reduce_mean(tf.square(y - predicted))
        weights = model.trainable_variables
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, weights), 1.0)
        optimizer.apply(gradients, weights)
        error.update_state(y, predicted)

    for epoch in range(3):
        error.reset_state()
        order = random.permutation(len(x))  # seeded: the same on every worker
        for first in range(0, len(x), 64):
            rows = order[first : first + 64]
            train(x[rows], y[rows])
        if ddp_gd.rank() == 0:
            print(f"epoch {epoch + 1}: {float(error.result()):.4f}")


if __name__ == "__main__":
    main()
