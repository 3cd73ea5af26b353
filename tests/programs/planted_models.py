# ruff: noqa: D103 - a case's name says what it is
"""Models that break the rule that a row is computed of itself alone, and some that don't.

Each is as Keras has it on the whole mini-batch, or refused by name before the first update: nothing
is silently something else. Trained on all workers of a job; rank 0 compares with Keras.

Usage: python -m programs.planted_models BACKEND[,bitwise] [MICRO_BATCH_SIZE [FIRST:EVERY]]
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from programs import cases, compare
from programs.cases import Case, features, numbers, sequential

import ddp_gd

Y = features(2, seed=5)
# name -> what a refusal says where there are shares, where there are micro-batches; "" is equal.
EXPECTED: dict[str, tuple[str, str]] = {}


def planted(shares: str = "", pieces: str | None = None) -> Callable[..., Any]:
    """List a case, with what refuses it; by default the same in both."""

    def listed(build: Callable[[], Case]) -> Callable[[], Case]:
        cases.CASES[build.__name__] = build
        EXPECTED[build.__name__] = (shares, shares if pieces is None else pieces)
        return build

    return listed


def calling(function: Callable[[Any, Any], Any], name: str = "planted") -> keras.Layer:
    """A layer that computes `function(layer, x)`."""

    class Planted(layers.Layer):
        def call(self, x: Any) -> Any:
            return function(self, x)

        def compute_output_spec(self, x: Any) -> Any:
            return keras.KerasTensor(x.shape, x.dtype)

    return Planted(name=name)


def with_layers(*stack: Any, **compiled: Any) -> Case:
    stack = (layers.Dense(6, "tanh"), *stack, layers.Dense(2))
    return Case(sequential(*stack, optimizer=keras.optimizers.SGD(0.1), **compiled), features(4), Y)


def with_loss(loss: Any) -> Case:
    return with_layers(loss=loss, metrics=[])


# Losses in which rows meet


@planted()
def infonce() -> Case:
    def loss(y: Any, p: Any) -> Any:
        p /= ops.norm(p, axis=-1, keepdims=True)
        return -ops.log_softmax(3 * ops.matmul(p, ops.transpose(p)), axis=-1)[:, 0]

    return with_loss(loss)


@planted()
def column_rmse() -> Case:
    return with_loss(lambda y, p: ops.sqrt(ops.mean(ops.square(y - p), axis=0)))


@planted()
def pairwise_ranking() -> Case:
    return with_loss(
        lambda y, p: ops.mean(ops.relu(1 - (p[:, :1] - ops.transpose(p[:, 1:2]))), axis=-1)
    )


@planted()
def dice_over_rows() -> Case:
    return with_loss(keras.losses.Dice(axis=0))


@planted()
def cosine_over_rows() -> Case:
    return with_loss(keras.losses.CosineSimilarity(axis=0))


@planted()
def tversky() -> Case:
    return with_loss(keras.losses.Tversky())


@planted()
def one_number() -> Case:
    return with_loss(lambda y, p: ops.mean(ops.square(y - p)) ** 2)


@planted()
def circle() -> Case:
    stack = [layers.Dense(3), layers.UnitNormalization()]
    loss, optimizer = keras.losses.Circle(), keras.optimizers.SGD(0.01)
    model = sequential(*stack, loss=loss, metrics=[], optimizer=optimizer)
    return Case(model, features(4), numbers(3))


# Metrics


class Largest(keras.metrics.Metric):
    """A maximum: its state begins at zero and is no sum."""

    def __init__(self) -> None:
        super().__init__(name="largest")
        self.value = self.add_weight(name="value", initializer="zeros")

    def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
        self.value.assign(ops.maximum(self.value, ops.max(ops.abs(p))))

    def result(self) -> Any:
        return self.value


class Last(Largest):
    """Of the last mini-batch."""

    def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
        self.value.assign(ops.mean(p))


NO_SUM = "not a sum over rows"


@planted("", NO_SUM)
def a_maximum() -> Case:
    return with_layers(metrics=[Largest()])


@planted("", NO_SUM)
def a_last_value() -> Case:
    return with_layers(metrics=[Last()])


@planted("", NO_SUM)
def a_metric_of_one_number() -> Case:
    return with_layers(metrics=[lambda y, p: ops.max(p)])


@planted("", NO_SUM)
def a_metric_by_class() -> Case:
    return with_layers(metrics=[lambda y, p: ops.mean(p, axis=0)])


@planted()
def r2_and_f1() -> Case:
    return with_layers(metrics=[keras.metrics.R2Score(), keras.metrics.F1Score()])


# Draws


def drawing(draw: Callable[[Any], Any]) -> Case:
    return with_layers(calling(lambda _, x: x + draw(x)))


@planted()
def the_global_generator() -> Case:
    return drawing(lambda x: keras.random.uniform(ops.shape(x)))


@planted()
def an_integer_seed() -> Case:
    return drawing(lambda x: keras.random.normal(ops.shape(x), seed=5))


@planted()
def one_draw_for_all_rows() -> Case:
    return drawing(lambda x: keras.random.normal((1, x.shape[1]), seed=5))


@planted()
def truncated() -> Case:
    return drawing(lambda x: keras.random.truncated_normal(ops.shape(x), seed=5))


@planted()
def whole_numbers() -> Case:
    draw = functools.partial(keras.random.randint, minval=0, maxval=9, seed=5)
    return drawing(lambda x: ops.cast(draw(ops.shape(x)), "float32"))


@planted()
def categories() -> Case:
    return drawing(lambda x: ops.cast(keras.random.categorical(x, 1, seed=3), "float32"))


@planted()
def gamma() -> Case:
    return drawing(lambda x: keras.random.gamma(ops.shape(x), 1.5, seed=3))


@planted()
def tensorflow_stateless() -> Case:
    return drawing(lambda x: tf.random.stateless_normal(tf.shape(x), seed=[1, 2]))


@planted("draws random numbers from TensorFlow's own generator")
def tensorflow_stateful() -> Case:
    return drawing(lambda x: tf.random.normal(tf.shape(x), seed=5))


@planted("another time")
def numpy_generator() -> Case:
    def draw(x: Any) -> Any:
        r = np.random.default_rng(ddp_gd.rank())
        numbers = tf.numpy_function(
            lambda a: r.normal(size=a.shape).astype("float32"), [x], x.dtype
        )
        return tf.ensure_shape(numbers, x.shape)

    return drawing(draw)


TRACED = "draws from a generator of Python or NumPy"


@planted(TRACED)
def python_generator() -> Case:
    return drawing(lambda x: random.gauss(0, 1) * ops.ones_like(x))


@planted(TRACED)
def a_numpy_generator_of_the_layer() -> Case:
    layer = calling(lambda layer, x: x + layer.generator.normal(size=x.shape[1:]))
    layer.generator = np.random.default_rng(3)
    return with_layers(layer)


@planted()
def a_generator_of_the_model() -> Case:
    class Noisy(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.generator = keras.random.SeedGenerator(4)
            self.head = layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.head(x + keras.random.normal(ops.shape(x), seed=self.generator))

    model = Noisy()
    model.compile("sgd", "mse")
    return Case(model, features(4), Y)


@planted()
def dropout_before_masking() -> Case:
    stack = [layers.Dropout(0.4, seed=2), layers.Masking(), layers.LSTM(3, return_sequences=True)]
    model = sequential(*stack, layers.Dense(1), shape=(6, 2))
    return Case(model, features(6, 2), features(6, 1, seed=7))


@planted()
def noise_layers() -> Case:
    return with_layers(layers.AlphaDropout(0.2, seed=1), layers.GaussianDropout(0.2, seed=2))


@planted()
def augmentation() -> Case:
    stack = [
        layers.RandomFlip(seed=1),
        layers.RandomTranslation(0.1, 0.1, seed=2),
        layers.RandomContrast(0.2, seed=3),
    ]
    head = [layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(2)]
    return Case(sequential(*stack, *head, shape=(6, 6, 1)), np.abs(features(6, 6, 1)), Y)


@planted()
def attention_and_lstm() -> Case:
    words = keras.Input((5,))
    hidden = layers.Embedding(9, 4)(words)
    hidden = layers.MultiHeadAttention(2, 2, dropout=0.2, seed=4)(hidden, hidden)
    hidden = layers.LSTM(3, dropout=0.2, recurrent_dropout=0.2, seed=6)(hidden)
    model = keras.Model(words, layers.Dense(2)(hidden))
    model.compile("sgd", "mse")
    return Case(model, numbers(9, 5), Y)


# Batch statistics: of the whole in shares; of the micro-batch, another layer, in pieces

GHOST = "another layer by design"


@planted("", GHOST)
def cnn_with_statistics() -> Case:
    stack = [
        layers.Conv2D(4, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.SpatialDropout2D(0.3, seed=1),
        layers.GaussianNoise(0.1, seed=2),
        layers.Flatten(),
        layers.Dropout(0.3, seed=3),
        layers.Dense(2),
    ]
    model = sequential(*stack, shape=(6, 6, 1))
    return Case(model, features(6, 6, 1), Y, {"validation_split": 0.2})


@planted("", GHOST)
def statistics_far_from_zero() -> Case:
    # E[x²] - E[x]² would be off by 6e-4
    model = sequential(layers.BatchNormalization(), layers.Dense(2))
    return Case(model, 100 + features(4), Y)


@planted("", GHOST)
def masked_statistics() -> Case:
    x = features(6, 2)
    x[2:5, 3:] = 0
    x[9] = 0
    stack = [layers.Masking(), layers.BatchNormalization(synchronized=True), layers.LSTM(3)]
    return Case(sequential(*stack, layers.Dense(1), shape=(6, 2)), x, features(1))


@planted("", GHOST)
def renormalized() -> Case:
    return with_layers(layers.BatchNormalization(renorm=True))


# add_loss


def adding(loss: Callable[[Any], Any]) -> Case:
    return with_layers(calling(lambda layer, x: (layer.add_loss(loss(x)), x)[1]))


@planted()
def a_sum() -> Case:
    return adding(lambda x: 0.01 * ops.sum(ops.square(x)))


@planted()
def a_mean() -> Case:
    return adding(lambda x: 0.1 * ops.mean(ops.square(x)))


@planted()
def a_vector() -> Case:
    return adding(lambda x: 0.01 * ops.square(x[:, 0]))


@planted("Entry 0 of model.losses")
def a_norm_of_means() -> Case:
    return adding(lambda x: ops.norm(ops.mean(x, axis=0)))


# Rows that meet in the forward pass


def meeting(function: Callable[[Any], Any]) -> Case:
    return with_layers(calling(lambda _, x: function(x)))


@planted("The layer 'planted' gives row")
def centring() -> Case:
    return meeting(lambda x: x - ops.mean(x, axis=0))


@planted("The layer 'planted' gives row")
def divided_by_rows() -> Case:
    return meeting(lambda x: x / ops.cast(ops.shape(x)[0], "float32"))


@planted("The layer 'planted' gives row")
def attention_over_rows() -> Case:
    return meeting(lambda x: ops.matmul(ops.softmax(ops.matmul(x, ops.transpose(x))), x))


@planted("The layer 'planted' gives row")
def reversed_rows() -> Case:
    return meeting(lambda x: x + ops.flip(x, axis=0))


@planted("gives row")
def rows_mixed_by_a_draw() -> Case:
    """As CutMix and MixUp do; a few rows may be drawn in their own order."""

    def mixed(layer: Any, x: Any) -> Any:
        order = keras.random.shuffle(ops.arange(ops.shape(x)[0]), seed=layer.seed)
        return x + ops.take(x, order, 0)

    layer = calling(mixed)
    layer.seed = keras.random.SeedGenerator(1)
    return with_layers(layer)


@planted("The layer 'softmax' gives row")
def softmax_over_rows() -> Case:
    return with_layers(layers.Softmax(axis=0, name="softmax"))


@planted("The layer 'unit' gives row")
def unit_over_rows() -> Case:
    return with_layers(layers.UnitNormalization(axis=0, name="unit"))


# State


class Keeping(layers.Layer):
    """Keeps something of the rows that it sees."""

    def __init__(self, keep: Callable[[Any, Any], Any], dtype: str = "float32", **options: Any):
        super().__init__(name="keeping")
        self.keep = keep
        self.kept = self.add_weight(
            shape=options.get("shape", ()), initializer="zeros", dtype=dtype, trainable=False
        )

    def call(self, x: Any) -> Any:
        self.kept.assign(self.keep(self.kept.value, x))
        return x


@planted()
def a_histogram() -> Case:
    def count(before: Any, x: Any) -> Any:
        places = ops.cast(ops.clip(x[:, 0] * 3, 0, 2), "int32")
        return before + ops.cast(ops.sum(ops.one_hot(places, 3), axis=0), "int32")

    return with_layers(Keeping(count, "int32", shape=(3,)))


@planted()
def a_running_sum() -> Case:
    return with_layers(Keeping(lambda before, x: before + ops.sum(x)))


@planted()
def a_running_mean() -> Case:
    return with_layers(Keeping(lambda before, x: 0.9 * before + 0.1 * ops.mean(x)))


@planted("The variable")
def a_running_maximum() -> Case:
    return with_layers(Keeping(lambda before, x: ops.maximum(before, ops.max(x))))


@planted()
def spectral_normalization() -> Case:
    stack = [layers.SpectralNormalization(layers.Dense(6)), layers.Dense(2)]
    return Case(sequential(*stack, optimizer=keras.optimizers.SGD(0.1)), features(4), Y)


@planted("which is none of the model's layers")
def an_annealed_loss() -> Case:
    weight = keras.Variable(0.0)

    def loss(y: Any, p: Any) -> Any:
        weight.assign(weight + 1)
        return ops.mean(ops.square(y - p), axis=-1) * weight

    return with_loss(loss)


@planted("rnn_state", "rnn_state")
def stateful_lstm() -> Case:
    stack = [layers.LSTM(3, stateful=True), layers.Dense(2)]
    model = keras.Sequential([keras.Input(batch_shape=(8, 6, 2)), *stack])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return Case(model, features(6, 2)[:8], Y[:8])


@planted()
def input_with_a_batch_size() -> Case:
    model = keras.Sequential([keras.Input((4,), batch_size=8), layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return Case(model, features(4)[:8], Y[:8])


@planted()
def boolean_state() -> Case:
    class Seen(layers.Layer):
        def build(self, shape: Any) -> None:
            zeros = lambda shape, dtype=None: ops.zeros(shape, "bool")  # noqa: E731
            self.seen = self.add_weight(dtype="bool", initializer=zeros, trainable=False)

        def call(self, x: Any) -> Any:
            self.seen.assign(ops.any(x > 0))
            return x

    return with_layers(Seen())


@planted()
def random_crop() -> Case:
    stack = [layers.RandomCrop(4, 4), layers.Flatten(), layers.Dense(2)]
    return Case(sequential(*stack, shape=(6, 6, 1)), features(6, 6, 1), Y)


@planted()
def unfrozen_without_compiling_again() -> Case:
    hidden = layers.Dense(3, "tanh")
    hidden.trainable = False
    model = sequential(hidden, layers.Dense(2))
    hidden.trainable = True
    return Case(model, features(4), Y)


@planted()
def eager_when_compiled() -> Case:
    return with_layers(run_eagerly=True)


# Overrides


class Overriding(keras.Model):
    """A model whose step is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.head(x)


