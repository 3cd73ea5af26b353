"""The order of the rows in an epoch: uniformly random for few rows, in O(1) memory for many."""

import functools

import numpy as np
import tensorflow as tf

from ddp_gd.batching.plan import Plan

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

    Attributes:
        epoch: counted from 0.
    """

    def __init__(self, plan: Plan, epoch: int):
        self._plan = plan
        self.epoch = epoch
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
        seeds = (self._plan.seed, self.epoch, *step)
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
