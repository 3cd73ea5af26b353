"""The arguments of `keras.Model.fit`, `evaluate` and `predict`: all there, and what they mean."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from programs import compare
from programs.cases import WEIGHTS, features, sequential

import ddp_gd

pytestmark = pytest.mark.filterwarnings(
    # Keras reads a variable as an array, which NumPy 2 wants done in another way.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:.*ran out of data:UserWarning",  # Keras's
)
EARLY_END = "ignore:The data ran out after:UserWarning"
X, Y = features(4), features(1, seed=6)  # 13 rows
FIT = {"shuffle": False, "verbose": 0}


def _network(**compiled: Any) -> keras.Model:
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    return sequential(layers.Dense(3, "tanh"), layers.Dense(1), **compiled)


@pytest.mark.parametrize("name", ["fit", "evaluate", "predict"])
def test_every_argument_of_keras_is_there(name: str) -> None:
    """In Keras's order with Keras's defaults; ours come behind them."""
    theirs = inspect.signature(getattr(keras.Model, name)).parameters
    ours = inspect.signature(getattr(ddp_gd, name)).parameters
    wanted = [p for p in list(theirs)[1:] if p != "kwargs"]  # the first is the model
    assert list(ours)[1 : 1 + len(wanted)] == wanted
    others = {p for p in wanted if ours[p].default != theirs[p].default}
    assert others == ({"return_dict"} if name == "evaluate" else set())


class Recorder(keras.callbacks.Callback):
    """Writes down every hook with its number, and the model's flag that it sets."""

    def __init__(self, stop: tuple[str, int, str] | None = None):
        super().__init__()
        self.calls: list[tuple[str, int | None]] = []
        self.stop = stop

    def _note(self, name: str, number: int | None) -> None:
        self.calls.append((name, number))
        if self.stop is not None and (name, number) == self.stop[:2]:
            setattr(self.model, self.stop[2], True)


def _hook(name: str) -> Any:
    def call(self: Recorder, *arguments: Any, logs: Any = None) -> None:
        self._note(name, next((a for a in arguments if isinstance(a, int)), None))

    return call


for _name in dir(keras.callbacks.Callback):
    if _name.startswith("on_") and not _name.startswith("on_batch"):
        setattr(Recorder, _name, _hook(_name))


@pytest.mark.filterwarnings(EARLY_END)
@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("steps", [2, 3, 5, 7, 9])
def test_steps_per_epoch_go_on_where_the_epoch_before_ended(steps: int, at_once: int) -> None:
    """Seven mini-batches in epochs of any number of steps: Keras's updates, History and hooks."""
    outcomes, hooks = [], []
    for fit in (keras.Model.fit, ddp_gd.fit):
        model = _network(steps_per_execution=at_once)
        recorder = Recorder()
        history = fit(
            model, X, Y, 2, epochs=4, steps_per_epoch=steps, validation_data=(X, Y, WEIGHTS),
            validation_steps=2, validation_batch_size=3, callbacks=[recorder], **FIT,
        )  # fmt: skip
        outcomes.append(compare.outcome(model, history))
        hooks.append(recorder.calls)
    assert compare.differences(*outcomes) == []
    # Where the last execution is cut short, Keras begins one that has no step.
    assert hooks[0] == hooks[1]


def test_an_early_end_is_said() -> None:
    """As in Keras, it is a warning, with both numbers."""
    with pytest.warns(UserWarning, match="ran out after 7 of the 9 steps"):
        ddp_gd.fit(_network(), X, Y, 2, steps_per_epoch=9, **FIT)


def test_without_a_batch_size_the_steps_take_all_rows() -> None:
    """13 rows in 4 steps are mini-batches of 4; a batch size above 13 takes all."""
    for options in ({"steps_per_epoch": 4}, {}, {"batch_size": 100}):
        outcomes = []
        for fit in (keras.Model.fit, ddp_gd.fit):
            model = _network()
            outcomes.append(compare.outcome(model, fit(model, X, Y, **options, **FIT)))
        assert compare.differences(*outcomes) == []


