"""What this package uses of Keras and TensorFlow beyond what they promise to keep.

Private names of theirs stand here and nowhere else, each behind a function. A test tries every one
of them on the installed versions and names those that moved.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from tensorflow.python.framework import op_callbacks

Tensor = Any

# For tf.function: the function keeps its own graph wherever it is called.
KEEPS_ITS_GRAPH = {"_noinline": True}

# What Keras's fit or evaluate calls for a step, and a model may override.
_PARTS_OF_THE_STEP = ("compute_loss", "compute_metrics", "_compute_loss")


def overrides(model: keras.Model, training: bool) -> str | None:
    """The first part of Keras's step that a model replaces, if it does."""
    step = "train_step" if training else "test_step"
    for name in (f"make_{step.removesuffix('_step')}_function", step, *_PARTS_OF_THE_STEP):
        if name in vars(model) or getattr(type(model), name) is not getattr(keras.Model, name):
            return name
    return None


def overrides_fit(model: keras.Model) -> bool:
    """Tell whether a model has a `fit` of its own, which may prepare the rows."""
    return "fit" in vars(model) or type(model).fit is not keras.Model.fit


def build(model: keras.Model, batch: Any) -> None:
    """Create every variable of the model, its metrics and its optimizer from symbolic data."""
    model._symbolic_build(data_batch=batch)


def takes_training(model: keras.Model) -> bool:
    """Tell whether the model's `call` has the argument `training`."""
    return bool(model._call_has_training_arg)


def initial_epoch(model: keras.Model) -> int | None:
    """The epoch that a callback (BackupAndRestore) restored, if one did."""
    return model._initial_epoch


def layers(model: keras.Model, include_self: bool = True) -> list[Any]:
    """All layers inside the model, however deep, itself first."""
    return list(model._flatten_layers(include_self=include_self))


def sublayers(layer: keras.Layer) -> list[Any]:
    """The layers that a layer holds itself."""
    return list(layer._layers)


def own_state(layer: keras.Layer) -> list[Any]:
    """The non-trainable variables and seeds that a layer itself owns."""
    return [*layer._non_trainable_variables, *seeds(layer)]


def seeds(layer: keras.Layer) -> list[Any]:
    """The states of the generators that a layer draws from."""
    return [generator.state for generator in layer._seed_generators]


def compile_config(model: keras.Model) -> Any:
    """What `compile` was called with; a new object each time."""
    return model._compile_config


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


# Losses and metrics


def losses(model: keras.Model) -> list[Any]:
    """The losses that `compile` was given, one for each output that has one, once built."""
    compiled = model._compile_loss
    return [] if compiled is None else [e.loss for e in compiled._flat_losses or []]


def loss_weights(model: keras.Model) -> Any:
    """The `loss_weights` that `compile` was given."""
    return None if model._compile_loss is None else model._compile_loss._user_loss_weights


def compiled_loss_with(
    model: keras.Model, calls: Sequence[Callable[..., Tensor]], tracked: bool = False
) -> Any:
    """The model's compiled loss with other functions in the place of its losses.

    Keras finds out which target and weight belongs to which of them. The trackers of their values
    are left out, unless they are to be `tracked`.
    """
    ours = object.__new__(type(model._compile_loss))  # copy.copy would save it to a file
    ours.__dict__.update(model._compile_loss.__dict__)
    entries = zip(model._compile_loss._flat_losses, calls, strict=True)
    ours._flat_losses = [entry._replace(loss=call) for entry, call in entries]
    if not tracked:
        ours._metrics = [None] * len(calls)
    return ours


def additional_loss(model: keras.Model, loss: Tensor) -> Tensor:
    """An entry of `model.losses` as Keras adds it: summed, under mixed precision cast."""
    return model._aggregate_additional_loss(loss)


def trackers(model: keras.Model) -> tuple[Any, list[Any]]:
    """The metrics that hold the loss of the epoch, and that of each output if there are several."""
    compiled = model._compile_loss
    return model._loss_tracker, [] if compiled is None else list(compiled.metrics)


def compiled_variables(model: keras.Model) -> list[Any]:
    """What the losses and metrics given to `compile` keep, whether the model lists it or not."""
    tracker, more = trackers(model)
    kept = [tracker, *more, model._compile_metrics]
    return [v for metric in kept if metric is not None for v in metric.variables]


def metric_name(model: keras.Model, variable: Any) -> str:
    """The name of the metric that keeps a variable."""
    metrics = keras.tree.flatten([getattr(metric, "metrics", metric) for metric in model.metrics])
    found = (metric.name for metric in metrics if any(v is variable for v in metric.variables))
    return next(found, variable.path)


def in_order(model: keras.Model, logs: dict[str, Any]) -> Any:
    """The values of an evaluation in the order of Keras's metrics; of a single one itself."""
    return model._flatten_metrics_in_order(logs)


def function_settings(loss: Any) -> dict[str, Any]:
    """What a loss hands on to the function that it wraps."""
    return dict(getattr(loss, "_fn_kwargs", {}))


