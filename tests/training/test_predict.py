"""`predict` in one process: what `keras.Model.predict` returns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from programs.items import ITEMS, Listed, X, elements

import ddp_gd

pytestmark = pytest.mark.filterwarnings(
    # Keras reads a variable as an array, which NumPy 2 wants done in another way.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
)


def _same(model: keras.Model, x: Any, again: Any = None, **options: Any) -> Any:
    """Compare with Keras: structure, dtypes, shapes, values."""
    actual = ddp_gd.predict(model, x, verbose=0, **options)
    wanted = model.predict(x if again is None else again, verbose=0, **options)
    keras.tree.assert_same_structure(wanted, actual)
    for one, other in zip(keras.tree.flatten(wanted), keras.tree.flatten(actual), strict=True):
        assert isinstance(other, type(one))
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(other, one, rtol=1e-6)
    return actual


def _network(*stack: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((4,)), *(stack or [layers.Dense(3)])])


@pytest.mark.parametrize("batch_size", [1, 5, 13, 32])
def test_arrays_are_predicted_as_in_keras(batch_size: int, tmp_path: Path) -> None:
    """Any batch size gives Keras's outputs, of arrays in memory and memory-mapped."""
    model = _network(layers.Dense(3), layers.Dropout(0.5), layers.BatchNormalization())
    np.save(tmp_path / "x.npy", X)
    for x in (X, np.load(tmp_path / "x.npy", mmap_mode="r"), X.astype("float64")):
        _same(model, x, batch_size=batch_size)


def test_data_sets_are_predicted_as_in_keras() -> None:
    """Items with and without targets give the outputs of their rows, in their order."""
    model = _network()
    alone = [x for x, _, _ in ITEMS]
    for make in (
        lambda: Listed(alone), lambda: Listed(ITEMS), lambda: Listed(ITEMS, workers=3),
        lambda: elements([(x,) for x in alone]), elements,
        lambda: tf.data.Dataset.from_tensor_slices(X).batch(4),
    ):  # fmt: skip
        np.testing.assert_array_equal(_same(model, make(), make()), _same(model, X))
    dataset = Listed(alone)
    ddp_gd.predict(model, dataset, verbose=0)
    assert dataset.calls[2:] == ["begin", 0, 1, 2, "end"]


def test_inputs_and_outputs_of_any_structure() -> None:
    """Dicts, tuples and lists come and go as in Keras, and every output keeps its dtype."""
    a, b = keras.Input((4,), name="a"), keras.Input((1,), dtype="int32", name="b")
    first, second = layers.Dense(2)(a), layers.Embedding(9, 3)(b)
    outputs = {
        "nested": [first, (second, keras.ops.argmax(second, -1))],
        "half": keras.ops.cast(first, "bfloat16"),
        "flag": first > 0,
    }
    numbers = np.arange(13, dtype="int32")[:, None] % 9
    _same(keras.Model({"a": a, "b": b}, outputs), {"a": X, "b": numbers}, batch_size=5)
    _same(keras.Model([a, b], [first, second]), [X, numbers], batch_size=5)
    _same(keras.Model((a, b), (second, first)), (X, numbers), batch_size=5)


def test_models_of_any_kind() -> None:
    """Models that are not built, or predict in a way of their own, do what they do in Keras."""

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def predict_step(self, data: Any) -> Any:
            return super().predict_step(data), keras.ops.mean(data[0])

    _same(keras.Sequential([layers.Dense(3)]), X, batch_size=5)
    _same(Own(), X, batch_size=5)
    _same(Own(), X)  # one mini-batch: one number


def test_the_weights_stay_and_nothing_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prediction changes no variable; only a bar that is asked for is shown, and on a terminal."""
    model = _network(layers.BatchNormalization(), layers.Dropout(0.5))
    before = ddp_gd.fingerprint(model)
    ddp_gd.predict(model, X)
    assert ddp_gd.fingerprint(model) == before
    assert capsys.readouterr().out == ""
    ddp_gd.predict(model, X, 5, verbose=1)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    ddp_gd.predict(model, X, 5, verbose=1)
    assert "3/3" in capsys.readouterr().out


class _Text(layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.strings.as_string(x)


class _Longest(layers.Layer):
    """As wide as the batch is long."""

    def call(self, x: Any) -> Any:
        return x @ tf.transpose(x)


CONFIG, DATA, MODEL = ddp_gd.ConfigError, ddp_gd.DataError, ddp_gd.ModelError
REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], list[str]]] = {
    "batch_0": (X, {"batch_size": 0}, CONFIG, ["batch_size=0"]),
    "batch_items": (Listed(), {"batch_size": 5}, CONFIG, ["batch_size=5", "PyDataset"]),
    "verbose": (X, {"verbose": 5}, CONFIG, ["verbose=5"]),
    "nothing": (None, {}, DATA, ["x is None"]),
    "empty": (iter([]), {}, DATA, ["generator has no items"]),
    "item": (Listed([ITEMS[0], (X[:, :3],)]), {}, DATA, ["item 1 of the PyDataset", "unlike"]),
    "endless": (elements().repeat(), {}, DATA, [".repeat()", "steps"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cant_be_predicted_is_refused(name: str) -> None:
    """A refusal quotes what is wrong."""
    x, options, kind, quoted = REFUSED[name]
    with pytest.raises(kind) as caught:
        ddp_gd.predict(_network(), x, **{"verbose": 0, **options})
    assert [text for text in quoted if text not in str(caught.value)] == []


class _Axes(keras.Sequential):
    """With an axis more in whole mini-batches of 5 rows."""

    def predict_step(self, data: Any) -> Any:
        shape = tf.cond(
            tf.shape(data)[0] == 5, lambda: tf.constant([5, 4, 1]), lambda: tf.constant([-1, 4])
        )
        return tf.reshape(data, shape)


def test_outputs_of_several_lengths_are_ragged() -> None:
    """As in Keras: every row as long as in its mini-batch."""
    model = _network(_Longest())
    expected, actual = model.predict(X, 5, verbose=0), ddp_gd.predict(model, X, 5, verbose=0)
    assert type(actual) is type(expected) is tf.RaggedTensor
    assert [len(row) for row in actual.to_list()] == [5] * 10 + [3] * 3
    np.testing.assert_allclose(actual.flat_values, expected.flat_values, rtol=1e-5)


def test_outputs_that_cant_be_put_together_are_refused() -> None:
    """Words, and rows with other numbers of axes, are refused and named."""
    with pytest.raises(ddp_gd.ModelError, match="string"):
        ddp_gd.predict(_network(_Text()), X, verbose=0)
    with pytest.raises(ddp_gd.ModelError, match=r"different kinds.*\[4\] and \[4, 1\]"):
        ddp_gd.predict(_Axes([keras.Input((4,))]), X, 5, verbose=0)
