"""Data sets whose items are mini-batches of several sizes, for the tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from programs.cases import WEIGHTS, features

X, Y = features(4), features(1, seed=6)
CUTS = [(0, 5), (5, 6), (6, 13)]  # of one row, too: fewer than workers
ITEMS = [(X[i:k], Y[i:k], WEIGHTS[i:k]) for i, k in CUTS]


class Listed(keras.utils.PyDataset):
    """Gives the items of a list, and notes what is asked of it."""

    def __init__(self, items: Iterable[Any] = ITEMS, **options: Any):
        super().__init__(**options)
        self.items = list(items)
        self.calls: list[Any] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.calls.append(index)
        return self.items[index]

    def on_epoch_begin(self) -> None:
        self.calls.append("begin")

    def on_epoch_end(self) -> None:
        self.calls.append("end")


class Reordering(Listed):
    """Changes its items after every epoch, as many do."""

    def __init__(self, items: Iterable[Any] = ITEMS, **options: Any):
        super().__init__(items, **options)
        self.generator = np.random.default_rng(4)

    def on_epoch_end(self) -> None:
        order = self.generator.permutation(len(self.items))
        self.items = [self.items[i] for i in order]


def elements(items: Iterable[Any] = ITEMS) -> tf.data.Dataset:
    """A `tf.data.Dataset` of the items."""
    items = [tuple(map(np.asarray, item)) for item in items]
    signature = tuple(tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype) for leaf in items[0])
    dataset = tf.data.Dataset.from_generator(lambda: iter(items), output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(items)))


def reshuffled() -> tf.data.Dataset:
    """A `tf.data.Dataset` with another order of rows in each epoch."""
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(13, seed=5).batch(4)


KINDS = {"PyDataset": Listed, "tf.data": elements, "threads": lambda: Listed(workers=3)}
