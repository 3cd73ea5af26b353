"""Steps are compiled once for a model as it was compiled, not at each call of fit or evaluate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import ddp_gd

X = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
Y = X.sum(1, keepdims=True)


class Traced(keras.layers.Dense):
    """Counts how often Python runs its forward pass in a training."""

    calls = 0

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Count, and compute."""
        Traced.calls += bool(training)
        return super().call(inputs)


def _model() -> keras.Model:
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((4,)), Traced(3), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def _traces(model: keras.Model, **options: Any) -> int:
    before = Traced.calls
    ddp_gd.fit(model, X, Y, 8, epochs=1, shuffle=False, verbose=0, **options)
    return Traced.calls - before


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 4}], ids=["whole", "pieces"])
def test_calling_fit_again_traces_nothing(options: dict[str, Any]) -> None:
    """As in Keras; and what is trained is what one call with more epochs trains."""
    model, other = _model(), _model()
    assert _traces(model, **options) > 0
    assert _traces(model, **options) == 0
    assert _traces(model, **options) == 0
    ddp_gd.fit(other, X, Y, 8, epochs=3, shuffle=False, verbose=0, **options)
    for one, three in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, three)


def _compile(model: keras.Model) -> None:
    model.compile(model.optimizer, "mse")


def _freeze(model: keras.Model) -> None:
    model.layers[0].trainable = False


def _clip(model: keras.Model) -> None:
    model.compile(keras.optimizers.SGD(0.1, clipnorm=1e-3), "mse")


def _seed(model: keras.Model) -> None:
    keras.utils.set_random_seed(1)
    keras.random.normal((1,))


@pytest.mark.parametrize("change", [_compile, _freeze, _clip, _seed])
def test_what_is_changed_is_compiled_anew(change: Callable[[keras.Model], None]) -> None:
    """Steps are kept only while the model is as it was."""
    model = _model()
    _traces(model)
    change(model)
    assert _traces(model) > 0


def test_other_rows_and_options_are_compiled_anew() -> None:
    """Steps are made for a kind of rows, and for options."""
    model = _model()
    _traces(model)
    assert _traces(model, sample_weight=np.ones(24, np.float32)) > 0
    assert _traces(model, terminate_on_nan=False) > 0
    assert _traces(model, terminate_on_nan=False) == 0


def test_a_request_to_stop_is_for_one_call() -> None:
    """Steps that were asked to stop go on in the next call."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = True

    model = _model()
    ddp_gd.fit(model, X, Y, 8, epochs=1, verbose=0, callbacks=[Stop()])
    assert int(model.optimizer.iterations) == 1
    ddp_gd.fit(model, X, Y, 8, epochs=1, verbose=0)
    assert int(model.optimizer.iterations) == 4


def test_a_copy_of_a_model_has_steps_of_its_own() -> None:
    """A clone, or a model that was saved and loaded, trains itself."""
    model = _model()
    _traces(model)
    clone = keras.models.clone_model(model)
    clone.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_weights()
    assert _traces(clone) > 0
    for now, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, was)
