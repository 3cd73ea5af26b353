"""What a forward pass changes beside the weights, made a sum over shares.

Keras layers and metrics write to variables while they run. Here every micro-batch runs on copies of
them (`keras.StatelessScope`), all made at the start of the step, and what it would have written is
added up over the micro-batches of all workers:

    metric states          added: they are sums over rows, or made of the outputs of all rows
    float state            row-weighted mean: BatchNormalization's moving statistics, say, which
                           are then moved once a step by the mean of what each micro-batch saw
    seeds, counters        the first micro-batch's

Where one of them is something else, `proof` finds the rule, or refuses the model.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ddp_gd.errors import ModelError
from ddp_gd.steps import keras_private
from ddp_gd.steps.keras_private import global_seed
from ddp_gd.steps.rules import Rules

Tensor = Any


class Changes(NamedTuple):
    """The variables that a step changes beside weights and optimizer; tracing finds them out."""

    state: list[Any]
    metrics: list[Any]

    def assign(self, state: list[Tensor], metrics: list[Tensor], rules: Rules) -> None:
        """Write the reduced state, and add the reduced metrics to those of the epoch."""
        for variable, value in zip(self.state, state, strict=True):
            variable.assign(tf.cast(value, variable.dtype))
        for variable, value in zip(self.metrics, metrics, strict=True):
            (variable.assign if rules.met_metrics else variable.assign_add)(value)


class _Scope(keras.StatelessScope):
    """Remembers which variables were written to, and lets a tape see what weights become."""

    def __init__(self, start: list[tuple[Any, Tensor]], weights: list[Any]):
        super().__init__(start, collect_losses=True)
        self.tape: Any = None
        self.written: dict[int, Any] = {}
        self.became: list[tuple[int, Tensor]] = []  # places of weights, and values they were given
        self._places = {id(weight): place for place, weight in enumerate(weights)}

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Take the new value of a variable.

        What is assigned to a weight has no gradient by what it was made of; what is read of it
        afterwards is the weight, as where Keras assigns to its variable.
        """
        variable, value = update
        self.written[id(variable)] = variable
        if self.tape is not None and id(variable) in self._places:
            value = tf.stop_gradient(tf.cast(value, variable.dtype))
            self.tape.watch(value)
            self.became.append((self._places[id(variable)], value))
        super().add_update((variable, value))


class Copies:
    """The variables as one micro-batch sees and changes them.

    Args:
        start: each variable, and the value that it has before.
        weights: those that are trained.
    """

    def __init__(self, start: list[tuple[Any, Tensor]], weights: list[Any]):
        self.scope = _Scope(start, weights)
        self._start = dict(self.scope.state_mapping)
        self.scope.written.clear()

    def changed(self, variables: list[Any]) -> list[Any]:
        """Those of the variables that were written to."""
        return [v for v in variables if id(v) in self.scope.written]

    def value(self, variable: Any) -> Tensor:
        """What a variable has become."""
        return tf.ensure_shape(self.scope.get_current_value(variable), variable.shape)

    def before(self, variable: Any) -> Tensor:
        """What a variable was."""
        return self._start[id(variable)]

    def gradients(self, tape: Any, loss: Tensor, weights: list[Tensor]) -> list[Any]:
        """The gradient by each weight: by what it was, and by what it has become."""
        became = self.scope.became
        found = tape.gradient(loss, [*weights, *(value for _, value in became)])
        gradients, more = found[: len(weights)], found[len(weights) :]
        for (place, _), gradient in zip(became, more, strict=True):
            if gradient is not None and place < len(gradients):
                both = [g for g in (gradients[place], gradient) if g is not None]
                gradients[place] = gradient if len(both) == 1 else tf.add_n(both)
        return gradients

    def require_listed(self) -> None:
        """Refuse writes to variables that the model doesn't list.

        Raises:
            ModelError: naming the variable.
        """
        for number, variable in self.scope.written.items():
            if number not in self._start:
                raise ModelError(
                    f"The step writes to the variable {variable.path!r}, which is none of the "
                    "model's layers or metrics, and what several workers or micro-batches write "
                    "can't be put together. Make it with add_weight(trainable=False) of a layer, "
                    "or train on one worker without micro_batch_size."
                )


