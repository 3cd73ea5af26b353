"""The step: one global mini-batch, one averaged gradient, one optimizer update.

The identity that every step keeps, with the sum over all rows of the global mini-batch:

    g = ( sum of d loss_row / d w ) / denominator  +  d regularisation / d w

Each worker sums over the rows of its own share. What it sums is divided by the *global* denominator
before the workers' sums are added (`losses`), and the regularisation enters as a row-weighted
mean over shares. There is no mean of means anywhere: it would be wrong as soon as one share is
smaller than another.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.plan import Shares
from ddp_gd.comm.base import Communicator
from ddp_gd.step import graph
from ddp_gd.step.keras_private import global_seed
from ddp_gd.step.micro_batch import Layout, MicroBatch, Pieces, Sums
from ddp_gd.step.reduction import AllReduce, CanonicalTree
from ddp_gd.step.state import Changes, log_losses

Tensor = Any


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

    Attributes:
        changes: the variables that a step changes beside weights and optimizer.
        micro_batch_function: the traced function of one micro-batch.
        ask_to_stop: a variable; 1 asks all workers to stop after the step in which they see it.
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
        self.model = model
        self.training = training
        self.stop_on_nan = stop_on_nan
        self.ask_to_stop = tf.Variable(0.0, trainable=False, name="ddp_gd_ask_to_stop")
        self._signature = signature
        self._communicator = communicator
        self._micro_batch_size = micro_batch_size
        self._reduce: AllReduce | CanonicalTree
        if bitwise_lanes:
            assert micro_batch_size is not None
            self._reduce = CanonicalTree(communicator, micro_batch_size, bitwise_lanes)
        else:
            size = micro_batch_size or (tf.int32.max if empty_shares else None)
            self._reduce = AllReduce(communicator, size)
        splits = communicator.size > 1 or micro_batch_size is not None
        trace = graph.isolated if bitwise_lanes else graph.inlined

        seed = global_seed()
        traced = _trace(model, signature, trace, splits, training)
        if global_seed() is not seed:  # made in there: now it is a part of the state
            traced = _trace(model, signature, trace, splits, training)
        self._micro_batch, self._count, self.micro_batch_function, self._layout = traced
        if splits:
            graph.require_tracked_state(self.micro_batch_function)
        if bitwise_lanes:
            graph.require_deterministic(self.micro_batch_function)
        self._apply: Callable[[Sums, Pieces], None] = self._update
        if bitwise_lanes and training:
            specs = tf.nest.map_structure(
                lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype),
                self.micro_batch_function.structured_outputs,
            )
            self._apply = graph.isolated(self._update, *specs)
        self._runs: dict[int, Any] = {}

    @property
    def changes(self) -> Changes:
        """The variables that a step changes beside weights and optimizer."""
        return self._layout.changes

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
            self._runs[count] = graph.inlined(
                functools.partial(self._run, count),
                self._signature.specs,
                numbers,
                numbers,
                numbers,
            )
        return self._runs[count](
            rows,
            *map(tf.convert_to_tensor, (shares.offsets, shares.batch_rows, shares.micro_batches)),
        )

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
        state = self._micro_batch.state.read()
        totals = tf.zeros(len(self._micro_batch.losses))
        if self._count is not None:
            totals, *_ = self._reduce(
                self._count, lambda rows, _: (state, rows), share, first, count
            )
        sums, pieces, own, flags = self._reduce(
            self.micro_batch_function,
            lambda rows, number: (state, rows, batch_rows, number, totals),
            share,
            first,
            count,
            # Two flags of each worker: it was asked to stop, its part isn't finite.
            lambda own: tf.stack([self.ask_to_stop.read_value(), self._not_finite(own)]),
        )
        if self.training:
            self._apply(sums, pieces)
        self.changes.assign(sums.state, sums.metrics)
        log_losses(self.model, sums.loss, sums.losses, batch_rows)
        finite = tf.equal(flags[1], 0)
        if self.stop_on_nan:
            finite &= tf.math.is_finite(sums.loss)
        return finite, tf.equal(own[1], 0), flags[0] > 0

    def _not_finite(self, parts: list[tuple[Sums, Pieces]]) -> Tensor:
        """1 where this worker's losses or gradients are NaN or infinite and shall not be, else 0.

        A sum tells of all its terms, and takes one pass; see `_looked_at` for those without.
        """
        if not self.stop_on_nan:
            return tf.constant(0.0)
        values = [sums.loss for sums, _ in parts]
        if not isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer):
            # That one looks for itself, and tries again with a smaller scale.
            values += [g for part in parts for g in self._looked_at(*part)]
        wide = [tf.cast(v, tf.float32) if v.dtype.size < 4 else v for v in values]
        finite = [tf.constant(True), *(tf.math.is_finite(tf.reduce_sum(v)) for v in wide)]
        return tf.cast(~tf.reduce_all(finite), tf.float32)

    def _looked_at(self, sums: Sums, pieces: Pieces) -> list[Tensor]:
        """The gradients in which NaN and infinity are looked for.

        One worker leaves out large ones, of which a small one of the same layer tells (a bias has
        what its kernel has): it takes 7 % of a step where they are all there is. Unless only the
        kernel's sum overflows; then the next step's loss is NaN, or the weights are at the end of
        the epoch (`replicas.require_finite`). Clipping to a value would hide that.
        """
        gradients = self._layout.gradients(sums, pieces)
        found = [
            (w, g) for w, g in zip(self._layout.weights, gradients, strict=True) if g is not None
        ]
        named = [(w.path.rpartition("/")[0], math.prod(w.shape) > 2**16, g) for w, g in found]
        told: set[str] = set()
        if self._communicator.size == 1 and not self.model.optimizer.clipvalue:
            told = {layer for layer, large, _ in named if not large}
        kept = [g for layer, large, g in named if not (large and layer in told)]
        return [g.values if isinstance(g, tf.IndexedSlices) else g for g in kept]

    def _update(self, sums: Sums, pieces: Pieces) -> None:
        """Let the optimizer make its one update; clipping and weight decay happen inside it."""
        if gradients := self._layout.gradients(sums, pieces):
            weights = self._layout.weights
            self.model.optimizer.apply_gradients(zip(gradients, weights, strict=True))


def _trace(
    model: keras.Model,
    signature: Signature,
    trace: Callable[..., Any],
    splits: bool,
    training: bool,
) -> tuple[MicroBatch, Any, Any, Layout]:
    """Trace what is computed of a micro-batch.

    Returns:
        The micro-batch; the traced function of its denominators, None where its rows tell; that of
        its sums; and what those stand for.
    """
    micro_batch = MicroBatch(model, signature, splits=splits, training=training)
    number = tf.TensorSpec([], tf.int32)
    totals = tf.TensorSpec([len(micro_batch.losses)], tf.float32)
    state, rows = micro_batch.state.specs, signature.specs
    count = trace(micro_batch.denominators, state, rows) if splits else None
    if count is not None and count.structured_outputs[0] is None:
        count = None
    sums, layout = graph.with_layout(trace, micro_batch.sums, state, rows, number, number, totals)
    return micro_batch, count, sums, layout
