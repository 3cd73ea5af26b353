"""A model's own `train_step` or `test_step` on the workers' shares."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.comm.base import Communicator
from ddp_gd.steps.own.own_step import OwnRules, OwnStep, Ran, put_together
from ddp_gd.steps.own.proof import OwnProof
from ddp_gd.steps.reduction import one_row_at_least
from ddp_gd.steps.rows import draws
from ddp_gd.steps.whole import keras_step

Tensor = Any


class OwnSharedStep:
    """A step that the model overrides, or a part of it, see `own_step`.

    Args:
        model: compiled and built.
        communicator: the workers.
        signature: structure, dtypes and shapes of the rows.
        sample: some rows, the same on every worker, on which the step is tried.
        training: False for evaluation.
        stop_on_nan: tell of a loss or gradient that isn't finite.

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
        *,
        training: bool,
        stop_on_nan: bool,
    ):
        self._model = model
        self._communicator = communicator
        self._signature = signature
        self._training = training
        self._stop_on_nan = stop_on_nan
        names = {id(v.value): v.path for v in [*model.variables, *model.metrics_variables]}

        def make(rules: OwnRules | None) -> OwnStep:
            shared = None if rules is None else communicator
            return OwnStep(self._step, shared, signature.specs, rules or OwnRules(), model)

        self._rules, self._own = OwnProof(make, communicator, sample, names).prove()
        self.traced = self._own.traced
        self.log_names = [] if self._are_metrics else self._names
        self.logged = [] if self._are_metrics else self.traced.structured_outputs[0]
        self.changed = [*model.non_trainable_variables, *model.metrics_variables]

    def micro_batches(self, batch_rows: int) -> int:
        """Micro-batches of a step, where the graph is made for their number."""
        return 0

    def __call__(
        self, count: int, rows: list[Tensor], start: Tensor, batch_rows: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Any]:
        """Make the step, see `SharedStep`."""
        size = tf.shape(rows[0])[0]
        rows = one_row_at_least(rows, tf.equal(size, 0))
        loss = self._names.index("loss") if "loss" in self._names else None
        scaled = isinstance(self._model.optimizer, keras.optimizers.LossScaleOptimizer)

        def flags(ran: Ran) -> Tensor:
            finite = ran.own_finite | tf.constant(scaled)  # LossScaleOptimizer looks for itself
            return tf.stack([asked, tf.cast(~finite, tf.float32)])

        returned, ran, all_flags = put_together(
            self._own,
            self._communicator,
            self._rules,
            rows,
            draws.Rows(start, size, batch_rows),
            flags,
        )
        finite = tf.constant(True)
        if self._stop_on_nan:
            finite = tf.equal(all_flags[1], 0)
            if loss is not None:
                finite &= tf.reduce_all(tf.math.is_finite(tf.cast(returned[loss], tf.float32)))
        logs = [tf.cast(value, tf.float32) for value in returned] if self.log_names else []
        return finite, ran.own_finite, all_flags[0] > 0, logs, ()

    def _step(self, rows: list[Tensor]) -> list[Tensor]:
        logs, self._are_metrics = keras_step(self._model, self._signature, self._training, rows)
        self._names = list(logs)
        return list(logs.values())
