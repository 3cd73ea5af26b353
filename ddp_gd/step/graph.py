"""What a traced function does, read off its graph; and how one is traced."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from ddp_gd.errors import ModelError

# Kernels that draw from a generator of the process: another worker would draw other numbers.
_RANDOM_OPS = re.compile(
    r"^(Parameterized|Stateful(Uniform|Standard|Truncated|Random)|Random(?!Index)|Multinomial"
    r"|Truncated|Rng)"
)
_WRITES = re.compile(r"^(Assign.*VariableOp|ResourceScatter.*)$")


def require_tracked_state(function: Any) -> None:
    """Refuse a forward pass that writes to variables behind Keras's back.

    Raises:
        ModelError: naming the operation.
    """
    for operation in operations(function):
        if _WRITES.match(operation.type):
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
                "TensorFlow's own generator, which differs from worker to worker. Bitwise mode "
                "needs keras.random with a keras.random.SeedGenerator."
            )


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


def operations(function: Any) -> Iterable[Any]:
    """All operations of a concrete function's graph, and of the functions that it calls."""
    graphs = [function.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.get_operations()
        for atomic in graph._functions.values():
            if (inner := getattr(atomic, "graph", None)) is not None:
                graphs.append(inner)


def isolated(function: Callable[..., Any], *signature: Any) -> Any:
    """Trace a function that keeps its own graph wherever it is called.

    TensorFlow would otherwise inline it and optimize it together with what stands around it, which
    is not the same at every number of workers.
    """
    return tf.function(
        function,
        input_signature=signature,
        autograph=False,
        experimental_attributes={"_noinline": True},
    ).get_concrete_function()


def inlined(function: Callable[..., Any], *signature: Any) -> Any:
    """Trace a function that becomes a part of whatever graph calls it."""
    return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()
