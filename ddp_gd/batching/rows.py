"""Rows that have numbers and are read one by one: whatever has `__len__` and `__getitem__`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from keras import tree

from ddp_gd.batching.arrays import Arrays, Signature
from ddp_gd.batching.batches import in_words, unpacked
from ddp_gd.errors import DataError

THREADS = 8  # rows are waited for, on disks and networks, more than computed
_COMPARED = 4  # reading a row may take long


class NumberedRows:
    """Rows of a data set, read when they are wanted, several at once; in the place of `Arrays`.

    Args:
        x: its `x[i]` is row i: features, or without `y` also `(x, y)` or `(x, y, sample_weight)`.
            What is in a row may be nested in dicts and tuples. If it has `__getitems__`, that gets
            a list of numbers, and returns a list of rows.
        y: arrays of targets, or None.
        sample_weight: arrays of weights, or None.
        class_weight: weight of each class number, or None; see `Arrays`.

    Attributes:
        rows: how many there are.
        signature: as of `Arrays`.

    Raises:
        DataError: there are none, or the first one can't be used.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
    ):
        self.rows = len(x)
        self._x, self._kind = x, type(x).__name__
        self._class_weight = class_weight
        if self.rows == 0:
            raise DataError(f"x is a {self._kind} of 0 rows; at least one is needed.")
        self._beside = None
        if y is not None:
            self._beside = Arrays(y, sample_weight)
            if self._beside.rows != self.rows:
                raise DataError(
                    f"x has {self.rows} rows and y {self._beside.rows}; they must agree."
                )
            self._structure = self._beside.signature
        self._readers = ThreadPoolExecutor(THREADS, thread_name_prefix="ddp_gd_rows")
        self.signature: Signature = self._arrays(np.zeros(1, np.int64)).signature

    def split(self, rows: int) -> tuple[Any, Any]:
        """Cut off the rows from number `rows` on: two `(x, y, sample_weight)`."""
        parts = []
        for first, stop in ((0, rows), (rows, self.rows)):
            y = weight = None
            if self._beside is not None:
                numbers = np.arange(first, stop)
                y, weight, _ = self._structure.unpack(self._beside.take(numbers))
            parts.append((Part(self._x, first, stop), y, weight))
        return parts[0], parts[1]

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Read these rows, in this order, as `signature` describes them.

        Raises:
            DataError: one of them is unlike the first.
        """
        if len(rows) == 0:
            shapes = [(0, *spec.shape[1:]) for spec in self.signature.specs]
            types = [spec.dtype.as_numpy_dtype for spec in self.signature.specs]
            return [np.empty(s, t) for s, t in zip(shapes, types, strict=True)]
        arrays = self._arrays(rows)
        if arrays.signature != self.signature:
            raise DataError(
                f"Some of the rows {rows[:8].tolist()} ... of the {self._kind} are unlike row 0: "
                f"they have {in_words(arrays.signature)}, row 0 {in_words(self.signature)}. Give "
                "all of them the same structure, dtypes and shapes."
            )
        return arrays.take(np.arange(len(rows)))

    def describe(self) -> dict[str, str]:
        """What must be the same on every worker, in words: a few rows among it."""
        found = hashlib.sha256()
        for leaf in self.take(np.linspace(0, self.rows - 1, _COMPARED).astype(np.int64)):
            text = leaf.dtype == object
            found.update(repr(leaf.tolist()).encode() if text else leaf.tobytes())
        return {
            "data": f"{self.rows} rows of {self._kind}: {in_words(self.signature)}",
            f"content (SHA-256 of {_COMPARED} rows)": found.hexdigest()[:16],
        }

    def _arrays(self, rows: np.ndarray) -> Arrays:
        """Read these rows, and stack them."""
        numbers = [int(row) for row in rows]
        many = getattr(self._x, "__getitems__", None)
        found = many(numbers) if many else self._readers.map(self._x.__getitem__, numbers)
        stacked = self._stacked(numbers, map(_as_arrays, found))
        if self._beside is not None:
            y, weight, _ = self._structure.unpack(self._beside.take(np.asarray(rows)))
            return Arrays(stacked, y, weight, self._class_weight)
        return Arrays(*unpacked(stacked), class_weight=self._class_weight)

    def _stacked(self, numbers: list[int], found: Iterator[Any]) -> Any:
        first, *others = found
        for number, row in zip(numbers[1:], others, strict=True):
            same = [
                a is not None and b is not None and a.shape == b.shape
                for a, b in zip(tree.flatten(first), tree.flatten(row), strict=False)
            ]
            if not all(same) or len(tree.flatten(first)) != len(tree.flatten(row)):
                raise DataError(
                    f"Row {number} of the {self._kind} has {_shapes(row)}, and row {numbers[0]} "
                    f"{_shapes(first)}. Give all rows the same structure and shapes."
                )
        return tree.map_structure(lambda *leaves: np.stack(leaves), first, *others)


class Part:
    """Consecutive rows of a data set.

    Args:
        x: the data set.
        first: its first row.
        stop: its first row that is not among them.
    """

    def __init__(self, x: Any, first: int, stop: int):
        self._x, self._first, self._stop = x, first, stop
        many: Callable[[list[int]], Any] | None = getattr(x, "__getitems__", None)
        if many is not None:
            self.__getitems__ = lambda rows: many([first + row for row in rows])

    def __len__(self) -> int:
        return self._stop - self._first

    def __getitem__(self, row: int) -> Any:
        return self._x[self._first + row]


def _as_arrays(row: Any) -> Any:
    """A row with arrays in the place of numbers, lists and pictures."""
    if isinstance(row, Mapping):
        return {name: _as_arrays(value) for name, value in row.items()}
    if isinstance(row, tuple):
        return tuple(map(_as_arrays, row))
    array = np.asarray(row)
    if array.dtype == object:
        raise DataError(
            f"A row has {type(row).__name__!r} in it, which is no array of numbers; leave it out, "
            "or make numbers of it."
        )
    return array


def _shapes(row: Any) -> str:
    return str(tree.map_structure(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", row))
