# ruff: noqa: D103 - a case's name says what it is
"""The cases of optimizers, inputs and outputs."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
from keras import layers
from programs.cases import (
    CASES,
    WEIGHTS,
    Case,
    Unused,
    case,
    features,
    numbers,
    sequential,
)

# Optimizers

# Every optimizer that this Keras has, by name.
OPTIMIZERS = {
    name: value
    for name, value in vars(keras.optimizers).items()
    if inspect.isclass(value)
    and issubclass(value, keras.optimizers.Optimizer)
    # The base class, those that wrap another one (below), ...
    and name not in {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
}


def optimized(optimizer: Any) -> Case:
    """An Embedding and two Dense layers that train with the optimizer."""
    hidden = layers.Dense(3, "tanh", kernel_initializer="he_normal")
    stack = [layers.Embedding(9, 3), layers.Flatten(), hidden, layers.Dense(1)]
    return Case(sequential(*stack, shape=(5,), optimizer=optimizer), numbers(6, 5), features(1))


for _name, _class in OPTIMIZERS.items():
    CASES[f"optimizer_{_name}"] = lambda c=_class: optimized(c(learning_rate=0.02))


@case
def optimizer_ScheduleFreeAdamW() -> Case:
    made = optimized(keras.optimizers.ScheduleFreeAdamW(0.02))
    # Keras builds it inside the graph of its step, which then starts it anew at every step.
    made.model.run_eagerly = True
    return made


_SETTINGS: dict[str, Any] = {
    "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "clipnorm": lambda: keras.optimizers.Adam(0.05, clipnorm=0.1),
    "clipvalue": lambda: keras.optimizers.SGD(0.5, clipvalue=0.05),
    "global_clipnorm": lambda: keras.optimizers.Adam(0.05, global_clipnorm=0.1),
    "weight_decay": lambda: keras.optimizers.SGD(0.1, weight_decay=0.3),
    "ema": lambda: keras.optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=3
    ),
    "accumulation": lambda: keras.optimizers.Adam(0.05, gradient_accumulation_steps=3),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.InverseTimeDecay(0.3, 1, 0.5)
    ),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=8.0, dynamic_growth_steps=2
    ),
    "centered": lambda: keras.optimizers.RMSprop(0.02, momentum=0.5, centered=True),
}
for _name, _make in _SETTINGS.items():
    CASES[f"setting_{_name}"] = lambda m=_make: optimized(m())


# Inputs and outputs


@case
def variable_without_gradient() -> Case:
    model = Unused()
    model.compile("adam", "mse")
    return Case(model, features(4), features(1))


def two_outputs(loss: Any = "mse", **compiled: Any) -> keras.Model:
    """A functional model with outputs `size` (1 number) and `kind` (3 classes)."""
    x = keras.Input((4,), name="x")
    hidden = layers.Dense(3, "tanh")(x)
    outputs = {
        "size": layers.Dense(1, name="size")(hidden),
        "kind": layers.Dense(3, "softmax", name="kind")(hidden),
    }
    model = keras.Model(x, outputs)
    model.compile(keras.optimizers.SGD(0.2), loss, **compiled)
    return model


TWO_TARGETS = {"size": features(1, seed=5), "kind": numbers(3)}
TWO_LOSSES = {"size": "mse", "kind": "sparse_categorical_crossentropy"}


@case
def outputs_by_name() -> Case:
    model = two_outputs(
        TWO_LOSSES, loss_weights={"size": 0.3, "kind": 2.0}, metrics={"kind": ["acc"]}
    )
    return Case(model, features(4), TWO_TARGETS, {"sample_weight": WEIGHTS})


@case
def one_output_without_loss() -> Case:
    model = two_outputs({"size": "mse", "kind": None}, metrics={"size": ["mae"]})
    return Case(model, features(4), TWO_TARGETS)


@case
def outputs_as_list() -> Case:
    x = keras.Input((4,))
    model = keras.Model(x, [layers.Dense(1)(x), layers.Dense(2)(x)])
    losses = ["mae", keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")]
    model.compile("sgd", losses, loss_weights=[0.3, 2.0], metrics=[["mse"], ["mae"]])
    return Case(model, features(4), [features(1), features(2)], {"sample_weight": WEIGHTS})


@case
def one_output_masked() -> Case:
    x = keras.Input((6, 2))
    hidden = layers.LSTM(3, return_sequences=True)(layers.Masking()(x))
    model = keras.Model(x, [layers.Dense(1)(hidden), layers.Dense(1)(layers.LSTM(2)(hidden))])
    model.compile("sgd", ["mse", "mse"], loss_weights=[1.0, 0.5])
    masked = CASES["masked_steps"]()
    return Case(model, masked.x, [masked.y, features(1)])


def _joined(inputs: Any, parts: list[Any]) -> keras.Model:
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(parts)))
    model.compile("sgd", "mse", metrics=["mae"])
    return model


@case
def inputs_as_dict() -> Case:
    inputs = {"b": keras.Input((2,), name="b"), "a": keras.Input((4,), name="a")}
    model = _joined(inputs, [inputs["b"], inputs["a"]])
    return Case(model, {"a": features(4), "b": features(2)}, features(1))


@case
def inputs_nested() -> Case:
    inputs = (keras.Input((2,)), {"deep": [keras.Input((4,)), keras.Input((1,))]})
    model = _joined(inputs, [inputs[0], *inputs[1]["deep"]])
    x = (features(2), {"deep": [features(4), features(1, seed=8)]})
    return Case(model, x, features(1))


@case
def rank_one_x_and_y() -> Case:
    return Case(sequential(layers.Dense(1), shape=(1,)), features(), features(seed=4))


@case
def integer_inputs() -> Case:
    return Case(sequential(layers.Dense(1)), numbers(5, 4).astype("int32"), numbers(3, 1))


@case
def image_inputs() -> Case:
    stack = [layers.Rescaling(1 / 255), layers.Conv2D(2, 3, activation="relu"), layers.Flatten()]
    model = sequential(*stack, layers.Dense(1), shape=(6, 6, 1))
    return Case(model, numbers(256, 6, 6, 1).astype("uint8"), features(1))


@case
def boolean_targets() -> Case:
    model = sequential(layers.Dense(1, "sigmoid"), loss="binary_crossentropy", metrics=["acc"])
    return Case(model, features(4), numbers(2, 1).astype(bool))


class Gated(keras.Model):
    """A subclassed model whose layers know their shapes only when they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = layers.Dense(3, "sigmoid")
        self.value = layers.Dense(3)
        self.head = layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.head(self.gate(x["left"]) * self.value(x["right"]))


