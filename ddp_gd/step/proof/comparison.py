"""Some rows of a global mini-batch, computed whole and in pieces."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.comm.base import Communicator
from ddp_gd.comm.single import SingleCommunicator
from ddp_gd.step import graph
from ddp_gd.step.micro_batch import Evidence, Layout, MicroBatch
from ddp_gd.step.rules import Rules

Tensor = Any


class Look(NamedTuple):
    """The whole, and all workers' pieces: arrays with the pieces in front."""

    whole: Evidence
    again: list[np.ndarray]  # the metrics' states of the whole, begun with what it left before
    pieces: Evidence  # outputs: of all rows, as in the whole; gradients: added up
    rows: np.ndarray  # of each piece
    layout: Layout


@dataclasses.dataclass
class Comparison:
    """Computes the same rows whole, as Keras does, and in pieces, as they will be. Collective.

    Attributes:
        model: compiled and built.
        communicator: the workers.
        signature: structure, dtypes and shapes of the rows.
        together: None where a step has micro-batches, else the communicator; see `MicroBatch`.
        training: False for evaluation.
        rows: this worker's.
    """

    model: keras.Model
    communicator: Communicator
    signature: Signature
    together: Communicator | None
    training: bool
    rows: list[Tensor]

    def __post_init__(self) -> None:
        self.every = [self.communicator.allgather(row) for row in self.rows]
        counts = self.communicator.allgather(tf.constant([len(self.rows[0])])).numpy()
        self._start = int(counts[: self.communicator.rank].sum())

    def look(self, rules: Rules) -> list[Look]:
        """Compute whole and in pieces, with the weights as they are and three times as large.

        Where units are saturated, or a hinge is open for all rows, two rules may look the same.
        """
        own = self._micro_batch(self.together, rules)
        # A micro-batch computes whatever rows it is given as a whole.
        whole = own if self.together is None else self._micro_batch(SingleCommunicator(), rules)
        given = (own.state.specs, self.signature.specs, *[tf.TensorSpec([], tf.int32)] * 3)
        count = graph.inlined(whole.denominators, *given)
        totals = tf.TensorSpec([len(own.losses)], tf.float32)
        metrics = [tf.TensorSpec(v.shape, v.dtype) for v in own.state.metrics]
        of_piece, layout = graph.with_layout(graph.inlined, own.evidence, *given, totals, metrics)
        of_whole = of_piece
        if whole is not own:
            of_whole, _ = graph.with_layout(graph.inlined, whole.evidence, *given, totals, metrics)

        every, rows, start, total = self.every, self.rows, self._start, len(self.every[0])
        zeros = [tf.zeros(v.shape, v.dtype) for v in own.state.metrics]
        looks = []
        for scale in (1, 3):
            state = own.state.read()
            for place, weight in enumerate(own.state.weights_of(state)):
                state[place] = scale * weight
            total_of, _ = count(state, every, 0, total, total)
            if total_of is None:
                total_of = tf.zeros(totals.shape)
            one = of_whole(state, every, 0, total, total, total_of, zeros)
            left = {id(v): t for v, t in zip(layout.changes.metrics, one.metrics, strict=True)}
            left_all = [left.get(id(v), t) for v, t in zip(own.state.metrics, zeros, strict=True)]
            again = of_whole(state, every, 0, total, total, total_of, left_all)
            pieces, sizes = [], []
            for first, size in self._cuts(len(rows[0])):
                piece = [_at_least_one(row[first : first + size]) for row in rows]
                pieces.append(of_piece(state, piece, start + first, size, total, total_of, zeros))
                sizes.append(size)
            looks.append(
                Look(
                    whole=Evidence(*[[t.numpy() for t in tensors] for tensors in one]),
                    again=[t.numpy() for t in again.metrics],
                    pieces=self._gather(of_piece.structured_outputs, pieces, sizes),
                    rows=self.communicator.allgather(tf.constant(sizes, tf.int32)).numpy(),
                    layout=layout,
                )
            )
        return looks

    def _micro_batch(self, together: Communicator | None, rules: Rules) -> MicroBatch:
        # Micro-batches normalise by statistics of their own, on purpose: here by none.
        moments = None if self.together is not None else _no_statistics
        return MicroBatch(
            self.model, self.signature, together, rules, training=self.training, moments=moments
        )

    def _cuts(self, rows: int) -> list[tuple[int, int]]:
        """First row and size of this worker's pieces; micro-batches of unequal sizes."""
        if self.together is not None:
            return [(0, rows)]
        first = max(1, rows // 3)
        return [
            (start, size)
            for start, size in ((0, min(first, rows)), (first, rows - first))
            if size > 0
        ]

    def _gather(self, specs: Evidence, pieces: list[Evidence], sizes: list[int]) -> Evidence:
        """All workers' evidence."""

        def stacked(field: str) -> list[np.ndarray]:
            columns = [
                [getattr(piece, field)[i] for piece in pieces]
                for i in range(len(getattr(specs, field)))
            ]
            found = []
            for spec, column in zip(getattr(specs, field), columns, strict=True):
                empty = tf.zeros([0, *spec.shape], spec.dtype)
                own = tf.stack(column) if column else empty
                found.append(self.communicator.allgather(own).numpy())
            return found

        outputs = []
        for i, spec in enumerate(specs.outputs):
            column = [piece.outputs[i] for piece in pieces]
            if spec.shape.rank and spec.shape[0] is None:
                rows = [tensor[:size] for tensor, size in zip(column, sizes, strict=True)]
                inner = [n or 0 for n in (column[0].shape if column else spec.shape)[1:]]
                own = tf.concat(rows, 0) if rows else tf.zeros([0, *inner], spec.dtype)
            else:
                own = tf.stack(column)[:1] if column else tf.zeros([0, *spec.shape], spec.dtype)
            outputs.append(self.communicator.allgather(own).numpy())
        gradients = []
        for i, spec in enumerate(specs.gradients):
            gradients.append(
                sum((piece.gradients[i] for piece in pieces), tf.zeros(spec.shape, spec.dtype))
            )
        return Evidence(
            outputs=outputs,
            losses=stacked("losses"),
            extras=stacked("extras"),
            gradients=[t.numpy() for t in self.communicator.allreduce_sum(gradients)],
            state=stacked("state"),
            metrics=stacked("metrics"),
        )

    def layer_outputs(self, rules: Rules) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """What each layer gives for this worker's rows: its name, with all rows, and with some."""
        count = len(self.rows[0])
        some = count if self.together is not None else max(1, count // 2)
        sides = []
        for together, rows, first, size in (
            (SingleCommunicator(), self.every, 0, len(self.every[0])),
            (self.together, [row[:some] for row in self.rows], self._start, some),
        ):
            micro_batch = self._micro_batch(together, rules)
            number = tf.TensorSpec([], tf.int32)
            specs = (micro_batch.state.specs, self.signature.specs, number, number, number)
            outputs, names = graph.with_layout(graph.inlined, micro_batch.layer_outputs, *specs)
            tensors = outputs(micro_batch.state.read(), rows, first, size, len(self.every[0]))
            sides.append([(n, t.numpy()) for n, t in zip(names, tensors, strict=True)])
        mine = slice(self._start, self._start + some)
        return [
            (name, whole[mine], part)
            for (name, whole), (_, part) in zip(*sides, strict=True)
            if whole.ndim and len(whole) == len(self.every[0]) and whole[mine].shape == part.shape
        ]


def _no_statistics(
    inputs: Tensor, mask: Tensor | None, axes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    channels = tf.reduce_sum(inputs[:1], axes)
    return tf.zeros_like(channels), tf.ones_like(channels)


def _at_least_one(rows: Tensor) -> Tensor:
    return rows if len(rows) else tf.zeros([1, *rows.shape[1:]], rows.dtype)
