"""Rows of a larger array, chosen and changed as they are read."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

# Mapped pages that were read count as this process's memory until it gives them back; to read one
# maps those around it, too: newer kernels keep files in their cache in pieces of up to 2 MiB.
_BYTES_AROUND = 2**21
_BYTES_MAPPED = 16 * 2**20


class Reader:
    """Reads rows of an array; gives back the pages of one that is mapped from a file.

    Args:
        array: in memory or mapped, rows first.
    """

    def __init__(self, array: np.ndarray):
        self._array = array
        self._map = _shared_map(array)
        self._row_bytes = abs(array.strides[0])  # some columns of a table lie as far apart as all
        self._mapped = 0

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """Copy rows, in this order."""
        if isinstance(rows, slice):
            taken = np.array(self._array[rows])
            self._add(taken.nbytes)
            return taken
        if self._map is None or len(rows) * self._around(1) <= _BYTES_MAPPED:
            self._add(self._around(len(rows)))
            return np.take(self._array, rows, axis=0)
        # In the order of the file: rows that lie together are mapped together, once.
        order = np.argsort(rows, kind="stable")
        in_order = rows[order]
        windows = in_order * self._row_bytes // _BYTES_AROUND
        new = np.diff(windows, prepend=-1) != 0
        mapped = np.cumsum(new) * self._around(1)
        taken = np.empty((len(rows), *self._array.shape[1:]), self._array.dtype)
        ends = np.searchsorted(mapped, np.arange(_BYTES_MAPPED, mapped[-1], _BYTES_MAPPED))
        for start, stop in itertools.pairwise([0, *ends, len(rows)]):
            taken[order[start:stop]] = np.take(self._array, in_order[start:stop], axis=0)
            self._add(_BYTES_MAPPED)
        return taken

    def _around(self, rows: int) -> int:
        """Bytes that are mapped, at most, when so many rows are read."""
        return rows * (self._row_bytes + _BYTES_AROUND)

    def _add(self, count: int) -> None:
        """Give pages back when enough are mapped."""
        self._mapped += count
        if self._map is not None and self._mapped > _BYTES_MAPPED:
            self._map.madvise(mmap.MADV_DONTNEED)  # they stay in the system's cache
            self._mapped = 0


def _shared_map(array: np.ndarray) -> mmap.mmap | None:
    """The map behind an array, if dropping its pages loses nothing and spares something."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.mode == "c":
            return None  # changes are in the pages only
        base = base.base
    large = isinstance(base, mmap.mmap) and len(base) > _BYTES_MAPPED
    return base if large and hasattr(mmap, "MADV_DONTNEED") else None


class Selection:
    """Stands in for an array of which only some rows are meant, or in another form.

    Args:
        array: in memory or mapped, rows first.
        count: how many rows are meant.
        select: gives the numbers in `array` of rows 0 to `count - 1`, int64 to int64; None for the
            first `count` ones.
        change: makes of some rows what they stand for; None for themselves.
        key: tells the content of the array from others'.

    Attributes:
        shape: `(count, ...)` after the change.
        dtype: after the change.
    """

    def __init__(
        self,
        array: np.ndarray,
        count: int,
        select: Callable[[np.ndarray], np.ndarray] | None = None,
        change: Callable[[np.ndarray], np.ndarray] | None = None,
        key: str = "",
    ):
        self.key = key
        self._reader = Reader(array)
        self._array = array
        self._select = select
        self._change = change
        one = self.take(np.zeros(1, np.int64))
        self.shape = (count, *one.shape[1:])
        self.dtype = one.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read these rows, in this order."""
        if self._select is not None:
            rows = self._select(np.asarray(rows, np.int64))
        taken = self._reader.take(rows)
        return taken if self._change is None else self._change(taken)

    def __getitem__(self, key: slice) -> Selection:
        first, stop, step = key.indices(len(self))
        if step != 1:
            raise IndexError(f"rows[{key}]: only consecutive rows can be cut out")
        before = self._select

        def select(rows: np.ndarray) -> np.ndarray:
            return rows + first if before is None else before(rows + first)

        return Selection(self._array, max(0, stop - first), select, self._change, self.key)
