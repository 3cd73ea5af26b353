"""How what the shares of a global mini-batch compute makes up what the whole is."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from ddp_gd.comm.base import Communicator

Tensor = Any


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is a mean over rows, unless it is listed here. Found out on real rows, see `proof`.

    Attributes:
        summed_losses: entries of `model.losses` that are sums over rows.
        met_losses: compiled losses in which rows meet: computed of the outputs of all workers.
        met_metrics: whether rows meet in the metrics, or their states are no sums.
        summed_state: places of the variables whose increments are sums over rows.
        same_state: places of those that every share changes in the same way.
    """

    summed_losses: frozenset[int] = frozenset()
    met_losses: frozenset[int] = frozenset()
    met_metrics: bool = False
    summed_state: frozenset[str] = frozenset()
    same_state: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Where the outputs of all workers' rows come together. Collective.

    Attributes:
        communicator: the workers.
        first: place in the global mini-batch of this worker's first row.
        count: how many it has; 0 where a row stands for none.
    """

    communicator: Communicator
    first: Tensor
    count: Tensor

    def all_rows(self, rows: Tensor | None) -> Tensor | None:
        """The rows of all workers, where there are any; a gradient goes back to the own ones."""
        if rows is None:
            return None

        @tf.custom_gradient
        def gathered(own: Tensor) -> Any:
            def gradient(by_all: Tensor) -> Tensor:
                mine = by_all[self.first : self.first + self.count]
                none = tf.zeros(tf.concat([[tf.shape(own)[0] - self.count], tf.shape(own)[1:]], 0))
                return tf.concat([mine, tf.cast(none, mine.dtype)], axis=0)

            return self.communicator.allgather(own[: self.count]), gradient

        return gathered(tf.convert_to_tensor(rows))
