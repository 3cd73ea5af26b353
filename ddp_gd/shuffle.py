"""The order of the rows in an epoch: uniformly random for few rows, in O(1) memory for many."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from .plan import Plan
from .split import train_validation_split

# Up to here a permutation is drawn and kept, 8 bytes a row. Above, each row's place is computed by
# a cipher, which below some thousands of rows would not be uniform.
MOST_DRAWN = 2**20
# TensorFlow's default of 4 leaves neighbours beside each other: at 10**12 rows their distances have
# a correlation of 0.54, with 16 rounds 0.004.
_ROUNDS = 16


class Order:
    """The order in which the rows are trained on in one epoch; the same on every worker.

    It depends on the plan's rows, batch size and seed and on the epoch, not on the epochs before:
    epoch 7 has the same order in a run that begins with it as in one that began with epoch 0.

    Args:
        plan: of the training.
        epoch: counted from 0.
    """

    def __init__(self, plan: Plan, epoch: int):
        self._plan = plan
        self._epoch = epoch
        # One of a whole epoch is used again and again; one of a global mini-batch only once.
        self._drawn = functools.lru_cache(maxsize=1)(_draw)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers at these places of the order.

        Args:
            positions: int64, ascending; global mini-batch `step` begins at `step * batch_size`.

        Returns:
            int64, as many.
        """
        plan = self._plan
        if not plan.shuffle or not len(positions):
            return positions
        if plan.shuffle != "batch":
            return self._shuffled(positions, plan.rows)
        steps, begins = np.unique(positions // plan.batch_size, return_index=True)
        shuffled = np.empty_like(positions)
        for step, begin, end in zip(steps, begins, [*begins[1:], len(positions)], strict=True):
            first = step * plan.batch_size
            within = positions[begin:end] - first
            shuffled[begin:end] = first + self._shuffled(within, plan.step_rows(step), int(step))
        return shuffled

    def _shuffled(self, positions: np.ndarray, length: int, *step: int) -> np.ndarray:
        """Where a random permutation of `length` items has these positions."""
        seeds = (self._plan.seed, self._epoch, *step)
        if length <= MOST_DRAWN:
            return self._drawn(length, seeds)[positions]
        key = np.random.SeedSequence(seeds).generate_state(3)
        with tf.device("/cpu:0"):
            return tf.raw_ops.RandomIndexShuffle(
                index=tf.constant(positions, tf.int64),
                seed=tf.constant(key, tf.uint32),
                max_index=tf.constant(length - 1, tf.int64),
                rounds=_ROUNDS,
            ).numpy()


def _draw(length: int, seeds: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(list(seeds)).permutation(length)


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