def overriding(name: str, method: Callable[..., Any]) -> Case:
    model = type("Overriding", (Overriding,), {name: method})()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return Case(model, features(4), Y)


@planted("", "ddp_gd.gather_rows wants")
def centred_over_all_rows() -> Case:
    class Centred(layers.Layer):
        def call(self, x: Any) -> Any:
            every = ddp_gd.gather_rows(x)
            return x * ops.std(every, axis=0) - ops.mean(every, axis=0)

    return Case(sequential(layers.Dense(3), Centred(), layers.Dense(2)), features(4), Y)


@planted()
def train_step() -> Case:
    def step(self: Any, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x, training=True)))
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"my_loss": loss}

    return overriding("train_step", step)


@planted("The gradient by")
def compute_loss() -> Case:
    return overriding(
        "compute_loss",
        lambda self, x=None, y=None, y_pred=None, sample_weight=None, training=True: ops.sum(
            ops.abs(y - y_pred)
        ),
    )


@planted("Value 0 that the step returns")
def compute_metrics() -> Case:
    return overriding(
        "compute_metrics", lambda self, x, y, y_pred, sample_weight=None: {"loss": ops.sum(y_pred)}
    )


@planted("which the model doesn't keep")
def an_optimizer_elsewhere() -> Case:
    optimizer = keras.optimizers.Adam(0.1)

    def step(self: Any, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x, training=True)))
        weights = self.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)
        return {"my_loss": loss}

    return overriding("train_step", step)


