"""How a function is traced, and what its graph tells of it."""

import random
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from ddp_gd.comm.tensors import COLLECTIVE
from ddp_gd.errors import ModelError
from ddp_gd.steps import keras_private

# Kernels that draw from a generator of the process: another worker would draw other numbers.
_RANDOM_OPS = re.compile(
    r"^(Parameterized|Stateful(Uniform|Standard|Truncated|Random)|Random(?!Index)|Multinomial"
    r"|Truncated|Rng)"
)
_WRITES = re.compile(r"^(Assign.*VariableOp|ResourceScatter.*)$")


def inlined(function: Callable[..., Any], *signature: Any) -> Any:
    """Trace a function that becomes a part of whatever graph calls it."""
    return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()


def isolated(function: Callable[..., Any], *signature: Any) -> Any:
    """Trace a function that keeps its own graph wherever it is called.

    TensorFlow would otherwise inline it and optimize it together with what stands around it, which
    is not the same at every number of workers.
    """
    return tf.function(
        function,
        input_signature=signature,
        autograph=False,
        experimental_attributes=keras_private.KEEPS_ITS_GRAPH,
    ).get_concrete_function()


def with_layout(
    trace: Callable[..., Any], function: Callable[..., tuple[Any, Any]], *signature: Any
) -> tuple[Any, Any]:
    """Trace a function of `(tensors, layout)`, where the layout says what the tensors stand for.

    Args:
        trace: `inlined` or `isolated`.
        function: the function.
        signature: of its arguments.

    Returns:
        The traced function of the tensors alone, and the layout.
    """
    layouts = []

    def tensors(*arguments: Any) -> Any:
        found, layout = function(*arguments)
        layouts.append(layout)
        return found

    return trace(tensors, *signature), layouts[-1]


def variables(function: Any) -> list[Any]:
    """The variables that a concrete function uses, in the order in which it was traced.

    TensorFlow's own list of them is in another order in each process.
    """
    by_handle = {id(variable.handle): variable for variable in function.graph.variables}
    found = [by_handle.get(id(tensor)) for tensor in function.graph.external_captures]
    return [variable for variable in found if variable is not None]


def require_tracked_state(function: Any) -> None:
    """Refuse a forward pass that writes to variables behind Keras's back.

    Raises:
        ModelError: naming the operation.
    """
    for operation in operations(function):
        if _WRITES.match(operation.type) and COLLECTIVE not in operation.name:
            raise ModelError(
                f"{operation.name!r} in the model writes to a tf.Variable itself, and what several "
                "workers or micro-batches write can't be put together. Make the variable with the "
                "layer's add_weight() and assign to that."
            )


def require_deterministic(function: Any) -> None:
    """Refuse a forward pass that draws random numbers which Keras's seeds don't decide.

    Raises:
        ModelError: naming the operation.
    """
    for operation in operations(function):
        if _RANDOM_OPS.match(operation.type):
            raise ModelError(
                f"{operation.name!r} ({operation.type}) in the model draws random numbers from "
                "TensorFlow's own generator, so which of them belong to which row is not known. "
                "Draw with keras.random and a keras.random.SeedGenerator, or train on one worker "
                "without micro_batch_size."
            )


def drawn_in_python(owners: Iterable[Any] = ()) -> list[str]:
    """The states of Python's and NumPy's generators, which tell whether somebody drew.

    Args:
        owners: have generators of their own as attributes.
    """
    found = [repr((random.getstate(), np.random.get_state()))]
    for value in (value for owner in owners for value in vars(owner).values()):
        if isinstance(value, np.random.Generator):
            found.append(repr(value.bit_generator.state))
        elif isinstance(value, np.random.RandomState):
            found.append(repr(value.get_state()))
        elif isinstance(value, random.Random):
            found.append(repr(value.getstate()))
    return found


def require_same_again(function: Any, again: Any) -> None:
    """Refuse a forward pass that becomes another graph each time it is traced.

    Raises:
        ModelError: always the same operations with the same constants was expected.
    """
    if _written(function) != _written(again):
        raise ModelError(
            "The model draws from a generator of Python or NumPy while it is traced: what it draws "
            "stays for all steps, and is another number each time the model is traced, so several "
            "workers can't do what Keras does. Draw with keras.random and a "
            "keras.random.SeedGenerator, or train on one worker without micro_batch_size."
        )


def _written(function: Any) -> list[Any]:
    """What is written into a graph: its operations, and the constants' values."""
    return [
        operation.get_attr("value").SerializeToString()
        if operation.type == "Const"
        else operation.type
        for operation in operations(function)
    ]


def constant_seeds(function: Any) -> list[str]:
    """Names of the operations that draw random numbers by a seed written into the graph.

    The seeds of Keras's layers are inputs of the graph; one written into it was made by the
    program itself, and may be another one on every worker.
    """
    return [
        operation.name
        for operation in operations(function)
        if operation.type == "StatelessRandomGetKeyCounter" and not _has_input(operation)
    ]


def may_write(operation: Any) -> bool:
    """Tell whether a call, branch or loop may write to a variable that it is given."""
    inner = keras_private.called_graphs(operation)
    if not inner or None in inner:
        return True
    return any(_WRITES.match(found.type) for found in _operations(inner))


def operations(function: Any) -> Iterable[Any]:
    """All operations of a concrete function's graph, and of the functions that it calls."""
    return _operations([function.graph])


def _operations(graphs: list[Any]) -> Iterable[Any]:
    graphs = list(graphs)
    while graphs:
        graph = graphs.pop()
        yield from graph.get_operations()
        graphs += keras_private.inner_graphs(graph)


def _has_input(operation: Any) -> bool:
    """Tell whether what an operation computes depends on an input of its graph."""
    todo, seen = [operation], set()
    while todo:
        current = todo.pop()
        if current.type == "Placeholder":
            return True
        todo += [tensor.op for tensor in current.inputs if tensor.op.name not in seen]
        seen |= {tensor.op.name for tensor in current.inputs}
    return False
