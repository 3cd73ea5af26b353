"""Global mini-batches as data sets give them: what they are, checked, one like the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.batching.arrays import Arrays, Signature
from ddp_gd.batching.source import SAMPLED_ROWS
from ddp_gd.batching.views import Selection
from ddp_gd.errors import DataError

# Of these Keras's own `fit` takes mini-batches from one after the other.
_GRAIN = ("MapDataset", "IterDataset", "DataLoader")


class Batch(NamedTuple):
    """A global mini-batch: how many rows it has, and the arrays of its leaves."""

    rows: int
    leaves: list[np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(leaf.nbytes for leaf in self.leaves)


class Feed(Protocol):
    """A data set that gives global mini-batches, pass after pass.

    Attributes:
        kind: what the data set is, for messages.
        signature: of every mini-batch.
        rows: of the first one.
        sample: some of these.
        count: how many one pass has; None where nobody knows before it ends.
        threads: how many may be read at once.
        ahead: how many may be read before they are wanted.
        in_order: whether they can only be read one after the other.
        once: whether there is one pass only.
        first: tells the first mini-batch of all from others; "" where the order is ours.
    """

    kind: str
    signature: Signature
    rows: int
    sample: Batch
    count: int | None
    threads: int
    ahead: int
    in_order: bool
    once: bool
    first: str

    def name(self, place: int) -> str:
        """Name the mini-batch at a place of a pass, counted from 0."""
        ...

    def reset(self, epochs: int) -> None:
        """Be as after so many epochs."""
        ...

    def begin_epoch(self) -> None:
        """An epoch begins; it may be in the middle of a pass."""
        ...

    def end_epoch(self) -> None:
        """An epoch has ended with its last mini-batch."""
        ...

    def begin_pass(self, number: int) -> None:
        """Begin another pass, counted from 0; a pass depends on its number where it can."""
        ...

    def read(self, place: int) -> Batch | None:
        """Read the mini-batch at a place of this pass; None where it has ended.

        Raises:
            DataError: it is not a mini-batch, or unlike the first one.
        """
        ...


def kind_of(x: Any) -> str:
    """Tell what `x` is: `"arrays"`, `"rows"`, `"items"`, or `"stream"`.

    Rows have numbers and can be read one by one; items are the mini-batches of a
    `keras.utils.PyDataset`; a stream gives mini-batches one after the other.
    """
    if isinstance(x, keras.utils.PyDataset):
        return "items"
    if isinstance(x, tf.data.Dataset) or _is_grain(x):
        return "stream"
    arrays = (Selection, Mapping, list, tuple, str, bytes, tf.RaggedTensor, tf.SparseTensor)
    if x is None or hasattr(x, "__array__") or hasattr(x, "tocoo") or isinstance(x, arrays):
        return "arrays"  # SciPy's have tocoo
    if hasattr(x, "__len__") and hasattr(x, "__getitem__"):
        return "rows"
    return "stream" if isinstance(x, Iterable) else "arrays"


def name_of(x: Any) -> str:
    """What a data set is, for messages."""
    if isinstance(x, keras.utils.PyDataset):
        return "PyDataset"
    if isinstance(x, tf.data.Dataset):
        return "tf.data.Dataset"
    return "generator" if isinstance(x, Iterator) else type(x).__name__


class Like:
    """Makes mini-batches of items, all of one signature.

    Args:
        first: the first items; what their shapes differ in beside the rows is left open, as Keras
            leaves it.
        class_weight: weight of each class number, or None; see `Arrays`.
        name: names the item at a place.
        hint: what to do about an item that is no mini-batch.

    Attributes:
        signature: of every mini-batch.
        rows: of the first one.
        sample: some of these.

    Raises:
        DataError: one of them is no mini-batch.
    """

    def __init__(
        self,
        first: Sequence[Any],
        class_weight: Mapping[int, float] | None,
        name: Any,
        hint: str = "",
    ):
        self._class_weight, self._name, self._hint = class_weight, name, hint
        arrays = [self._arrays(place, item) for place, item in enumerate(first)]
        self.rows = arrays[0].rows
        some = min(self.rows, SAMPLED_ROWS)
        self.sample = Batch(some, arrays[0].take(np.arange(some)))
        self.signature: Signature = arrays[0].signature
        for place, found in enumerate(arrays):
            wider = _both(self.signature, found.signature)
            if wider is None:
                raise self._unlike(place, found.signature)
            self.signature = wider

    def batch(self, place: int, item: Any) -> Batch:
        """Make a mini-batch of the item at a place.

        Raises:
            DataError: it can't be, or it is unlike the first one.
        """
        arrays = self._arrays(place, item)
        if _both(self.signature, arrays.signature) != self.signature:
            raise self._unlike(place, arrays.signature)
        return Batch(arrays.rows, arrays.take(np.arange(arrays.rows)))

    def _arrays(self, place: int, item: Any) -> Arrays:
        try:
            x, y, weight = keras.tree.map_structure(_dense, unpacked(item), none_is_leaf=True)
            return Arrays(x, y, weight, self._class_weight)
        except DataError as error:
            raise DataError(
                f"{self._name(place)} is not a mini-batch (x, y) or (x, y, sample_weight) of one "
                f"row or more. {error}{self._hint}"
            ) from None

    def _unlike(self, place: int, signature: Signature) -> DataError:
        return DataError(
            f"{self._name(place)} is unlike the first one: it has {in_words(signature)}, the "
            f"first one {in_words(self.signature)}. Give all of them the same structure, dtypes "
            "and shapes (beside the number of rows only what differs between the first two, or "
            "what a tf.data.Dataset's element_spec leaves open, may differ); fill what is shorter "
            "up, or cut what is longer off."
        )


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


def unpacked(item: Any) -> tuple[Any, Any, Any]:
    """As Keras does: what is no tuple is the features alone."""
    if isinstance(item, list):
        item = tuple(item)
    if not isinstance(item, tuple):
        return item, None, None
    if not 1 <= len(item) <= 3:
        raise DataError(f"It is a tuple of {len(item)}.")
    x, y, sample_weight = (*item, None, None)[:3]
    return x, y, sample_weight


def in_words(signature: Signature) -> str:
    """Structure, dtypes and shapes, the rows left out."""

    def word(number: int | None) -> str | None:
        if number is None:
            return None
        spec = signature.specs[number]
        return f"{spec.dtype.name}{list(spec.shape[1:])}"

    words = keras.tree.map_structure(word, signature.structure, none_is_leaf=True)
    return str(words).replace("'", "")


def opened(signature: Signature, shapes: Sequence[tf.TensorShape]) -> Signature:
    """The signature with those axes open that are open in shapes of the same rank."""
    specs = []
    for spec, shape in zip(signature.specs, [*shapes, *[tf.TensorShape(None)] * 4], strict=False):
        if shape.rank == spec.shape.rank:
            dims = [
                None if open_ is None else own for own, open_ in zip(spec.shape, shape, strict=True)
            ]
            spec = tf.TensorSpec([None, *dims[1:]], spec.dtype)
        specs.append(spec)
    return Signature(signature.structure, specs)


def to_json(signature: Signature) -> Any:
    """The signature as JSON holds it."""

    def encoded(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {"dict": [[key, encoded(value)] for key, value in node.items()]}
        return [encoded(value) for value in node] if isinstance(node, (tuple, list)) else node

    specs = [[spec.dtype.name, list(spec.shape)] for spec in signature.specs]
    return [encoded(signature.structure), specs]


def from_json(value: Any) -> Signature:
    """The signature that `to_json` gave."""

    def decoded(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: decoded(inner) for key, inner in node["dict"]}
        return tuple(map(decoded, node)) if isinstance(node, list) else node

    structure, specs = value
    return Signature(decoded(structure), [tf.TensorSpec(shape, dtype) for dtype, shape in specs])


def _dense(leaf: Any) -> Any:
    """A sparse matrix as the array that it stands for: a mini-batch is small."""
    if isinstance(leaf, tf.SparseTensor):
        return tf.sparse.to_dense(tf.sparse.reorder(leaf))
    for name in ("toarray", "todense"):  # SciPy's, JAX's
        if hasattr(leaf, name) and not hasattr(leaf, "__array__"):
            return np.asarray(getattr(leaf, name)())
    return leaf


def _both(one: Signature, other: Signature) -> Signature | None:
    """A signature that both have; None where they differ in more than the lengths of axes."""
    same = one.structure == other.structure and len(one.specs) == len(other.specs)
    pairs = list(zip(one.specs, other.specs, strict=True)) if same else []
    if not same or any(a.dtype != b.dtype or a.shape.rank != b.shape.rank for a, b in pairs):
        return None
    specs = []
    for a, b in pairs:
        axes = zip(a.shape, b.shape, strict=True)
        specs.append(tf.TensorSpec([m if m == n else None for m, n in axes], a.dtype))
    return Signature(one.structure, specs)


def _is_grain(x: Any) -> bool:
    return any(
        parent.__name__ in _GRAIN and parent.__module__.startswith("grain")
        for parent in type(x).__mro__
    )
