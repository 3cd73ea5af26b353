"""A step whose global mini-batch is cut into the workers' shares, or into micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.comm.base import Communicator
from ddp_gd.steps import graph
from ddp_gd.steps.audit import Audit, Checks, Found, Given, checksums, width
from ddp_gd.steps.finite import all_finite, looked_at
from ddp_gd.steps.micro_batch import Pieces, Sums
from ddp_gd.steps.proof import proof
from ddp_gd.steps.proof.comparison import Comparison
from ddp_gd.steps.reduction import CanonicalTree, Flags, Function, Summands, no_flags, reduction
from ddp_gd.steps.rows.draws import Rows
from ddp_gd.steps.rules import Options
from ddp_gd.steps.state import log_losses

Tensor = Any


class SharedStep:
    """This worker's sums, their reduction over all workers, the update.

    Args:
        model: compiled and built.
        communicator: the workers.
        signature: structure, dtypes and shapes of the rows.
        sample: some rows, the same on every worker, on which it is found out how the shares make
            up the whole.
        options: see `Options`.

    Attributes:
        traced: the traced function of one micro-batch.
        log_names, logged: empty; see `WholeStep`.

    Raises:
        ModelError: on every worker: they don't.
    """

    def __init__(
        self,
        model: keras.Model,
        communicator: Communicator,
        signature: Signature,
        sample: list[Tensor],
        options: Options,
    ):
        self.log_names: list[str] = []
        self.logged: list[Tensor] = []
        self._model = model
        self._communicator = communicator
        self._options = options
        self._reduce = reduction(communicator, options)
        comparison = Comparison(model, communicator, signature, options, sample)
        self._rules, traced = proof.prove(comparison)
        self._layout, self._state = traced.layout, traced.micro_batch.state
        self._losses = len(traced.micro_batch.losses)
        self._before, self._met, self._specs = traced.before, traced.met, traced.specs
        trace = graph.isolated if options.bitwise_lanes else graph.inlined
        self.traced = trace(lambda *given: traced.function(*given)[:2], *traced.specs)
        self._apply: Callable[[Sums, Pieces], None] = self._update
        if options.bitwise_lanes and options.training:
            specs = tf.nest.map_structure(
                lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype),
                self.traced.structured_outputs,
            )
            self._apply = graph.isolated(self._update, *specs)

    @property
    def changed(self) -> list[Any]:
        """The variables that a step changes beside weights and optimizer."""
        return [*self._layout.changes.state, *self._model.metrics_variables]

    def __call__(
        self,
        count: int,
        rows: list[Tensor],
        start: Tensor,
        batch_rows: Tensor,
        asked: Tensor,
        given: Given | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Any]:
        """THE step.

        Args:
            count: `Options.micro_batches(batch_rows)`.
            rows: this worker's.
            start: the first one's place in the global mini-batch.
            batch_rows: rows of the global mini-batch.
            asked: more than 0 where this worker was asked to stop.
            given: what it computes once more; None where nothing is audited.

        Returns:
            Whether loss and gradient are finite; whether this worker's part of them is; whether
            some worker was asked to stop; nothing more to log; `Found`, or () without an audit.
        """
        audit = None
        if given is not None:
            assert isinstance(self._reduce, CanonicalTree)
            audit = Audit(self._reduce, given)
        reduce = audit or self._reduce
        state = self._state.read()
        metrics = self._state.metrics_before(carried=self._rules.met_metrics)

        def sums(function: Function, *more: Any, flags: Flags = no_flags) -> tuple:
            def arguments(mine: list[Tensor], first: Tensor, real: Tensor) -> tuple:
                return (state, mine, Rows(first, real, batch_rows), *more)

            return reduce(Summands(function, arguments, rows, start, count, flags))

        totals, met = tf.zeros(self._losses), ()
        if self._before is not None:
            totals, outputs, *_ = sums(self._before)
            if self._met is not None:
                met = tuple(self._met(outputs))
        # Two flags of each worker: it was asked to stop, its part isn't finite.
        summed, pieces, own, flags = sums(
            self.traced,
            *(totals, metrics, met),
            flags=lambda own: tf.stack([asked, self._not_finite(own)]),
        )
        found: Found | tuple[()] = ()
        if audit is None:
            self._write(summed, pieces, batch_rows)
        else:
            found = Found(audit.differs, audit.checks, totals, met)
            tf.cond(found.differs, lambda: None, lambda: self._write(summed, pieces, batch_rows))
        finite = tf.equal(flags[1], 0)
        if self._options.stop_on_nan:
            finite &= tf.math.is_finite(summed.loss)
        return finite, tf.equal(own[1], 0), flags[0] > 0, [], found

    @property
    def audited(self) -> list[Any]:
        """The functions of a micro-batch that are audited, in the order of `Found.checks`."""
        return [function for function in (self._before, self.traced) if function is not None]

    @property
    def found(self) -> Found:
        """`tf.TensorSpec` of each tensor of a step's `Found`."""
        lines = [tf.TensorSpec([None, width(function)], tf.int64) for function in self.audited]
        totals, _, met = self._specs[-3:]
        return Found(
            tf.TensorSpec([], tf.bool), [Checks(line, line) for line in lines], totals, met
        )

    @property
    def audited_names(self) -> list[list[str]]:
        """What each checksum of a line of `Checks` is of, in words, for each of `audited`."""
        names = []
        if self._before is not None:
            values = tf.nest.flatten(self._before.structured_outputs)
            denominators = "the denominators of the losses"
            names.append([denominators, *["what the model gives"] * (len(values) - 1)])
        names.append(self._layout.names(self._losses))
        return [["the rows that were read", *of_function] for of_function in names]

    def compute_again(
        self, which: int, rows: list[Tensor], number: Tensor, batch_rows: Tensor, found: Found
    ) -> Tensor:
        """Compute a micro-batch as a step did, and return its line of `Checks`.

        Args:
            which: place in `audited`.
            rows: of the micro-batch.
            number: its number.
            batch_rows: rows of the global mini-batch.
            found: what the step left.
        """
        function = self.audited[which]
        first = number * self._options.micro_batch_size
        place = Rows(first, tf.shape(rows[0])[0], batch_rows)
        given: tuple[Any, ...] = (self._state.read(), rows, place)
        if function is self.traced:
            given += (found.totals, self._state.metrics_before(carried=False), found.met)
        return checksums(number, rows, function(*given))

    def _write(self, sums: Sums, pieces: Pieces, batch_rows: Tensor) -> None:
        """Change the model as the sums of all workers say, and log the losses."""
        self._layout.changes.assign(sums.state, sums.metrics, self._rules)  # weights, too
        if self._options.training:
            self._apply(sums, pieces)
        log_losses(self._model, sums.loss, sums.losses, batch_rows)

    def _not_finite(self, parts: list[tuple[Sums, Pieces]]) -> Tensor:
        """1 where this worker's losses or gradients aren't numbers and shall be, else 0."""
        if not self._options.stop_on_nan:
            return tf.constant(0.0)
        values = [sums.loss for sums, _ in parts]
        for part in parts:
            gradients = self._layout.gradients(*part)
            spare = self._communicator.size == 1
            optimizer = self._model.optimizer
            values += looked_at(optimizer, self._layout.weights, gradients, spare)
        return tf.cast(~all_finite(values), tf.float32)

    def _update(self, sums: Sums, pieces: Pieces) -> None:
        """Let the optimizer make its one update; clipping and weight decay happen inside it."""
        if gradients := self._layout.gradients(sums, pieces):
            weights = self._layout.weights
            self._model.optimizer.apply_gradients(zip(gradients, weights, strict=True))
