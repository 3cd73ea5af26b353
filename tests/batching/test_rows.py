"""Rows with numbers: read one by one, in threads, and only those of a share."""

from __future__ import annotations

import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from programs import compare
from programs.cases import WEIGHTS, features, sequential

import ddp_gd
from ddp_gd.batching.rows import NumberedRows

X, Y = features(4), features(1, seed=6)  # 13 rows
FIT = {"batch_size": 4, "shuffle": False, "verbose": 0, "epochs": 2}


def _network(**compiled: Any) -> keras.Model:
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    return sequential(layers.Dense(3, "tanh"), layers.Dense(1), **compiled)


class Rows:
    """Gives rows of a list, and notes which."""

    def __init__(self, rows: Any):
        self.rows, self.read = list(rows), []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        self.read.append(number)
        return self.rows[number]


class Many(Rows):
    """Also gives several at once, as Hugging Face's data sets do."""

    def __getitems__(self, numbers: list[int]) -> list[Any]:
        return [self[number] for number in numbers]


WAYS = {
    "x_y": (lambda: Rows(zip(X, Y, strict=True)), (), {}),
    "weights": (lambda: Many(zip(X, Y, WEIGHTS, strict=True)), (), {}),
    "beside": (lambda: Rows(X), (Y,), {"sample_weight": WEIGHTS}),
    "lists": (
        lambda: Many((list(map(float, x)), float(y[0])) for x, y in zip(X, Y, strict=True)),
        (),
        {},
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_rows_train_and_validate_as_arrays_do(name: str) -> None:
    """Rows give the updates of the arrays that they are rows of, the last ones held back."""
    make, y, options = WAYS[name]
    weighted = {} if name in ("x_y", "lists") else {"sample_weight": WEIGHTS}
    targets = Y[:, 0] if name == "lists" else Y
    outcomes = []
    for rows in (False, True):
        model = _network(weighted_metrics=["mse"])
        data = (make(), *y) if rows else (X, targets)
        more = options if rows else weighted
        history = ddp_gd.fit(model, *data, **more, validation_split=0.3, **FIT)
        outcomes.append(compare.outcome(model, history))
    assert compare.differences(*outcomes) == []
    np.testing.assert_array_equal(
        ddp_gd.predict(model, Rows(X), 4, 0), ddp_gd.predict(model, X, 4, 0)
    )


def test_dicts_of_columns_are_features() -> None:
    """A row that is a dict is the features by name; shuffled, every row comes once an epoch."""
    a, b = keras.Input((4,), name="a"), keras.Input((1,), name="b")
    model = keras.Model({"a": a, "b": b}, layers.Dense(1)(layers.Concatenate()([a, b])))
    model.compile("sgd", "mse")
    rows = Rows({"a": x, "b": y} for x, y in zip(X, Y, strict=True))
    rows.read.clear()
    ddp_gd.fit(model, rows, Y, batch_size=5, seed=3, verbose=0)
    assert sorted(rows.read[-13:]) == list(range(13))
    assert rows.read[-13:] != list(range(13))


def test_rows_are_read_several_at_once() -> None:
    """A row that takes long doesn't keep the others waiting."""
    both = threading.Barrier(4, timeout=30)

    class Slow(Rows):
        def __getitem__(self, number: int) -> Any:
            if armed:
                both.wait()
            return super().__getitem__(number)

    armed = False
    rows = NumberedRows(Slow(zip(X, Y, strict=True)))
    armed = True
    assert rows.take(np.arange(4))[0].tolist() == X[:4].tolist()


REFUSED = {
    "none": ([], ["Rows of 0 rows"]),
    "shape": ([*zip(X[:5], Y, strict=False), (X[0, :2], Y[0])], ["Row 5", "float32[2]"]),
    "objects": ([({1}, Y[0])], ["'set'", "no array of numbers"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_cant_be_used_are_named(name: str) -> None:
    """With the row's number, what it has, and what the others have."""
    rows, quoted = REFUSED[name]
    with pytest.raises(ddp_gd.DataError) as caught:
        ddp_gd.fit(_network(), Rows(rows), **FIT)
    assert [text for text in quoted if text not in str(caught.value)] == []
    with pytest.raises(ddp_gd.DataError, match=r"x has 13 rows and y 5"):
        ddp_gd.fit(_network(), Rows(X), Y[:5], **FIT)


# What Keras takes for arrays


class Series:
    """Looks like a Series of pandas, which need not be installed."""

    iloc = None

    def __init__(self, values: np.ndarray):
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values

    def __len__(self) -> int:
        return len(self.values)


class Torch:
    """Looks like a tensor of PyTorch that has a gradient."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise RuntimeError("can't call numpy() on a tensor that requires grad")

    def detach(self) -> Any:
        return self

    def cpu(self) -> np.ndarray:
        return self.values


def test_series_are_columns_and_tensors_are_arrays() -> None:
    """As Keras takes them: a Series is a column, a tensor of PyTorch leaves its gradient behind."""
    outcomes = []
    for x, y in ((X, Y), (Torch(X), Series(Y[:, 0]))):
        model = _network()
        outcomes.append(compare.outcome(model, ddp_gd.fit(model, x, y, **FIT)))
    assert compare.differences(*outcomes) == []


class Sparse:
    """Looks like a matrix of SciPy."""

    shape = (13, 4)

    def tocoo(self) -> Any:
        return self


@pytest.mark.parametrize(
    ("x", "how"),
    [
        (tf.ragged.constant([[1.0], [2.0, 3.0]]), "to_tensor() and a Masking layer"),
        (tf.sparse.from_dense(X), "tf.sparse.to_dense"),
        (Sparse(), "toarray()"),
    ],
)
def test_what_has_no_rows_of_one_shape_is_told_how_to(x: Any, how: str) -> None:
    """Ragged and sparse tensors are refused with what to convert them with."""
    with pytest.raises(ddp_gd.DataError) as caught:
        ddp_gd.fit(_network(), x, Y, verbose=0)
    assert how in str(caught.value)


def test_sparse_mini_batches_become_dense() -> None:
    """Those of a data set, and a ragged one is told how to become so."""
    sparse = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(X), Y)).batch(4)
    outcomes = []
    for data in (sparse, tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)):
        model = _network()
        outcomes.append(compare.outcome(model, ddp_gd.fit(model, data, verbose=0)))
    assert compare.differences(*outcomes) == []
    ragged = tf.data.Dataset.from_tensors((tf.ragged.constant([[1.0], [2.0, 3.0]]), Y[:2]))
    with pytest.raises(ddp_gd.DataError, match="a Masking layer"):
        ddp_gd.fit(_network(), ragged, verbose=0)
