"""`fit` and `evaluate` in one process: callbacks, refusals, seeds, whole trainings."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from programs import compare
from programs.cases import BATCH, WEIGHTS, features, numbers, sequential

import ddp_gd

pytestmark = pytest.mark.filterwarnings(
    # Keras reads a variable as an array, which NumPy 2 wants done in another way.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    # Keras casts weights for its IoU metrics to integers.
    "ignore:You are passing weight as `float`:UserWarning",
)
X, Y = features(4), features(1, seed=6)
FIT = {"batch_size": BATCH, "shuffle": False, "verbose": 0}


def _network(**compiled: Any) -> keras.Model:
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    return sequential(layers.Dense(3, "tanh"), layers.Dense(1), **compiled)


def _both(x: Any, y: Any, make: Any = _network, **options: Any) -> list[compare.Outcome]:
    """Train with Keras and with ddp_gd in micro-batches; a function in `options` makes a value."""
    outcomes = []
    for fit, more in ((keras.Model.fit, {}), (ddp_gd.fit, {"micro_batch_size": 3})):
        model = make()
        made = {k: v() if inspect.isfunction(v) else v for k, v in options.items()}
        history = fit(model, x, y, **FIT, **more, **made)
        outcomes.append(compare.outcome(model, history))
    return outcomes


class _Noise(layers.Layer):
    """Adds noise in training only, from the generator that Keras makes when it's first needed."""

    def call(self, x: Any, training: bool = False) -> Any:
        return x + keras.random.normal(keras.ops.shape(x)) if training else x


def test_noise_without_a_seed_is_new_in_each_step() -> None:
    """And it is what Keras draws."""
    outcomes = []
    for fit in (keras.Model.fit, ddp_gd.fit):
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        model = sequential(_Noise(), layers.Dense(1))
        outcomes.append(compare.outcome(model, fit(model, X, Y, epochs=3, **FIT)))
    assert compare.differences(*outcomes) == []


# Callbacks

CALLBACKS = {
    "early_stopping": lambda: keras.callbacks.EarlyStopping(
        "val_loss", patience=1, restore_best_weights=True, min_delta=0.02
    ),
    "plateau": lambda: keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=0.2),
    "schedule": lambda: keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: rate / (1 + epoch)
    ),
    "swap_ema": lambda: keras.callbacks.SwapEMAWeights(),
    "terminate": lambda: keras.callbacks.TerminateOnNaN(),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_act_as_in_keras(name: str) -> None:
    """Callbacks that stop, restore, swap or change the learning rate do so as in Keras."""

    def make() -> keras.Model:
        return _network(optimizer=keras.optimizers.SGD(0.3, use_ema=True))

    held_out = (X[:5], Y[:5] + 1)
    outcomes = _both(
        X, Y, make, epochs=6, validation_data=held_out, callbacks=lambda: [CALLBACKS[name]()]
    )
    assert compare.differences(*outcomes) == []
    assert (len(outcomes[1].history["loss"]) < 6) == (name == "early_stopping")


def test_hooks_see_what_keras_shows_them() -> None:
    """Every hook is called as often, in the order, and with the running logs, as in Keras."""
    calls: list[list[tuple]] = []

    class Recorder(keras.callbacks.Callback):
        """Writes down what it is called with."""

        def __init__(self) -> None:
            super().__init__()
            calls.append([])

    def hook(name: str) -> Any:
        def call(self: Any, *arguments: Any, logs: Any = None) -> None:
            number = [a for a in arguments if isinstance(a, int)]
            logs = [*(a for a in arguments if isinstance(a, dict)), logs or {}][0]
            calls[-1].append((name, number, dict(logs)))

        return call

    for name in dir(keras.callbacks.Callback):
        if name.startswith("on_") and "predict" not in name:
            setattr(Recorder, name, hook(name))

    options = {"batch_size": 4, "epochs": 2, "validation_data": (X[:7], Y[:7]), "shuffle": False}
    _network().fit(X, Y, verbose=0, callbacks=[Recorder()], **options)
    ddp_gd.fit(_network(), X, Y, verbose=0, callbacks=[Recorder()], **options)
    assert [call[:-1] for call in calls[0]] == [call[:-1] for call in calls[1]]
    assert sum(call[0] == "on_train_batch_end" for call in calls[1]) == 8
    for expected, actual in zip(*calls, strict=True):
        assert actual[-1] == pytest.approx(expected[-1], rel=1e-5), expected


