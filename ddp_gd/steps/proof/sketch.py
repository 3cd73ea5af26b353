"""Tensors told apart by less than all of their numbers, so that none more is held in memory."""

from typing import Any

import numpy as np
import tensorflow as tf

Tensor = Any

_LENGTH = 2**16  # numbers that tell of a tensor
_AT_ONCE = 2**20  # are signed and added, so that no copy of all of it is needed
_SHOWN = 4  # of its own numbers beside them, for messages


def sketch(tensor: Tensor, dtype: tf.DType | None = None) -> Tensor:
    """A tensor, or sums over parts of a large one, each number with a sign drawn at random.

    They add up as tensors do, and differ where tensors differ, in whichever numbers.

    Args:
        tensor: of real numbers where it is large.
        dtype: to add in; by default the tensor's.
    """
    (length,) = sketched(tensor)
    flat = tf.reshape(tensor, [-1])
    if length == len(flat):
        return flat
    dtype = dtype or flat.dtype
    sums, random = tf.zeros([_LENGTH], dtype), np.random.default_rng(0)
    for start in range(0, len(flat), _AT_ONCE):
        part = tf.cast(flat[start : start + _AT_ONCE], dtype)
        part *= tf.constant(2 * random.integers(0, 2, len(part), np.int8) - 1, dtype)
        part = tf.pad(part, [[0, -len(part) % _LENGTH]])
        sums += tf.reduce_sum(tf.reshape(part, [-1, _LENGTH]), 0)
    shown = tf.cast(flat[:_SHOWN], dtype)
    return tf.concat([shown, sums / (len(flat) / _LENGTH) ** 0.5], 0)


def sketched(tensor: Tensor | tf.TensorSpec) -> list[int]:
    """The shape of its sketch."""
    return [tensor.shape.num_elements() if is_small(tensor) else _SHOWN + _LENGTH]


def is_small(tensor: Tensor | tf.TensorSpec) -> bool:
    """Whether a sketch of it has all of its numbers."""
    return tensor.shape.num_elements() <= _LENGTH
