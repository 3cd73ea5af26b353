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

from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.plan import Shares
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError
from ddp_gd.step import graph
from ddp_gd.step.graph import inlined, isolated
from ddp_gd.step.losses import CompiledLosses
from ddp_gd.step.reduction import AllReduce, CanonicalTree
from ddp_gd.step.state import ModelState, global_seed

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
    finite: Tensor  # bool scalar: whether the last one's loss and gradient were
    share_finite: Tensor  # bool scalar: whether this worker's part of them was
    stop: Tensor  # bool scalar: whether some worker was asked to stop


class Steps:
    """A model's steps, compiled: many of them in one call into TensorFlow.

    Args:
        model: compiled and built.
        communicator: the workers.
        signature: structure, dtypes and shapes of the rows.
        micro_batch_size: rows of a micro-batch; None makes each share one micro-batch.
        empty_shares: whether some share may be empty.
        training: False for evaluation: no gradient, no update, layers in inference mode.
        bitwise_lanes: 0, or how many micro-batches to compute at once in bitwise mode, which needs
            `micro_batch_size`.
        stop_on_nan: stop after a step whose loss or gradient isn't finite.
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
        bitwise_lanes: int = 0,
        stop_on_nan: bool = True,
    ):
        _require_keras_step(model)
        self.model = model
        self.signature = signature
        self.training = training
        self.splits = communicator.size > 1 or micro_batch_size is not None
        self.losses = CompiledLosses(model, self.splits)
        self._micro_batch_size = micro_batch_size
        self.stop_on_nan = stop_on_nan
        self._communicator = communicator
        self._reduce: AllReduce | CanonicalTree
        if bitwise_lanes:
            assert micro_batch_size is not None
            self._reduce = CanonicalTree(communicator, micro_batch_size, bitwise_lanes)
        else:
            size = micro_batch_size or (tf.int32.max if empty_shares else None)
            self._reduce = AllReduce(communicator, size)
        # 1 asks all workers to stop after the step in which they see it, all the same one.
        self.ask_to_stop = tf.Variable(0.0, trainable=False, name="ddp_gd_ask_to_stop")
        self._apply: Callable[[Sums, Pieces], None] = self._update
        self._trace = isolated if bitwise_lanes else inlined
        seed = global_seed()
        self._trace_sums()
        if global_seed() is not seed:  # made in there: now it is a part of the state
            self._trace_sums()
        if self.splits:
            graph.require_tracked_state(self._sum)
        if bitwise_lanes:
            graph.require_deterministic(self._sum)
            if training:
                specs = tf.nest.map_structure(
                    lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype),
                    self._sum.structured_outputs,
                )
                self._apply = isolated(self._update, *specs)
        self._runs: dict[int, Any] = {}

    def _trace_sums(self) -> None:
        """Trace what is computed of a micro-batch."""
        self.state = ModelState(self.model, self.splits)
        number = tf.TensorSpec([], tf.int32)
        totals = tf.TensorSpec([len(self.losses)], tf.float32)
        state, rows = self.state.specs, self.signature.specs
        if self.splits:
            self._count = self._trace(self._micro_batch_denominators, state, rows)
        self._sum = self._trace(self._micro_batch_sums, state, rows, number, number, totals)

    def run(self, rows: list[Tensor], shares: Shares) -> StepResult:
        """Make the steps of `shares`, or stop after the first whose loss or gradient is not
        finite, or in which some worker was asked to stop.

        Args:
            rows: this worker's rows of all these steps, one step after the other.
            shares: how they are cut. In bitwise mode all steps have the same number of
                micro-batches (`same_graph`).
        """
        count = self._micro_batches(int(shares.batch_rows[0]))
        if count not in self._runs:
            numbers = tf.TensorSpec([None], tf.int32)
            self._runs[count] = inlined(
                functools.partial(self._run, count),
                self.signature.specs,
                numbers,
                numbers,
                numbers,
            )
        return self._runs[count](
            rows,
            *map(tf.convert_to_tensor, (shares.offsets, shares.batch_rows, shares.micro_batches)),
        )

    @property
    def micro_batch_function(self) -> Any:
        """The traced function of one micro-batch."""
        return self._sum

    def same_graph(self, batch_rows: int, other: int) -> bool:
        """Tell whether steps of so many rows can be made in one call of `run`."""
        return self._micro_batches(batch_rows) == self._micro_batches(other)

    def _micro_batches(self, batch_rows: int) -> int:
        """Micro-batches of a step, where the graph is made for their number."""
        if not self._reduce.counts:
            return 0
        assert self._micro_batch_size is not None
        return -(-batch_rows // self._micro_batch_size)

    def _run(
        self,
        count: int,
        rows: list[Tensor],
        offsets: Tensor,
        batch_rows: Tensor,
        micro_batches: Tensor,
    ) -> StepResult:
        """Loop over the steps. The tensors are those of `Shares`."""

        def one(step: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            share = [array[offsets[step] : offsets[step + 1]] for array in rows]
            return step + 1, *self._step(count, share, batch_rows[step], micro_batches[step])

        # parallel_iterations=1: no step's collectives may overtake those of the step before.
        return StepResult(
            *tf.while_loop(
                lambda step, finite, _, stop: finite & ~stop & (step < tf.size(batch_rows)),
                one,
                (tf.constant(0), tf.constant(True), tf.constant(True), tf.constant(False)),
                parallel_iterations=1,
            )
        )

    def _step(
        self, count: int, share: list[Tensor], batch_rows: Tensor, first: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """THE step: this worker's sums, their reduction over all workers, the update."""
        state = self.state.read()
        totals = tf.zeros(len(self.losses))
        if self.splits and self._count.structured_outputs[0] is not None:
            totals, *_ = self._reduce(
                self._count, lambda rows, _: (state, rows), share, first, count
            )
        sums, pieces, own, flags = self._reduce(
            self._sum,
            lambda rows, number: (state, rows, batch_rows, number, totals),
            share,
            first,
            count,
            # Two flags of each worker: it was asked to stop, its part isn't finite.
            lambda own: tf.stack([self.ask_to_stop.read_value(), self._not_finite(own)]),
        )
        if self.training:
            self._apply(sums, pieces)
        self.state.assign(sums.state)
        self.state.log(sums.loss, sums.losses, sums.metrics, batch_rows)
        finite = tf.equal(flags[1], 0)
        if self.stop_on_nan:
            finite &= tf.math.is_finite(sums.loss)
        return finite, tf.equal(own[1], 0), flags[0] > 0

    def _not_finite(self, parts: list[tuple[Sums, Pieces]]) -> Tensor:
        """1 where this worker's losses or gradients are NaN or infinite and shall not be, else 0.

        A sum tells of all its terms, and takes one pass; see `_spared` for those without.
        """
        if not self.stop_on_nan:
            return tf.constant(0.0)
        values = [sums.loss for sums, _ in parts]
        if not isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer):
            # That one looks for itself, and tries again with a smaller scale.
            for sums, pieces in parts:
                gradients = (*sums.gradients, *pieces.values)
                values += [g for g, spare in zip(gradients, self._spares, strict=True) if not spare]
        wide = [tf.cast(v, tf.float32) if v.dtype.size < 4 else v for v in values]
        finite = [tf.constant(True), *(tf.math.is_finite(tf.reduce_sum(v)) for v in wide)]
        return tf.cast(~tf.reduce_all(finite), tf.float32)

    def _micro_batch_sums(
        self,
        state: list[Tensor],
        rows: list[Tensor],
        batch_rows: Tensor,
        number: Tensor,
        totals: Tensor,
    ) -> tuple[Sums, Pieces]:
        """Forward and backward through one micro-batch: its part of every sum.

        Args:
            state: values of the model's variables, as `ModelState.read` gives them.
            rows: of the micro-batch, as `signature` describes them.
            batch_rows: rows of the global mini-batch.
            number: of the micro-batch within the global mini-batch.
            totals: denominators of the whole global mini-batch, see `losses.py`.
        """
        model = self.model
        x, y, sample_weight = self.signature.unpack(rows)
        row_share = tf.cast(tf.shape(rows[0])[0], tf.float32) / tf.cast(batch_rows, tf.float32)
        weights = self.state.weights_of(state)
        with self.state.copies(state, number) as scope:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                y_pred = self._forward(x, self.training)
                loss, losses = self.losses(y, y_pred, sample_weight, row_share, totals)
                for extra in model.losses:  # weight and activity regularisers, add_loss
                    value = model._aggregate_additional_loss(extra)
                    loss += tf.cast(tf.cast(row_share, value.dtype) * value, loss.dtype)
                scaled = model.optimizer.scale_loss(loss) if self.training else loss
            model.compute_metrics(x, y, y_pred, sample_weight)
            new_state, metrics = self.state.sums(scope, row_share, number)
        gradients = tape.gradient(scaled, weights) if self.training else []
        # Known while tracing: the loss may not depend on every weight.
        self._kinds = [type(gradient) for gradient in gradients]
        slices = [g for g in gradients if isinstance(g, tf.IndexedSlices)]
        spares = self._spared(gradients)
        self._spares = [
            spare
            for sparse in (False, True)
            for gradient, spare in zip(gradients, spares, strict=True)
            if gradient is not None and isinstance(gradient, tf.IndexedSlices) == sparse
        ]
        dense = [
            tf.ensure_shape(gradient, weight.shape)
            for gradient, weight in zip(gradients, weights, strict=False)
            if gradient is not None and not isinstance(gradient, tf.IndexedSlices)
        ]
        return (
            Sums(loss, losses, dense, new_state, metrics),
            Pieces([g.indices for g in slices], [g.values for g in slices]),
        )

    def _spared(self, gradients: list[Any]) -> list[bool]:
        """Which gradients one worker doesn't look at for NaN and infinity: it takes 7 % of a step
        where they are all there is.

        Large ones, of which a small one of the same layer tells: a bias has what its kernel has.
        Unless only the kernel's sum overflows; then the next step's loss is NaN, or the weights are
        at the end of the epoch (`replicas.require_finite`). Clipping to a value would hide that.
        """
        layers = [weight.path.rpartition("/")[0] for weight in self.state.weights]
        large = [g is not None and (g.shape.num_elements() or 0) > 2**16 for g in gradients]
        small = zip(layers, large, gradients, strict=False)
        told = {layer for layer, is_large, g in small if g is not None and not is_large}
        spare = self._communicator.size == 1 and not self.model.optimizer.clipvalue
        return [spare and big and layer in told for big, layer in zip(large, layers, strict=False)]

    def _micro_batch_denominators(
        self, state: list[Tensor], rows: list[Tensor]
    ) -> tuple[Tensor | None, tuple]:
        """What each loss divides by on one micro-batch, None if its rows tell.

        Only masks are needed of the forward pass: TensorFlow prunes the rest from the graph.
        """
        x, y, sample_weight = self.signature.unpack(rows)
        with self.state.copies(state, tf.constant(0)):
            y_pred = self._forward(x, training=False)
            return self.losses.denominators(y, y_pred, sample_weight), ()

    def _forward(self, x: Any, training: bool) -> Any:
        if self.model._call_has_training_arg:
            return self.model(x, training=training)
        return self.model(x)

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


def _require_keras_step(model: keras.Model) -> None:
    """Refuse a model that replaces the parts of Keras's step that are done here."""
    for name in ("train_step", "test_step", "compute_loss"):
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise ModelError(
                f"{type(model).__name__} overrides {name}(), and what that computes can't be cut "
                "into the shares of several workers. Give the loss to compile(loss=...), or call "
                "add_loss() with a mean over rows, and leave the override out."
            )
