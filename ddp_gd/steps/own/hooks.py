"""What a training step of the user's asks of tapes, optimizers and metrics, noted or replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf


@contextlib.contextmanager
def replaced_gradients(replace: Callable[..., Any]) -> Iterator[None]:
    """Let `replace` compute what `tf.GradientTape.gradient` is asked for in here.

    Args:
        replace: called with the tape's own function and its arguments.
    """
    own = tf.GradientTape.gradient

    def gradient(
        self: Any,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: Any = tf.UnconnectedGradients.NONE,
    ) -> Any:
        def ask(sources: Any, output_gradients: Any) -> Any:
            return own(self, target, sources, output_gradients, unconnected_gradients)

        return replace(ask, target, sources, output_gradients)

    tf.GradientTape.gradient = gradient
    try:
        yield
    finally:
        tf.GradientTape.gradient = own


@contextlib.contextmanager
def noted_results() -> Iterator[dict[int, tuple[Any, Any]]]:
    """What metrics return as their results in here: by the id of a tensor, it and the metric."""
    seen: dict[int, tuple[Any, Any]] = {}

    def noting(result: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: Any) -> Any:
            value = result(self)
            if tf.is_tensor(value):
                seen[id(value)] = value, self
            return value

        return noted

    with _replaced_method(keras.Metric, "result", noting):
        yield seen


@contextlib.contextmanager
def noted_metrics() -> Iterator[list[Any]]:
    """The metrics that are updated in here."""
    seen: dict[int, Any] = {}

    def noting(update: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen[id(self)] = self
            return update(self, *args, **kwargs)

        return noted

    found: list[Any] = []
    with _replaced_method(keras.Metric, "update_state", noting):
        yield found
    found += seen.values()


@contextlib.contextmanager
def replaced_updates(replace: Callable[..., None]) -> Iterator[None]:
    """Let `replace` do what optimizers are asked to apply in here, whatever class they are of.

    Args:
        replace: called with a function that applies, and the gradients.
    """
    inside = False  # an optimizer may be a part of another one

    def replacing(apply: Callable[..., None]) -> Callable[..., None]:
        def applied(self: Any, grads: Any, trainable_variables: Any = None) -> None:
            nonlocal inside
            if inside:
                return apply(self, grads, trainable_variables)
            inside, grads = True, list(grads)
            try:
                return replace(lambda: apply(self, grads, trainable_variables), grads)
            finally:
                inside = False

        return applied

    with _replaced_method(keras.optimizers.Optimizer, "apply", replacing):
        yield


@contextlib.contextmanager
def _replaced_method(root: Any, name: str, replaced: Callable[..., Any]) -> Iterator[None]:
    """Let a method of all classes below one be what `replaced` makes of it in here."""
    own: dict[Any, Callable[..., Any]] = {}
    todo = list(root.__mro__[::-1])
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__() if issubclass(kind, root) else []
        if name in vars(kind):
            own[kind] = vars(kind)[name]
    for kind, method in own.items():
        setattr(kind, name, replaced(method))
    try:
        yield
    finally:
        for kind, method in own.items():
            setattr(kind, name, method)
