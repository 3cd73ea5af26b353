# ruff: noqa: D103 - a model's name says what it is
"""Models with training steps of their own, as Keras's examples have them, at any number of workers.

Usage: python -m programs.own_steps BACKEND[,bitwise] [MICRO_BATCH_SIZE] [NAME ...]

Trained on all workers of a job; rank 0 compares weights, optimizers' state and logs with
`keras.Model.fit` on the whole mini-batch, or finds the refusal that is expected. In bitwise mode it
prints what they have hashed to.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, metrics, ops
from programs import compare
from programs.cases import features, numbers

import ddp_gd

ROWS = {"x": features(6), "y": features(2, seed=6), "classes": numbers(3)}
CASES: dict[str, Callable[[], tuple]] = {}
# What a refusal says where there are several workers, and where there are micro-batches.
REFUSED: dict[str, tuple[str, str]] = {}
GHOST = "batch statistics of micro-batches are another layer"


def case(refused: str = "", pieces: str | None = None) -> Callable[..., Any]:
    def listed(build: Callable[[], tuple]) -> Callable[[], tuple]:
        CASES[build.__name__] = build
        REFUSED[build.__name__] = refused, refused if pieces is None else pieces
        return build

    return listed


def dense(*units: int, activation: str = "tanh", inputs: int = 6) -> keras.Sequential:
    hidden = [layers.Dense(n, activation) for n in units[:-1]]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(units[-1])])


class Sampling(layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(7)

    def call(self, inputs: Any) -> Any:
        mean, log_var = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_var) * noise


class VAE(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        given = keras.Input((6,))
        hidden = layers.Dense(5, "relu")(given)
        mean, log_var = layers.Dense(2)(hidden), layers.Dense(2)(hidden)
        self.encoder = keras.Model(given, [mean, log_var, Sampling()([mean, log_var])])
        self.decoder = dense(5, 6, inputs=2)
        self.total = metrics.Mean(name="total_loss")
        self.reconstruction = metrics.Mean(name="reconstruction_loss")
        self.kl = metrics.Mean(name="kl_loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.total, self.reconstruction, self.kl]

    def train_step(self, data: Any) -> Any:
        if isinstance(data, tuple):
            data = data[0]
        with tf.GradientTape() as tape:
            mean, log_var, z = self.encoder(data)
            reconstruction = ops.mean(ops.sum(ops.square(data - self.decoder(z)), axis=1))
            kl = -0.5 * (1 + log_var - ops.square(mean) - ops.exp(log_var))
            kl = ops.mean(ops.sum(kl, axis=1))
            total = reconstruction + kl
        gradients = tape.gradient(total, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.total.update_state(total)
        self.reconstruction.update_state(reconstruction)
        self.kl.update_state(kl)
        return {
            "loss": self.total.result(),
            "reconstruction_loss": self.reconstruction.result(),
            "kl_loss": self.kl.result(),
        }


@case()
def vae() -> tuple:
    model = VAE()
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    return model, ROWS["x"], None


class GAN(keras.Model):
    def __init__(self, normalises: bool = True) -> None:
        super().__init__()
        self.discriminator = keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8),
                layers.LeakyReLU(),
                layers.Dropout(0.3),
                layers.Dense(1),
            ]
        )
        self.generator = keras.Sequential(
            [
                keras.Input((3,)),
                layers.Dense(8, use_bias=False),  # statistics would leave nothing of a bias
                layers.BatchNormalization() if normalises else layers.Activation("tanh"),
                layers.ReLU(),
                layers.Dense(6),
            ]
        )
        self.seed_generator = keras.random.SeedGenerator(1337)

    def compile(self, d_optimizer: Any, g_optimizer: Any, loss_fn: Any) -> None:
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn
        self.d_loss_metric = metrics.Mean(name="d_loss")
        self.g_loss_metric = metrics.Mean(name="g_loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.d_loss_metric, self.g_loss_metric]

    def train_step(self, real: Any) -> Any:
        real = real[0] if isinstance(real, tuple) else real
        rows = ops.shape(real)[0]
        latent = keras.random.normal((rows, 3), seed=self.seed_generator)
        combined = ops.concatenate([self.generator(latent), real], axis=0)
        labels = ops.concatenate([ops.ones((rows, 1)), ops.zeros((rows, 1))], axis=0)
        labels += 0.05 * keras.random.uniform(ops.shape(labels), seed=self.seed_generator)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(combined, training=True))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights, strict=True))

        latent = keras.random.normal((rows, 3), seed=self.seed_generator)
        misleading = ops.zeros((rows, 1))
        with tf.GradientTape() as tape:
            predictions = self.discriminator(self.generator(latent, training=True))
            g_loss = self.loss_fn(misleading, predictions)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights, strict=True))
        self.d_loss_metric.update_state(d_loss)
        self.g_loss_metric.update_state(g_loss)
        return {"d_loss": self.d_loss_metric.result(), "g_loss": self.g_loss_metric.result()}


@case(pieces=GHOST)
def gan() -> tuple:
    return gan_without_statistics(normalises=True)


@case()
def gan_without_statistics(normalises: bool = False) -> tuple:
    model = GAN(normalises)
    model.compile(
        d_optimizer=keras.optimizers.Adam(0.01),
        g_optimizer=keras.optimizers.Adam(0.02),
        loss_fn=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    return model, ROWS["x"], None


class WGAN(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.discriminator, self.generator = dense(8, 1), dense(8, 6, inputs=3)
        self.seed_generator = keras.random.SeedGenerator(3)

    def compile(self, d_optimizer: Any, g_optimizer: Any) -> None:
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def gradient_penalty(self, rows: Any, real: Any, fake: Any) -> Any:
        alpha = keras.random.uniform((rows, 1), seed=self.seed_generator)
        mixed = real + alpha * (fake - real)
        with tf.GradientTape() as tape:
            tape.watch(mixed)
            predicted = self.discriminator(mixed, training=True)
        (slope,) = tape.gradient(predicted, [mixed])
        norm = ops.sqrt(ops.sum(ops.square(slope), axis=1))
        return ops.mean((norm - 1.0) ** 2)

    def train_step(self, real: Any) -> Any:
        real = real[0] if isinstance(real, tuple) else real
        rows = ops.shape(real)[0]
        for _ in range(2):
            latent = keras.random.normal((rows, 3), seed=self.seed_generator)
            with tf.GradientTape() as tape:
                fake = self.generator(latent, training=True)
                cost = ops.mean(self.discriminator(fake, training=True)) - ops.mean(
                    self.discriminator(real, training=True)
                )
                d_loss = cost + 10.0 * self.gradient_penalty(rows, real, fake)
            gradients = tape.gradient(d_loss, self.discriminator.trainable_variables)
            self.d_optimizer.apply_gradients(
                zip(gradients, self.discriminator.trainable_variables, strict=True)
            )
        latent = keras.random.normal((rows, 3), seed=self.seed_generator)
        with tf.GradientTape() as tape:
            g_loss = -ops.mean(self.discriminator(self.generator(latent, training=True)))
        gradients = tape.gradient(g_loss, self.generator.trainable_variables)
        self.g_optimizer.apply_gradients(
            zip(gradients, self.generator.trainable_variables, strict=True)
        )
        return {"d_loss": d_loss, "g_loss": g_loss}


@case()
def wgan_gp() -> tuple:
    model = WGAN()
    model.compile(
        keras.optimizers.Adam(0.01, beta_1=0.5, beta_2=0.9), keras.optimizers.Adam(0.01, beta_1=0.5)
    )
    return model, ROWS["x"], None


class Distiller(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = dense(9, 3), dense(4, 3)
        self.teacher.trainable = False

    def compile(self, distillation_loss: Any, **compiled: Any) -> None:
        super().compile(**compiled)
        self.distillation_loss = distillation_loss

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
        training: bool = True,
    ) -> Any:  # fmt: skip
        teacher = self.teacher(x, training=False)
        student = super().compute_loss(x, y, y_pred, sample_weight, training)
        distilled = self.distillation_loss(
            ops.softmax(teacher / 3.0, axis=1), ops.softmax(y_pred / 3.0, axis=1)
        )
        return 0.1 * student + 0.9 * 9.0 * distilled

    def call(self, x: Any) -> Any:
        return self.student(x)


@case()
def distiller() -> tuple:
    model = Distiller()
    model.compile(
        optimizer=keras.optimizers.Adam(0.02),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["sparse_categorical_accuracy"],
        distillation_loss=keras.losses.KLDivergence(),
    )
    return model, ROWS["x"], ROWS["classes"]


class Contrastive(keras.Model):
    def __init__(self, gathers: bool) -> None:
        super().__init__()
        self.encoder = dense(8, 4)
        self.gathers = gathers
        self.noise = layers.GaussianNoise(0.1, seed=5)

    def train_step(self, data: Any) -> Any:
        data = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            views = [self.encoder(self.noise(data, training=True)) for _ in range(2)]
            if self.gathers:
                views = [ddp_gd.gather_rows(view) for view in views]
            one, two = (ops.normalize(view, axis=1) for view in views)
            similar = ops.matmul(one, ops.transpose(two)) / 0.1
            labels = ops.arange(ops.shape(one)[0])
            loss = ops.mean(
                ops.sparse_categorical_crossentropy(labels, similar, from_logits=True)
                + ops.sparse_categorical_crossentropy(
                    labels, ops.transpose(similar), from_logits=True
                )
            )
        weights = self.encoder.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"c_loss": loss}


@case(pieces="ddp_gd.gather_rows wants")
def simclr() -> tuple:
    model = Contrastive(gathers=True)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    return model, ROWS["x"], None


@case("The gradient by")
def simclr_without_gathering() -> tuple:
    model = Contrastive(gathers=False)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    return model, ROWS["x"], None


class Diffusion(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.ema_network = dense(8, 6, inputs=7), dense(8, 6, inputs=7)
        self.ema_network.set_weights(self.network.get_weights())
        self.normalizer = layers.Normalization()
        self.normalizer.adapt(ROWS["x"])
        self.seed_generator = keras.random.SeedGenerator(11)

    def compile(self, **compiled: Any) -> None:
        super().compile(**compiled)
        self.noise_loss_tracker = metrics.Mean(name="n_loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.noise_loss_tracker]

    def train_step(self, data: Any) -> Any:
        data = data[0] if isinstance(data, tuple) else data
        data = self.normalizer(data, training=True)
        noises = keras.random.normal(ops.shape(data), seed=self.seed_generator)
        times = keras.random.uniform((ops.shape(data)[0], 1), seed=self.seed_generator)
        mixed = ops.cos(times) * data + ops.sin(times) * noises
        with tf.GradientTape() as tape:
            predicted = self.network(ops.concatenate([mixed, times], axis=1), training=True)
            loss = self.loss(noises, predicted)
        weights = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.noise_loss_tracker.update_state(loss)
        for weight, ema in zip(self.network.weights, self.ema_network.weights, strict=True):
            ema.assign(0.9 * ema + 0.1 * weight)
        return {m.name: m.result() for m in self.metrics}


@case()
def diffusion() -> tuple:
    model = Diffusion()
    model.compile(
        optimizer=keras.optimizers.AdamW(0.01, weight_decay=1e-3),
        loss=keras.losses.MeanSquaredError(),
    )
    return model, ROWS["x"], None


class ActorCritic(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor, self.critic = dense(8, 5), dense(3, inputs=5), dense(1, inputs=5)

    def call(self, x: Any) -> Any:
        hidden = ops.relu(self.body(x))
        return ops.softmax(self.actor(hidden)), self.critic(hidden)

    def train_step(self, data: Any) -> Any:
        x, rewards = data
        with tf.GradientTape(persistent=True) as tape:
            probabilities, values = self(x, training=True)
            advantage = rewards[:, :1] - values
            chosen = ops.log(probabilities[:, :1] + 1e-6)
            actor_loss = -ops.mean(chosen * ops.stop_gradient(advantage))
            critic_loss = ops.mean(keras.losses.huber(rewards[:, :1], values))
            loss = actor_loss + critic_loss
        gradients = tape.gradient(loss, self.trainable_variables)
        gradients, norm = tf.clip_by_global_norm(gradients, 0.5)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss, "actor": actor_loss, "critic": critic_loss, "norm": norm}


@case()
def actor_critic() -> tuple:
    model = ActorCritic()
    model.compile(optimizer=keras.optimizers.RMSprop(0.01))
    return model, ROWS["x"], ROWS["y"]


class CompiledParts(keras.Model):
    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred, sample_weight=sample_weight)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred, sample_weight=sample_weight)
        return {m.name: m.result() for m in self.metrics}


@case(pieces=GHOST)
def compiled_parts() -> tuple:
    return compiled_parts_without_statistics(normalises=True)


@case()
def compiled_parts_without_statistics(normalises: bool = False) -> tuple:
    given = keras.Input((6,))
    hidden = layers.Dense(7, use_bias=False)(given)
    if normalises:
        hidden = layers.BatchNormalization()(hidden)
    hidden = layers.Dropout(0.2)(hidden)
    model = CompiledParts(given, layers.Dense(2)(hidden))
    model.compile("adam", keras.losses.MeanSquaredError("mean_with_sample_weight"), metrics=["mae"])
    weights = np.random.default_rng(2).uniform(0, 3, len(ROWS["x"])).astype("float32")
    return model, ROWS["x"], ROWS["y"], {"sample_weight": weights}


class CustomModel(keras.Model):
    """That of Keras's own test of custom steps."""

    def __init__(self) -> None:
        super().__init__()
        self.head = dense(5, 2)
        self.loss_tracker = metrics.Mean(name="loss")
        self.mae_metric = metrics.MeanAbsoluteError(name="mae")
        self.loss_fn = keras.losses.MeanSquaredError()

    def call(self, x: Any) -> Any:
        return self.head(x)

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.loss_fn(y, y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.loss_tracker.update_state(loss)
        self.mae_metric.update_state(y, y_pred)
        return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

    def test_step(self, data: Any) -> Any:
        x, y = data
        y_pred = self(x, training=False)
        self.loss_tracker.update_state(self.loss_fn(y, y_pred))
        self.mae_metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker, self.mae_metric]