def test_a_stop_in_mid_epoch_ends_the_epoch_there() -> None:
    """`stop_training`, set in a batch hook, lets no further step happen."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = batch == 2

    outcomes = []
    for fit in (keras.Model.fit, ddp_gd.fit):
        model = _network()
        history = fit(model, X, Y, 3, epochs=3, callbacks=[Stop()], shuffle=False, verbose=0)
        outcomes.append(compare.outcome(model, history))
        assert int(model.optimizer.iterations) == 3
    assert compare.differences(*outcomes) == []


# Metrics

SCORES = np.random.default_rng(4).uniform(0.01, 1, (13, 3)).astype("float32")
ONE_HOT = np.eye(3, dtype="float32")[numbers(3)]
_SETTINGS = {
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.5},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
    "MeanIoU": {"num_classes": 3},
    "IoU": {"num_classes": 3, "target_class_ids": [0, 2]},
    "BinaryIoU": {"target_class_ids": [0, 1]},
    "OneHotIoU": {"num_classes": 3, "target_class_ids": [0, 2]},
    "OneHotMeanIoU": {"num_classes": 3},
    "TopKCategoricalAccuracy": {"k": 2},
    "SparseTopKCategoricalAccuracy": {"k": 2},
    "MeanMetricWrapper": {"fn": keras.losses.mean_squared_error},
}
BY_ENTRY = {"BinaryIoU", "IoU", "MeanIoU"}  # want a weight for each entry, not for each row
METRICS = sorted(
    name
    for name, value in vars(keras.metrics).items()
    if inspect.isclass(value)
    and issubclass(value, keras.metrics.Metric)
    and name not in {"Metric", "Mean", "Sum"}  # these two take values, not targets and outputs
)


@pytest.mark.parametrize("start", range(0, len(METRICS), 12))
def test_every_metric_is_that_of_all_rows(start: int) -> None:
    """Every metric that Keras ships has, computed in pieces, the value of all rows."""
    for sparse in (False, True):
        names = [
            name for name in METRICS[start : start + 12] if name.startswith("Sparse") == sparse
        ]
        if not names:
            continue

        def make(names: list[str] = names, sparse: bool = sparse) -> keras.Model:
            def metrics(weighted: bool) -> list:
                return [
                    getattr(keras.metrics, name)(**_SETTINGS.get(name, {}))
                    for name in names
                    if not (weighted and name in BY_ENTRY)
                ]

            keras.backend.clear_session()
            identity = layers.Dense(3, use_bias=False, kernel_initializer="identity")
            model = keras.Sequential([keras.Input((3,)), identity])
            loss = "sparse_categorical_crossentropy" if sparse else "mse"
            model.compile(
                keras.optimizers.SGD(0.0),
                loss,
                metrics=metrics(False),
                weighted_metrics=metrics(True),
            )
            return model

        y = numbers(3) if sparse else ONE_HOT
        outcomes = _both(SCORES, y, make, sample_weight=WEIGHTS)
        assert compare.differences(*outcomes) == []
        assert len(outcomes[1].history) == 1 + 2 * len(names) - len(BY_ENTRY & set(names))


def test_a_metric_with_many_numbers_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A metric with a number for each class is logged, printed and returned as Keras has it."""
    outcomes = []
    for fit in (keras.Model.fit, ddp_gd.fit):
        model = _network(metrics=[keras.metrics.F1Score()])
        outcomes.append(fit(model, X, (Y > 0).astype("float32"), BATCH, verbose=2, shuffle=False))
    for expected, actual in zip(*(o.history["f1_score"] for o in outcomes), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert "f1_score: [" in capsys.readouterr().out.splitlines()[-1]


def test_evaluate_is_keras_own() -> None:
    """`evaluate` returns Keras's names and numbers."""
    model = _network(metrics=["mae", keras.metrics.AUC(name="auc")])
    y = (Y > 0).astype("float32")
    expected = model.evaluate(X, y, 5, 0, WEIGHTS, return_dict=True)
    actual = ddp_gd.evaluate(model, X, y, 5, 0, WEIGHTS)
    assert actual == pytest.approx(expected, rel=1e-5)
    assert list(actual) == list(expected)


# Seeds and arrays


def test_a_run_can_be_repeated() -> None:
    """The same seed gives the same run; None takes it from `keras.utils.set_random_seed`."""

    def prints(seed: int | None) -> str:
        model = _network()  # sets the random seed
        ddp_gd.fit(model, X, Y, batch_size=2, seed=seed, verbose=0)
        return ddp_gd.fingerprint(model)

    assert prints(1) == prints(1)
    assert prints(None) == prints(None)
    assert len({prints(1), prints(2), prints(None)}) == 3


def test_memory_maps_train_as_arrays_do(tmp_path: Path) -> None:
    """A memory-mapped file trains as the array that is in it."""
    np.save(tmp_path / "x.npy", X)
    one, other = _network(), _network()
    ddp_gd.fit(one, X, Y, **FIT)
    ddp_gd.fit(other, np.load(tmp_path / "x.npy", mmap_mode="r"), Y, **FIT)
    assert ddp_gd.fingerprint(one) == ddp_gd.fingerprint(other)


# Refusals


def _nan(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[9] = np.nan
    return x


class OwnStep(keras.Model):
    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.sum(keras.ops.square(y - self(x)))
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"summed": loss}


def _own_step() -> keras.Model:
    model = OwnStep(*[(x := keras.Input((4,))), layers.Dense(1)(x)])
    model.compile("sgd", "mse")
    return model


def _uncompiled() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), layers.Dense(1)])


