"""A training in which one worker is struck: `worker.py KIND PHASE RANK FOLDER BACKEND`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import ddp_gd
from ddp_gd import files
from ddp_gd.batching import arrays
from ddp_gd.comm import environment
from ddp_gd.job import runtime
from tests.faults.strike import Strike


class InGraph(keras.layers.Layer):
    """Passes its input on; calls `function` at each forward pass."""

    function: Callable[[], None]

    def call(self, x: Any) -> Any:
        """Call the function from the graph."""

        def run() -> np.int32:  # what a function of NumPy's returns must be something
            InGraph.function()
            return np.int32(0)

        with tf.control_dependencies([tf.numpy_function(run, [], tf.int32)]):
            return tf.identity(x)


class InCallback(keras.callbacks.Callback):
    """Calls `function` before or after batches or epochs."""

    def __init__(self, hook: str, function: Callable[[], None]):
        super().__init__()
        setattr(self, hook, lambda number, logs=None: function())


def nothing() -> None:
    """What is called on workers that are not struck."""


def main(kind: str, phase: str, rank: int, folder: Path, backend: str) -> None:
    """Train until the fault strikes."""
    strike: Callable[[], None] = nothing
    if environment.launch().rank == rank:
        # The first rows are read before the training, to be compared.
        when = {"launch": 1, "start": 1, "exit": 1, "evaluation": 1, "data": 8}.get(phase, 4)
        strike = Strike(kind, when, folder / "note")

    if phase == "launch":
        strike()
    ddp_gd.init(backend)
    if phase == "start":
        strike()
    if phase == "data":
        take = arrays.Arrays.take

        def struck_take(self: Any, rows: Any) -> Any:
            strike()
            return take(self, rows)

        arrays.Arrays.take = struck_take  # type: ignore[method-assign]
    communicator = runtime.communicator()
    if phase == "reduction" and strike is not nothing:
        allreduce = communicator.allreduce_sum

        def struck_allreduce(tensors: Any) -> Any:
            if tf.executing_eagerly():
                return allreduce(tensors)

            def run() -> np.int32:
                strike()
                return np.int32(0)

            with tf.control_dependencies([tf.numpy_function(run, [], tf.int32)]):
                return allreduce([tf.identity(tensor) for tensor in tensors])

        communicator.allreduce_sum = struck_allreduce  # type: ignore[method-assign]
    callbacks = []
    if phase == "callback":
        callbacks = [InCallback("on_train_batch_end", strike)]
    elif phase == "evaluation":
        callbacks = [InCallback("on_test_batch_begin", strike)]
    elif phase == "checkpoint" and rank == 0:
        write = files.write

        def struck_write(*arguments: Any) -> None:
            strike()
            write(*arguments)

        files.write = struck_write
    elif phase == "checkpoint":  # rank 0 is just saving
        callbacks = [InCallback("on_train_batch_begin", strike)]

    InGraph.function = staticmethod(nothing)
    if phase == "step":  # once the model has been looked at, which runs it, too
        callbacks = [InCallback("on_epoch_begin", lambda: setattr(InGraph, "function", strike))]
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8,)), InGraph(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    r = np.random.default_rng(0)
    ddp_gd.fit(
        model,
        r.normal(size=(100, 8)),
        r.normal(size=(100, 1)),
        10,
        epochs=3,
        validation_split=0.2,
        verbose=0,
        callbacks=callbacks,
        # Elsewhere many steps are made in one call.
        checkpoint=ddp_gd.Checkpoint(
            folder / "checkpoints", every_steps=1 if phase == "checkpoint" else None
        ),
    )
    if phase == "exit":
        strike()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
