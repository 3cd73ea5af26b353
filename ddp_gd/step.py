"""The step: one global mini-batch, one averaged gradient, one optimizer update.

The identity that every step keeps, with the sum over all rows of the global mini-batch:

    g = ( sum of d loss_row / d w ) / denominator  +  d regularisation / d w

Each worker sums over the rows of its own share. What it sums is divided by the *global* denominator
before the workers' sums are added (`losses.py`), and the regularisation enters as a row-weighted
mean over shares. There is no mean of means anywhere: it would be wrong as soon as one share is
smaller than another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from .arrays import Signature
from .comm.base import Communicator
from .errors import ModelError
from .losses import CompiledLosses
from .state import ModelState

Tensor = Any


class Sums(NamedTuple):
    """What the micro-batches of a step add up to, over all workers."""

    loss: Tensor  # scalar: the loss, regularisation included
    losses: list[Tensor]  # scalars: each output's loss, without its loss weight
    gradients: list[Tensor]  # d loss / d w, for each w that the loss depends on
    state: list[Tensor]  # the new values of other variables that a forward pass changes
    metrics: list[Tensor]  # what the rows add to the metrics' states


class Pieces(NamedTuple):
    """What the micro-batches of a step are, one after the other, in the order of rows."""

    # The gradients of Embeddings: the table's rows that were looked up, with a gradient each. Not
    # added up, because Keras's optimizers treat a row that occurs twice in ways of their own.
    indices: list[Tensor]
    values: list[Tensor]


class StepResult(NamedTuple):
    """How a run of steps ended."""

    steps: Tensor  # int32 scalar: how many were made
    finite: Tensor  # bool scalar: whether the last one's loss was
    share_finite: Tensor  # bool scalar: whether this worker's part of it was


class Steps:
    """A model's steps, compiled: many of them in one call into TensorFlow.

    Args:
        model: compiled and built.
        communicator: the workers.
        signature: structure, dtypes and shapes of the rows.
        micro_batch_size: rows of a micro-batch; None makes each share one micro-batch.
        empty_shares: whether some share may be empty.
        training: False for evaluation: no gradient, no update, layers in inference mode.
    """

    def __init__(
        self,
        model: keras.Model,
        communicator: Communicator,
        signature: Signature,
        *,
        micro_batch_size: int | None,
        empty_shares: bool,
        training: bool,
    ):
        _require_keras_step(model)
        self.model = model
        self.communicator = communicator
        self.signature = signature
        self.training = training
        self.splits = communicator.size > 1 or micro_batch_size is not None
        self.losses = CompiledLosses(model, self.splits)
        self.state = ModelState(model, self.splits)
        # None: a share is never empty, and one micro-batch.
        self.micro_batch_size = micro_batch_size or (tf.int32.max if empty_shares else None)
        number, numbers = tf.TensorSpec([], tf.int32), tf.TensorSpec([None], tf.int32)
        totals = tf.TensorSpec([len(self.losses)], tf.float32)
        if self.splits:
            self._count = _trace(self._micro_batch_denominators, signature.specs)
        self._sum = _trace(self._micro_batch_sums, signature.specs, number, number, totals)
        self.run: Callable[..., StepResult] = _trace(
            self._run, signature.specs, numbers, numbers, numbers
        )

    def _run(
        self, rows: list[Tensor], offsets: Tensor, batch_rows: Tensor, micro_batches: Tensor
    ) -> StepResult:
        """Make n steps, or stop after the first whose loss is not finite.

        Args:
            rows: this worker's shares of all n steps, one after the other.
            offsets: int32, shape (n + 1,): where each step's share begins in `rows`, and the end.
            batch_rows: int32, shape (n,): rows of each step's global mini-batch.
            micro_batches: int32, shape (n,): number of the first micro-batch of each share.
        """

        def one(step: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            share = [array[offsets[step] : offsets[step + 1]] for array in rows]
            finite, share_finite = self._step(share, batch_rows[step], micro_batches[step])
            return step + 1, finite, share_finite

        # parallel_iterations=1: no step's collectives may overtake those of the step before.
        return StepResult(
            *tf.while_loop(
                lambda step, finite, _: finite & (step < tf.size(batch_rows)),
                one,
                (tf.constant(0), tf.constant(True), tf.constant(True)),
                parallel_iterations=1,
            )
        )

    def _step(
        self, share: list[Tensor], batch_rows: Tensor, micro_batch: Tensor
    ) -> tuple[Tensor, Tensor]:
        """THE step: this worker's sums, their reduction over all workers, the update."""
        totals = self._denominators(share)
        local, pieces = self._over_micro_batches(
            self._sum, share, lambda rows, index: (rows, batch_rows, micro_batch + index, totals)
        )
        sums = self._reduce(local)
        if self.training:
            self._update(sums, self._gather(pieces))
        self.state.assign(sums.state)
        self.state.log(sums.loss, sums.losses, sums.metrics, batch_rows)
        return tf.math.is_finite(sums.loss), tf.math.is_finite(local.loss)

    def _denominators(self, share: list[Tensor]) -> Tensor:
        """What each loss divides by on the whole global mini-batch, where the data decide it."""
        if not self.splits or self._count.structured_outputs[0] is None:
            return tf.zeros(len(self.losses))
        own, _ = self._over_micro_batches(self._count, share, lambda rows, _: (rows,))
        return self._reduce(own)

    def _micro_batch_sums(
        self, rows: list[Tensor], batch_rows: Tensor, micro_batch: Tensor, totals: Tensor
    ) -> tuple[Sums, Pieces]:
        """Forward and backward through one micro-batch: its part of every sum."""
        model, state = self.model, self.state
        x, y, sample_weight = self.signature.unpack(rows)
        row_share = tf.cast(tf.shape(rows[0])[0], tf.float32) / tf.cast(batch_rows, tf.float32)
        weights = [tf.convert_to_tensor(variable.value) for variable in state.weights]
        with state.copies(weights, micro_batch) as scope:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                y_pred = self._forward(x, self.training)
                loss, losses = self.losses(y, y_pred, sample_weight, row_share, totals)
                for extra in model.losses:  # weight and activity regularisers, add_loss
                    loss += row_share * model._aggregate_additional_loss(extra)
                scaled = model.optimizer.scale_loss(loss) if self.training else loss
            model.compute_metrics(x, y, y_pred, sample_weight)
            new_state, metrics = state.sums(scope, row_share, micro_batch)
        gradients = tape.gradient(scaled, weights) if self.training else []
        # Known while tracing: the loss may not depend on every weight.
        self._kinds = [type(gradient) for gradient in gradients]
        slices = [g for g in gradients if isinstance(g, tf.IndexedSlices)]
        dense = [
            tf.ensure_shape(gradient, weight.shape)
            for gradient, weight in zip(gradients, state.weights, strict=False)
            if gradient is not None and not isinstance(gradient, tf.IndexedSlices)
        ]
        return (
            Sums(loss, losses, dense, new_state, metrics),
            Pieces([g.indices for g in slices], [g.values for g in slices]),
        )

    def _micro_batch_denominators(self, rows: list[Tensor]) -> tuple[Tensor | None, tuple]:
        """What each loss divides by on one micro-batch, None if its rows tell.

        Only masks are needed of the forward pass: TensorFlow prunes the rest from the graph.
        """
        x, y, sample_weight = self.signature.unpack(rows)
        weights = [tf.convert_to_tensor(variable.value) for variable in self.state.weights]
        with self.state.copies(weights, tf.constant(0)):
            y_pred = self._forward(x, training=False)
            return self.losses.denominators(y, y_pred, sample_weight), ()

    def _forward(self, x: Any, training: bool) -> Any:
        if self.model._call_has_training_arg:
            return self.model(x, training=training)
        return self.model(x)

    def _over_micro_batches(
        self, function: Any, share: list[Tensor], arguments: Callable[..., tuple]
    ) -> tuple[Any, Any]:
        """Add up, and join, what `function(*arguments(rows, index))` gives for each micro-batch."""
        size = self.micro_batch_size
        if size is None:
            return function(*arguments(share, 0))
        rows = tf.shape(share[0])[0]

        def add(index: Tensor, sums: Any, pieces: Any) -> tuple[Tensor, Any, Any]:
            start = index * size
            stop = start + tf.minimum(size, rows - start)
            result = function(*arguments([array[start:stop] for array in share], index))
            join = functools.partial(tf.nest.map_structure, lambda a, b: tf.concat([a, b], axis=0))
            return (
                index + 1,
                tf.nest.map_structure(tf.add, sums, result[0]),
                join(pieces, result[1]),
            )

        sums, pieces = function.structured_outputs
        none_yet = (
            tf.constant(0),
            tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), sums),
            tf.nest.map_structure(lambda spec: tf.zeros([0, *spec.shape[1:]], spec.dtype), pieces),
        )
        _, sums, pieces = tf.while_loop(
            lambda index, *_: index < -(-rows // size),
            add,
            none_yet,
            shape_invariants=(
                tf.TensorShape([]),
                tf.nest.map_structure(lambda spec: spec.shape, sums),
                tf.nest.map_structure(lambda spec: tf.TensorShape([None, *spec.shape[1:]]), pieces),
            ),
            parallel_iterations=1,
        )
        return sums, pieces

    def _reduce(self, sums: Any) -> Any:
        """Add up all workers' sums."""
        if self.communicator.size == 1:
            return sums
        reduced = self.communicator.allreduce_sum(tf.nest.flatten(sums))
        return tf.nest.pack_sequence_as(sums, reduced)

    def _gather(self, pieces: Pieces) -> Pieces:
        """Join all workers' pieces."""
        if self.communicator.size == 1:
            return pieces
        return tf.nest.map_structure(self.communicator.allgather, pieces)

    def _update(self, sums: Sums, pieces: Pieces) -> None:
        """Let the optimizer make its one update; clipping and weight decay happen inside it."""
        dense = iter(sums.gradients)
        slices = zip(pieces.values, pieces.indices, strict=True)
        gradients = []
        for kind, weight in zip(self._kinds, self.state.weights, strict=True):
            if kind is tf.IndexedSlices:
                gradients.append(tf.IndexedSlices(*next(slices), tf.constant(list(weight.shape))))
            else:
                gradients.append(None if kind is type(None) else next(dense))
        if gradients:
            self.model.optimizer.apply_gradients(zip(gradients, self.state.weights, strict=True))


def _trace(function: Callable[..., Any], *signature: Any) -> Any:
    return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()


def _require_keras_step(model: keras.Model) -> None:
    """Refuse a model that replaces the parts of Keras's step that are done here."""
    for name in ("train_step", "test_step", "compute_loss"):
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise ModelError(
                f"{type(model).__name__} overrides {name}(), and what that computes can't be cut "
                "into the shares of several workers. Give the loss to compile(loss=...), or call "
                "add_loss() with a mean over rows, and leave the override out."
            )
