"""A model's own `train_step` or `test_step` on the workers' shares, or on micro-batches."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError
from ddp_gd.steps import keras_private
from ddp_gd.steps.finite import all_finite
from ddp_gd.steps.own.dependence import written
from ddp_gd.steps.own.micro_batches import MicroBatches
from ddp_gd.steps.own.own_step import OwnRules, OwnStep, Ran, put_together
from ddp_gd.steps.own.points import InPasses, Making
from ddp_gd.steps.own.proof import OwnProof
from ddp_gd.steps.reduction import one_row_at_least
from ddp_gd.steps.rows import draws
from ddp_gd.steps.rules import Options
from ddp_gd.steps.state import optimizers, other_variables
from ddp_gd.steps.whole import keras_step

Tensor = Any


class OwnSharedStep:
    """A step that the model overrides, or a part of it, see `own_step`.

    Args:
        model: compiled and built.
        communicator: the workers.
        signature: structure, dtypes and shapes of the rows.
        sample: some rows, the same on every worker, on which the step is tried.
        options: see `Options`.

    Attributes:
        traced, log_names, logged: see `WholeStep`.
        changed: the variables that a step may change beside weights and optimizer.

    Raises:
        ModelError: on every worker: what it does on shares is not what it does on the whole.
    """

    def __init__(
        self,
        model: keras.Model,
        communicator: Communicator,
        signature: Signature,
        sample: list[Tensor],
        options: Options,
    ):
        self._model = model
        self._communicator = communicator
        self._signature = signature
        self._options = options
        names = {id(v.value): v.path for v in [*model.variables, *model.metrics_variables]}
        in_pieces = options.micro_batch_size is not None

        def make(rules: OwnRules | None, moments: Any) -> OwnStep | InPasses:
            if rules is not None and in_pieces:
                return InPasses(Making(self._step, signature.specs, model, rules.blocks, moments))
            shared = None if rules is None else communicator
            given = rules or OwnRules()
            return OwnStep(self._step, shared, signature.specs, given, model, moments)

        self._rules, own = OwnProof(make, communicator, sample, names, in_pieces).prove()
        _require_kept(model, own)
        self.log_names = [] if self._are_metrics else self._names
        self.logged: list[Any] = []
        self.changed = [*model.non_trainable_variables, *model.metrics_variables]
        self._own: OwnStep | None = None
        self._pieces: MicroBatches | None = None
        if isinstance(own, OwnStep):
            self._own, self.traced = own, own.traced
            returned = own.traced.structured_outputs[0]
        else:
            self._pieces = MicroBatches(own, self._rules, communicator, options)
            self.traced = own.update.traced
            returned = self.traced.structured_outputs[0]
        if self.log_names:
            self.logged = returned

    def __call__(
        self, count: int, rows: list[Tensor], start: Tensor, batch_rows: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Any]:
        """Make the step, see `SharedStep`."""
        make = self._on_share if self._own is not None else self._on_micro_batches
        returned, own_finite, all_flags = make(count, rows, start, batch_rows, asked)
        loss = self._names.index("loss") if "loss" in self._names else None
        finite = tf.constant(True)
        if self._options.stop_on_nan:
            finite = tf.equal(all_flags[1], 0)
            if loss is not None:
                finite &= tf.reduce_all(tf.math.is_finite(tf.cast(returned[loss], tf.float32)))
        logs = [tf.cast(value, tf.float32) for value in returned] if self.log_names else []
        return finite, own_finite, all_flags[0] > 0, logs, ()

    @property
    def _looks_itself(self) -> bool:
        """Whether the optimizer looks for what isn't finite, and tries again."""
        return isinstance(self._model.optimizer, keras.optimizers.LossScaleOptimizer)

    def _on_share(
        self, count: int, rows: list[Tensor], start: Tensor, batch_rows: Tensor, asked: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """What the step returned; whether this worker's part is finite; the sum of all flags."""
        assert self._own is not None
        size = tf.shape(rows[0])[0]
        rows = one_row_at_least(rows, tf.equal(size, 0))

        def flags(ran: Ran) -> Tensor:
            finite = ran.own_finite | tf.constant(self._looks_itself)
            return tf.stack([asked, tf.cast(~finite, tf.float32)])

        returned, ran, all_flags = put_together(
            self._own,
            self._communicator,
            self._rules,
            rows,
            draws.Rows(start, size, batch_rows),
            flags,
        )
        return returned, ran.own_finite, all_flags

    def _on_micro_batches(
        self, count: int, rows: list[Tensor], start: Tensor, batch_rows: Tensor, asked: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        assert self._pieces is not None

        def flags(number: int, parts: list[Any]) -> Tensor:
            values = [v for v in tf.nest.flatten(parts) if v.dtype.is_floating]
            finite = all_finite(values) | tf.constant(self._looks_itself)
            first = asked if number == 0 else tf.zeros_like(asked)
            return tf.stack([first, tf.cast(~finite, tf.float32)])

        returned, own_flags, all_flags = self._pieces(count, rows, start, batch_rows, flags)
        return returned, tf.equal(own_flags[1], 0), all_flags

    def _step(self, rows: list[Tensor]) -> list[Tensor]:
        training = self._options.training
        logs, self._are_metrics = keras_step(self._model, self._signature, training, rows)
        self._names = list(logs)
        return list(logs.values())


def _require_kept(model: keras.Model, step: OwnStep | InPasses) -> None:
    """Refuse a step that writes to what the model doesn't keep: it would not be saved or compared.

    Raises:
        ModelError: naming the variable.
    """
    kept = [*model.variables, *model.metrics_variables, *other_variables(model)]
    kept += keras_private.compiled_variables(model)
    kept += [variable for optimizer in optimizers(model) for variable in optimizer.variables]
    known = {id(variable.value) for variable in kept}
    traced = step.update.traced if isinstance(step, InPasses) else step.traced
    for variable in written(traced, step.variables):
        if id(variable) not in known:
            raise ModelError(
                f"The step writes to the variable {variable.name!r}, which the model doesn't keep, "
                "so it would be neither given to all workers nor saved. Make it with add_weight() "
                "of the model or a layer; keep an optimizer in an attribute of the model, or in a "
                "dict or list there; list a metric in the model's `metrics`."
            )
