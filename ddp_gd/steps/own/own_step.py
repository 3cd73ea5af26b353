"""A training step of the user's, run unchanged on every worker's share.

What it is given are the rows of the share, and what it gets back is what it would get for the whole
global mini-batch: the gradients that a tape takes with respect to variables are means over the rows
of all workers, draws belong to rows, batch statistics are those of all rows. So every worker makes
the same updates. What the rows add to metrics is put together afterwards, and so are the numbers
that the step returns. By which rule, and whether any holds, is found out (`own.proof`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError
from ddp_gd.steps import graph, keras_private
from ddp_gd.steps.losses import CompiledLosses
from ddp_gd.steps.rows import draws, meeting, statistics
from ddp_gd.steps.rows.meeting import Meeting

Tensor = Any


@dataclasses.dataclass(frozen=True)
class OwnRules:
    """How what the shares' steps leave makes up what the whole's leaves.

    Attributes:
        mean: places of the variables whose increments are means over rows.
        summed: places of those whose increments are sums over rows. The others are the same on
            all workers.
        rows: places of the returned tensors that have a row for each row.
        blocks: whether a draw for several times the rows has the rows in blocks, one after the
            other, as `concat` leaves them, instead of several entries for each row.
        met_metrics: whether the compiled metrics are given the rows of all workers.
    """

    mean: frozenset[int] = frozenset()
    summed: frozenset[int] = frozenset()
    rows: frozenset[int] = frozenset()
    blocks: bool = False
    met_metrics: bool = False


class Returned(NamedTuple):
    """What the tensors that a step returns stand for."""

    structure: Any  # what it returned, with the numbers of the tensors in their places
    results: dict[int, Any]  # metrics whose result a tensor is, by its place
    weights: list[Any]  # the variables that gradients were taken by, in order
    metrics: list[Any]  # those that were updated


class Ran(NamedTuple):
    """What a share's step gave."""

    returned: list[Tensor]
    gradients: list[Tensor]  # of the whole, each by the variable of its place in `weights`
    own_finite: Tensor  # bool scalar: whether this worker's part of the gradients is


class OwnStep:
    """A step of the user's on a share, traced.

    Args:
        function: called with the rows of a share; returns nested numbers and tensors.
        communicator: the workers; None runs the function as it is.
        specs: `tf.TensorSpec` of each array of rows.
        rules: see `OwnRules`.
        model: whose compiled loss and metrics are put together exactly; None for a loop by hand.
        moments: of a batch for BatchNormalization, in the place of those of the rows.

    Attributes:
        traced: a function of rows, the first one's place, their number, and that of all rows,
            returning `Ran`.
        returned: what its tensors stand for.
        variables: those that it reads or writes, in the order of reading.
    """

    def __init__(
        self,
        function: Callable[[list[Tensor]], Any],
        communicator: Communicator | None,
        specs: list[tf.TensorSpec],
        rules: OwnRules,
        model: keras.Model | None = None,
        moments: Callable[..., Any] | None = None,
    ):
        self._function = function
        self._communicator = communicator
        self._rules = rules
        self._model = model
        self._moments = moments
        number = tf.TensorSpec([], tf.int32)
        self.traced, self.returned = graph.with_layout(
            graph.inlined, self._share, specs, number, number, number
        )
        self.variables = used_variables(self.traced)
        if communicator is not None:
            graph.require_deterministic(self.traced)

    def _share(
        self, rows: list[Tensor], first: Tensor, count: Tensor, whole: Tensor
    ) -> tuple[Ran, Returned]:
        place = draws.Rows(first, count, whole)
        with self._as_whole(place):
            return run(self._function, rows, place, self._communicator)

    @contextlib.contextmanager
    def _as_whole(self, place: draws.Rows) -> Iterator[None]:
        """Let what is computed in here of a share be as it is in the whole."""
        if self._communicator is None:
            given = self._moments
            with keras_private.batch_moments(given) if given else contextlib.nullcontext():
                yield
            return
        gathering = Meeting(self._communicator, place.first, place.count, by_all=True)
        moments = functools.partial(statistics.moments, self._communicator, place.count)
        with contextlib.ExitStack() as stack:
            stack.enter_context(draws.of_rows(place, self._rules.blocks))
            stack.enter_context(keras_private.batch_moments(moments))
            stack.enter_context(meeting.of_all_workers(gathering))
            if self._model is not None:
                stack.enter_context(compiled_loss_of_share(self._model, place, gathering))
                if self._rules.met_metrics:
                    stack.enter_context(
                        keras_private.compiled_metrics_see(self._model, gathering.all_rows)
                    )
            yield


