"""Which rows are trained on, and the normalisation that is fitted on those rows alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

import numpy as np

from ddp_gd.errors import ConfigError, DataError

_BLOCK_VALUES = 1 << 20  # values turned into float64 at a time (8 MiB)


def train_validation_split(rows: int, validation_split: float) -> tuple[slice, slice]:
    """Training rows and validation rows: exactly those that ``keras.Model.fit`` takes.

    The last part of the rows, in the order they are given, is for validation.

    Args:
        rows: number of rows of the data, at least 1.
        validation_split: fraction of the rows held back, in [0, 1). At 0 all rows are trained on
            and the second slice is empty.

    Returns:
        Two slices; together they cover ``range(rows)`` once.

    Raises:
        ConfigError: ``validation_split`` is not a number in [0, 1).
        DataError: there are no rows, or one of the two sides would be left without any.

    Source: ``train_validation_split`` in Keras's ``array_slicing.py``.
    """
    if not isinstance(validation_split, Real) or not 0 <= validation_split < 1:
        raise ConfigError(
            f"validation_split is {validation_split!r}: give a number from 0 to below 1, the "
            "fraction of the rows that is held back"
        )
    if rows < 1:
        raise DataError(f"the data has {rows} rows: there is nothing to train on")
    if validation_split == 0:
        return slice(0, rows), slice(rows, rows)
    # Keras's own expression: another one, such as rows - ceil(rows * split), differs by a row.
    split_at = math.floor(rows * (1.0 - validation_split))
    if split_at in (0, rows):
        side = "training" if split_at == 0 else "validation"
        raise DataError(
            f"validation_split={validation_split} leaves no {side} row out of {rows}: give more "
            "rows or another fraction"
        )
    return slice(0, split_at), slice(split_at, rows)


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Shift and scale that give each column mean 0 and (population) standard deviation 1.

    A column is one entry of the last axis: a feature of (rows, columns), a channel of images of
    shape (rows, height, width, channels). All arithmetic is float64, whatever the array's dtype.

    Attributes:
        mean: float64, shape (columns,), in the units of the data.
        scale: float64, shape (columns,), in the units of the data; 1 where the column is constant.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, array: np.ndarray) -> "Normalizer":
        """Measure an array of training rows, shape (rows, ..., columns).

        The mean is found first and the squares are taken of the deviations from it, so a column
        with mean 1e8 and deviation 1 keeps its digits. Memory beside the array: about 8 MiB, or
        one row if that is more.

        Raises:
            DataError: the array has fewer than two axes, no rows, or values that are not finite or
                whose squares are not.

        Source: the corrected two-pass algorithm; Chan, Golub and LeVeque, "Algorithms for
        computing the sample variance", The American Statistician 37 (1983), equation 1.7.
        """
        array = np.asarray(array)
        if array.ndim < 2 or array.size == 0:
            raise DataError(
                f"an array of shape {array.shape} cannot be normalised: it needs at least one row "
                "and a last axis of columns, shape (rows, ..., columns)"
            )
        count = array.size // array.shape[-1]  # values in a column
        with np.errstate(over="ignore", invalid="ignore"):  # judged below
            # Shifting by the first values makes a constant column exactly constant.
            mean = array[(0,) * (array.ndim - 1)].astype(np.float64)
            mean = mean + sum((block - mean).sum(axis=0) for block in _blocks(array)) / count
            total = np.zeros_like(mean)
            squares = np.zeros_like(mean)
            for block in _blocks(array):
                deviation = block - mean
                total += deviation.sum(axis=0)
                squares += np.square(deviation).sum(axis=0)
            # total is 0 but for rounding; taking it out removes the first-order error of the mean.
            variance = np.maximum(squares - total * total / count, 0.0) / count
            mean = mean + total / count
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            columns = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(variance)))
            raise DataError(
                f"column {int(columns[0])} (counted from 0) cannot be normalised: it has values "
                "that are not finite, or too large to square. Replace them, or change the unit"
            )
        return cls(mean=mean, scale=np.where(variance > 0, np.sqrt(variance), 1.0))

    def transform(self, array: np.ndarray) -> np.ndarray:
        """``(array - mean) / scale`` in float64, returned as float32, the dtype Keras trains in.

        Raises:
            DataError: the last axis is not the one that was measured.
        """
        array = self._check(array)
        result = np.empty(array.shape, np.float32)
        rows = max(1, _BLOCK_VALUES * len(array) // max(1, array.size))
        for start in range(0, len(array), rows):
            block = array[start : start + rows].astype(np.float64)
            result[start : start + rows] = (block - self.mean) / self.scale
        return result

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """``array * scale + mean``, float64, back in the units of the data.

        Raises:
            DataError: the last axis is not the one that was measured.
        """
        return self._check(array).astype(np.float64) * self.scale + self.mean

    def _check(self, array: np.ndarray) -> np.ndarray:
        array = np.asarray(array)
        if array.ndim < 2 or array.shape[-1:] != self.mean.shape:  # else NumPy might broadcast
            raise DataError(
                f"an array of shape {array.shape} does not fit a normaliser of "
                f"{len(self.mean)} columns: give shape (rows, ..., {len(self.mean)})"
            )
        return array


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in float64 pieces, each (values, columns)."""
    rows = max(1, _BLOCK_VALUES * len(array) // array.size)
    for start in range(0, len(array), rows):
        yield array[start : start + rows].reshape(-1, array.shape[-1]).astype(np.float64)