@planted()
def optimizers_deep_in_attributes() -> Case:
    def step(self: Any, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x, training=True)))
        weights = self.trainable_variables
        for optimizer, weight, gradient in zip(
            self.kept["of"][0], weights, tape.gradient(loss, weights), strict=True
        ):
            optimizer.apply([gradient], [weight])
        return {"my_loss": loss}

    case = overriding("train_step", step)
    case.model.kept = {"of": ([keras.optimizers.Adam(0.1), keras.optimizers.RMSprop(0.1)],)}
    return case


@planted()
def gradients_of_the_graph() -> Case:
    """Asked of no tape, so each worker has its own; a mean over rows of what SGD makes of them."""

    def step(self: Any, data: Any) -> Any:
        x, y = data
        weights = [w.value for w in self.trainable_variables]
        loss = ops.mean(ops.square(y - self(x, training=True)))
        self.optimizer.apply(tf.gradients(loss, weights), self.trainable_variables)
        return {"my_loss": loss}

    return overriding("train_step", step)


@planted()
def writes_under_a_condition() -> Case:
    def step(self: Any, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x, training=True)))
        weights = self.trainable_variables
        gradients = tape.gradient(loss, weights)

        def update() -> Any:
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.assign_sub(0.1 * gradient)
            return tf.constant(0)

        tf.cond(tf.linalg.global_norm(gradients) > 0.5, update, lambda: tf.constant(0))
        return {"my_loss": loss}

    return overriding("train_step", step)


