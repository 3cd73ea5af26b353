"""Where the rows of all workers come together, and `gather_rows`, which lets user code see them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError

Tensor = Any


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Where the outputs of all workers' rows come together. Collective.

    Attributes:
        communicator: the workers.
        first: place in the global mini-batch of this worker's first row.
        count: how many it has; 0 where a row stands for none.
        by_all: whether the gradient by a row is what the losses of all workers add to it; else each
            worker computes the same loss, and its own is enough.
    """

    communicator: Communicator
    first: Tensor
    count: Tensor
    by_all: bool = False

    def all_rows(self, rows: Tensor | None) -> Tensor | None:
        """The rows of all workers, where there are any; a gradient goes back to the own ones."""
        if rows is None:
            return None

        @tf.custom_gradient
        def gathered(own: Tensor) -> Any:
            def gradient(by_rows: Tensor) -> Tensor:
                if self.by_all:
                    (by_rows,) = self.communicator.allreduce_sum([by_rows])
                mine = by_rows[self.first : self.first + self.count]
                none = tf.zeros(tf.concat([[tf.shape(own)[0] - self.count], tf.shape(own)[1:]], 0))
                return tf.concat([mine, tf.cast(none, mine.dtype)], axis=0)

            return self.communicator.allgather(own[: self.count]), gradient

        return gathered(tf.convert_to_tensor(rows))


_meetings: list[Meeting | None] = []


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of the whole global mini-batch, of which each worker computed its share.

    For what compares rows with each other, such as a contrastive loss, in a layer's `call`, a loss
    or a training step. In one process it returns what it is given. Gradients go back to the share.

    Args:
        rows: a tensor with one row for each row of the share, (rows of the share, ...).

    Returns:
        A tensor of shape (rows of the global mini-batch, ...), in the order of rows.

    Raises:
        ModelError: the step is computed in micro-batches, which don't wait for each other.
    """
    if not _meetings:
        return rows
    if (meeting := _meetings[-1]) is None:
        raise ModelError(
            "ddp_gd.gather_rows wants the rows of a whole global mini-batch, and they are computed "
            "in micro-batches. Leave micro_batch_size and bitwise=True out."
        )
    return meeting.all_rows(rows)


@contextlib.contextmanager
def of_all_workers(meeting: Meeting | None) -> Iterator[None]:
    """Let `gather_rows` do in here what `meeting` says; None refuses it."""
    _meetings.append(meeting)
    try:
        yield
    finally:
        _meetings.pop()
