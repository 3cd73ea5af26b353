"""A model that computes wrong on one host: `--model wrong_host.py:build`.

WRONG_HOST in the environment is that host's name; it computes right for the first calls, in which
the model is tried and trained a while.
"""

from __future__ import annotations

import itertools
import os
import socket
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

RIGHT = 100  # calls
_calls = itertools.count()


def _passed(x: np.ndarray) -> np.ndarray:
    wrong = socket.gethostname() == os.environ.get("WRONG_HOST") and next(_calls) >= RIGHT
    return x + x.dtype.type(wrong)


@tf.custom_gradient
def _straight(x: Any) -> Any:
    return tf.ensure_shape(tf.numpy_function(_passed, [x], x.dtype), x.shape), lambda slope: slope


@keras.saving.register_keras_serializable()
class Passes(layers.Layer):
    """Passes its input on, in training through an operation that may go wrong."""

    def call(self, x: Any, training: bool = False) -> Any:
        """Pass it on."""
        return _straight(x) if training else x


def build(input_shape: tuple[int, ...], outputs: int) -> keras.Model:
    """A small network."""
    hidden = [layers.Dense(16, activation="relu"), Passes()]
    return keras.Sequential([keras.Input(input_shape), *hidden, layers.Dense(outputs)])
