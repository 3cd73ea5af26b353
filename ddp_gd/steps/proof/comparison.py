"""Some rows of a global mini-batch, computed whole and in pieces."""

import dataclasses
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.plan import block
from ddp_gd.comm.base import Communicator
from ddp_gd.comm.single import SingleCommunicator
from ddp_gd.comm.tensors import COLLECTIVE
from ddp_gd.steps import graph, keras_private
from ddp_gd.steps.micro_batch import Evidence, Layout, MicroBatch, Traced, trace
from ddp_gd.steps.proof.rounding import ROUNDINGS, TO_THE_SIDE, factors
from ddp_gd.steps.proof.sketch import sketch, sketched
from ddp_gd.steps.rows import draws, statistics
from ddp_gd.steps.rules import Options, Rules

Tensor = Any


class Look(NamedTuple):
    """The whole, and all workers' pieces, as arrays with the pieces in front."""

    whole: Evidence
    moved: Evidence  # the whole once more, with weights moved by about as much as rounding moves
    again: Evidence  # the whole once more, metrics begun with what it left before
    pieces: Evidence  # outputs: of all rows, as in the whole; gradients, in sketches: added up
    rows: np.ndarray  # of each piece
    layout: Layout
    before: list[np.ndarray]  # what the variables were that change


@dataclasses.dataclass
class Comparison:
    """Computes the same rows whole, as Keras does, and in pieces, as they will be. Collective.

    Attributes:
        model: compiled and built.
        communicator: the workers.
        signature: structure, dtypes and shapes of the rows.
        options: how steps are to be made.
        rows: the same on every worker.
    """

    model: keras.Model
    communicator: Communicator
    signature: Signature
    options: Options
    rows: list[Tensor]

    def __post_init__(self) -> None:
        # Whether a step has micro-batches, which don't wait for other workers.
        self.in_pieces = self.options.micro_batch_size is not None
        self.count = len(self.rows[0])
        self._start, self._stop = block(self.count, self.communicator.size, self.communicator.rank)
        layers = keras_private.layers(self.model)
        self._normalises = any(isinstance(x, keras.layers.BatchNormalization) for x in layers)

    def step(self, rules: Rules) -> Traced:
        """Trace what a step computes of a share or micro-batch."""
        together = None if self.in_pieces else self.communicator
        return self._trace(together, rules, isolated=self.options.bitwise_lanes > 0)

    def look(self, step: Traced, attempt: int = 0) -> list[Look]:
        """Compute whole and in pieces, with the weights as they are and three times as large.

        Where units are saturated, or a hinge is open for all rows, two rules may look the same. The
        second time begins with the state that the first has left, so that other numbers are drawn.

        Args:
            step: as it is to be for pieces.
            attempt: 0 for these weights; each other number for weights a little to the side.
        """
        of_whole, of_piece = self._both(step)
        own = step.micro_batch.state
        zeros = own.metrics_before(carried=False)
        changed = step.layout.changes.metrics
        others = own.read()[len(own.weights) :]
        looks = []
        for scale in (1, 3):
            weights = own.weights_of(own.read())
            state = list(weights) if scale == 1 else [scale * v for v in weights]
            del weights  # no copy more than must be: a model may fill the memory
            if attempt:
                state = [self._moved(v, attempt, TO_THE_SIDE) for v in state]
            whole_rows = (self.rows, draws.Rows(0, self.count, self.count))
            total, met = of_whole.totals(state + others, self.rows, self.count)
            one = _evidence(of_whole, state + others, *whole_rows, total, zeros, met)
            left = {id(v): t for v, t in zip(changed, one.metrics, strict=True)}
            left_all = [left.get(id(v), t) for v, t in zip(own.metrics, zeros, strict=True)]
            again = _evidence(of_whole, state + others, *whole_rows, total, left_all, met)
            values = dict(zip(map(id, [*own.weights, *own.others]), [*state, *others], strict=True))
            before = [values[id(v)].numpy() for v in step.layout.changes.state]
            del values  # nor here
            pieces, sizes = [], []
            for first, size in self._cuts():
                piece = [_at_least_one(row[first : first + size]) for row in self.rows]
                place = draws.Rows(first, size, self.count)
                given = (state + others, piece, place, total, zeros, met)
                pieces.append(_evidence(of_piece, *given))
                sizes.append(size)
            for n, weight in enumerate(state):
                state[n] = self._moved(weight, 0, ROUNDINGS * self.epsilon)
            total, met = of_whole.totals(state + others, self.rows, self.count)
            moved = _evidence(of_whole, state + others, *whole_rows, total, zeros, met)
            looks.append(
                Look(
                    whole=_arrays(one),
                    moved=_arrays(moved),
                    again=_arrays(again),
                    pieces=self._gather(of_piece.function.structured_outputs[2], pieces, sizes),
                    rows=self.communicator.allgather(
                        tf.constant([size for size in sizes if size], tf.int32)
                    ).numpy(),
                    layout=step.layout,
                    before=before,
                )
            )
            new = dict(zip(map(id, step.layout.changes.state), one.state, strict=True))
            others = [new.get(id(v), value) for v, value in zip(own.others, others, strict=True)]
        return looks

    @property
    def epsilon(self) -> float:
        """The distance of 1 from the next number, in the coarsest dtype that layers compute in."""
        names = {getattr(x, "compute_dtype", "") for x in keras_private.layers(self.model)}
        halves = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
        return max([halves.get(name, 2.0**-23) for name in names], default=2.0**-23)

    def _moved(self, weight: Tensor, seed: int, part: float) -> Tensor:
        """A weight, moved up or down by a part of it."""
        if not weight.dtype.is_floating:
            return weight
        return weight * tf.cast(factors(weight.shape, part, seed), weight.dtype)

    def _both(self, step: Traced) -> tuple[Traced, Traced]:
        """What computes the whole, and what computes a piece."""
        if self.in_pieces:
            if not self._normalises:
                return step, step
            # Micro-batches normalise by statistics of their own, on purpose: here by none.
            both = self._trace(None, step.micro_batch.rules, statistics.neutral)
            return both, both
        if all(COLLECTIVE not in operation.name for operation in graph.operations(step.function)):
            return step, step
        # A single worker computes whatever rows it is given as a whole.
        return self._trace(SingleCommunicator(), step.micro_batch.rules), step

    def _trace(
        self,
        together: Communicator | None,
        rules: Rules,
        moments: Any = None,
        isolated: bool = False,
    ) -> Traced:
        return trace(
            lambda: MicroBatch(
                self.model,
                self.signature,
                together,
                rules,
                training=self.options.training,
                moments=moments,
            ),
            isolated,
        )

    def _cuts(self) -> list[tuple[int, int]]:
        """First row and size of this worker's pieces; micro-batches of unequal sizes."""
        rows = self._stop - self._start
        if not self.in_pieces:
            return [(self._start, rows)]
        some = max(1, rows // 3)
        cuts = (self._start, min(some, rows)), (self._start + some, rows - some)
        return [(first, size) for first, size in cuts if size > 0]

    def _gather(self, specs: Evidence, pieces: list[Evidence], sizes: list[int]) -> Evidence:
        """All workers' evidence. What a row of zeros gave that stands for none is left out."""
        filled = [(p, size) for p, size in zip(pieces, sizes, strict=True) if size]

        def stacked(field: str) -> list[np.ndarray]:
            found = []
            for i, spec in enumerate(getattr(specs, field)):
                column = [getattr(piece, field)[i] for piece, _ in filled]
                own = tf.stack(column) if column else tf.zeros([0, *spec.shape], spec.dtype)
                found.append(self.communicator.allgather(own).numpy())
            return found

        outputs = []
        for i, spec in enumerate(specs.outputs):
            column = [(piece.outputs[i], size) for piece, size in filled]
            if spec.shape.rank and spec.shape[0] is None:
                inner = [n or 0 for n in (pieces[0].outputs[i].shape if pieces else spec.shape)[1:]]
                rows = [tensor[:size] for tensor, size in column]
                own = tf.concat(rows, 0) if rows else tf.zeros([0, *inner], spec.dtype)
            else:
                ones = [tensor for tensor, _ in column[:1]]
                own = tf.stack(ones) if ones else tf.zeros([0, *spec.shape], spec.dtype)
            outputs.append(self.communicator.allgather(own).numpy())
        gradients = [
            sum((piece.gradients[i] for piece, _ in filled), tf.zeros(sketched(spec), spec.dtype))
            for i, spec in enumerate(specs.gradients)
        ]
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
        moments = statistics.neutral if self.in_pieces else None
        whole = None if self.in_pieces else SingleCommunicator()
        piece = None if self.in_pieces else self.communicator
        some = self._stop - self._start
        if self.in_pieces:
            some = max(1, some // 2)
        sides = []
        for together, first, size in (
            (whole, 0, self.count),
            (piece, self._start, some),
        ):
            traced = self._trace(together, rules, moments)
            outputs, names = graph.with_layout(
                graph.inlined, traced.micro_batch.layer_outputs, *traced.specs[:3]
            )
            rows = [_at_least_one(row[first : first + size]) for row in self.rows]
            place = draws.Rows(first, size, self.count)
            tensors = outputs(traced.micro_batch.state.read(), rows, place)
            sides.append([(n, t.numpy()) for n, t in zip(names, tensors, strict=True)])
        # None of them where the share is empty; but the same layers on every worker.
        real = min(some, self._stop - self._start)
        return [
            (name, all_rows[self._start : self._start + real], part[:real])
            for (name, all_rows), (_, part) in zip(*sides, strict=True)
            if all_rows.ndim
            and len(all_rows) == self.count
            and part.shape == (max(some, 1), *all_rows.shape[1:])
        ]


def _evidence(traced: Traced, *given: Any) -> Evidence:
    """What a function computes; of large gradients, sketches."""
    found = traced.function(*given)[2]
    return found._replace(gradients=[sketch(gradient) for gradient in found.gradients])


def _arrays(evidence: Evidence) -> Evidence:
    return Evidence(*[[t.numpy() for t in tensors] for tensors in evidence])


def _at_least_one(rows: Tensor) -> Tensor:
    return rows if len(rows) else tf.zeros([1, *rows.shape[1:]], rows.dtype)