def mask(tensor: Tensor) -> Tensor | None:
    """The mask that a layer attached to an output."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: Tensor, value: Tensor) -> None:
    """Attach a mask to a tensor, as a layer does."""
    tensor._keras_mask = value


@contextlib.contextmanager
def applied_gradients(optimizer: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Pairs of a variable and the gradient that an optimizer is given in here, whoever gives it."""
    seen: list[tuple[Any, Any]] = []
    if optimizer is None:
        yield seen
        return
    apply = optimizer.apply

    def noted(gradients: Any, trainable_variables: Any = None) -> None:
        apply(gradients, trainable_variables)
        variables = (
            optimizer._trainable_variables if trainable_variables is None else trainable_variables
        )
        seen.extend(zip(variables, gradients, strict=True))

    vars(optimizer)["apply"] = noted
    try:
        yield seen
    finally:
        del vars(optimizer)["apply"]


@contextlib.contextmanager
def watched_layers() -> Iterator[list[tuple[str, Tensor]]]:
    """The layers that are called in here, the inner ones first, and what they return."""
    seen: list[tuple[str, Tensor]] = []
    call = keras.Layer.__call__

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = call(self, *args, **kwargs)
        tensors = [t for t in keras.tree.flatten(outputs) if tf.is_tensor(t)]
        seen.extend((self.name, tensor) for tensor in tensors)
        return outputs

    keras.Layer.__call__ = noted
    try:
        yield seen
    finally:
        keras.Layer.__call__ = call


@contextlib.contextmanager
def batch_moments(moments: Callable[[Tensor, Tensor | None, list[int]], Any]) -> Iterator[None]:
    """Let every BatchNormalization in here take the moments of a batch from `moments`.

    Args:
        moments: called with inputs, mask and the axes to reduce; returns mean and variance.
    """
    layer = keras.layers.BatchNormalization
    own = layer._moments
    layer._moments = lambda self, inputs, mask: moments(inputs, mask, self._reduction_axes)
    try:
        yield
    finally:
        layer._moments = own


# Callbacks


def is_default(hook: Any) -> bool:
    """Tell whether a callback's hook is Keras's own that does nothing."""
    return getattr(hook, "_is_default", False)


def profiles(callback: keras.callbacks.TensorBoard) -> bool:
    """Tell whether TensorBoard was asked to profile batches."""
    return getattr(callback, "_should_trace", True)


def summary_writer(callback: keras.callbacks.TensorBoard, training: bool) -> Any:
    """What TensorBoard writes of a training, or of a validation, with."""
    return callback._train_writer if training else callback._val_writer


# Graphs


def inner_graphs(graph: Any) -> Iterator[Any]:
    """The graphs of the functions that a graph calls, where TensorFlow has them in Python."""
    for atomic in graph._functions.values():
        if (inner := getattr(atomic, "graph", None)) is not None:
            yield inner


def called_graphs(operation: Any) -> list[Any]:
    """The graphs of the functions that one operation calls; None for one that is unknown."""
    values = operation.node_def.attr.values()
    names = [f.name for v in values for f in ([v.func] if v.HasField("func") else v.list.func)]
    functions = operation.graph._functions
    return [getattr(functions.get(name), "graph", None) for name in names]


def same_operation(kind: str, inputs: Sequence[Tensor], attributes: dict[str, Any]) -> list[Tensor]:
    """Write an operation into the graph that is being traced."""
    graph = tf.compat.v1.get_default_graph()
    return graph._create_op_internal(kind, list(inputs), attrs=attributes).outputs


@contextlib.contextmanager
def replacing_operations(
    replace: Callable[[str, Sequence[Tensor], dict[str, Any], Sequence[Tensor]], Any],
) -> Iterator[None]:
    """Let a function see each operation that is written into a graph, and give other outputs.

    Args:
        replace: called with type, inputs, attributes and outputs; returns other outputs, or None.
    """

    def callback(
        kind: str,
        inputs: Any,
        attributes: tuple,
        outputs: Any,
        op_name: Any = None,
        graph: Any = None,
    ) -> Any:
        if graph is None:  # runs eagerly: no part of what is traced
            return None
        return replace(
            kind, inputs, dict(zip(attributes[::2], attributes[1::2], strict=True)), outputs
        )

    op_callbacks.add_op_callback(callback)
    try:
        yield
    finally:
        op_callbacks.remove_op_callback(callback)


# Training steps of the user's


@contextlib.contextmanager
def compiled_loss_is(model: keras.Model, loss: Callable[..., Tensor]) -> Iterator[None]:
    """Let `loss`, called with targets, outputs, weights, be the model's compiled loss in here."""
    own = model._compile_loss

    class Replaced:
        def __call__(self, y: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
            if not own.built:
                own.build(y, y_pred)
            vars(model)["_compile_loss"] = own
            try:
                return loss(y, y_pred, sample_weight)
            finally:
                vars(model)["_compile_loss"] = self

        def __getattr__(self, name: str) -> Any:
            return getattr(own, name)

    if own is None:
        yield
        return
    vars(model)["_compile_loss"] = Replaced()
    try:
        yield
    finally:
        vars(model)["_compile_loss"] = own


@contextlib.contextmanager
def compiled_metrics_see(
    model: keras.Model, all_rows: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Let the model's compiled metrics be given `all_rows` of targets, outputs and weights."""
    own = model._compile_metrics
    if own is None:
        yield
        return
    update = own.update_state

    def of_all(y: Any, y_pred: Any, sample_weight: Any = None) -> None:
        update(*keras.tree.map_structure(all_rows, (y, y_pred, sample_weight)))

    vars(own)["update_state"] = of_all
    try:
        yield
    finally:
        del vars(own)["update_state"]
