"""Batch statistics of the whole global mini-batch, forward and backward.

Mean and variance are sums over the rows of all shares. Each worker gives the count, the mean and
the sum of squared distances from it (M2) of its own rows; they are put together as Chan, Golub and
LeVeque do (1979), which loses no digits where the mean is large. Backward, the gradients by mean
and variance that the shares arrive at are added, since each row of any share moves both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from ddp_gd.comm.base import Communicator

Tensor = Any


def neutral(inputs: Tensor, mask: Tensor | None, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The mean and variance of numbers that need no normalising: they depend on no row."""
    channels = tf.reduce_sum(inputs[:1], axes)
    return tf.zeros_like(channels), tf.ones_like(channels)


def moments(
    communicator: Communicator, count: Tensor, x: Tensor, mask: Tensor | None, axes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mean and variance over the rows of all workers. Collective.

    Args:
        communicator: the workers.
        count: int32 scalar, how many rows `x` has that are real; 0 where one stands for none.
        x: this worker's rows, (rows, ..., channels or where the axes leave them).
        mask: bool, shape of `x` without its last axis; False is left out.
        axes: which are reduced.

    Returns:
        Mean and variance, shape (channels,).
    """
    real = tf.cast(count > 0, x.dtype)
    channels = [axis for axis in range(x.shape.rank) if axis not in axes]

    def along(vector: Tensor) -> Tensor:
        """Let a number of each channel stand where the channels do."""
        return tf.reshape(vector, [-1 if axis in channels else 1 for axis in range(x.shape.rank)])

    if mask is None:
        weights = along(real * tf.ones_like(tf.reduce_sum(x[:1], axes)))
        entries = tf.cast(tf.size(x) // tf.maximum(tf.size(weights), 1), x.dtype)
    else:
        weights = real * tf.broadcast_to(tf.cast(mask, x.dtype)[..., None], tf.shape(x))
        entries = tf.ones([], x.dtype)

    @tf.custom_gradient
    def of_all(x: Tensor) -> tuple[tuple[Tensor, Tensor], Callable[..., Tensor]]:
        counts = entries * tf.reduce_sum(weights, axes)
        mean = tf.math.divide_no_nan(tf.reduce_sum(weights * x, axes), counts)
        m2 = tf.reduce_sum(weights * tf.square(x - along(mean)), axes)
        # (workers, 3, channels)
        every = communicator.allgather(tf.stack([counts, mean, m2])[None])
        counts, means, m2s = tf.unstack(every, num=3, axis=1)
        total = tf.reduce_sum(counts, 0)
        mean = tf.math.divide_no_nan(tf.reduce_sum(counts * means, 0), total)
        m2 = tf.reduce_sum(m2s + counts * tf.square(means - mean), 0)
        variance = tf.math.divide_no_nan(m2, total)

        def gradient(by_mean: Tensor, by_variance: Tensor) -> Tensor:
            by_mean, by_variance = communicator.allreduce_sum([by_mean, by_variance])
            each = along(by_mean) + 2 * (x - along(mean)) * along(by_variance)
            return weights * tf.math.divide_no_nan(each, along(total))

        return (mean, variance), gradient

    return of_all(x)
