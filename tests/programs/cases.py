# ruff: noqa: D103 - a case's name says what it is
"""What is trained both with Keras and with ddp_gd, and must end the same: one table of cases.

A case is a function that builds, each time the same, a compiled model and the arguments of `fit`.
13 rows with batch size 8 make one step of 8 rows and a last one of 5: for 2, 3 or 4 workers the
shares are uneven, and with micro-batches of 1, 3 or 7 rows so are the pieces.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

# Every `clear_session` collects garbage, which else looks through all of TensorFlow's own objects,
# and would take a third of the time of a training as small as these.
gc.freeze()

ROWS, BATCH = 13, 8


class Case(NamedTuple):
    """A compiled model, the data, and further arguments of `fit`."""

    model: keras.Model
    x: Any
    y: Any = None
    options: dict[str, Any] = {}  # noqa: RUF012


CASES: dict[str, Callable[[], Case]] = {}


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    """List a case under its function's name."""
    CASES[function.__name__] = function
    return function


def build(name: str) -> Case:
    """Build a case: the same initial weights and data each time."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    return CASES[name]()


def sequential(*stack: Any, shape: tuple = (4,), optimizer: Any = None, **compiled: Any) -> Any:
    """A compiled `Sequential`; by default SGD with a large learning rate and the squared error."""
    model = keras.Sequential([keras.Input(shape), *stack])
    compiled = {"loss": "mse", "metrics": ["mae"], **compiled}
    model.compile(optimizer or keras.optimizers.SGD(0.2), **compiled)
    return model


def features(*shape: int, seed: int = 0) -> np.ndarray:
    """Normally distributed, shape (ROWS, *shape)."""
    return np.random.default_rng(seed).normal(size=(ROWS, *shape)).astype("float32")


def numbers(stop: int, *shape: int, seed: int = 1) -> np.ndarray:
    """Whole numbers below `stop`, shape (ROWS, *shape)."""
    return np.random.default_rng(seed).integers(0, stop, (ROWS, *shape))


WEIGHTS = np.random.default_rng(2).uniform(0, 3, ROWS).astype("float32")


@case
def gradient() -> Case:
    hidden = layers.Dense(3, "tanh", kernel_regularizer="l2")
    model = sequential(hidden, layers.Dense(2), optimizer=keras.optimizers.SGD(1.0))
    return Case(model, features(4), features(2, seed=6), {"sample_weight": WEIGHTS})


# Losses and weights


def _loss(loss: Any, weighted: bool, classes: bool = False) -> Case:
    x = features(4)
    y = numbers(3) if classes else features(2, seed=5)
    head = layers.Dense(3, activation="softmax") if classes else layers.Dense(2)
    model = sequential(layers.Dense(3, activation="tanh"), head, loss=loss, metrics=[])
    return Case(model, x, y, {"sample_weight": WEIGHTS} if weighted else {})


def _absolute(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(ops.abs(y_true - y_pred), axis=-1)


for _reduction in ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum"):
    _object = functools.partial(keras.losses.MeanSquaredError, reduction=_reduction)
    CASES[f"loss_{_reduction}_weighted"] = lambda o=_object: _loss(o(), True)
CASES["loss_mean_with_sample_weight"] = lambda: _loss(
    keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"), False
)
CASES["loss_sum"] = lambda: _loss(keras.losses.MeanSquaredError(reduction="sum"), False)
CASES["loss_string_weighted"] = lambda: _loss("huber", True)
CASES["loss_function"] = lambda: _loss(_absolute, False)
CASES["loss_classes_weighted"] = lambda: _loss("sparse_categorical_crossentropy", True, True)
CASES["loss_dice_per_row"] = lambda: _loss(keras.losses.Dice(axis=-1), True)


@case
def class_weight() -> Case:
    return _loss("sparse_categorical_crossentropy", False, True)._replace(
        options={"class_weight": {0: 1.0, 2: 4.5}}
    )


@case
def class_weight_one_hot() -> Case:
    model = sequential(layers.Dense(3, activation="softmax"), loss="categorical_crossentropy")
    y = np.eye(3, dtype="float32")[numbers(3)]
    return Case(model, features(4), y, {"class_weight": {0: 0.5, 1: 4.5, 2: 0.0}})


@case
def zero_weights_in_one_batch() -> Case:
    weights = np.where(np.arange(ROWS) < 9, 0, WEIGHTS)  # the whole first global mini-batch
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    return Case(
        sequential(layers.Dense(2), loss=loss), features(4), features(2), {"sample_weight": weights}
    )


@case
def weighted_metrics() -> Case:
    model = sequential(
        layers.Dense(2, activation="sigmoid"), loss="binary_crossentropy",
        metrics=["accuracy"], weighted_metrics=["accuracy", keras.metrics.AUC(name="auc"), "mse"],
    )  # fmt: skip
    return Case(model, features(4), numbers(2, 2).astype("float32"), {"sample_weight": WEIGHTS})


# Sequences and masks


def _sequences() -> np.ndarray:
    x = features(6, 2)
    for row, length in enumerate([6, 1, 3, 0, 5, 2, 6, 4, 0, 0, 1, 0, 2]):
        x[row, length:] = 0
    return x


def _masked(loss: Any = "mse", **options: Any) -> Case:
    stack = [layers.Masking(), layers.LSTM(3, return_sequences=True), layers.Dense(1)]
    model = sequential(*stack, shape=(6, 2), loss=loss)
    return Case(model, _sequences(), features(6, 1, seed=7), options)


@case
def masked_steps() -> Case:
    return _masked()


@case
def masked_steps_weighted_by_step() -> Case:
    return _masked(sample_weight=np.abs(features(6, seed=9)))


@case
def masked_steps_mean_with_sample_weight() -> Case:
    loss = keras.losses.MeanAbsoluteError(reduction="mean_with_sample_weight")
    return _masked(loss, sample_weight=np.abs(features(6, seed=9)))


@case
def masked_steps_sum() -> Case:
    return _masked(keras.losses.MeanSquaredError(reduction="sum"))


@case
def whole_shares_masked() -> Case:
    x = _sequences()
    x[:8] = 0
    x[3, :2] = 1  # of the first step only two time steps of one row are valid
    return _masked()._replace(x=x)


@case
def everything_masked() -> Case:
    return _masked()._replace(x=np.zeros_like(_sequences()))


@case
def masked_sequence_to_one() -> Case:
    stack = [layers.Masking(), layers.GRU(3), layers.Dense(1)]
    return Case(sequential(*stack, shape=(6, 2)), _sequences(), features(1))


@case
def ignored_class() -> Case:
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1, from_logits=True)
    model = sequential(layers.Dense(3), shape=(5, 4), loss=loss, metrics=[])
    return Case(model, features(5, 4), numbers(4, 5) - 1, {"sample_weight": WEIGHTS[:, None]})


# Embeddings: sparse gradients


def _embedding(**options: Any) -> Case:
    stack = [layers.Embedding(9, 3, **options), layers.LSTM(3), layers.Dense(1)]
    model = sequential(*stack, shape=(5,))
    return Case(model, numbers(6, 5), features(1))  # rows 6 to 8 of the table are never used


@case
def embedding_mask_zero() -> Case:
    return _embedding(mask_zero=True)


@case
def embedding_tagger_mask_zero() -> Case:
    stack = [layers.Embedding(9, 3, mask_zero=True), layers.Dense(2, activation="softmax")]
    model = sequential(*stack, shape=(5,), loss="sparse_categorical_crossentropy", metrics=["acc"])
    return Case(model, numbers(4, 5), numbers(2, 5))


class Tied(keras.Model):
    """Looks words up in a table and scores all words with the same table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = layers.Embedding(9, 3)

    def call(self, words: Any) -> Any:
        return ops.softmax(self.table(words) @ ops.transpose(self.table.embeddings))


