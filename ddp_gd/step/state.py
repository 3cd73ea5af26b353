"""What a forward pass changes beside the weights, made a sum over shares.

Keras layers and metrics write to variables while they run. Here every micro-batch runs on copies of
them (`keras.StatelessScope`), all made at the start of the step, and what it would have written is
added up over the micro-batches of all workers:

    metric states          added: they are sums over rows
    float state            row-weighted mean: BatchNormalization's moving statistics, say, which
                           are then moved once a step by the mean of what each micro-batch saw
    seeds, counters        the first micro-batch's

A random layer draws from a seed of its own in each micro-batch, folded from the layer's seed and
the micro-batch's number; the first one draws what `fit` would have drawn.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from ddp_gd.errors import ModelError
from ddp_gd.step import keras_private
from ddp_gd.step.keras_private import global_seed

Tensor = Any


class Changes(NamedTuple):
    """The variables that a step changes beside weights and optimizer; tracing finds them out."""

    state: list[Any]
    metrics: list[Any]

    @property
    def draws_globally(self) -> bool:
        """Whether a forward pass draws from Keras's global generator."""
        seed = global_seed()
        return any(variable is seed for variable in self.state)

    def assign(self, state: list[Tensor], metrics: list[Tensor]) -> None:
        """Write the reduced state, and add the reduced metrics to those of the epoch."""
        for variable, value in zip(self.state, state, strict=True):
            variable.assign(value)
        for variable, value in zip(self.metrics, metrics, strict=True):
            variable.assign_add(value)

    def layers_seeing_shares(
        self, model: keras.Model, seeds: bool = True, statistics: bool = True
    ) -> list[str]:
        """Names of the layers for which it matters how a global mini-batch is cut.

        Args:
            model: whose layers.
            seeds: those that draw random numbers.
            statistics: those that keep statistics of what they see.
        """
        changed = {
            id(v)
            for v in self.state
            if (seeds if is_seed(v) else statistics and v.dtype.startswith("float"))
        }
        return [
            layer.name
            for layer in keras_private.layers(model, include_self=False)
            if any(id(variable) in changed for variable in keras_private.own_state(layer))
        ]


class Copies:
    """The variables as one micro-batch sees and changes them.

    Args:
        start: each variable, and the value that it has before.
    """

    def __init__(self, start: list[tuple[Any, Tensor]]):
        self.scope = keras.StatelessScope(start, collect_losses=True)
        self._start = dict(self.scope.state_mapping)

    def changed(self, variables: list[Any]) -> list[Any]:
        """Those of the variables that were written to."""
        return [v for v in variables if self.value(v) is not self._start[id(v)]]

    def value(self, variable: Any) -> Tensor:
        """What a variable has become."""
        return self.scope.get_current_value(variable)


class ModelState:
    """The variables of a model that a step reads, in a fixed order.

    Args:
        model: compiled and built.
        splits: whether a global mini-batch will be cut into several pieces; metrics that can't be
            added up (`ModelError`) are accepted when it is not.
    """

    def __init__(self, model: keras.Model, splits: bool):
        self.model = model
        self.splits = splits
        self.weights = list(model.trainable_variables)
        self._others = other_variables(model)
        self._metrics = list(model.metrics_variables)
        if splits:
            _require_sums(model)

    @property
    def specs(self) -> list[tf.TensorSpec]:
        """`tf.TensorSpec` of each tensor of `read`."""
        return [tf.TensorSpec(v.shape, v.dtype) for v in [*self.weights, *self._others]]

    def read(self) -> list[Tensor]:
        """The values of all variables that a forward pass reads: once a step."""
        return [tf.convert_to_tensor(v.value) for v in [*self.weights, *self._others]]

    def weights_of(self, values: list[Tensor]) -> list[Tensor]:
        """Those of `read` that belong to `weights`."""
        return values[: len(self.weights)]

    @contextlib.contextmanager
    def copies(self, values: list[Tensor], micro_batch: Tensor) -> Iterator[Copies]:
        """Let layers and metrics run on copies of their variables.

        Args:
            values: of the variables, as `read` gives them.
            micro_batch: int32 scalar, number of the micro-batch within its global mini-batch.
        """
        variables = zip([*self.weights, *self._others], values, strict=True)
        start = [(v, _fold(value, micro_batch) if is_seed(v) else value) for v, value in variables]
        copies = Copies([*start, *((v, tf.zeros(v.shape, v.dtype)) for v in self._metrics)])
        checked = _checked_metrics(self.model) if self.splits else contextlib.nullcontext()
        with copies.scope, checked:
            yield copies

    def sums(
        self, copies: Copies, row_share: Tensor, micro_batch: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Changes]:
        """What the micro-batch adds to state and metrics; only what it changed is listed."""
        changes = Changes(copies.changed(self._others), copies.changed(self._metrics))
        state = []
        for variable in changes.state:
            value = tf.ensure_shape(copies.value(variable), variable.shape)
            if value.dtype.is_floating:
                state.append(value * tf.cast(row_share, value.dtype))
            else:
                state.append(tf.where(micro_batch == 0, value, tf.zeros_like(value)))
        return state, [copies.value(v) for v in changes.metrics], changes


