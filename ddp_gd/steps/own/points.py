"""A step of the user's on a micro-batch: where it wants a sum over all rows, and what comes of it.

The gradient of the whole, for one, is such a sum. A micro-batch can't wait for it, so the step is
run several times: each time it is told some more of the sums, as if it had just asked for them, and
what it computes from them is right. Variables are put back in between. What depends on the rows is
added up over micro-batches. What doesn't, such as the update by a gradient, is done once, when all
sums are known. Which is which is seen in the graph (`dependence`), so a step may ask for as many
sums as it likes: the second of two updates is computed with the weights that the first one left.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ddp_gd.errors import ModelError
from ddp_gd.steps import graph, keras_private
from ddp_gd.steps.own import own_step
from ddp_gd.steps.own.dependence import Dependence, Sources
from ddp_gd.steps.own.own_step import Returned
from ddp_gd.steps.rows import draws, meeting
from ddp_gd.steps.rows.meeting import Meeting

Tensor = Any

# The source of all that is computed from rows. Points are sources by their numbers.
ROWS = -1

_TOGETHER = "Leave micro_batch_size and bitwise=True out, and it is computed of all rows at once."


class Point(NamedTuple):
    """Where a step asks for something of all rows."""

    joined: bool  # whether rows of a lookup are put one after the other; else there is a sum
    specs: list[tf.TensorSpec]  # of what a micro-batch gives, and of what all of them make up
    needs: Sources


class Points:
    """Stands where the other workers would while a step is traced.

    Args:
        given: what is known, by the number of the point.
        dependence: of the graph that is written.

    Attributes:
        own: what the micro-batch gives at each point.
        joined: whether that is joined.
        needs: what it is computed from.
    """

    def __init__(self, given: dict[int, list[Tensor]], dependence: Dependence):
        self._given = given
        self._dependence = dependence
        self._graph = tf.compat.v1.get_default_graph()
        self.own: list[list[Tensor]] = []
        self.joined: list[bool] = []
        self.needs: list[Sources] = []

    def allreduce_sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sums over all micro-batches; where they aren't known, something of their shapes."""
        return self._at_point(list(tensors), joined=False) if tensors else []

    def allgather(self, rows: Tensor) -> Tensor:
        """The rows of all micro-batches, in the same way."""
        return self._at_point([rows], joined=True)[0]

    def is_known(self, tensors: list[Tensor]) -> bool:
        """Whether nothing that isn't known has gone into these."""
        return self._dependence.of(tensors) <= {ROWS, *self._given}

    def _at_point(self, own: list[Tensor], joined: bool) -> list[Tensor]:
        if tf.compat.v1.get_default_graph() is not self._graph:
            raise ModelError(
                "The step computes a masked or weighted loss inside of a loop, a branch or a "
                "tf.function of its own in the graph, where micro-batches can't meet. Compute it "
                f"outside. {_TOGETHER}"
            )
        number = len(self.own)
        self.own.append(own)
        self.joined.append(joined)
        self.needs.append(self._dependence.of(own))
        if number in self._given:
            return list(self._given[number])
        found = [tf.identity(tensor) for tensor in own]
        for tensor in found:
            self._dependence.mark(tensor, number)
        return found


