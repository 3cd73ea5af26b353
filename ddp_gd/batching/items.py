"""Data sets whose items are global mini-batches, read alike: `keras.utils.PyDataset` and
`tf.data.Dataset`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.batching.arrays import Arrays, Signature
from ddp_gd.batching.source import SAMPLED_ROWS
from ddp_gd.errors import ConfigError, DataError


def is_dataset(x: Any) -> bool:
    """Tell whether `x` gives global mini-batches; False for arrays.

    Raises:
        DataError: it is something else that can be iterated over, which is no data for `fit`.
    """
    if isinstance(x, (keras.utils.PyDataset, tf.data.Dataset)):
        return True
    arrays = hasattr(x, "__array__") or isinstance(x, (Mapping, list, tuple, str, bytes))
    if isinstance(x, Iterator) or (isinstance(x, Iterable) and not arrays):
        raise DataError(
            f"x is {type(x).__name__!r}, which can only be iterated over: nobody can tell how "
            "many mini-batches it has, begin in the middle, or give every worker the same one. "
            "Give arrays, a keras.utils.PyDataset, or a tf.data.Dataset with a known number of "
            "elements (tf.data.Dataset.from_generator(...).apply("
            "tf.data.experimental.assert_cardinality(n)))."
        )
    return False


def open_items(x: Any, class_weight: Mapping[int, float] | None = None) -> Items:
    """Read a `keras.utils.PyDataset` or a `tf.data.Dataset` as `Items`."""
    if isinstance(x, keras.utils.PyDataset):
        return _DatasetItems(x, class_weight)
    return _Elements(x, class_weight)


class Items:
    """The items of a data set: global mini-batches `(x, y, sample_weight)`, one for each step.

    Args:
        dataset: of the kind that the subclass reads.
        class_weight: weight of each class number, or None; see `Arrays`.

    Attributes:
        kind: what the data set is, for messages.
        shuffled: whether the order of items is for us to choose.
        count: how many items an epoch has.
        threads: how many items may be read at once.
        ahead: how many items may be read before they are wanted.
        rows: how many rows the first one has.
        sample: some rows of it.
        signature: the first one's, and every other one's.

    Raises:
        DataError, ConfigError: nothing can be trained on it.
    """

    kind: str
    shuffled: bool
    hint = ""
    threads = 1
    ahead = 1

    def __init__(self, dataset: Any, class_weight: Mapping[int, float] | None):
        self._class_weight = class_weight
        self._dataset = dataset
        self.count = self._count()
        if self.count == 0:
            raise DataError(f"The {self.kind} has no items; give it one at least.")
        first = self._checked(0, self._first())
        self.rows = first.rows
        self.sample = first.take(np.arange(min(first.rows, SAMPLED_ROWS)))
        self.signature: Signature = first.signature

    def item(self, number: int) -> Arrays:
        """Read one item; in any order, or in that of their numbers, see `shuffled`.

        Raises:
            DataError: it is not a mini-batch, or unlike the first one.
        """
        arrays = self._checked(number, self._read(number))
        if arrays.signature != self.signature:
            raise DataError(
                f"{self.name(number)} is unlike the first one: it has "
                f"{_in_words(arrays.signature)}, the first one {_in_words(self.signature)}. Give "
                "all of them the same structure, dtypes and shapes (only the number of rows may "
                "differ); fill what is shorter up, or cut what is longer off."
            )
        return arrays

    def name(self, number: int) -> str:
        """Name an item, counted from 0."""
        return f"item {number} of the {self.kind}"

    def describe(self) -> dict[str, str]:
        """What must be the same on every worker, in words."""
        # Not the content of some item: it may be drawn anew each time.
        return {"data": f"{self.count} items of {self.kind}: {_in_words(self.signature)}"}

    def reset(self, epochs: int) -> None:
        """Be as after so many epochs."""
        raise NotImplementedError

    def begin_epoch(self, first: int) -> None:
        """Begin an epoch; of items that come in their own order, leave out those before `first`."""
        raise NotImplementedError

    def end_epoch(self) -> None:
        """End an epoch whose items have all been read."""

    def _count(self) -> int:
        raise NotImplementedError

    def _first(self) -> Any:
        raise NotImplementedError

    def _read(self, number: int) -> Any:
        raise NotImplementedError

    def _checked(self, number: int, item: Any) -> Arrays:
        try:
            return Arrays(*_unpacked(item), class_weight=self._class_weight)
        except DataError as error:
            raise DataError(
                f"{self.name(number)} is not a mini-batch (x, y) or (x, y, sample_weight) of one "
                f"row or more. {error}{self.hint}"
            ) from None


class _DatasetItems(Items):
    """Those of a `keras.utils.PyDataset`, whose hooks are called as Keras calls them."""

    kind = "PyDataset"
    shuffled = True

    def _count(self) -> int:
        dataset = self._dataset
        if dataset.use_multiprocessing:
            raise ConfigError(
                "The PyDataset has use_multiprocessing=True, but a process that takes part in a "
                "job must not be forked: what the copy does with MPI or TensorFlow is undefined. "
                f"Use threads (workers={max(2, dataset.workers)}, use_multiprocessing=False), or "
                "start more workers of the job."
            )
        try:
            count = dataset.num_batches
        except NotImplementedError:
            count = None
        if count is None:
            raise DataError(
                "The PyDataset has num_batches None: it never ends, and so no epoch does. Give it "
                "a __len__ that returns the number of its items in one epoch."
            )
        self.threads = max(1, dataset.workers)
        if self.threads > 1:
            self.ahead = max(self.threads, dataset.max_queue_size)
        return count

    def _first(self) -> Any:
        return self._dataset[0]

    def _read(self, number: int) -> Any:
        return self._dataset[number]

    def reset(self, epochs: int) -> None:
        self._dataset.on_epoch_end()  # Keras, too, begins with an end
        for _ in range(epochs):
            self._dataset.on_epoch_begin()
            self._dataset.on_epoch_end()

    def begin_epoch(self, first: int) -> None:
        self._dataset.on_epoch_begin()
        if self._dataset.num_batches != self.count:
            raise DataError(
                f"The PyDataset has {self._dataset.num_batches} items in this epoch and had "
                f"{self.count} in the first one; every epoch must have as many."
            )

    def end_epoch(self) -> None:
        self._dataset.on_epoch_end()


class _Elements(Items):
    """Those of a `tf.data.Dataset`, in its own order: each epoch has an iterator of its own."""

    kind = "tf.data.Dataset"
    shuffled = False
    hint = " Make mini-batches of single rows with .batch(batch_size)."

    def _count(self) -> int:
        count = int(self._dataset.cardinality())
        if count == tf.data.INFINITE_CARDINALITY:
            raise DataError(
                "The tf.data.Dataset never ends, and so no epoch does. Leave out .repeat(), or "
                "give .take(n) with the n global mini-batches of one epoch."
            )
        if count == tf.data.UNKNOWN_CARDINALITY:
            raise DataError(
                "The tf.data.Dataset does not know how many elements it has (as after filter, "
                "flat_map or from_generator), so nobody knows how many steps an epoch has. Say so "
                "with .apply(tf.data.experimental.assert_cardinality(n)), or .repeat() it and "
                ".take(n), or give arrays."
            )
        return count

    def _first(self) -> Any:
        # It is the first epoch's iterator: each one draws another order where they are shuffled.
        self._iterator = iter(self._dataset)
        self._unused = True
        self._peeked: list[Any] = []
        element = self._next(0)
        self._peeked = [element]
        return element

    def _read(self, number: int) -> Any:
        while self._place < number:
            self._next(self._place)
            self._place += 1
        self._place += 1
        return self._next(number)

    def reset(self, epochs: int) -> None:
        for _ in range(epochs):
            self.begin_epoch(0)

    def begin_epoch(self, first: int) -> None:
        if not self._unused:
            self._iterator, self._peeked = iter(self._dataset), []
        self._unused = False
        self._place = 0

    def name(self, number: int) -> str:
        return f"element {number} of the {self.kind}"

    def _next(self, number: int) -> Any:
        if self._peeked:
            return self._peeked.pop()
        try:
            return next(self._iterator)
        except StopIteration:
            raise DataError(
                f"The tf.data.Dataset ended after {number} elements, and said it has "
                f"{self.count}; see tf.data.experimental.assert_cardinality."
            ) from None


def digest(leaves: list[np.ndarray]) -> bytes:
    """32 bytes that tell one mini-batch from another."""
    found = hashlib.sha256()
    for leaf in leaves:
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(
            repr(leaf.tolist()).encode()
            if leaf.dtype == object
            else np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data
        )
    return found.digest()


def _unpacked(item: Any) -> tuple[Any, Any, Any]:
    """As Keras does: what is no tuple is the features alone."""
    if isinstance(item, list):
        item = tuple(item)
    if not isinstance(item, tuple):
        return item, None, None
    if not 1 <= len(item) <= 3:
        raise DataError(f"It is a tuple of {len(item)}.")
    x, y, sample_weight = (*item, None, None)[:3]
    return x, y, sample_weight


def _in_words(signature: Signature) -> str:
    def word(number: int | None) -> str | None:
        if number is None:
            return None
        spec = signature.specs[number]
        return f"{spec.dtype.name}{list(spec.shape[1:])}"

    words = keras.tree.map_structure(word, signature.structure, none_is_leaf=True)
    return str(words).replace("'", "")
