"""The arrays given to `fit`: what is read, how it travels, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ddp_gd.batching.arrays import Arrays
from ddp_gd.batching.views import Reader, Selection
from ddp_gd.errors import ConfigError, DataError

X = np.arange(12.0).reshape(6, 2)
Y = np.arange(6)


class Counted(np.ndarray):
    """Remembers which rows were taken."""

    taken: list[int]

    def take(self, indices: Any, axis: Any = None, **options: Any) -> np.ndarray:
        self.taken += list(indices)
        return np.asarray(self).take(indices, axis=axis)


def test_only_the_asked_rows_are_read() -> None:
    """Taking rows reads those rows and no others, in the order asked for."""
    x = X.view(Counted)
    x.taken = []
    arrays = Arrays(x, Y)
    features, targets = arrays.take(np.array([4, 0]))
    assert x.taken == [4, 0]
    np.testing.assert_array_equal(features, X[[4, 0]])
    np.testing.assert_array_equal(targets, [4, 0])


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (X, tf.float32),  # floats become Keras's floatx
        (X.astype("float16"), tf.float32),
        (X.astype("int32"), tf.int32),  # integers stay what they are
        (X.astype("uint8"), tf.uint8),
        (X > 2, tf.bool),
        (X.astype(str), tf.string),
        (X.astype(str).astype(object), tf.string),
        (tf.constant(X), tf.float32),  # whatever turns into an array
    ],
)
def test_dtypes_are_keras_own(array: Any, dtype: tf.DType) -> None:
    """Floats travel as floatx, all else as it is, and the signature says so."""
    arrays = Arrays(array)
    assert arrays.signature.specs == [tf.TensorSpec([None, 2], dtype)]
    assert tf.convert_to_tensor(arrays.take(np.array([1]))[0]).dtype == dtype


def test_structures_come_back() -> None:
    """Nested inputs, targets and weights are unpacked as they were given."""
    x = {"b": X, "a": (X, [X])}
    arrays = Arrays(x, (Y, Y), Y)
    leaves = arrays.take(np.array([2, 5]))
    got_x, got_y, got_weight = arrays.signature.unpack(leaves)
    np.testing.assert_array_equal(got_x["a"][1][0], X[[2, 5]])
    assert set(got_x) == {"a", "b"}
    assert len(got_y) == len(got_weight) == 2  # one weight per row serves every output


def test_a_split_is_a_view() -> None:
    """Cutting off validation rows copies nothing."""
    train, validation = Arrays(X, Y).split(4)
    assert np.shares_memory(train[0], X)
    assert len(train[1]) == 4
    np.testing.assert_array_equal(validation[0], X[4:])


@pytest.mark.parametrize(
    ("classes", "weights"),
    [
        (np.array([0, 1, 2]), [0.5, 2, 1]),  # class 2 is not listed: 1
        (np.array([[1], [0], [1]]), [2, 0.5, 2]),  # one column of numbers
        (np.array([0.0, 1.0, 1.0]), [0.5, 2, 2]),  # numbers as floats
        (np.eye(3)[[1, 1, 0]], [2, 2, 0.5]),  # one-hot
    ],
)
def test_class_weight_table(classes: np.ndarray, weights: list[float]) -> None:
    """Each row weighs what its class weighs."""
    arrays = Arrays(X[:3], classes, class_weight={0: 0.5, 1: 2.0})
    *_, actual = arrays.take(np.arange(3))
    np.testing.assert_array_equal(actual, weights)


def test_a_description_tells_data_apart() -> None:
    """Other rows, dtypes, shapes or values have another description; the same data the same."""
    others = [X[:5], X.astype("float32"), X.reshape(6, 1, 2), X + 1, X[::-1]]
    descriptions = [str(Arrays(x).describe()) for x in [X, *others]]
    assert len(set(descriptions)) == len(descriptions)
    assert str(Arrays(X.copy()).describe()) == descriptions[0]


@pytest.mark.parametrize(
    ("arguments", "kind", "quoted"),
    [
        ((None,), DataError, "x is None"),
        (("text",), DataError, "'str'"),
        ((np.float32(3),), DataError, "single number"),
        ((X, Y[:4]), DataError, "x: 6, y: 4"),
        ((X, Y, Y[:4]), DataError, "sample_weight: 4"),
        (({"a": X, "b": X[:3]}, Y), DataError, "x: 3 and 6"),
        ((X[:0], Y[:0]), DataError, "0 rows"),
        ((np.array([[1], "a"], object),), DataError, "dtype object"),
        ((X, (Y, Y), X), DataError, r"shape \(6, 2\)"),
        ((X, (Y, Y), (Y,)), DataError, "built differently"),
        ((X, Y, None, [1.0]), ConfigError, r"class_weight=\[1.0\]"),
        ((X, Y, Y, {0: 1.0}), ConfigError, "were both given"),
        ((X, (Y, Y), None, {0: 1.0}), ConfigError, "one output"),
        ((X, None, None, {0: 1.0}), ConfigError, "one output"),
    ],
)
def test_what_has_no_rows_is_refused(arguments: tuple, kind: type, quoted: str) -> None:
    """What can't be read row by row is refused in the user's words."""
    with pytest.raises(kind, match=quoted):
        Arrays(*arguments)


def test_selections_of_other_data_are_not_the_same():
    """What a checkpoint compares tells data apart although the 64 rows that are looked at agree."""
    values = np.arange(20.0).reshape(10, 2)
    one, same, other = (
        Arrays(Selection(values, 10, key=key), np.ones(10)).describe() for key in "aab"
    )
    assert one == same != other


def test_a_selection_is_read_like_the_array_it_means():
    """Chosen, changed and cut rows are those of the array that was selected from by hand."""
    values = np.arange(40.0).reshape(20, 2)
    chosen = np.random.default_rng(0).permutation(20)[:12]
    selection = Selection(values, 12, chosen.__getitem__, lambda rows: (rows * 2).astype("int32"))
    expected = (values[chosen] * 2).astype("int32")
    assert (len(selection), selection.shape, selection.dtype) == (12, (12, 2), np.dtype("int32"))
    np.testing.assert_array_equal(selection.take(np.array([3, 0, 11])), expected[[3, 0, 11]])
    np.testing.assert_array_equal(selection[4:9].take(np.arange(5)), expected[4:9])


def test_rows_of_a_large_file_come_in_the_order_asked_for(tmp_path):
    """Reading a mapped file in its own order, in parts, changes nothing about the result."""
    values = np.random.default_rng(0).normal(size=(300_000, 9))
    np.save(tmp_path / "x.npy", values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    rows = np.random.default_rng(1).integers(0, len(values), 5000)
    for array, expected in ((mapped, values), (mapped[:, 3:5], values[:, 3:5])):
        reader = Reader(array)
        np.testing.assert_array_equal(reader.take(rows), expected[rows])
        np.testing.assert_array_equal(reader.take(rows[:3]), expected[rows[:3]])
        np.testing.assert_array_equal(reader.take(slice(7, 900)), expected[7:900])