class _Apart(Meeting):
    """Where rows of micro-batches would come together."""

    def all_rows(self, rows: Tensor | None) -> Tensor | None:
        """Refuse it.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "A loss given to compile() compares rows, and the step, which is the model's own, is "
            f"computed in micro-batches, which don't wait for each other. {_TOGETHER}"
        )


@dataclasses.dataclass(frozen=True)
class Making:
    """What a step is traced from, see `own_step.OwnStep`; the neutral moments are for a proof."""

    function: Callable[[list[Tensor]], Any]
    specs: list[tf.TensorSpec]
    model: keras.Model | None
    blocks: bool
    moments: Callable[..., Any] | None = None

    @contextlib.contextmanager
    def as_whole(self, place: draws.Rows, points: Points) -> Iterator[None]:
        """Let what is computed in here of a micro-batch be as it is in the whole."""
        apart = _Apart(points, place.first, place.count)  # type: ignore[arg-type]
        with contextlib.ExitStack() as stack:
            stack.enter_context(draws.of_rows(place, self.blocks))
            stack.enter_context(meeting.of_all_workers(None))
            if self.moments is not None:
                stack.enter_context(keras_private.batch_moments(self.moments))
            if self.model is not None:
                stack.enter_context(own_step.compiled_loss_of_share(self.model, place, apart))
            yield


class _Found(NamedTuple):
    """What was seen while a step was traced."""

    returned: Returned
    needs_returned: list[Sources]  # of each returned tensor
    points: list[Point]
    dependence: Dependence


class KnownTo:
    """The step on a micro-batch, traced with what is known at some points.

    Args:
        making: what it is traced from.
        points: all of them; None to find them.
        known: the numbers of those whose sums it is given.
        updates: whether optimizers apply what isn't known; of no use but to see what that writes.

    Attributes:
        traced: a function of rows, the first one's place, their number, that of all rows, and what
            is known at each point of `known`; returning what the step returns, and what the
            micro-batch gives at each point.
        returned: what the step's tensors stand for.
        points: those that were found.
        needs_returned: what each returned tensor is computed from.
        variables: those that it reads or writes.
        needs: what each variable that it writes is computed from.
    """

    def __init__(
        self,
        making: Making,
        points: list[Point] | None = None,
        known: tuple[int, ...] = (),
        updates: bool = True,
    ):
        self._making = making
        self._known = known
        self._updates = updates
        number = tf.TensorSpec([], tf.int32)
        given = [(points or [])[n].specs for n in known]
        self.traced, found = graph.with_layout(
            graph.inlined, self._micro_batch, making.specs, number, number, number, given
        )
        graph.require_deterministic(self.traced)
        self.returned, self.needs_returned, self.points, dependence = found
        self.variables = own_step.used_variables(self.traced)
        names = {id(outer): inner.name for outer, inner in self.traced.graph.captures}
        self.needs: dict[int, Sources] = {}  # by the variable's id
        for variable in self.variables:
            if (name := names[id(variable.handle)]) in dependence.written:
                self.needs[id(variable)] = dependence.of_variable(name)

    def _micro_batch(
        self,
        rows: list[Tensor],
        first: Tensor,
        count: Tensor,
        whole: Tensor,
        given: list[list[Tensor]],
    ) -> tuple[tuple[list[Tensor], list[list[Tensor]], list[Tensor]], _Found]:
        dependence = Dependence(tf.compat.v1.get_default_graph())
        for tensor in [*(array for array in rows if array.shape.rank), first, count]:
            dependence.mark(tensor, ROWS)
        points = Points(dict(zip(self._known, given, strict=True)), dependence)
        place = draws.Rows(first, count, whole)

        def update(apply: Callable[[], None], gradients: list[Any]) -> None:
            tensors = [
                t
                for gradient in gradients
                if gradient is not None
                for t in (
                    [gradient.values, gradient.indices]
                    if isinstance(gradient, tf.IndexedSlices)
                    else [tf.convert_to_tensor(gradient)]
                )
            ]
            if self._updates or points.is_known(tensors):
                with dependence.writing(dependence.of(tensors)):
                    apply()

        with self._making.as_whole(place, points), keras_private.replaced_updates(update):
            ran, returned = own_step.run(
                self._making.function,
                rows,
                place,
                points,  # type: ignore[arg-type]
            )
        found = [
            Point(
                joined,
                [tf.TensorSpec([None, *t.shape[1:]] if joined else t.shape, t.dtype) for t in own],
                needs,
            )
            for own, joined, needs in zip(points.own, points.joined, points.needs, strict=True)
        ]
        needs_returned = [dependence.of([tensor]) for tensor in ran.returned]
        tensors = ran.returned, points.own, ran.gradients
        return tensors, _Found(returned, needs_returned, found, dependence)


class InPasses:
    """A step of the user's on micro-batches, in as many passes as it takes.

    Args:
        making: what it is traced from.

    Attributes:
        points: where it asks for something of all rows.
        passes: the step as traced for each pass.
        known: which points each pass knows; and `gives`, which it finds out.
        update: the step with all points known, which writes what doesn't depend on rows.
        variables: those that it reads or writes; and `returned`, what its tensors stand for.
        of_rows: the pass after which a variable that depends on rows is right, by its place.
        returned_of_rows: the same for what the step returns.
        specs: of the rows.
    """

    def __init__(self, making: Making):
        looked_at = KnownTo(making)
        self.specs = making.specs
        self.points = looked_at.points
        self.variables, self.returned = looked_at.variables, looked_at.returned
        self._passes_of: list[int] = []  # of each point
        for point in self.points:
            self._passes_of.append(self._pass_of(point.needs))
        self.of_rows = {
            n: self._pass_of(looked_at.needs[id(v)])
            for n, v in enumerate(self.variables)
            if ROWS in looked_at.needs.get(id(v), ())
        }
        self.returned_of_rows = {
            n: self._pass_of(needs)
            for n, needs in enumerate(looked_at.needs_returned)
            if ROWS in needs
        }
        numbers = [*self._passes_of, *self.of_rows.values(), *self.returned_of_rows.values()]
        self.known = [self._before(n) for n in range(max(numbers, default=0) + 1)]
        self.gives = [
            tuple(p for p, of in enumerate(self._passes_of) if of == n)
            for n in range(len(self.known))
        ]
        self.passes = [KnownTo(making, self.points, known, updates=False) for known in self.known]
        everything = tuple(range(len(self.points)))
        self.update = KnownTo(making, self.points, everything)

    def _pass_of(self, needs: Sources) -> int:
        """The first pass in which all that something needs is known."""
        return max((self._passes_of[n] + 1 for n in needs if n != ROWS), default=0)

    def _before(self, number: int) -> tuple[int, ...]:
        return tuple(p for p, of in enumerate(self._passes_of) if of < number)
