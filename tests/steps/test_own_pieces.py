"""Training steps of the user's in micro-batches, in one process: what `fit` has beside them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from programs import compare
from programs.cases import features

import ddp_gd
from ddp_gd.steps.own.dependence import Dependence

pytestmark = pytest.mark.filterwarnings(
    # Keras reads a variable as an array, which NumPy 2 wants done in another way.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
)
X, Y = features(4), features(2, seed=6)
FIT = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}


class Own(keras.Model):
    """A step with a scaled loss, clipping and a moving average of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = keras.layers.Embedding(5, 3)
        self.head, self.mean_head = keras.layers.Dense(2), keras.layers.Dense(2)
        self.head.build((None, 7))
        self.mean_head.build((None, 7))
        self.mean_head.trainable = False
        self.mean_loss = keras.metrics.Mean(name="mean_loss")

    def call(self, x: Any) -> Any:
        kind = ops.cast(ops.floor(ops.clip(x[:, 0], -2, 2) + 2), "int32")
        return self.head(ops.concatenate([ops.cast(x, "float32"), self.table(kind)], axis=1))

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x, training=True)))
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        for weight, mean in zip(self.head.weights, self.mean_head.weights, strict=True):
            mean.assign(0.9 * mean + 0.1 * weight)
        self.mean_loss.update_state(loss)
        return {"my_loss": loss, "mean_loss": self.mean_loss.result()}

    def predict_step(self, data: Any) -> Any:
        return {"twice": 2 * self(keras.utils.unpack_x_y_sample_weight(data)[0])}


class Seen(keras.callbacks.Callback):
    """Keeps what a hook for batches is given."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: list[list[float]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.logs.append([float(value) for value in logs.values()])


def own(optimizer: Any = None, **compiled: Any) -> Own:
    """A model with its own step, built."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    model = Own()
    model(X[:2])
    model.compile(optimizer or keras.optimizers.Adam(0.02, clipnorm=0.5), **compiled)
    return model


@pytest.mark.parametrize("scaled", [False, True])
def test_hooks_and_scaled_losses(scaled: bool) -> None:
    """Hooks for batches see what Keras's see; LossScaleOptimizer, XLA's flag and lookups work."""
    outcomes, seen = [], []
    for fit, more in ((keras.Model.fit, {}), (ddp_gd.fit, {"micro_batch_size": 3})):
        optimizer = keras.optimizers.Adam(0.02)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, dynamic_growth_steps=2)
        model = own(optimizer, jit_compile=scaled and fit is ddp_gd.fit)
        hook = Seen()
        outcomes.append(compare.outcome(model, fit(model, X, Y, callbacks=[hook], **FIT, **more)))
        seen.append(hook.logs)
    assert compare.differences(*outcomes, 5e-5) == []
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-4)


def test_nan_stops_before_the_next_step() -> None:
    """The step's gradient is looked at, as any other."""
    y = Y.copy()
    y[9] = np.nan
    with pytest.raises(ddp_gd.NumericsError, match="step 2 of 2"):
        ddp_gd.fit(own(), X, y, micro_batch_size=3, **FIT)


def test_what_is_not_called_is_said() -> None:
    """Eager running, and a `fit` of the model's own; `predict_step` is called."""
    with pytest.warns(UserWarning, match="run_eagerly=True"):
        ddp_gd.fit(own(run_eagerly=True), X, Y, micro_batch_size=3, **FIT)

    class Prepares(Own):
        preprocessor = staticmethod(lambda x, y: (x + 1, y))

        def fit(self, x: Any, y: Any, **options: Any) -> Any:
            return super().fit(*self.preprocessor(x, y), **options)

    model = Prepares()
    model.compile("sgd")
    with pytest.warns(UserWarning, match=r"Prepares has a fit\(\) of its own.*preprocessor\(x, y"):
        ddp_gd.fit(model, X, Y, **FIT)
    wanted = model.predict(X, batch_size=5, verbose=0)
    found = ddp_gd.predict(model, X, batch_size=5, verbose=0)
    np.testing.assert_allclose(found["twice"], wanted["twice"], rtol=1e-6)


@pytest.mark.parametrize("size", [None, 3])
def test_a_step_is_a_method_of_each_object(size: int | None) -> None:
    """Two objects of a class train weights of their own."""

    class Trainer:
        def __init__(self, rate: float) -> None:
            self.weight = keras.Variable(np.zeros((4, 2), "float32"))
            self.rate = rate

        @ddp_gd.step(micro_batch_size=size)
        def train(self, x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(y - tf.matmul(x, self.weight)))
            (gradient,) = tape.gradient(loss, [self.weight])
            self.weight.assign_sub(self.rate * gradient)
            return loss

    trainers = Trainer(0.1), Trainer(0.2)
    x, y = X.astype("float32"), Y.astype("float32")
    for trainer in trainers:
        weight = np.zeros((4, 2))
        for _ in range(2):
            loss = trainer.train(x, y)
            assert float(loss) == pytest.approx(np.mean((y - x @ weight) ** 2), rel=1e-4)
            weight += trainer.rate * 2 * x.T @ (y - x @ weight) / y.size
        np.testing.assert_allclose(trainer.weight.numpy(), weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_size_that_cant_be_used_is_refused(size: Any) -> None:
    """It is quoted."""
    with pytest.raises(ddp_gd.ConfigError, match=f"micro_batch_size={size}"):
        ddp_gd.step(micro_batch_size=size)


def test_mini_batches_of_one_kind_are_traced_once() -> None:
    """Whatever numbers they hold, and however many rows."""
    weight, optimizer = keras.Variable([1.0]), keras.optimizers.SGD(0.1)
    traced = 0

    @ddp_gd.step(micro_batch_size=2)
    def step(x: Any) -> Any:
        nonlocal traced
        traced += 1
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(x * weight)
        optimizer.apply(tape.gradient(loss, [weight]), [weight])
        return loss

    step(np.ones((4, 1), "float32"))
    before = traced
    for rows in (4, 5, 7):
        step(np.full((rows, 1), rows, "float32"))
    assert traced == before


def test_what_values_are_computed_from() -> None:
    """Sources go through operations, variables that are written and read, branches; in order."""
    variable, other, third = (tf.Variable(1.0) for _ in range(3))
    found: dict[str, set[int]] = {}

    @tf.function
    def function(x: Any, y: Any) -> Any:
        graph = tf.compat.v1.get_default_graph()
        dependence = Dependence(graph)
        dependence.mark(x, 1)
        dependence.mark(y, 2)
        before = variable * 1.0
        variable.assign(2 * x)
        after = variable + 0.0

        def write() -> Any:
            other.assign_add(x)
            return 0.0

        tf.cond(y > 0, write, lambda: 0.0)
        tf.cond(y > 0, lambda: third * 1.0, lambda: 0.0)  # reads only
        tensors = {
            "x": x * 2,
            "both": x + y,
            "before": before,
            "after": after,
            "other": other * 1.0,
        }
        tensors["third"] = third * 1.0
        found.update({name: set(dependence.of([t])) for name, t in tensors.items()})
        dependence.mark(tensors["both"], 3)
        found["marked"] = set(dependence.of([tensors["both"] + 1.0]))
        return after

    function(tf.constant(1.0), tf.constant(1.0))
    assert found == {
        "x": {1}, "both": {1, 2}, "before": set(), "after": {1}, "other": {1, 2}, "third": set(),
        "marked": {3},
    }  # fmt: skip
