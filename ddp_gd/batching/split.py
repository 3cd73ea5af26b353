"""Which rows train and which validate."""

import math
from collections.abc import Callable
from numbers import Real

import numpy as np
import tensorflow as tf

from ddp_gd.batching.order import _ROUNDS, MOST_DRAWN
from ddp_gd.errors import ConfigError, DataError

# Rows of a group are mixed among each other only, so that reading the training rows in their order
# walks through a large file from its beginning to its end.
_GROUP = 2**16


class RandomSplit:
    """Training and validation rows, drawn at random by row numbers and a seed alone.

    There are as many of each as in Keras's `validation_split`. Up to `MOST_DRAWN` rows it is a
    uniform draw; above, the same fraction of every 65,536 consecutive rows is held back, in O(1)
    memory.

    Args:
        rows: of the data.
        fraction: of the rows that is held back, in [0, 1).
        seed: from 0 to 2**63 - 1.

    Attributes:
        training: number of training rows.
        validation: number of validation rows.

    Raises:
        ConfigError, DataError: as `train_validation_split`.
    """

    def __init__(self, rows: int, fraction: float, seed: int):
        self.training = train_validation_split(rows, fraction)[0].stop
        self.validation = rows - self.training
        self._rows = rows
        self._kept = 1.0 - fraction
        # Other numbers than those of the epochs' orders.
        words = np.random.SeedSequence([seed, 2**32 - 1]).generate_state(3)
        self._key = words.astype(np.uint32)
        self._drawn: np.ndarray | None = None
        if rows <= MOST_DRAWN:
            self._drawn = np.random.default_rng([seed, 2**32 - 1]).permutation(rows)

    def training_rows(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers of these training rows, int64 from 0 to `training - 1`."""
        if self._drawn is not None:
            return self._drawn[positions]
        group = _group_of(positions, self._training_before, _GROUP * self._kept)
        return self._mixed(group, positions - self._training_before(group))

    def validation_rows(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers of these validation rows, int64 from 0 to `validation - 1`."""
        if self._drawn is not None:
            return self._drawn[self.training + positions]
        group = _group_of(positions, self._validation_before, _GROUP * (1.0 - self._kept))
        within = positions - self._validation_before(group)
        training = self._training_before(group + 1) - self._training_before(group)
        return self._mixed(group, training + within)

    def _first(self, group: np.ndarray) -> np.ndarray:
        """The first row of a group."""
        return np.minimum(group * _GROUP, self._rows)

    def _training_before(self, group: np.ndarray) -> np.ndarray:
        """How many training rows there are before a group."""
        return np.floor(self._first(group) * self._kept).astype(np.int64)

    def _validation_before(self, group: np.ndarray) -> np.ndarray:
        return self._first(group) - self._training_before(group)

    def _mixed(self, group: np.ndarray, within: np.ndarray) -> np.ndarray:
        """Row numbers of these places in groups."""
        if not len(group):
            return group
        first = self._first(group)
        last = self._first(group + 1) - first - 1
        seeds = np.broadcast_to(self._key, (len(group), 3)).copy()
        seeds[:, 0] ^= (group >> 32).astype(np.uint32)
        seeds[:, 1] ^= (group & 0xFFFFFFFF).astype(np.uint32)
        with tf.device("/cpu:0"):
            mixed = tf.raw_ops.RandomIndexShuffle(
                index=tf.constant(within, tf.int64),
                seed=tf.constant(seeds),
                max_index=tf.constant(last, tf.int64),
                rounds=_ROUNDS,
            ).numpy()
        return first + mixed


def _group_of(
    positions: np.ndarray, before: Callable[[np.ndarray], np.ndarray], each: float
) -> np.ndarray:
    """The group in which these positions lie, if `before` counts those ahead of a group."""
    group = np.floor(positions / each).astype(np.int64)
    while np.any(early := before(group) > positions):
        group = group - early
    while np.any(late := before(group + 1) <= positions):
        group = group + late
    return group


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
            f"validation_split={validation_split!r} must be a number from 0 to below 1, the "
            "fraction of the rows that is held back."
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
