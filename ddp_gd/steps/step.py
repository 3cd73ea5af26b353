"""The step: one global mini-batch, one averaged gradient, one optimizer update.

The identity that every step keeps, with the sum over all rows of the global mini-batch:

    g = ( sum of d loss_row / d w ) / denominator  +  d regularisation / d w

In one process Keras's own step does (`whole`). Else each worker sums over the rows of its own share
(`shares`). What it sums is divided by the *global* denominator before the workers' sums are added
(`losses`), and the regularisation enters as a row-weighted mean over shares. There is no mean of
means anywhere: it would be wrong as soon as one share is smaller than another.
"""

import functools
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.plan import Again, Shares
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError
from ddp_gd.steps import graph, keras_private
from ddp_gd.steps.audit import Found, Given
from ddp_gd.steps.own.shares import OwnSharedStep
from ddp_gd.steps.rules import Options
from ddp_gd.steps.shares import SharedStep
from ddp_gd.steps.whole import WholeStep

Tensor = Any


class StepResult(NamedTuple):
    """How a run of steps ended."""

    steps: Tensor  # int32 scalar: how many were made
    finite: Tensor  # bool scalar: whether the last one's loss and gradient were
    share_finite: Tensor  # bool scalar: whether this worker's part of them was
    stop: Tensor  # bool scalar: whether some worker was asked to stop
    logs: list[Tensor]  # float32: what the last step returned that is no metric of the model
    audit: Any  # `Found` of the last step; () where nothing is audited