@case
def tied_embedding() -> Case:
    model = Tied()
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    return Case(model, numbers(9, 5), numbers(9, 5))


@case
def two_lookups() -> Case:
    table = layers.Embedding(9, 3)
    left, right = keras.Input((5,), dtype="int32"), keras.Input((2,), dtype="int32")
    joined = layers.Concatenate()([layers.Flatten()(table(left)), layers.Flatten()(table(right))])
    model = keras.Model([left, right], layers.Dense(1)(joined))
    model.compile(keras.optimizers.Adagrad(0.1), "mse")
    return Case(model, [numbers(9, 5), numbers(9, 2, seed=2)], features(1))


# Regularisation and losses of layers


@case
def regularisers() -> Case:
    l1, l2 = keras.regularizers.L1(0.02), keras.regularizers.L2(0.1)
    hidden = layers.Dense(
        4, "tanh", kernel_regularizer=l2, bias_regularizer=l1, activity_regularizer=l2
    )
    return Case(
        sequential(hidden, layers.Dense(1, kernel_regularizer=l1)), features(4), features(1)
    )


class Spread(layers.Layer):
    """Passes its input on, and adds its mean square over rows to the loss."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.3 * ops.mean(ops.square(x)))
        return x


@case
def layer_add_loss() -> Case:
    model = sequential(layers.Dense(3), Spread(), layers.Dense(1), loss="mae")
    return Case(model, features(4), features(1), {"sample_weight": WEIGHTS})


@case
def no_targets() -> Case:
    model = sequential(layers.Dense(3), Spread(), loss=None, metrics=[])
    return Case(model, features(4))


@case
def batch_normalization() -> Case:
    stack = [layers.Dense(3), layers.BatchNormalization(), layers.Dense(1)]
    return Case(sequential(*stack), features(4), features(1))


@case
def dropout() -> Case:
    stack = [layers.Dense(9), layers.Dropout(0.5, seed=1), layers.GaussianNoise(0.1)]
    return Case(sequential(*stack, layers.Dense(1)), features(4), features(1))


@case
def batch_normalization_frozen() -> Case:
    norm = layers.BatchNormalization()
    norm.trainable = False
    return Case(sequential(layers.Dense(3), norm, layers.Dense(1)), features(4), features(1))


@case
def frozen_layer() -> Case:
    stack = [layers.Dense(3, trainable=False), layers.Dense(1)]
    return Case(sequential(*stack), features(4), features(1))


class Unused(keras.Model):
    """Has a weight that the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(1)
        self.unused = self.add_weight(shape=(2,), name="unused")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(x) * (2.0 if training else 1.0)