@planted("takes a gradient inside of")
def a_gradient_under_a_condition() -> Case:
    def step(self: Any, data: Any) -> Any:
        x, y = data
        weights = self.trainable_variables

        def gradients() -> Any:
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(y - self(x, training=True)))
            return [loss, *tape.gradient(loss, weights)]

        loss, *found = tf.cond(
            tf.greater(self.optimizer.iterations, -1),
            gradients,
            lambda: [tf.constant(0.0), *(tf.zeros_like(w) for w in weights)],
        )
        self.optimizer.apply(found, weights)
        return {"my_loss": loss}

    return overriding("train_step", step)


@planted()
def after_the_update() -> Case:
    """A moving average of the new weights, and a loss computed with them."""

    def step(self: Any, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x, training=True)))
        weights = self.trainable_variables
        gradients, norm = tf.clip_by_global_norm(tape.gradient(loss, weights), 0.3)
        self.optimizer.apply(gradients, weights)
        for weight, mean in zip(weights, self.means.weights, strict=True):
            mean.assign(0.9 * mean + 0.1 * weight)
        after = ops.mean(ops.square(y - self(x)))
        return {"my_loss": loss, "norm": norm, "after": after}

    case = overriding("train_step", step)
    case.model.means = layers.Dense(2)
    case.model.means.build((None, 4))
    case.model.means.trainable = False
    return case