class Steps:
    """A model's steps, compiled: many of them in one call into TensorFlow.

    Args:
        model: compiled and built.
        communicator: the workers.
        signature: structure, dtypes and shapes of the rows.
        sample: some rows, the same on every worker, to try the model on.
        options: see `Options`.

    Attributes:
        changed: the variables that a step may change beside weights and optimizer.
        traced: the traced function of one step, or of one micro-batch.
        log_names: the names of `StepResult.logs`.
        ask_to_stop: a variable; 1 asks all workers to stop after the step in which they see it.

    Raises:
        ModelError: on every worker: what shares of a global mini-batch compute is not the whole.
    """

    def __init__(
        self,
        model: keras.Model,
        communicator: Communicator,
        signature: Signature,
        sample: list[Tensor],
        options: Options,
    ):
        self.model = model
        self.stop_on_nan = options.stop_on_nan
        self._options = options
        self.ask_to_stop = tf.Variable(0.0, trainable=False, name="ddp_gd_ask_to_stop")
        self._signature = signature
        if (name := keras_private.overrides(model, options.training) or "").startswith("make_"):
            raise ModelError(
                f"{type(model).__name__} overrides {name}(), which is not called here: the loop "
                "over steps is ddp_gd's. Override train_step() or test_step() instead."
            )
        self._step: WholeStep | OwnSharedStep | SharedStep
        if communicator.size == 1 and options.micro_batch_size is None:
            self._step = WholeStep(model, signature, options)
        elif name:
            self._step = OwnSharedStep(model, communicator, signature, sample, options)
        else:
            self._step = SharedStep(model, communicator, signature, sample, options)
        self.traced, self.log_names = self._step.traced, self._step.log_names
        self._runs: dict[tuple[int, int], Any] = {}

    @property
    def changed(self) -> list[Any]:
        """The variables that a step may change beside weights and optimizer."""
        return self._step.changed

    def run(self, rows: list[Tensor], shares: Shares, again: Again | None = None) -> StepResult:
        """Make the steps of `shares`, or stop after the first whose loss or gradient is not
        finite, or in which some worker was asked to stop, or before the update of the first in
        which an audit finds a difference.

        Args:
            rows: this worker's rows of all these steps, one step after the other.
            shares: how they are cut. In bitwise mode all steps have the same number of
                micro-batches (`same_graph`).
            again: what this worker computes once more; None where nothing is audited.
        """
        count = self._options.micro_batches(int(shares.batch_rows[0]))
        numbers = tf.TensorSpec([None], tf.int32)
        specs: tuple[Any, ...] = (self._signature.specs, numbers, numbers, numbers)
        given: tuple[Any, ...] = (
            rows,
            *map(tf.convert_to_tensor, (shares.offsets, shares.batch_rows, shares.starts)),
        )
        audited = 0
        if again is not None:
            audited = again.places.shape[1]
            places = tf.TensorSpec([None, audited], tf.bool)
            specs += (places, numbers, numbers, numbers, self._signature.specs)
            integers = (again.places, again.numbers, again.offsets, again.row_offsets)
            given += (*map(tf.convert_to_tensor, integers), again.leaves)
        kind = count, audited
        if kind not in self._runs:
            self._runs[kind] = graph.inlined(functools.partial(self._run, count), *specs)
        return self._runs[kind](*given)

    def same_graph(self, batch_rows: int, other: int) -> bool:
        """Tell whether steps of so many rows can be made in one call of `run`."""
        return self._options.micro_batches(batch_rows) == self._options.micro_batches(other)

    @property
    def audited_names(self) -> list[list[str]]:
        """What an audit compares, in words, see `SharedStep`."""
        assert isinstance(self._step, SharedStep)
        return self._step.audited_names

    def compute_again(
        self, which: int, rows: list[Tensor], number: int, batch_rows: int, found: Found
    ) -> Tensor:
        """Compute a micro-batch as the last step did, see `SharedStep`."""
        assert isinstance(self._step, SharedStep)
        compute = functools.partial(self._step.compute_again, which)
        # In a function as where a step computes it: TensorFlow may optimize a graph otherwise.
        return tf.function(compute, autograph=False)(
            rows, tf.constant(number), tf.constant(batch_rows), found
        )

    def _run(
        self,
        count: int,
        rows: list[Tensor],
        offsets: Tensor,
        batch_rows: Tensor,
        starts: Tensor,
        *again: Any,
    ) -> StepResult:
        """Loop over the steps. The tensors are those of `Shares` and `Again`."""
        logs = [tf.zeros(value.shape) for value in self._step.logged]
        found: Any = ()
        if again:
            assert isinstance(self._step, SharedStep)
            found = self._step.found
        shapes = tf.nest.map_structure(lambda spec: spec.shape, found)

        def one(step: Tensor, *_: Tensor) -> tuple[Any, ...]:
            share = [array[offsets[step] : offsets[step + 1]] for array in rows]
            asked = self.ask_to_stop.read_value()
            given = [_of_step(step, *again)] if again else []
            return step + 1, *self._step(
                count, share, starts[step], batch_rows[step], asked, *given
            )

        def goes_on(step: Tensor, finite: Tensor, _: Tensor, stop: Tensor, *more: Any) -> Tensor:
            go_on = finite & ~stop & (step < tf.size(batch_rows))
            return go_on & ~more[-1].differs if again else go_on

        begin = (tf.constant(0), tf.constant(True), tf.constant(True), tf.constant(False), logs)
        # parallel_iterations=1: no step's collectives may overtake those of the step before.
        return StepResult(
            *tf.while_loop(
                goes_on,
                one,
                (*begin, tf.nest.map_structure(_nothing, found)),
                shape_invariants=(*tf.nest.map_structure(lambda t: t.shape, begin), shapes),
                parallel_iterations=1,
            )
        )


def _of_step(
    step: Tensor,
    places: Tensor,
    numbers: Tensor,
    offsets: Tensor,
    row_offsets: Tensor,
    rows: list[Tensor],
) -> Given:
    """What is computed once more in one step, of `Again`."""
    first, stop = offsets[step], offsets[step + 1]
    return Given(places[step], numbers[first:stop], row_offsets[first : stop + 1], rows)


def _nothing(spec: tf.TensorSpec) -> Tensor:
    return tf.zeros([length or 0 for length in spec.shape], spec.dtype)