def used_variables(traced: Any) -> list[Any]:
    """The variables that a step reads or writes, in the order of reading."""
    return [v for v in graph.variables(traced) if not v.name.startswith("ddp_gd_")]


def run(
    function: Callable[[list[Tensor]], Any],
    rows: list[Tensor],
    place: draws.Rows,
    communicator: Communicator | None,
) -> tuple[Ran, Returned]:
    """Write a step of the user's into the graph, with gradients of the whole.

    Args:
        function: the step.
        rows: what it is given.
        place: which ones of the global mini-batch they are.
        communicator: adds up what the workers have; None leaves all as it is.
    """
    taken = _Gradients(communicator, place)
    with (
        keras_private.replaced_gradients(taken.take),
        keras_private.noted_results() as results,
        keras_private.noted_metrics() as updated,
    ):
        found = function(rows)
    flat: list[Tensor] = []

    def numbered(value: Any) -> int | None:
        if value is None:
            return None
        flat.append(tf.convert_to_tensor(value))
        return len(flat) - 1

    structure = tf.nest.map_structure(numbered, found)
    metrics = {n: results[id(t)][1] for n, t in enumerate(flat) if id(t) in results}
    ran = Ran(flat, taken.gradients, taken.own_finite)
    return ran, Returned(structure, metrics, taken.weights, updated)


def compiled_loss_of_share(
    model: keras.Model, place: draws.Rows, meeting: Meeting
) -> contextlib.AbstractContextManager[None]:
    """Let a model's compiled loss of a share be, in the mean over shares, that of the whole."""

    def loss(y: Any, y_pred: Any, sample_weight: Any) -> Tensor:
        losses = CompiledLosses(model)
        return losses.of_share(y, y_pred, sample_weight, place.fraction, meeting)

    return keras_private.compiled_loss_is(model, loss)


