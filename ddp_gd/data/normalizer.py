"""Mean and deviation of columns, measured in pieces, and the normalisation by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddp_gd.errors import DataError

BLOCK_VALUES = 1 << 20  # values turned into float64 at a time (8 MiB)
_MOST_PIECES = 1024


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and squared deviations of some rows' columns; float64, shape (columns,).

    Attributes:
        count: values that are not missing (NaN).
        mean: of these, less a shift that is the same for all rows; 0 where there are none.
        squares: sum of the squared deviations from the mean.
    """

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray, shift: np.ndarray) -> Moments:
        """Measure rows, shape (rows, ..., columns).

        The shift and then the mean are subtracted before anything is squared, so a column with
        mean 1e8 and deviation 1 keeps its digits.

        Source: the corrected two-pass algorithm; Chan, Golub and LeVeque, "Algorithms for
        computing the sample variance", The American Statistician 37 (1983), equation 1.7.
        """
        values = array.reshape(-1, array.shape[-1]).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # judged by `Normalizer`
            values -= shift
            missing = np.isnan(values)
            count = len(values) - missing.sum(axis=0, dtype=np.float64)
            some = np.maximum(count, 1.0)
            values[missing] = 0.0
            mean = values.sum(axis=0) / some
            values -= mean
            values[missing] = 0.0
            # `rest` is 0 but for rounding; taking it out removes the first-order error of the mean.
            rest = values.sum(axis=0)
            squares = np.square(values).sum(axis=0) - rest * rest / some
        return cls(count, mean + rest / some, np.maximum(squares, 0.0))

    def with_others(self, other: Moments) -> Moments:
        """The moments of both together; the same paper, equations 2.1."""
        count = self.count + other.count
        some = np.maximum(count, 1.0)
        with np.errstate(over="ignore", invalid="ignore"):
            delta = other.mean - self.mean
            mean = self.mean + delta * (other.count / some)
            squares = self.squares + other.squares
            squares = squares + delta * delta * (self.count * other.count / some)
        return Moments(count, mean, squares)


def pieces(rows: int, row_values: int) -> list[slice]:
    """Cut rows into consecutive pieces to be measured one by one, whoever does that.

    Returns:
        At most 1,024 slices, each of a multiple of what is turned into float64 at a time.
    """
    block = max(1, BLOCK_VALUES // row_values)
    blocks = -(-rows // block)
    size = block * -(-blocks // _MOST_PIECES)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def measure(
    take: Callable[[slice], np.ndarray], piece: slice, row_values: int, shift: np.ndarray
) -> Moments:
    """Moments of one of the `pieces`, which `take` reads rows of; about 8 MiB at a time."""
    block = max(1, BLOCK_VALUES // row_values)
    starts = range(piece.start, piece.stop, block)
    return together([Moments.of(take(slice(s, min(s + block, piece.stop))), shift) for s in starts])


def some_value(rows: np.ndarray) -> np.ndarray:
    """For each column a finite value of these rows, shape (rows, ..., columns); 0 without one."""
    values = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    finite = np.isfinite(values)
    first = values[finite.argmax(axis=0), np.arange(values.shape[1])]
    return np.where(finite.any(axis=0), first, 0.0)


def together(parts: Sequence[Moments]) -> Moments:
    """Join the parts, neighbours two by two: an order that depends on their number alone."""
    parts = list(parts)
    while len(parts) > 1:
        pairs = [a.with_others(b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    return parts[0]


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
    def fit(cls, array: np.ndarray) -> Normalizer:
        """Measure an array of training rows, shape (rows, ..., columns).

        Raises:
            DataError: the array has fewer than two axes, no rows, or values that are not finite or
                whose squares are not.
        """
        array = np.asarray(array)
        if array.ndim < 2 or array.size == 0:
            raise DataError(
                f"An array of shape {array.shape} cannot be normalised: it needs at least one row "
                "and a last axis of columns, shape (rows, ..., columns)."
            )
        if np.isnan(array).any():
            column = int(np.isnan(array).reshape(-1, array.shape[-1]).any(axis=0).argmax())
            raise DataError(f"Column {column} (counted from 0) has values that are not finite.")
        row_values = array[0].size
        cut = pieces(len(array), row_values)
        shift = some_value(array[:1])
        parts = [measure(array.__getitem__, p, row_values, shift) for p in cut]
        return cls.of(together(parts), shift)

    @classmethod
    def of(cls, moments: Moments, shift: np.ndarray, names: Sequence[str] = ()) -> Normalizer:
        """Make one of the training rows' moments, and the shift that they were measured with.

        Raises:
            DataError: a column has no value at all, or values whose squares are not finite.
        """
        count = moments.count
        mean = shift + moments.mean
        variance = moments.squares / np.maximum(count, 1.0)
        bad = ~(np.isfinite(mean) & np.isfinite(variance)) | (count == 0)
        if bad.any():
            column = int(bad.argmax())
            named = f"{names[column]!r}" if len(names) else f"{column} (counted from 0)"
            problem = "has values that are not finite, or too large to square"
            if count[column] == 0:
                problem = "has no value in the training rows"
            raise DataError(
                f"Column {named} cannot be normalised: it {problem}. Replace them, change the "
                "unit, or leave the column out."
            )
        return cls(mean=mean, scale=np.where(variance > 0, np.sqrt(variance), 1.0))

    def transform(self, array: np.ndarray) -> np.ndarray:
        """``(array - mean) / scale`` in float64, returned as float32, the dtype Keras trains in.

        Raises:
            DataError: the last axis is not the one that was measured.
        """
        array = self._check(array)
        result = np.empty(array.shape, np.float32)
        rows = max(1, BLOCK_VALUES * len(array) // max(1, array.size))
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
                f"An array of shape {array.shape} does not fit a normaliser of "
                f"{len(self.mean)} columns: give shape (rows, ..., {len(self.mean)})."
            )
        return array
