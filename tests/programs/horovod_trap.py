"""Trains with Horovod's own optimizer and with ours; each rank leaves its weights' fingerprints.

Arguments: a folder.
"""

import json
import sys
import warnings
from pathlib import Path

import horovod.keras
import horovod.tensorflow.keras
import keras
import numpy as np
import tensorflow as tf

import ddp_gd

ddp_gd.init()
rank, size = ddp_gd.rank(), ddp_gd.size()
random = np.random.default_rng(0)
x = random.normal(size=(64, 4)).astype("float32")
y = x.sum(axis=1, keepdims=True)


def new_model(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """The same initial weights on every rank, and every time."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer=optimizer, loss="mean_squared_error")
    return model


def trained_by_horovod(api) -> tuple[str, str]:
    """Each rank with the rows of its own; a warning would be an error."""
    model = new_model(api.DistributedOptimizer(keras.optimizers.SGD(0.05)))
    before = ddp_gd.fingerprint(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        model.fit(x[rank::size], y[rank::size], batch_size=8, epochs=2, shuffle=False, verbose=0)
    return before, ddp_gd.fingerprint(model)


def broadcast() -> None:
    """What Horovod's documentation adds, so that all ranks begin with equal weights."""
    callback = horovod.keras.callbacks.BroadcastGlobalVariablesCallback(0)
    model = new_model(horovod.keras.DistributedOptimizer(keras.optimizers.SGD(0.05)))
    model.fit(x, y, callbacks=[callback], verbose=0)


def tape() -> None:
    """Horovod's way for loops by hand, with the variables of a Keras model."""
    model = new_model(keras.optimizers.SGD(0.05))
    with tf.GradientTape() as inner:
        loss = tf.reduce_mean(tf.square(model(x) - y))
    outer = horovod.tensorflow.DistributedGradientTape(inner)
    outer.gradient(loss, model.trainable_variables)


def error_of(function) -> str:
    """What it raises."""
    try:
        function()
    except Exception as error:
        return repr(error)
    return "nothing"


def trained_by_us() -> tuple[str, str]:
    """The same updates: global mini-batches of as many rows as Horovod's shares have together."""
    model = new_model(keras.optimizers.SGD(0.05))
    before = ddp_gd.fingerprint(model)
    ddp_gd.fit(model, x, y, batch_size=8 * size, epochs=2, shuffle=False, verbose=0)
    return before, ddp_gd.fingerprint(model)


found: dict[str, object] = {
    "horovod.keras": trained_by_horovod(horovod.keras),
    "horovod.tensorflow.keras": trained_by_horovod(horovod.tensorflow.keras),
    "ddp_gd": trained_by_us(),
    "errors": [error_of(broadcast), error_of(tape)],
}
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))
