"""A training with one planted reason for not being the same at every number of workers."""

import sys

import keras
import numpy as np
import tensorflow as tf

import ddp_gd

planted = sys.argv[1]
if planted == "threads":
    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_intra_op_parallelism_threads = lambda threads: None
ddp_gd.init(bitwise=True)
if planted == "graph rewriting":
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True})


class Noise(keras.layers.Layer):
    """Draws by a seed that depends on the rank."""

    def call(self, x):
        return x + tf.random.stateless_normal(tf.shape(x), seed=[ddp_gd.rank(), 0])


class Statistics(keras.layers.Layer):
    """Keeps a moving mean that nobody puts together."""

    def build(self, shape):
        self.mean = tf.Variable(tf.zeros(shape[-1]), trainable=False)

    def call(self, x):
        self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(x, axis=0))
        return x - self.mean


planted_layer = {
    "a random layer": Noise,
    "writes to a tf.Variable": Statistics,
}.get(planted, keras.layers.ReLU)
keras.utils.set_random_seed(1)
model = keras.Sequential(
    [keras.Input((4,)), keras.layers.Dense(8), planted_layer(), keras.layers.Dense(1)]
)
model.compile("sgd", "mse")
rows = np.random.default_rng(0)
ddp_gd.fit(
    model,
    rows.normal(size=(60, 4)),
    rows.normal(size=(60, 1)),
    batch_size=20,
    epochs=2,
    verbose=0,
    seed=1,
)
