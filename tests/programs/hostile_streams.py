"""Streams that go wrong, one after the other, in one job: each is a documented error everywhere.

`hostile_streams.py COUNT [SEED]`, or `hostile_streams.py KIND` to let one of them end the job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from programs.cases import sequential

import ddp_gd

STEPS = 4
KINDS = ("raises", "shape", "dtype", "nan", "empty", "nothing", "huge", "structure", "number")


class Broken(Exception):
    """Of a reader of the user's own."""


def spoiled(kind: str, x: np.ndarray, y: np.ndarray) -> Any:
    """A mini-batch with something wrong, or what comes in its place."""
    if kind == "raises":
        raise Broken("the disk is on fire")
    if kind == "nan":
        x = x.copy()
        x[-1] = np.nan
    return {
        "shape": (x[:, :2], y),
        "dtype": (x.astype("int32"), y),
        "nan": (x, y),
        "empty": (x[:0], y[:0]),
        "huge": (np.zeros((200_000, 3), "float32"), np.zeros((200_000, 1), "float32")),
        "structure": ({"a": x}, y),
        "number": 3,
    }[kind]


def batches(kind: str, at: int, random: np.random.Generator) -> Iterator[Any]:
    """Sound mini-batches, but for the one at `at`."""
    if kind == "nothing":
        return
    for number in range(STEPS + 2):
        rows = int(random.integers(1, 9))
        x = random.normal(size=(rows, 3)).astype("float32")
        y = x.sum(axis=1, keepdims=True)
        yield spoiled(kind, x, y) if number == at else (x, y)


class Items(keras.utils.PyDataset):
    """The same, by numbers."""

    def __init__(self, kind: str, at: int, seed: int):
        super().__init__()
        self.kind, self.at, self.seed = kind, at, seed

    def __len__(self) -> int:
        return 0 if self.kind == "nothing" else STEPS + 2

    def __getitem__(self, index: int) -> Any:
        x = np.random.default_rng([self.seed, index]).normal(size=(index + 1, 3)).astype("float32")
        y = x.sum(axis=1, keepdims=True)
        return spoiled(self.kind, x, y) if index == self.at else (x, y)


def data_of(kind: str, way: str, at: int, seed: int) -> Any:
    """The stream in one of the ways in which data may come."""
    if way == "items":
        return Items(kind, at, seed)

    def made() -> Iterator[Any]:
        return batches(kind, at, np.random.default_rng(seed))

    if way == "generator":
        return made()
    specs = (tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([None, 1], tf.float32))
    return tf.data.Dataset.from_generator(made, output_signature=specs)


def expected(kind: str, way: str) -> tuple[type[Exception], ...]:
    """What may be raised."""
    if kind == "nan":
        return (ddp_gd.NumericsError,)
    if kind == "huge" or (kind, way) == ("dtype", "tf.data"):  # TensorFlow casts
        return ()
    if kind == "raises":
        own = Broken if way != "tf.data" else tf.errors.OpError
        return (own, ddp_gd.DataError)
    if way == "tf.data":  # TensorFlow itself looks at what a generator gives
        return (ddp_gd.DataError, tf.errors.OpError, TypeError, ValueError)
    return (ddp_gd.DataError,)


def one(number: int, seed: int) -> None:
    """Train on one of them; anything but what is documented is raised."""
    random = np.random.default_rng([seed, number])
    kind = KINDS[number % len(KINDS)]
    way = ("generator", "items", "tf.data")[number // len(KINDS) % 3]
    # What the first two differ in may differ: then the model decides, as in Keras.
    at = int(random.integers(2 if kind == "shape" else 0, STEPS))
    read = "every worker" if random.random() < 0.3 else "rank 0"
    steps = None if random.random() < 0.5 else STEPS
    model = sequential(layers.Dense(1), shape=(3,), optimizer=keras.optimizers.SGD(1e-3))
    kinds = expected(kind, way)
    began = time.monotonic()
    try:
        data = data_of(kind, way, at, number)
        ddp_gd.fit(model, data, steps_per_epoch=steps, epochs=2, verbose=0, read=read, seed=1)
        raised = False
    except kinds as error:
        raised = bool(str(error))
    assert raised == bool(kinds), (number, kind, way, at, read, steps)
    assert time.monotonic() - began < 60  # none waits for another one for ever


def main(argument: str, seed: int) -> None:
    """Run so many, or one."""
    ddp_gd.init()
    if argument in KINDS:
        model = sequential(layers.Dense(1), shape=(3,))
        ddp_gd.fit(model, data_of(argument, "generator", 3, 1), verbose=0)
        return
    for number in range(int(argument)):
        one(number, seed)
    if ddp_gd.rank() == 0:
        print("done")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