@case
def subclassed() -> Case:
    model = Gated()
    model.compile(keras.optimizers.Nadam(0.05), "mse", metrics=["mae"])
    return Case(model, {"left": features(4), "right": features(2)}, features(1))


# Trainings as a whole


@case
def validation_split() -> Case:
    return optimized("adam")._replace(options={"validation_split": 0.3, "validation_freq": 2})


@case
def validation_data() -> Case:
    options = {
        "validation_data": (numbers(6, 5, seed=11)[:11], features(1, seed=12)[:11], WEIGHTS[:11]),
        "validation_batch_size": 3,
        "initial_epoch": 1,
        "sample_weight": WEIGHTS,
    }
    return optimized("rmsprop")._replace(options=options)


def _long(index: int, optimizer: str) -> Case:
    """37 rows at batch size 10, weighted, with validation, for several epochs."""

    def optimize() -> Any:
        return {
            "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
            "adam": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.5),
            "rmsprop": lambda: keras.optimizers.RMSprop(0.005),
        }[optimizer]()

    rng = np.random.default_rng(index)
    rows, options = 37, {"batch_size": 10, "epochs": 4}
    weights = rng.uniform(0, 2, rows).astype("float32")
    x = rng.normal(size=(rows, 6)).astype("float32")
    y = (x[:, :1] - x[:, 1:2] ** 2).astype("float32")
    kinds = (x[:, 2] > 0).astype("int64")
    if index == 0:
        hidden = layers.Dense(8, "tanh", kernel_regularizer=keras.regularizers.L2(0.01))
        model = sequential(hidden, layers.Dense(1), shape=(6,), optimizer=optimize())
        return Case(model, x, y, {**options, "sample_weight": weights, "validation_split": 0.2})
    if index == 1:
        x = rng.normal(size=(rows, 7, 2)).astype("float32")
        for row, length in enumerate(rng.integers(0, 8, rows)):
            x[row, length:] = 0
        stack = [layers.Masking(), layers.LSTM(4, return_sequences=True), layers.Dense(1)]
        model = sequential(*stack, shape=(7, 2), optimizer=optimize())
        y = np.cumsum(x.sum(axis=-1, keepdims=True), axis=1)
        weights = rng.uniform(0, 2, (rows, 7)).astype("float32")
        held_out = (x[:9], y[:9], weights[:9])
        options |= {"validation_data": held_out, "sample_weight": weights, "validation_freq": 2}
        return Case(model, x, y, options)
    if index == 2:
        stack = [
            layers.Embedding(12, 4),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2, "softmax"),
        ]
        loss, metrics = "sparse_categorical_crossentropy", ["accuracy"]
        model = sequential(*stack, shape=(6,), optimizer=optimize(), loss=loss, metrics=metrics)
        words = rng.integers(0, 12, (rows, 6))
        held_out = (words[:8], kinds[:8])
        options |= {"class_weight": {0: 1.0, 1: 3.0}, "validation_data": held_out}
        return Case(model, words, kinds, {**options, "validation_batch_size": 3})
    inputs = keras.Input((6,))
    hidden = layers.Dense(5, "tanh")(inputs)
    outputs = {"y": layers.Dense(1)(hidden), "kind": layers.Dense(2, "softmax")(hidden)}
    model = keras.Model(inputs, outputs)
    losses = {"y": "mse", "kind": "sparse_categorical_crossentropy"}
    model.compile(optimize(), losses, loss_weights={"y": 1.0, "kind": 0.3}, metrics={"kind": "acc"})
    options |= {"sample_weight": weights, "initial_epoch": 1, "validation_split": 0.15}
    return Case(model, x, {"y": y, "kind": kinds}, options)


for _i, _model in enumerate(("mlp_l2", "lstm_masked", "embedding", "two_outputs")):
    for _name in ("sgd", "adam", "rmsprop"):
        CASES[f"training_{_model}_{_name}"] = lambda i=_i, n=_name: _long(i, n)