@case()
def custom_fit_test() -> tuple:
    model = CustomModel()
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    return model, ROWS["x"], ROWS["y"], {"validation_split": 0.2}


class Summed(keras.Model):
    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.sum(ops.square(y - self(x, training=True)))
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"summed": loss}


@case("The gradient by")
def summed() -> tuple:
    given = keras.Input((6,))
    model = Summed(given, layers.Dense(2)(given))
    model.compile(keras.optimizers.SGD(0.001))
    return model, ROWS["x"], ROWS["y"]


class NumpyNoise(keras.Model):
    def train_step(self, data: Any) -> Any:
        x, y = data
        noise = tf.numpy_function(
            lambda a: np.random.normal(size=a.shape).astype("float32"), [x], x.dtype
        )
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x + tf.ensure_shape(noise, x.shape))))
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"noisy": loss}


@case("another time")
def numpy_noise() -> tuple:
    given = keras.Input((6,))
    model = NumpyNoise(given, layers.Dense(2)(given))
    model.compile(keras.optimizers.SGD(0.01))
    return model, ROWS["x"], ROWS["y"]


def trained(name: str, with_keras: bool, **more: Any) -> compare.Outcome:
    """Train a case for two epochs; all variables, of all optimizers, too."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    model, x, y, *own = CASES[name]()
    fit = type(model).fit if with_keras else ddp_gd.fit
    fixed = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    history = fit(model, x, y, **{**fixed, **dict(*own), **more})
    owned = [v for v in vars(model).values() if isinstance(v, keras.optimizers.Optimizer)]
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    variables += [v for o in {id(o): o for o in owned}.values() for v in o.variables]
    arrays = {f"{n} {v.path}": v.value.numpy() for n, v in enumerate(variables)}
    return compare.Outcome(arrays, dict(sorted(history.history.items())))


LOOPS = ("supervised", "adversarial", "variables")


class Loops:
    """Loops by hand: what makes them, and what each step returns."""

    @staticmethod
    def supervised(decorate: Any) -> Iterator[Any]:
        model, optimizer = dense(8, 2), keras.optimizers.Adam(0.01)
        dropout, metric = layers.Dropout(0.3, seed=2), metrics.MeanSquaredError()

        @decorate
        def step(x: Any, y: Any, weight: Any) -> Any:
            with tf.GradientTape() as tape:
                predicted = model(dropout(x, training=True), training=True)
                loss = weight * tf.reduce_mean(tf.square(y - predicted))
            weights = model.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)
            metric.update_state(y, predicted)
            return {"loss": loss, "predicted": predicted, "nothing": None}

        for x, y in batches(ROWS["x"], ROWS["y"]):
            found = step(x, y, weight=tf.constant(1.5))
            yield found["loss"], found["predicted"], metric.result()
        yield from model.weights + optimizer.variables

    @staticmethod
    def adversarial(decorate: Any) -> Iterator[Any]:
        models = dense(8, 1), dense(8, 6, inputs=3)
        optimizers = keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.02, momentum=0.9)
        seeds = keras.random.SeedGenerator(4)
        entropy = keras.losses.BinaryCrossentropy(from_logits=True)

        @decorate
        def step(real: Any) -> Any:
            judge, maker = models
            latent = keras.random.normal((tf.shape(real)[0], 3), seed=seeds)
            with tf.GradientTape() as judging, tf.GradientTape() as making:
                fake, true = judge(maker(latent)), judge(real)
                judged = entropy(tf.ones_like(true), true) + entropy(tf.zeros_like(fake), fake)
                made = entropy(tf.ones_like(fake), fake)
            by_judge = judging.gradient(judged, judge.trainable_variables)
            by_maker = making.gradient(made, maker.trainable_variables)
            optimizers[0].apply_gradients(zip(by_judge, judge.trainable_variables, strict=True))
            optimizers[1].apply_gradients(zip(by_maker, maker.trainable_variables, strict=True))
            return judged, made

        for (x,) in batches(ROWS["x"]):
            yield from step(x)
        yield from models[0].weights + models[1].weights

    @staticmethod
    def variables(decorate: Any) -> Iterator[Any]:
        """A loop of tf.Variables that are made on the first call, and Python's own branches."""
        made: dict[str, Any] = {}

        @decorate
        def step(x: Any, y: Any) -> Any:
            if not made:
                made["w"] = tf.Variable(tf.ones([6, 2]) * 0.1)
                made["steps"] = tf.Variable(0)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(y - tf.matmul(x, made["w"])))
            (gradient,) = tape.gradient(loss, [made["w"]])
            if made["steps"] < 2:
                gradient *= 0.5
            made["w"].assign_sub(0.1 * gradient)
            made["steps"].assign_add(1)
            return loss

        for x, y in batches(ROWS["x"], ROWS["y"]):
            yield step(x, y)
        yield from made.values()


