"""Data sets that give global mini-batches: PyDataset, `tf.data.Dataset`, generators."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.batching.batches import Batch, Like, digest, name_of, opened
from ddp_gd.batching.order import Order
from ddp_gd.batching.plan import Plan
from ddp_gd.errors import ConfigError, DataError

_PEEKED = 2  # Keras, too, looks at so many to find out what their shapes have in common
_AHEAD = 64


class Stream:
    """A `Feed` of whatever can be iterated over.

    It is read on, and begun anew, when and as often as Keras does both, so that what depends on
    that (a seeded shuffle, say) is what `keras.Model.fit` would see.

    Args:
        x: a `tf.data.Dataset`, a generator, or another iterable of mini-batches.
        class_weight: weight of each class number, or None; see `Arrays`.
        whole: whether an epoch takes all data.

    Raises:
        DataError: there is no mini-batch in it, or no end to an epoch.
    """

    threads = 1
    ahead = _AHEAD
    in_order = True

    def __init__(self, x: Any, class_weight: Mapping[int, float] | None, whole: bool):
        self._x = x
        self.kind = name_of(x)
        self._whole = whole
        self.once = isinstance(x, Iterator)
        self.count = self._known_count(whole)
        # The first pass goes on with this iterator: another one may draw another order.
        self._iterator: Iterator[Any] = iter(x)
        peeked = 1 if isinstance(x, tf.data.Dataset) else _PEEKED
        self._first = list(itertools.islice(self._iterator, peeked))
        if not self._first:
            raise DataError(f"The {self.kind} has no items; give it one at least.")
        hint = ""
        if isinstance(x, tf.data.Dataset):
            hint = " Make mini-batches of single rows with .batch(batch_size)."
        self._like = Like(self._first, class_weight, self.name, hint)
        self.rows, self.signature = self._like.rows, self._like.signature
        self.sample = self._like.sample
        if isinstance(x, tf.data.Dataset):
            specs = keras.tree.flatten(x.element_spec)
            dense_or_sparse = (tf.TensorSpec, tf.SparseTensorSpec)
            shapes = [spec.shape for spec in specs if isinstance(spec, dense_or_sparse)]
            self.signature = self._like.signature = opened(self.signature, shapes)
        self._last = self._like.batch(0, self._first[0])
        self.first = digest(self._last.leaves).hex()
        self._unused = True
        self._at = 0

    def name(self, place: int) -> str:
        """Name the mini-batch at a place of a pass, counted from 0."""
        what = "element" if isinstance(self._x, tf.data.Dataset) else "item"
        return f"{what} {place} of the {self.kind}"

    def reset(self, epochs: int) -> None:
        """Nothing to do: passes are begun and read, see `StreamSource`."""

    def begin_epoch(self) -> None:
        """Nothing to do."""

    def end_epoch(self) -> None:
        """Make an iterator that isn't used, as Keras does: one that is seeded counts them."""
        if self._whole and self.count is not None:
            iter(self._x)

    def begin_pass(self, number: int) -> None:
        """Iterate anew; a generator that has ended begins with its first items, as in Keras."""
        if self._unused:
            self._iterator = itertools.chain(self._first, self._iterator)
        elif self.once:
            self._iterator = itertools.chain(self._first, self._x)
        else:
            self._iterator = iter(self._x)
        if not self.once:
            self._first = []
        self._unused = False
        self._at = 0

    def read(self, place: int) -> Batch | None:
        """Read on up to this place."""
        if self._at == place + 1:
            return self._last
        missing = object()
        while True:
            item = next(self._iterator, missing)
            if item is missing:
                return None
            self._at += 1
            if self._at > place:
                self._last = self._like.batch(place, item)
                return self._last

    def _known_count(self, whole: bool) -> int | None:
        if not isinstance(self._x, tf.data.Dataset):
            return None
        count = int(self._x.cardinality())
        if count == tf.data.INFINITE_CARDINALITY and whole:
            raise DataError(
                "The tf.data.Dataset never ends, and so no epoch does. Say how many mini-batches "
                "an epoch has with steps_per_epoch (steps, validation_steps), or leave .repeat() "
                "out."
            )
        return count if count >= 0 else None