class ModelState:
    """The variables of a model that a step reads, in a fixed order.

    Args:
        model: compiled and built.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.weights = list(model.trainable_variables)
        self.others = other_variables(model)
        self.metrics = list(model.metrics_variables)

    @property
    def specs(self) -> list[tf.TensorSpec]:
        """`tf.TensorSpec` of each tensor of `read`."""
        return [tf.TensorSpec(v.shape, v.dtype) for v in [*self.weights, *self.others]]

    @property
    def metric_specs(self) -> list[tf.TensorSpec]:
        """`tf.TensorSpec` of each state of the metrics."""
        return [tf.TensorSpec(v.shape, v.dtype) for v in self.metrics]

    def read(self) -> list[Tensor]:
        """The values of all variables that a forward pass reads: once a step."""
        return [tf.convert_to_tensor(v.value) for v in [*self.weights, *self.others]]

    def metrics_before(self, carried: bool) -> list[Tensor]:
        """What metrics begin with: zero, or, where it is carried on, what they are."""
        if carried:
            return [tf.convert_to_tensor(v.value) for v in self.metrics]
        return [tf.zeros(v.shape, v.dtype) for v in self.metrics]

    def weights_of(self, values: list[Tensor]) -> list[Tensor]:
        """Those of `read` that belong to `weights`."""
        return values[: len(self.weights)]

    @contextlib.contextmanager
    def copies(self, values: list[Tensor], metrics: list[Tensor] | None = None) -> Iterator[Copies]:
        """Let layers and metrics run on copies of their variables.

        Args:
            values: of the variables, as `read` gives them.
            metrics: the states that metrics begin with; zero by default.
        """
        if metrics is None:
            metrics = self.metrics_before(carried=False)
        start = zip([*self.weights, *self.others], values, strict=True)
        copies = Copies([*start, *zip(self.metrics, metrics, strict=True)], self.weights)
        with copies.scope:
            yield copies

    def changes(self, copies: Copies) -> Changes:
        """What a forward pass has written to, weights included."""
        state = copies.changed([*self.others, *self.weights])
        return Changes(state, copies.changed(self.metrics))

    def sums(
        self, copies: Copies, rules: Rules, row_share: Tensor, is_first: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Changes]:
        """What the micro-batch adds to state and metrics; only what it changed is listed."""
        changes = self.changes(copies)

        def once(value: Tensor) -> Tensor:
            return tf.where(is_first, value, tf.zeros_like(value))

        state = []
        for variable in changes.state:
            value, before = copies.value(variable), copies.before(variable)
            if variable.path in rules.summed_state:
                state.append(value - before + once(before))
            elif value.dtype.is_floating and variable.path not in rules.same_state:
                state.append(value * tf.cast(row_share, value.dtype))
            else:
                added = tf.cast(value, tf.uint8) if value.dtype == tf.bool else value
                state.append(once(added))
        metrics = [copies.value(v) for v in changes.metrics]
        return state, list(map(once, metrics)) if rules.met_metrics else metrics, changes


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


def optimizers(model: keras.Model) -> list[Any]:
    """The model's optimizer, and those that it or a model in it keeps in attributes, each once.

    An attribute may be a dict, a list or a tuple of them, however deep.
    """
    todo: list[Any] = [model.optimizer]
    for layer in keras_private.layers(model):
        todo += vars(layer).values() if isinstance(layer, keras.Model) else ()
    todo.reverse()
    found: dict[int, Any] = {}
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        if isinstance(value, keras.optimizers.Optimizer):
            found.setdefault(id(value), value)
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            todo += reversed(list(value.values() if isinstance(value, Mapping) else value))
    return list(found.values())