def log_losses(model: keras.Model, loss: Tensor, losses: list[Tensor], batch_rows: Tensor) -> None:
    """Add one step's losses to those of the epoch, as Keras does."""
    tracker, trackers = keras_private.trackers(model)
    tracker.update_state(loss, sample_weight=batch_rows)
    # Keras weighs each output's loss by the static batch size, which its iterator leaves open:
    # every step counts the same.
    for of_output, value in zip(trackers, losses, strict=False):
        of_output.update_state(value)


def other_variables(model: keras.Model) -> list[Any]:
    """The non-trainable variables in model order, and Keras's global seed if there is one."""
    seed = global_seed()
    return [*non_trainable_variables(model), *([] if seed is None else [seed])]


def non_trainable_variables(model: keras.Model) -> list[Any]:
    """Each once, in model order."""
    return list({id(v): v for v in model.non_trainable_variables}.values())


def is_seed(variable: Any) -> bool:
    """Tell whether the variable is the state of a `keras.random.SeedGenerator`."""
    return variable.name == "seed_generator_state"


def _fold(seed: Tensor, micro_batch: Tensor) -> Tensor:
    folded = tf.random.experimental.stateless_fold_in(seed, tf.cast(micro_batch, seed.dtype))
    return tf.where(micro_batch == 0, seed, folded)


def _require_sums(model: keras.Model) -> None:
    """Refuse metrics whose state is not a sum over rows that begins at zero."""
    for metric in _flat_metrics(model):
        metric.reset_state()
        for variable in metric.variables:
            if variable.aggregation != "sum" or np.any(variable.value.numpy()):
                raise ModelError(
                    f"The metric {metric.name!r} keeps {variable.name!r}, which is not a sum over "
                    "rows that begins at zero, so several workers' states can't be added up. "
                    "Use a metric that keeps sums, or compute it in a callback."
                )


@contextlib.contextmanager
def _checked_metrics(model: keras.Model) -> Iterator[None]:
    """Refuse functions as metrics that return one number for all rows: that would be a mean of
    means."""
    wrappers = [m for m in _flat_metrics(model) if isinstance(m, keras.metrics.MeanMetricWrapper)]
    functions = [keras_private.metric_function(m) for m in wrappers]

    def checked(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            values = function(*args, **kwargs)
            if len(values.shape) == 0:
                raise ModelError(
                    f"The metric {name!r} returns one number for all rows of a batch, and a mean "
                    "of several workers' means would not be its value on all rows. Return one "
                    "value per row (leave the mean over rows to Keras), or write a "
                    "keras.metrics.Metric."
                )
            return values

        return call

    for metric, function in zip(wrappers, functions, strict=True):
        keras_private.set_metric_function(metric, checked(metric.name, function))
    try:
        yield
    finally:
        for metric, function in zip(wrappers, functions, strict=True):
            keras_private.set_metric_function(metric, function)


def _flat_metrics(model: keras.Model) -> list[Any]:
    return tree.flatten([getattr(m, "metrics", m) for m in model.metrics])