def _scalar_loss(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.square(y_true - y_pred))


def _compiled(**compiled: Any) -> Any:
    return lambda: _network(**compiled)


class NotASum(keras.metrics.Metric):
    def __init__(self) -> None:
        super().__init__(name="largest")
        self.largest = self.add_variable((), "zeros", aggregation="mean", name="largest_so_far")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(y_pred)))

    def result(self) -> Any:
        return self.largest.value


CONFIG, DATA, MODEL = ddp_gd.ConfigError, ddp_gd.DataError, ddp_gd.ModelError
PIECES = {"micro_batch_size": 3}
REFUSED: dict[str, tuple[Any, Any, dict[str, Any], type[Exception], list[str]]] = {
    "train_step": (_own_step, (X, Y), PIECES, MODEL, ["The gradient by", "a mean over"]),
    "reduction": (
        _compiled(loss=keras.losses.MeanSquaredError(reduction=None)), (X, Y), PIECES, MODEL,
        ["reduction=None", "shape"],
    ),
    "scalar_metric": (_compiled(metrics=[_scalar_loss]), (X, Y), PIECES, MODEL, ["_scalar_loss"]),
    "metric": (_compiled(metrics=[NotASum()]), (X, Y), PIECES, MODEL, ["'largest'", "not a sum"]),
    "uncompiled": (_uncompiled, (X, Y), {}, CONFIG, ["model.compile("]),
    "batch_0": (_network, (X, Y), {"batch_size": 0}, CONFIG, ["batch_size=0"]),
    "batch_-1": (_network, (X, Y), {"batch_size": -1}, CONFIG, ["batch_size=-1"]),
    "batch_1.5": (_network, (X, Y), {"batch_size": 1.5}, CONFIG, ["batch_size=1.5"]),
    "batch_True": (_network, (X, Y), {"batch_size": True}, CONFIG, ["batch_size=True"]),
    "batch_all": (_network, (X, Y), {"batch_size": "all"}, CONFIG, ["'all'", "'full'"]),
    "micro": (_network, (X, Y), {"micro_batch_size": 0}, CONFIG, ["micro_batch_size=0"]),
    "micro_1.5": (_network, (X, Y), {"micro_batch_size": 1.5}, CONFIG, ["micro_batch_size=1.5"]),
    "split_small": (_network, (X, Y), {"validation_split": 1e-17}, DATA, ["1e-17", "validation"]),
    "split_large": (_network, (X, Y), {"validation_split": 0.99}, DATA, ["0.99", "training"]),
    "split_2": (_network, (X, Y), {"validation_split": 2}, CONFIG, ["validation_split=2 must be"]),
    "frequency": (
        _network, (X, Y), {"validation_freq": 0, "validation_split": 0.2}, CONFIG,
        ["validation_freq=0"],
    ),
    "validation": (_network, (X, Y), {"validation_data": X}, DATA, ["'ndarray'", "(x, y)"]),
    "lengths": (_network, (X, Y[:9]), {}, DATA, ["x: 13", "y: 9"]),
    "no_rows": (_network, (X[:0], Y[:0]), {}, DATA, ["0 rows"]),
    "list": (_network, ([[1.0, 2.0]], Y), {}, DATA, ["'float'"]),
    "no_x": (_network, (None, Y), {}, DATA, ["x is None"]),
    "verbose": (_network, (X, Y), {"verbose": 7}, CONFIG, ["verbose=7"]),
    "seed": (_network, (X, Y), {"seed": -3, "shuffle": True}, CONFIG, ["seed=-3"]),
    "seed_large": (_network, (X, Y), {"seed": 2**63, "shuffle": True}, CONFIG, [f"seed={2**63}"]),
    "shuffle": (_network, (X, Y), {"shuffle": "rows"}, CONFIG, ["shuffle='rows'"]),
    "epochs": (_network, (X, Y), {"epochs": -1}, CONFIG, ["epochs=-1"]),
    "epochs_2.5": (_network, (X, Y), {"epochs": 2.5}, CONFIG, ["epochs=2.5"]),
    "class_weight": (_network, (X, Y), {"class_weight": [1, 2]}, CONFIG, ["class_weight=[1, 2]"]),
    "both_weights": (
        _network, (X, Y), {"class_weight": {0: 1.0}, "sample_weight": WEIGHTS}, CONFIG,
        ["class_weight and sample_weight"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cant_be_trained_is_refused_untouched(name: str) -> None:
    """A refusal quotes what is wrong in the user's words, and changes no weight."""
    make, data, options, kind, quoted = REFUSED[name]
    model = make()
    before = model.get_weights()
    with pytest.raises(kind) as caught:
        ddp_gd.fit(model, *data, **{**FIT, **options})
    assert [text for text in quoted if text not in str(caught.value)] == []
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_needs_all_rows_trains_in_one_piece() -> None:
    """Losses and metrics that can't be cut are Keras's where nothing is cut."""
    for compiled in ({"loss": "dice"}, {"loss": _scalar_loss, "metrics": [_scalar_loss]}):
        outcomes = []
        for fit in (keras.Model.fit, ddp_gd.fit):
            model = _network(**compiled)
            outcomes.append(compare.outcome(model, fit(model, X, Y, **FIT)))
        assert compare.differences(*outcomes) == []


def test_a_loss_that_is_no_number_stops_at_once() -> None:
    """NaN in a row ends the training at its step, and says where, in training and validation."""
    where = r"step 2 of 2, on rank 0 \(its rows: 8 to 12, counted from 0\)"
    with pytest.raises(ddp_gd.NumericsError, match=f"in epoch 1, {where}"):
        ddp_gd.fit(_network(), _nan(X), Y, epochs=3, **FIT)
    with pytest.raises(ddp_gd.NumericsError, match=f"in an evaluation, {where}"):
        ddp_gd.evaluate(_network(), _nan(X), Y, BATCH, verbose=0)
    options = {**FIT, "epochs": 2, "validation_freq": 2, "validation_data": (_nan(X), Y)}
    with pytest.raises(ddp_gd.NumericsError, match=f"in the validation of epoch 2, {where}"):
        ddp_gd.fit(_network(), X, Y, **options)


@pytest.mark.parametrize(
    ("bias", "optimizer", "where"),
    [
        (False, {}, "in epoch 1, step 1 of 2"),
        (True, {"clipvalue": 1.0}, "in epoch 1, step 1 of 2"),
        # The bias doesn't show it; the weights do, which are infinite then.
        (True, {}, "in epoch 1, step 2 of 2"),
    ],
)
def test_a_large_gradient_that_overflows(bias: bool, optimizer: dict, where: str) -> None:
    """Of a loss that doesn't: it ends the training, also where it would be clipped."""
    x = np.zeros((2, 70_000), "float32")
    x[0] = 1e20
    y = np.full((2, 1), 1e19, "float32")
    model = keras.Sequential(
        [keras.Input((70_000,)), layers.Dense(1, use_bias=bias, kernel_initializer="zeros")]
    )
    model.compile(keras.optimizers.SGD(0.1, **optimizer), "mse")
    with pytest.raises(ddp_gd.NumericsError, match=where):
        ddp_gd.fit(model, x, y, 1, shuffle=False, verbose=0)


@pytest.mark.parametrize(("rows", "more"), [(5, ""), (50, " and 30 more")])
def test_the_rows_of_a_shuffled_step_are_named(rows: int, more: str) -> None:
    """By their numbers in the arrays, not by their places in the epoch's order."""
    x, y = np.zeros((1000, 4)), np.zeros((1000, 1))
    x[123] = np.nan
    where = rf"on rank 0 \(its rows: ([\d, ]+){more}, counted from 0\)"
    with pytest.raises(ddp_gd.NumericsError, match=where) as caught:
        ddp_gd.fit(_network(), x, y, rows, seed=3, verbose=0)
    found = re.search(where, str(caught.value))
    assert found is not None
    numbers = found[1].split(", ")
    assert "123" in numbers
    assert len(numbers) == min(rows, 20)


class _AtMostThree(layers.Layer):
    """Fails when it sees more than three rows at once."""

    def call(self, x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less_equal(tf.shape(x)[0], 3)]):
            return tf.identity(x)


def test_nothing_larger_than_a_micro_batch_is_computed() -> None:
    """Training and validation both take their batches in pieces of micro_batch_size rows."""
    keras.backend.clear_session()
    model = sequential(_AtMostThree(), layers.Dense(1))
    history = ddp_gd.fit(model, X, Y, **FIT, validation_data=(X, Y), **PIECES)
    assert np.isfinite(history.history["val_loss"][0])
    with pytest.raises(tf.errors.InvalidArgumentError):
        ddp_gd.fit(model, X, Y, **FIT)
