"""A step of the user's on the micro-batches of all workers: pass after pass, then the update."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ddp_gd.comm.base import Communicator
from ddp_gd.steps import graph
from ddp_gd.steps.own.own_step import OwnRules
from ddp_gd.steps.own.points import InPasses, KnownTo
from ddp_gd.steps.reduction import Summands, reduction
from ddp_gd.steps.rules import Options

Tensor = Any
# Of this worker, float32, from what its micro-batches of a pass give.
Flags = Callable[[int, list[Tensor]], Tensor]


class MicroBatches:
    """The step, reduced over micro-batches. Collective.

    Args:
        step: traced for its passes.
        rules: how micro-batches make up the whole.
        communicator: the workers.
        options: see `Options`.

    Attributes:
        returned: what the tensors stand for that a call returns.
    """

    def __init__(
        self, step: InPasses, rules: OwnRules, communicator: Communicator, options: Options
    ):
        self.returned = step.returned
        self._step = step
        self._rules = rules
        # They write to variables: one is computed after the other.
        lanes = min(1, options.bitwise_lanes)
        self._reduce = reduction(communicator, options._replace(bitwise_lanes=lanes))
        self._trace = graph.isolated if lanes else graph.inlined
        self._shared = [n for n, spec in enumerate(step.specs) if spec.shape.rank]
        self._places = {id(v): n for n, v in enumerate(step.variables)}
        self._written = [n for n, v in enumerate(step.variables) if id(v) in step.update.needs]
        self._passes = [self._traced_pass(number) for number in range(len(step.passes))]
        self._finish = self._traced_update()

    def __call__(
        self, count: int, rows: list[Tensor], start: Tensor, batch_rows: Tensor, flags: Flags
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Make the step.

        Args:
            count: of micro-batches, where the reduction wants to know.
            rows: this worker's.
            start: the first one's place in the global mini-batch.
            batch_rows: rows of the global mini-batch.
            flags: numbers of this worker, float32, to be added up over all, in each pass.

        Returns:
            What the step returned, of the whole; this worker's flags; the sum of all flags.
        """
        before = [v.read_value() for v in self._step.variables]
        known: dict[int, Any] = {}
        increments: dict[int, Tensor] = {}
        returned: dict[int, Tensor] = {}
        own_flags, all_flags = [], []

        def all_arrays(shared: list[Tensor]) -> list[Tensor]:
            given = list(rows)
            for n, array in zip(self._shared, shared, strict=True):
                given[n] = array
            return given

        def arguments(given: list[list[Tensor]], *micro_batch: Any) -> tuple:
            shared, first, real = micro_batch
            return before, all_arrays(shared), first, real, batch_rows, given

        def flags_of(number: int, parts: list[Any]) -> Tensor:
            return flags(number, [sums[0] for sums, _ in parts])

        for number, function in enumerate(self._passes):
            summands = Summands(
                function,
                functools.partial(arguments, [known[n] for n in self._step.known[number]]),
                [rows[n] for n in self._shared],
                start,
                count,
                functools.partial(flags_of, number),
            )
            summed, (lookups, of_rows), own, every = self._reduce(summands)
            at_points, of_variables, means = summed
            known |= at_points | lookups
            increments |= of_variables
            returned |= means | of_rows
            own_flags.append(own)
            all_flags.append(every)
        given = [known[n] for n in range(len(self._step.points))]
        one = all_arrays([_one_row(rows[n]) for n in self._shared])
        left = self._finish(before, increments, one, batch_rows, given)
        for n, metric in self.returned.results.items():
            returned[n] = tf.convert_to_tensor(metric.result())
        found = [returned.get(n, value) for n, value in enumerate(left)]
        return found, tf.add_n(own_flags), tf.add_n(all_flags)

    def _before_specs(self) -> list[tf.TensorSpec]:
        return [tf.TensorSpec(v.shape, v.dtype) for v in self._step.variables]

    def _given_specs(self, numbers: tuple[int, ...]) -> list[list[tf.TensorSpec]]:
        return [self._step.points[n].specs for n in numbers]

    def _restore(self, step: KnownTo, before: list[Tensor]) -> None:
        for variable in step.variables:
            if id(variable) in step.needs:
                value = before[self._places[id(variable)]]
                variable.assign(value, read_value=False)

    def _traced_pass(self, number: int) -> Any:
        scalar = tf.TensorSpec([], tf.int32)
        return self._trace(
            functools.partial(self._pass, number),
            self._before_specs(),
            self._step.specs,
            scalar,
            scalar,
            scalar,
            self._given_specs(self._step.known[number]),
        )

    def _pass(
        self,
        number: int,
        before: list[Tensor],
        rows: list[Tensor],
        first: Tensor,
        count: Tensor,
        whole: Tensor,
        given: list[list[Tensor]],
    ) -> tuple[Any, Any]:
        """One micro-batch in one pass: what is added up, and what is joined; by their places."""
        step, rules = self._step, self._rules
        traced = step.passes[number]
        self._restore(traced, before)
        returned, points, _ = traced.traced(rows, first, count, whole, given)
        fraction = tf.cast(count, tf.float32) / tf.cast(whole, tf.float32)

        def part(value: Tensor) -> Tensor:
            return tf.cast(fraction, value.dtype) * value

        increments = {}
        for n, of in step.of_rows.items():
            if of == number and n in rules.mean | rules.summed:
                increment = step.variables[n].read_value() - before[n]
                increments[n] = part(increment) if n in rules.mean else increment
        mine = {
            n: returned[n]
            for n, of in step.returned_of_rows.items()
            if of == number and n not in step.returned.results
        }
        means = {
            n: part(value)
            for n, value in mine.items()
            if n not in rules.rows and value.dtype.is_floating
        }
        lookups = {n: points[n] for n in step.gives[number] if step.points[n].joined}
        sums = {n: points[n] for n in step.gives[number] if n not in lookups}
        of_rows = {n: value for n, value in mine.items() if n in rules.rows}
        return (sums, increments, means), (lookups, of_rows)

    def _traced_update(self) -> Any:
        step = self._step
        own = {n: spec for n, spec in enumerate(self._before_specs()) if n in self._added}
        everything = tuple(range(len(step.points)))
        return self._trace(
            self._update,
            self._before_specs(),
            own,
            step.specs,
            tf.TensorSpec([], tf.int32),
            self._given_specs(everything),
        )

    @property
    def _added(self) -> set[int]:
        return {n for n in self._step.of_rows if n in self._rules.mean | self._rules.summed}

    def _update(
        self,
        before: list[Tensor],
        increments: dict[int, Tensor],
        rows: list[Tensor],
        whole: Tensor,
        given: list[list[Tensor]],
    ) -> list[Tensor]:
        """Write what the step writes, now that all sums are known; a row stands for the rows."""
        self._restore(self._step.update, before)
        returned, _, _ = self._step.update.traced(rows, 0, 1, whole, given)
        for n, increment in increments.items():
            self._step.variables[n].assign(before[n] + increment, read_value=False)
        return returned


def _one_row(array: Tensor) -> Tensor:
    shape = tf.concat([[1], tf.shape(array)[1:]], axis=0)
    return tf.ensure_shape(tf.zeros(shape, array.dtype), [None, *array.shape[1:]])