def batches(*arrays: Any) -> Iterator[Any]:
    """Two epochs of mini-batches of 8 rows; the last one of each is smaller."""
    for _ in range(2):
        for first in range(0, len(arrays[0]), 8):
            yield [a[first : first + 8] for a in arrays]


def looped(name: str, decorate: Any) -> compare.Outcome:
    """Everything that a loop by hand leaves."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    left = keras.tree.flatten(list(getattr(Loops, name)(decorate)))
    return compare.Outcome({str(n): np.array(v) for n, v in enumerate(left)}, {})


def bits(outcome: compare.Outcome) -> str:
    """A number that is the same only where all values are."""
    words = [array.tobytes() for array in outcome.arrays.values()]
    digest = hashlib.sha256(b"".join([*words, repr(outcome.history).encode()]))
    return digest.hexdigest()[:12]


def compared(name: str, wanted: str, options: dict[str, Any], bitwise: bool) -> bool:
    """Train a case, and print what is not as expected; tell whether something is not."""
    found, ghost = "", wanted == GHOST
    wanted = "" if ghost else wanted
    try:
        actual = trained(name, with_keras=False, **options)
        if ddp_gd.rank() == 0 and bitwise:
            print(f"bits of {name}: {bits(actual)}", flush=True)
        if ddp_gd.rank() == 0 and name != "numpy_noise" and not ghost:
            found = "; ".join(compare.differences(trained(name, True), actual, 5e-5))
    except ddp_gd.ModelError as error:
        found = str(error)
    wrong = (bool(found) != bool(wanted) and ddp_gd.rank() == 0) or wanted not in found
    if wrong:
        print(f"{name}: expected {wanted or 'equal'!r}, found {found or 'equal'!r}", flush=True)
    return wrong


def main(mode: str, *arguments: str) -> int:
    """Train the cases, print what is not as expected, and return how many are not."""
    backend, _, bitwise = mode.partition(",")
    ddp_gd.init(backend, bitwise=bool(bitwise))
    size = int(arguments[0]) if arguments and arguments[0].isdigit() else None
    names = arguments[1:] if size else arguments
    pieces = bool(bitwise or size)
    wrong = 0
    for name in [n for n in names if n != "loops"] if names else CASES:
        wanted = REFUSED[name][pieces] if ddp_gd.size() > 1 or pieces else ""
        wrong += compared(name, wanted, {"micro_batch_size": size} if size else {}, bool(bitwise))
    for name in LOOPS if not names or "loops" in names else ():
        actual = looped(name, functools.partial(ddp_gd.step, micro_batch_size=size))
        if ddp_gd.rank() == 0 and bitwise:
            print(f"bits of loop {name}: {bits(actual)}", flush=True)
        if found := "; ".join(compare.differences(looped(name, tf.function), actual, 5e-5)):
            wrong += 1
            print(f"loop {name}: {found}", flush=True)
    if ddp_gd.rank() == 0:
        print(f"compared {len(names or CASES)} steps at {ddp_gd.size()} workers")
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
