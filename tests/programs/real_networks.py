# ruff: noqa: D103 - a case's name says what it is
"""Networks as people train them, each with layers, losses or draws that look at more than a row.

Usage: python -m programs.real_networks BACKEND[,bitwise] OUT.json

Trained on all workers of a job, with a ragged last mini-batch and a validation split. In default
mode rank 0 compares weights and History with `keras.Model.fit(shuffle=False)`; in bitwise mode it
writes fingerprints. Returns how many differ.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from programs import cases, compare
from programs.cases import Case

import ddp_gd

ROWS, BATCH = 26, 8
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(size=(ROWS, 10, 10, 3)).astype("float32")
TOKENS = RANDOM.integers(0, 20, (ROWS, 7))
NUMBERS = RANDOM.normal(size=(ROWS, 6)).astype("float32")
TARGETS = RANDOM.normal(size=(ROWS, 2)).astype("float32")
CLASSES = RANDOM.integers(0, 3, (ROWS, 1))


def compiled(given: Any, output: Any, loss: Any = "mse", metrics: Any = ("mae",)) -> keras.Model:
    model = keras.Model(given, output)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=list(metrics))
    return model


def convolutional() -> Case:
    given = x = keras.Input(IMAGES.shape[1:])
    for filters in (6, 8):
        x = layers.Conv2D(filters, 3, use_bias=False, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.SpatialDropout2D(0.2)(layers.MaxPooling2D()(x))
    x = layers.Dropout(0.3)(layers.GaussianNoise(0.1)(layers.GlobalAveragePooling2D()(x)))
    return Case(compiled(given, layers.Dense(2)(x)), IMAGES, TARGETS)


def augmented() -> Case:
    given = keras.Input(IMAGES.shape[1:])
    x = layers.RandomContrast(0.4)(layers.RandomTranslation(0.2, 0.2)(layers.RandomFlip()(given)))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, activation="relu")(x))
    return Case(compiled(given, layers.Dense(2)(x)), IMAGES, TARGETS)


def sequences() -> Case:
    given = keras.Input((7,), dtype="int64")
    x = layers.Embedding(20, 8)(given)
    x = x + layers.MultiHeadAttention(2, 4, dropout=0.2)(x, x)
    x = layers.LSTM(6, dropout=0.2, recurrent_dropout=0.2)(x)
    return Case(compiled(given, layers.Dense(2)(x)), TOKENS, TARGETS)


def spectral() -> Case:
    given = keras.Input((6,))
    x = layers.SpectralNormalization(layers.Dense(8, "relu"))(given)
    return Case(compiled(given, layers.Dense(2)(x)), NUMBERS, TARGETS)


class Penalised(layers.Layer):
    """Adds a sum and a mean to the loss."""

    def call(self, x: Any) -> Any:
        self.add_loss(1e-3 * ops.sum(ops.square(x)))
        self.add_loss(1e-2 * ops.mean(ops.abs(x)))
        return x


def penalised() -> Case:
    given = keras.Input((6,))
    x = layers.Dense(2)(Penalised()(layers.Dense(8, "tanh")(given)))
    return Case(compiled(given, x), NUMBERS, TARGETS)


def supervised_contrastive(y: Any, embedded: Any) -> Any:
    """Khosla et al., 2020: rows of a class attract each other."""
    embedded = ops.normalize(embedded, axis=1)
    similar = ops.matmul(embedded, ops.transpose(embedded)) / 0.5
    others = 1 - ops.eye(ops.shape(embedded)[0])
    same = ops.cast(ops.equal(y, ops.transpose(y)), "float32") * others
    log_sum = ops.log(ops.sum(others * ops.exp(similar), axis=1, keepdims=True))
    return -ops.sum(same * (similar - log_sum)) / ops.maximum(ops.sum(same), 1)


def contrastive() -> Case:
    given = keras.Input((6,))
    x = layers.Dense(4)(layers.Dense(8, "tanh")(given))
    return Case(compiled(given, x, supervised_contrastive, ()), NUMBERS, CLASSES)


NETWORKS = (convolutional, augmented, sequences, spectral, penalised, contrastive)


def main(mode: str, out: str, *names: str) -> int:
    """Train these, or all of them, and return how many are not as in Keras."""
    backend, _, bitwise = mode.partition(",")
    ddp_gd.init(backend, bitwise=bool(bitwise))
    options = {"batch_size": BATCH, "validation_split": 0.2}
    wrong, left = 0, {}
    for build in NETWORKS:
        name = build.__name__
        if names and name not in names:
            continue
        cases.CASES[name] = build
        actual = compare.train(name, **options)
        left[name] = [
            {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in actual.arrays.items()},
            {k: np.array(v).tolist() for k, v in actual.history.items()},
        ]
        if ddp_gd.rank() == 0 and not bitwise:
            found = compare.differences(compare.train(name, True, **options), actual, 5e-5)
            wrong += bool(found)
            print(name, found or "equal", flush=True)
    if ddp_gd.rank() == 0:
        Path(out).write_text(json.dumps(left))
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