class Numbered:
    """A `Feed` of the items of a `keras.utils.PyDataset`, whose hooks are called as Keras does.

    Args:
        dataset: the data set.
        class_weight: weight of each class number, or None; see `Arrays`.
        whole: whether an epoch takes all data.
        shuffle: whether each pass has an order of its own.
        seed: what that depends on, beside the pass.

    Raises:
        DataError, ConfigError: nothing can be trained on it.
    """

    kind = "PyDataset"
    in_order = once = False
    first = ""

    def __init__(
        self,
        dataset: keras.utils.PyDataset,
        class_weight: Mapping[int, float] | None,
        whole: bool,
        shuffle: bool | Literal["batch"] = False,
        seed: int = 0,
    ):
        if dataset.use_multiprocessing:
            raise ConfigError(
                "The PyDataset has use_multiprocessing=True, but a process that takes part in a "
                "job must not be forked: what the copy does with MPI or TensorFlow is undefined. "
                f"Use threads (workers={max(2, dataset.workers)}, use_multiprocessing=False), or "
                "start more workers of the job."
            )
        self._dataset = dataset
        self.count = self._known_count()
        if self.count is None and whole:
            raise DataError(
                "The PyDataset has num_batches None: it never ends, and so no epoch does. Give it "
                "a __len__ that returns the number of its items in one epoch, or say with "
                "steps_per_epoch (steps, validation_steps) how many an epoch has."
            )
        if self.count == 0:
            raise DataError("The PyDataset has no items; give it one at least.")
        self.threads = max(1, dataset.workers)
        self.ahead = max(self.threads, dataset.max_queue_size) if self.threads > 1 else 2
        peeked = [dataset[number] for number in range(min(2, self.count or 2))]
        self._like = Like(peeked, class_weight, self._number_in_words)
        self.rows, self.signature = self._like.rows, self._like.signature
        self.sample = self._like.sample
        # An endless one has no order but that of its numbers.
        self._plan = None
        if self.count is not None:
            self._plan = Plan(self.count, 1, shuffle=shuffle, seed=seed)
        self._numbers: np.ndarray | None = None

    def name(self, place: int) -> str:
        """Name the item at a place of this pass, counted from 0."""
        return self._number_in_words(self._number(place))

    def reset(self, epochs: int) -> None:
        """Call the hooks of so many epochs."""
        self._dataset.on_epoch_end()  # Keras, too, begins with an end
        for _ in range(epochs):
            self._dataset.on_epoch_begin()
            self._dataset.on_epoch_end()

    def begin_epoch(self) -> None:
        """Call its hook."""
        self._dataset.on_epoch_begin()
        if self._known_count() != self.count:
            raise DataError(
                f"The PyDataset has {self._known_count()} items in this epoch and had "
                f"{self.count} in the first one; every epoch must have as many."
            )

    def end_epoch(self) -> None:
        """Call its hook."""
        self._dataset.on_epoch_end()

    def begin_pass(self, number: int) -> None:
        """The order of items is a function of seed and pass."""
        if self._plan is not None:
            self._numbers = Order(self._plan, number).rows(np.arange(self._plan.steps))

    def read(self, place: int) -> Batch | None:
        """Read the item at this place."""
        if self.count is not None and place >= self.count:
            return None
        number = self._number(place)
        return self._like.batch(number, self._dataset[number])

    def _number(self, place: int) -> int:
        return place if self._numbers is None else int(self._numbers[place])

    def _number_in_words(self, number: int) -> str:
        return f"item {number} of the {self.kind}"

    def _known_count(self) -> int | None:
        try:
            return self._dataset.num_batches
        except NotImplementedError:
            return None
