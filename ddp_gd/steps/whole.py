"""Keras's own step, where one process computes the whole global mini-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.steps import graph, keras_private
from ddp_gd.steps.finite import all_finite, looked_at
from ddp_gd.steps.rules import Options
from ddp_gd.steps.state import other_variables

Tensor = Any


def keras_step(
    model: keras.Model, signature: Signature, training: bool, rows: list[Tensor]
) -> tuple[dict[str, Tensor], bool]:
    """Let the model make its `train_step` or `test_step` on these rows.

    Returns:
        Its logs, and whether they are just the results of its metrics.
    """
    data = keras.utils.pack_x_y_sample_weight(*signature.unpack(rows))
    logs = (model.train_step if training else model.test_step)(data)
    if not isinstance(logs, dict):
        return {"loss": logs}, False
    if set(logs) == set(model.get_metrics_result()):
        return logs, True
    return _flat(logs), False


def _flat(logs: dict[str, Any]) -> dict[str, Any]:
    """Logs as Keras has them in the end: sorted, what is nested among the rest."""
    flat: dict[str, Any] = {}
    for name, value in sorted(logs.items()):
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


class WholeStep:
    """The model's `train_step` or `test_step` as it is, overridden or not.

    Args:
        model: compiled and built.
        signature: structure, dtypes and shapes of the rows.
        options: see `Options`.

    Attributes:
        traced: the traced function of one step.
        log_names: of what a step returns that is no metric of the model.
        logged: tensors of their shapes.
    """

    def __init__(self, model: keras.Model, signature: Signature, options: Options):
        self._model = model
        self._signature = signature
        self._options = options
        self.traced, self.log_names = graph.with_layout(graph.inlined, self._step, signature.specs)

        self.logged = self.traced.structured_outputs[1]

    @property
    def changed(self) -> list[Any]:
        """The variables that a step may change beside weights and optimizer."""
        return [*other_variables(self._model), *self._model.metrics_variables]

    def __call__(
        self, count: int, rows: list[Tensor], start: Tensor, batch_rows: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Any]:
        """Make the step, see `SharedStep`."""
        finite, logs = self.traced(rows)
        return finite, finite, asked > 0, logs, ()

    def _step(self, rows: list[Tensor]) -> tuple[tuple[Tensor, list[Tensor]], list[str]]:
        optimizer = self._model.optimizer if self._options.training else None
        with keras_private.applied_gradients(optimizer) as applied:
            logs, known = keras_step(self._model, self._signature, self._options.training, rows)
        own = {} if known else logs
        values = [tf.cast(value, tf.float32) for value in own.values()]
        return (self._finite(logs, applied), values), list(own)

    def _finite(self, logs: dict[str, Any], applied: Sequence[tuple[Any, Any]]) -> Tensor:
        if not self._options.stop_on_nan:
            return tf.constant(True)
        losses = [logs["loss"]] if "loss" in logs else []
        weights, gradients = zip(*applied, strict=True) if applied else ((), ())
        return all_finite(
            [*losses, *looked_at(self._model.optimizer, weights, gradients, spare=True)]
        )