class _Gradients:
    """What tapes are asked for while a share's step is traced."""

    def __init__(self, communicator: Communicator | None, place: draws.Rows):
        self._communicator = communicator
        self._graph = tf.compat.v1.get_default_graph()
        self._empty = tf.equal(place.count, 0)
        self.row_share = place.fraction
        self.weights: list[Any] = []
        self.gradients: list[Tensor] = []
        self.own_finite = tf.constant(True)

    def take(
        self, ask: Callable[..., Any], target: Any, sources: Any, output_gradients: Any
    ) -> Any:
        """The gradients by variables: of the whole; those by anything else: as they are."""
        flat = keras.tree.flatten(sources)
        by_variable = [isinstance(s, (tf.Variable, keras.Variable)) for s in flat]
        if not any(by_variable):
            return ask(sources, output_gradients)
        if tf.compat.v1.get_default_graph() is not self._graph:
            raise ModelError(
                "The step takes a gradient inside of a loop, a branch or a tf.function of its own "
                "in the graph, where workers and micro-batches can't meet. Write the loop with "
                "Python's range, take the gradient outside of the branch, and leave the inner "
                "tf.function out."
            )
        if self._communicator is not None:
            output_gradients = self._weighted(target, output_gradients)
        found = ask(flat, output_gradients)
        kept = [n for n, by in enumerate(by_variable) if by and found[n] is not None]
        if self._communicator is not None:
            for n, by in enumerate(by_variable):
                if not by and found[n] is not None:
                    share = tf.cast(self.row_share, found[n].dtype)
                    found[n] = tf.math.divide_no_nan(tf.convert_to_tensor(found[n]), share)
            for n, whole in zip(kept, self._of_all([found[n] for n in kept]), strict=True):
                found[n] = whole
        self.weights += [flat[n] for n in kept]
        self.gradients += [tf.convert_to_tensor(found[n]) for n in kept]
        return keras.tree.pack_sequence_as(sources, found)

    def _weighted(self, target: Any, output_gradients: Any) -> Any:
        """Let the share count for its part of the rows, wherever the gradients go."""

        def weighted(tensor: Any, given: Any = None) -> Tensor:
            tensor = tf.convert_to_tensor(tensor)
            given = tf.ones_like(tensor) if given is None else given
            return tf.cast(self.row_share, tensor.dtype) * given

        if output_gradients is None:
            return keras.tree.map_structure(weighted, target)
        return keras.tree.map_structure(weighted, target, output_gradients)

    def _of_all(self, gradients: list[Any]) -> list[Any]:
        """The sum over all workers; the rows of lookups are joined instead."""
        assert self._communicator is not None
        slices = {n: g for n, g in enumerate(gradients) if isinstance(g, tf.IndexedSlices)}
        # Not times 0: what a row of zeros leads to may be NaN.
        dense = {
            n: tf.where(self._empty, tf.zeros_like(g), g)
            for n, g in enumerate(gradients)
            if n not in slices
        }
        values = [*dense.values(), *(g.values for g in slices.values())]
        finite = [tf.reduce_all(tf.math.is_finite(v)) for v in values if v.dtype.is_floating]
        self.own_finite = tf.reduce_all(tf.stack([self.own_finite, *finite])) | self._empty
        summed = dict(
            zip(dense, self._communicator.allreduce_sum(list(dense.values())), strict=True)
        )
        for n, g in slices.items():
            kept = tf.where(self._empty, 0, tf.shape(g.indices)[0])
            summed[n] = tf.IndexedSlices(
                self._communicator.allgather(g.values[:kept]),
                self._communicator.allgather(g.indices[:kept]),
                g.dense_shape,
            )
        return [summed[n] for n in range(len(gradients))]


def put_together(
    step: OwnStep,
    communicator: Communicator,
    rules: OwnRules,
    rows: list[Tensor],
    place: draws.Rows,
    flags: Callable[[Ran], Tensor],
) -> tuple[list[Tensor], Ran, Tensor]:
    """Run the step on a share, and put together what it leaves and returns. Collective.

    Args:
        step: the step, traced.
        communicator: the workers.
        rules: see `OwnRules`.
        rows: this worker's; one of zeros where it has none.
        place: which ones they are.
        flags: numbers of this worker, float32, to be added up over all.

    Returns:
        What the step returned, of the whole; what it gave on this share; the sum of all flags.
    """
    empty = tf.equal(place.count, 0)
    changed = [step.variables[n] for n in sorted(rules.mean | rules.summed)]
    before = [v.read_value() for v in changed]
    ran = Ran(*step.traced(rows, place.first, place.count, place.whole))

    def counted(value: Tensor, mean: bool) -> Tensor:
        if mean:
            value = tf.cast(place.fraction, value.dtype) * value
        return tf.where(empty, tf.zeros_like(value), value)

    increments = [
        counted(v.read_value() - b, n in rules.mean)
        for n, v, b in zip(sorted(rules.mean | rules.summed), changed, before, strict=True)
    ]
    means = {
        n: counted(value, True)
        for n, value in enumerate(ran.returned)
        if value.dtype.is_floating and n not in rules.rows and n not in step.returned.results
    }
    sums = communicator.allreduce_sum([*increments, *means.values(), flags(ran)])
    for v, b, increment in zip(changed, before, sums, strict=False):
        v.assign(b + increment, read_value=False)
    returned = list(ran.returned)
    for n, value in zip(means, sums[len(increments) :], strict=False):
        returned[n] = value
    for n in rules.rows:
        returned[n] = communicator.allgather(returned[n][: place.count])
    for n, metric in step.returned.results.items():
        returned[n] = tf.convert_to_tensor(metric.result())
    return returned, ran, sums[-1]
