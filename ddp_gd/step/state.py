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

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from ddp_gd.errors import ModelError

Tensor = Any


class ModelState:
    """The variables of a model that a step changes, in a fixed order.

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
        # Filled while a micro-batch is traced: the variables that it really changes.
        self._changed: list[Any] = []
        self._counted: list[Any] = []
        if splits:
            _require_sums(model)

    @property
    def specs(self) -> list[tf.TensorSpec]:
        """`tf.TensorSpec` of each tensor of `read`."""
        return [tf.TensorSpec(v.shape, v.dtype) for v in [*self.weights, *self._others]]

    @property
    def changed(self) -> list[Any]:
        """The variables that a step changes, without weights and optimizer."""
        return [*self._changed, *self.model.metrics_variables]

    def read(self) -> list[Tensor]:
        """The values of all variables that a forward pass reads: once a step."""
        return [tf.convert_to_tensor(v.value) for v in [*self.weights, *self._others]]

    def weights_of(self, values: list[Tensor]) -> list[Tensor]:
        """Those of `read` that belong to `weights`."""
        return values[: len(self.weights)]

    @contextlib.contextmanager
    def copies(self, values: list[Tensor], micro_batch: Tensor) -> Iterator[keras.StatelessScope]:
        """Let layers and metrics run on copies of their variables.

        Args:
            values: of the variables, as `read` gives them.
            micro_batch: int32 scalar, number of the micro-batch within its global mini-batch.
        """
        variables = [*self.weights, *self._others]
        start = [
            (v, _fold(value, micro_batch) if is_seed(v) else value)
            for v, value in zip(variables, values, strict=True)
        ]
        start += [(v, tf.zeros(v.shape, v.dtype)) for v in self._metrics]
        with keras.StatelessScope(start, collect_losses=True) as scope:
            self._start = dict(scope.state_mapping)
            with _checked_metrics(self.model) if self.splits else contextlib.nullcontext():
                yield scope

    def sums(
        self, scope: keras.StatelessScope, row_share: Tensor, micro_batch: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the micro-batch adds to `(state, metrics)`; only what it changed is listed."""

        def changed(variables: list[Any]) -> list[Any]:
            return [v for v in variables if scope.get_current_value(v) is not self._start[id(v)]]

        self._changed, self._counted = changed(self._others), changed(self._metrics)
        first = micro_batch == 0
        state = []
        for variable in self._changed:
            value = tf.ensure_shape(scope.get_current_value(variable), variable.shape)
            if value.dtype.is_floating:
                state.append(value * tf.cast(row_share, value.dtype))
            else:
                state.append(tf.where(first, value, tf.zeros_like(value)))
        return state, [scope.get_current_value(v) for v in self._counted]

    @property
    def draws_globally(self) -> bool:
        """Whether a forward pass draws from Keras's global generator."""
        seed = global_seed()
        return any(variable is seed for variable in self._changed)

    def layers_seeing_shares(self, seeds: bool = True, statistics: bool = True) -> list[str]:
        """Names of the layers for which it matters how a global mini-batch is cut.

        Args:
            seeds: those that draw random numbers.
            statistics: those that keep statistics of what they see.
        """
        changed = {
            id(v)
            for v in self._changed
            if (seeds if is_seed(v) else statistics and v.dtype.startswith("float"))
        }
        names = []
        for layer in self.model._flatten_layers(include_self=False):
            own = [*layer._non_trainable_variables, *(g.state for g in layer._seed_generators)]
            if any(id(variable) in changed for variable in own):
                names.append(layer.name)
        return names

    def assign(self, values: list[Tensor]) -> None:
        """Write the reduced state."""
        for variable, value in zip(self._changed, values, strict=True):
            variable.assign(value)

    def log(
        self, loss: Tensor, losses: list[Tensor], metrics: list[Tensor], batch_rows: Tensor
    ) -> None:
        """Add one step's reduced losses and metric states to those of the epoch, as Keras does."""
        self.model._loss_tracker.update_state(loss, sample_weight=batch_rows)
        if self.model._compile_loss is not None:
            # Keras weighs each output's loss by the static batch size, which its iterator leaves
            # open: every step counts the same.
            for tracker, value in zip(self.model._compile_loss.metrics, losses, strict=False):
                tracker.update_state(value)
        for variable, value in zip(self._counted, metrics, strict=True):
            variable.assign_add(value)


def other_variables(model: keras.Model) -> list[Any]:
    """The non-trainable variables in model order, and Keras's global seed if there is one."""
    seed = global_seed()
    return [*non_trainable_variables(model), *([] if seed is None else [seed])]


def non_trainable_variables(model: keras.Model) -> list[Any]:
    """Each once, in model order."""
    return list({id(v): v for v in model.non_trainable_variables}.values())


def global_seed(make: bool = False) -> Any:
    """The state of the generator that Keras makes when something first draws without a seed.

    Args:
        make: make one if there is none.

    Returns:
        The variable, or None.
    """
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    if generator is None and make:
        generator = keras.random.SeedGenerator(0)  # Keras's would draw from Python's generator
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)
    return None if generator is None else generator.state


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
    functions = [m._fn for m in wrappers]

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

    for metric in wrappers:
        metric._fn = checked(metric.name, metric._fn)
    try:
        yield
    finally:
        for metric, function in zip(wrappers, functions, strict=True):
            metric._fn = function


def _flat_metrics(model: keras.Model) -> list[Any]:
    return tree.flatten([getattr(m, "metrics", m) for m in model.metrics])