@pytest.fixture
def limits() -> Iterator[None]:
    """Keras's, while a test runs."""
    keras.config.set_max_epochs(2)
    keras.config.set_max_steps_per_epoch(3)
    yield
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


@pytest.mark.usefixtures("limits")
@pytest.mark.filterwarnings("ignore:Limiting")
def test_limits_for_trying_out_hold() -> None:
    """`keras.config.set_max_epochs` and `set_max_steps_per_epoch` limit all three."""
    outcomes = []
    for fit in (keras.Model.fit, ddp_gd.fit):
        model = _network()
        history = fit(model, X, Y, 2, epochs=9, validation_data=(X, Y), **FIT)
        outcomes.append(compare.outcome(model, history))
    assert len(outcomes[1].history["loss"]) == 2
    assert compare.differences(*outcomes) == []
    assert len(ddp_gd.predict(model, X, 2, 0)) == 6


@pytest.mark.parametrize("at_once", [1, 3])
def test_evaluate_and_predict_call_hooks_as_keras(at_once: int) -> None:
    """Callbacks and `steps` of evaluate and predict, and every so many steps at once."""
    model = _network(steps_per_execution=at_once, metrics=["mae"])
    model.predict(X, verbose=0)
    for steps in (None, 3):
        theirs, ours = Recorder(), Recorder()
        a = model.evaluate(X, Y, 2, 0, WEIGHTS, steps, [theirs])
        b = ddp_gd.evaluate(model, X, Y, 2, 0, WEIGHTS, steps, [ours], return_dict=False)
        assert b == pytest.approx(a, rel=1e-5)
        a = model.predict(X, 2, 0, steps, [theirs])
        b = ddp_gd.predict(model, X, 2, 0, steps, [ours])
        np.testing.assert_allclose(b, a, rtol=1e-5)
        assert ours.calls == theirs.calls


def test_a_callback_stops_an_evaluation_and_a_prediction() -> None:
    """`model.stop_evaluating` and `stop_predicting` end them after that mini-batch, as in Keras."""
    model = _network()
    found = []
    for evaluate, predict in (
        (model.evaluate, model.predict),
        (
            lambda *a, **k: ddp_gd.evaluate(model, *a, **k),
            lambda *a, **k: ddp_gd.predict(model, *a, **k),
        ),
    ):
        stops = ("on_test_batch_end", 1, "stop_evaluating"), (
            "on_predict_batch_end", 2, "stop_predicting",
        )  # fmt: skip
        one, other = map(Recorder, stops)
        results = evaluate(X, Y, 2, 0, callbacks=[one], return_dict=True)
        outputs = predict(X, 2, 0, callbacks=[other])
        found.append((results["loss"], outputs.tolist(), one.calls, other.calls))
    assert len(found[1][1]) == 6
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-5)
    assert found[0][2:] == found[1][2:]


def test_a_callback_may_deal_with_nan() -> None:
    """TerminateOnNaN ends the training as in Keras, where we would raise an error."""
    x = X.copy()
    x[5] = np.nan
    histories = []
    for fit in (keras.Model.fit, ddp_gd.fit):
        callbacks = [keras.callbacks.TerminateOnNaN()]
        histories.append(fit(_network(), x, Y, 2, epochs=2, callbacks=callbacks, **FIT).history)
    assert [len(h["loss"]) for h in histories] == [1, 1]
    assert np.isnan(histories[1]["loss"][0])
    with pytest.raises(ddp_gd.NumericsError, match="step 3 of 7"):
        ddp_gd.fit(_network(), x, Y, 2, **FIT)


@pytest.mark.parametrize("name", ["steps_per_epoch", "validation_steps"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_what_is_no_number_of_steps_is_refused(name: str, value: Any) -> None:
    """With the argument's name and the value; nothing is trained."""
    model = _network()
    with pytest.raises(ddp_gd.ConfigError, match=rf"{name}={value!r} must be"):
        ddp_gd.fit(model, X, Y, validation_data=(X, Y), **{name: value})
