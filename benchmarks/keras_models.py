"""The workloads' models in Keras, compiled."""

from __future__ import annotations

import itertools
import time
from typing import Any

import keras
from keras import layers

from benchmarks.workloads import Workload, initial_weights


def build(name: str, workload: Workload, **options: Any) -> keras.Model:
    """Compiled, with the initial weights of every contender; `options` are for `compile`."""
    model = untrained(name, workload)
    model.set_weights(initial_weights(name))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(workload.rate), loss if workload.classes else "mse", **options
    )
    return model


def untrained(name: str, workload: Workload) -> keras.Model:
    """The model with weights of its own."""
    if name == "attention":
        tokens = keras.Input(workload.features, dtype="int32")
        embedded = layers.Embedding(workload.vocabulary, 64)(tokens)
        attended = layers.MultiHeadAttention(num_heads=4, key_dim=16)(embedded, embedded)
        hidden = layers.LayerNormalization()(embedded + attended)
        hidden = layers.GlobalAveragePooling1D()(hidden)
        return keras.Model(tokens, layers.Dense(workload.classes)(hidden))
    hidden = {
        "linear": [],
        "mlp": [layers.Dense(1024, activation="relu") for _ in range(2)],
        "wide": [layers.Dense(2048, activation="relu") for _ in range(2)],
        "cnn": [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
        ],
    }[name]
    outputs = layers.Dense(workload.classes or 1)
    return keras.Sequential([keras.Input(workload.features), *hidden, outputs])


class EpochSeconds(keras.callbacks.Callback):
    """Seconds of every epoch but the first, with what is done between one and the next."""

    def __init__(self) -> None:
        super().__init__()
        self._began: list[float] = []

    @property
    def seconds(self) -> list[float]:
        """From the beginning of each epoch to the next one's, or to the end."""
        return [end - begin for begin, end in itertools.pairwise(self._began)][1:]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note the time."""
        self._began.append(time.perf_counter())

    def on_train_end(self, logs: Any = None) -> None:
        """Note the time."""
        self._began.append(time.perf_counter())
