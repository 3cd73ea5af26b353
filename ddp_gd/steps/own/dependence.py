"""What the values in the graph of a step are computed from.

A source is whatever is marked as one. It is followed through operations, and through variables
that are written and read again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from ddp_gd.steps import graph as graphs

Tensor = Any
Sources = frozenset[int]
NONE: Sources = frozenset()

# What takes a variable and leaves it as it is. A function does if nothing in it writes.
_READ = {"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"}
_READ |= {"VarIsInitializedOp", "DisableCopyOnRead"}
_CALL = {"If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase"}
_CALL |= {"PartitionedCall", "StatefulPartitionedCall"}


class Dependence:
    """Sources of the values in a graph that is being written.

    Args:
        graph: the graph, of a `tf.function` in tracing.

    Attributes:
        written: the names, in the graph, of the variables that something in it writes.
    """

    def __init__(self, graph: Any):
        self._graph = graph
        self._of: dict[str, Sources] = {}  # by the name of an operation
        self._of_variables: dict[str, Sources] = {}
        self._more = NONE
        self._seen = 0
        self.written: set[str] = set()

    def mark(self, tensor: Tensor, *sources: int) -> None:
        """Let these be all the sources of a tensor."""
        self._follow()
        self._of[tensor.op.name] = frozenset(sources)

    def of(self, tensors: list[Tensor]) -> Sources:
        """What tensors of the graph are computed from."""
        self._follow()
        return NONE.union(*(self._of.get(tensor.op.name, NONE) for tensor in tensors))

    def of_variable(self, name: str) -> Sources:
        """What a variable, by its name in the graph, has been given in it."""
        self._follow()
        return self._of_variables.get(name, NONE)

    @contextlib.contextmanager
    def writing(self, sources: Sources) -> Iterator[None]:
        """Let everything that is written in here be computed from these, too."""
        self._follow()
        before, self._more = self._more, self._more | sources
        yield
        self._follow()
        self._more = before

    def _follow(self) -> None:
        """Look at what has been written into the graph since the last time."""
        operations = self._graph.get_operations()
        for operation in operations[self._seen :]:
            inputs = [self._of.get(tensor.op.name, NONE) for tensor in operation.inputs]
            found = NONE.union(*inputs)
            variables = [t.name for t in operation.inputs if t.dtype == tf.resource]
            if operation.type == "AssignVariableOp":
                self._of_variables[variables[0]] = found | self._more
                self.written.add(variables[0])
            else:
                found = found.union(*(self._of_variables.get(v, NONE) for v in variables))
                if variables and self._writes(operation):
                    self._of_variables |= dict.fromkeys(variables, found | self._more)
                    self.written |= set(variables)
            self._of[operation.name] = found
        self._seen = len(operations)

    def _writes(self, operation: Any) -> bool:
        if operation.type in _CALL:
            return graphs.may_write(operation)
        return operation.type not in _READ


def written(traced: Any, variables: list[Any]) -> list[Any]:
    """Those of the variables that a traced step writes."""
    found = Dependence(traced.graph)
    found.of([])
    names = {id(outer): inner.name for outer, inner in traced.graph.captures}
    return [v for v in variables if names[id(v.handle)] in found.written]