@planted()
def train_step_of_the_instance() -> Case:
    case = CASES_OF["train_step"]()
    step = case.model.train_step
    plain = Overriding()
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    plain.train_step = step.__func__.__get__(plain)
    return Case(plain, features(4), Y)


CASES_OF = cases.CASES


def outcome(name: str, options: dict[str, Any]) -> str:
    """How a case ended: "" where it equals Keras, what refused it, or how it differs."""
    try:
        actual = compare.train(name, **options)
    except ddp_gd.ModelError as error:
        return str(error)
    if ddp_gd.rank() > 0:
        return ""
    found = compare.differences(compare.train(name, with_keras=True), actual, 5e-5)
    return f"DIFFERENT: {found}" if found else ""


def main(mode: str, micro_batch_size: str = "0", some: str = "0:1") -> int:
    """Train all cases, print what is not as expected, and return how many are not."""
    backend, _, bitwise = mode.partition(",")
    ddp_gd.init(backend, bitwise=bool(bitwise))
    options = {"micro_batch_size": int(micro_batch_size)} if int(micro_batch_size) else {}
    pieces = bool(bitwise or options)
    whole = ddp_gd.size() == 1 and not pieces
    wrong = 0
    first, every = map(int, some.split(":"))
    for name, (in_shares, in_pieces) in list(EXPECTED.items())[first::every]:
        wanted = "" if whole else in_pieces if pieces else in_shares
        if wanted == GHOST or (whole and in_shares == TRACED):
            continue  # the whole, traced as often as Keras does, would be the same
        found = outcome(name, options)
        if bool(found) != bool(wanted) or wanted not in found:
            wrong += 1
            print(f"{name}: expected {wanted or 'equal'!r}, found {found or 'equal'!r}")
    if ddp_gd.rank() == 0:
        print(f"compared {len(EXPECTED)} planted models at {ddp_gd.size()} workers")
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
