"""The arrays given to `fit`: checked as Keras checks them, read a few rows at a time."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from ddp_gd.batching.views import Reader, Selection
from ddp_gd.errors import ConfigError, DataError

Tensor = Any


@dataclasses.dataclass(frozen=True)
class Signature:
    """How rows travel into the graph: as a flat list of tensors.

    Attributes:
        structure: `(x, y, sample_weight)` with a leaf's number in its place, None where there is
            nothing.
        specs: `tf.TensorSpec` of each leaf; the first dimension, the rows, is open.
    """

    structure: Any
    specs: list[tf.TensorSpec]

    def unpack(self, leaves: list[Tensor]) -> tuple[Any, Any, Any]:
        """Build `(x, y, sample_weight)` as the model and its losses take them."""
        return _map(lambda number: leaves[number], self.structure)


class Arrays:
    """Features, targets and weights with one row per observation, in memory or memory-mapped.

    Integers keep their dtype; floats become Keras's `floatx` as they are read, as in `fit`.

    Args:
        x: array, or nested dicts, tuples and lists of them.
        y: likewise, or None.
        sample_weight: likewise, or None.
        class_weight: weight of each class number (others: 1), or None. For a model with one output,
            and without `sample_weight`.

    Raises:
        DataError: not arrays, without rows, or of different length.
        ConfigError: `class_weight` where it can't be used.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
    ):
        x, y, sample_weight = (
            _map(lambda leaf, name=name: _as_array(name, leaf), tree.lists_to_tuples(value))
            for name, value in (("x", x), ("y", y), ("sample_weight", sample_weight))
        )
        if x is None:
            raise DataError("x is None; give the features as an array.")
        if sample_weight is not None:
            sample_weight = _per_output(sample_weight, y)
        self._arrays = (x, y, sample_weight)
        self._leaves = [leaf for leaf in tree.flatten(self._arrays) if leaf is not None]
        self._readers = [
            leaf if isinstance(leaf, Selection) else Reader(leaf) for leaf in self._leaves
        ]
        self.rows = _common_length(x, y, sample_weight)
        numbers = iter(range(len(self._leaves)))
        structure = _map(lambda _: next(numbers), self._arrays)
        specs = [_spec(leaf) for leaf in self._leaves]
        self._classes: int | None = None
        if class_weight is not None:
            _check_class_weight(class_weight, y, sample_weight)
            self._class_weight = class_weight
            self._classes = structure[1]
            structure = (*structure[:2], len(specs))
            specs.append(tf.TensorSpec([None], keras.config.floatx()))
        self.signature = Signature(structure, specs)

    def split(self, rows: int) -> tuple[Any, Any]:
        """Cut off the rows from number `rows` on: two `(x, y, sample_weight)`, views of this."""
        return (
            _map(lambda leaf: leaf[:rows], self._arrays),
            _map(lambda leaf: leaf[rows:], self._arrays),
        )

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Read these rows of every array, in this order, as `signature` describes them."""
        taken = [_floatx(reader.take(rows)) for reader in self._readers]
        if self._classes is not None:
            taken.append(_class_weights(taken[self._classes], self._class_weight))
        return taken

    def describe(self) -> dict[str, str]:
        """What must be the same on every worker, in words: rows, dtypes, shapes, a few values.

        The values are a hash over 64 evenly spaced rows: enough to notice arrays that each worker
        shuffled, or read from its own file, without reading them all.
        """
        digest = hashlib.sha256()
        for leaf in self.take(np.linspace(0, self.rows - 1, 64).astype(np.int64)):
            digest.update(repr(leaf.tolist()).encode() if leaf.dtype == object else leaf.tobytes())
        for leaf in self._leaves:
            digest.update(getattr(leaf, "key", "").encode())
        arrays = _map(lambda leaf: f"{leaf.dtype}{list(leaf.shape[1:])}", self._arrays)
        names = ("x", "y", "sample_weight")
        return {
            "rows": str(self.rows),
            **{f"dtype and shape of {n}": str(a) for n, a in zip(names, arrays, strict=True)},
            "content (SHA-256 of 64 rows)": digest.hexdigest()[:16],
        }


def _map(function: Any, structure: Any) -> Any:
    """Apply `function` to each leaf that is not None."""
    return tree.map_structure(
        lambda leaf: None if leaf is None else function(leaf), structure, none_is_leaf=True
    )


def _as_array(name: str, leaf: Any) -> np.ndarray | Selection:
    if isinstance(leaf, Selection):
        return leaf
    ragged = isinstance(leaf, tf.RaggedTensor)
    if ragged or isinstance(leaf, tf.SparseTensor) or hasattr(leaf, "tocoo"):
        how = "to_tensor() and a Masking layer" if ragged else "tf.sparse.to_dense"
        how = "toarray()" if hasattr(leaf, "tocoo") else how
        raise DataError(
            f"{name} is {type(leaf).__name__!r}, of which rows can't be handed to workers as they "
            f"are; make a dense array of it with {how}."
        )
    if hasattr(leaf, "detach"):  # a PyTorch tensor, which may be on a GPU or have a gradient
        leaf = leaf.detach().cpu()
    if not hasattr(leaf, "__array__"):
        raise DataError(
            f"{name} is {type(leaf).__name__!r}; expected a NumPy array (memory-mapped or not), "
            "or dicts, tuples and lists of them. Convert it with np.asarray."
        )
    array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    if array.ndim == 1 and hasattr(leaf, "iloc"):  # a Series of pandas: a column, as in Keras
        array = array[:, None]
    if array.ndim == 0:
        raise DataError(f"{name} is the single number {array!r}; expected one row per observation.")
    if array.dtype == object and not all(isinstance(item, (str, bytes)) for item in array.flat):
        raise DataError(
            f"{name} has dtype object, so its rows are Python objects; give it a numeric dtype "
            "with .astype('float32'). Of a table whose columns differ give a dict of them."
        )
    return array


def _common_length(*named: Any) -> int:
    lengths = {
        name: sorted({len(leaf) for leaf in tree.flatten(value) if leaf is not None})
        for name, value in zip(("x", "y", "sample_weight"), named, strict=True)
    }
    distinct = {length for found in lengths.values() for length in found}
    if len(distinct) > 1:
        counts = ", ".join(
            f"{name}: {' and '.join(map(str, found))}" for name, found in lengths.items() if found
        )
        raise DataError(f"The arrays differ in their number of rows ({counts}); they must agree.")
    rows = distinct.pop()
    if rows == 0:
        raise DataError("The arrays have 0 rows; at least one is needed.")
    return rows


def _per_output(sample_weight: Any, y: Any) -> Any:
    """One weight per row serves every output, as in Keras."""
    if not tree.is_nested(y):
        return sample_weight
    if tree.is_nested(sample_weight):
        try:
            tree.assert_same_structure(y, sample_weight)
        except ValueError:
            raise DataError(
                "sample_weight and y are built differently: give one sample_weight array per "
                "output, in the structure of y, or one weight per row for all of them."
            ) from None
        return sample_weight
    if sample_weight.size != len(sample_weight):
        raise DataError(
            f"sample_weight has shape {sample_weight.shape}, but the model has several outputs: "
            "give one weight per row, shape (rows,), or one array per output."
        )
    return tree.map_structure(lambda _: sample_weight, y)


def _check_class_weight(class_weight: Any, y: Any, sample_weight: Any) -> None:
    if not isinstance(class_weight, Mapping):
        raise ConfigError(
            f"class_weight={class_weight!r} must be a dict of class number -> weight."
        )
    if sample_weight is not None:
        raise ConfigError(
            "class_weight and sample_weight were both given; multiply the weights into "
            "sample_weight and leave class_weight out."
        )
    if y is None or tree.is_nested(y):
        raise ConfigError("class_weight needs a model with one output; use sample_weight instead.")


def _class_weights(classes: np.ndarray, class_weight: Mapping[int, float]) -> np.ndarray:
    """Look up each row's weight; classes are numbers, shape (rows,) or (rows, 1), or one-hot."""
    if classes.ndim > 1:
        classes = classes.argmax(axis=-1) if classes.shape[-1] != 1 else classes[..., 0]
    numbers, where = np.unique(np.round(classes).astype(np.int64), return_inverse=True)
    weights = [class_weight.get(int(number), 1.0) for number in numbers]
    return np.asarray(weights, keras.config.floatx())[where]


def _floatx(array: np.ndarray) -> np.ndarray:
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(keras.config.floatx(), copy=False)
    return array


def _spec(leaf: np.ndarray) -> tf.TensorSpec:
    if np.issubdtype(leaf.dtype, np.floating):
        dtype = tf.as_dtype(keras.config.floatx())
    else:
        dtype = tf.string if leaf.dtype.kind in "OUS" else tf.as_dtype(leaf.dtype)
    return tf.TensorSpec([None, *leaf.shape[1:]], dtype)
