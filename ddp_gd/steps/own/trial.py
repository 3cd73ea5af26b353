"""One try of a user's step: some rows, whole and on shares, compared."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.batching.plan import block
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError
from ddp_gd.steps.own.own_step import OwnRules, OwnStep, Ran
from ddp_gd.steps.own.points import InPasses
from ddp_gd.steps.proof.rounding import ROUNDINGS, TO_THE_SIDE, accepted, close, factors, few
from ddp_gd.steps.proof.sketch import is_small, sketch

Tensor = Any

# Of all of an update together: an optimizer may make a whole step of what rounding left of nothing.
_OF_AN_UPDATE = 0.05
_REMEDY = (
    "The loss of a step must be a mean over its rows, computed of each row alone (or of all rows, "
    "through ddp_gd.gather_rows); train on one worker otherwise."
)


class After(NamedTuple):
    """What a run left; sketches of large gradients and variables."""

    ran: Ran
    values: list[np.ndarray]  # of the variables


class Look(NamedTuple):
    """The same rows, whole and on shares."""

    before: list[np.ndarray]
    whole: After
    moved: After  # the whole, with weights moved by some roundings
    again: After  # the whole once more
    share: After
    same: list[bool]  # of each variable: whether it is the same on all workers afterwards


class Trial:
    """One set of rules, tried on the workers' shares. Collective.

    Args:
        communicator: the workers.
        names: of variables, by `id` of their `tf.Variable`.
        whole: the step as it is.
        step: the step by these rules.
        rows: the same on every worker.
    """

    def __init__(
        self,
        communicator: Communicator,
        names: dict[int, str],
        whole: OwnStep,
        step: OwnStep | InPasses,
        rows: list[Tensor],
    ):
        self._communicator = communicator
        self._names = names
        self._whole, self._step = whole, step
        self._rows, self._count = rows, rows_of(rows)
        self._cut()

    def _cut(self) -> None:
        start, stop = block(self._count, self._communicator.size, self._communicator.rank)
        self._start, self._size = start, stop - start
        counts = self._communicator.allgather(tf.constant([self._size])).numpy()
        self._parts = counts / self._count
        self._filled = counts > 0

    def rules(self, tried: OwnRules) -> OwnRules:
        """What the variables are, by these rules for the rest."""
        variables = self._step.variables
        first = [v.numpy() for v in variables]
        try:
            self._run(self._whole, self._rows, 0, self._count)  # so that no state begins at zero
            began = [v.numpy() for v in variables]

            def attempt(number: int) -> OwnRules:
                one = self._look(began, 1, number)
                # Seeds and counters as the first look left them: other numbers are drawn.
                counted = zip(began, one.whole.values, strict=True)
                more = [new if new.dtype.kind in "iu" else old for old, new in counted]
                return self._judged(tried, [one, self._look(more, 3, number)])

            return accepted(self._communicator, attempt)
        finally:
            restore(variables, first)

    def _judged(self, tried: OwnRules, looks: list[Look]) -> OwnRules:
        for look in looks:
            _require_same_again(look.whole.ran.returned, look.again.ran.returned)
        self._require_gradients(looks)
        kinds = self._chosen(
            [self._kinds_of_variable(n, looks) for n in range(len(self._step.variables))]
        )
        mean = {n for n, kind in enumerate(kinds) if kind == "mean"}
        summed = {n for n, kind in enumerate(kinds) if kind == "sum"}
        rows = frozenset(
            n for n in range(len(looks[0].whole.ran.returned)) if self._kind_of_returned(n, looks)
        )
        return dataclasses.replace(tried, mean=frozenset(mean), summed=frozenset(summed), rows=rows)

    def _look(self, began: list[np.ndarray], scale: int, attempt: int) -> Look:
        weights = {id(_variable(w)) for w in self._whole.returned.weights}

        def begin(rounded: bool = False) -> None:
            # One after the other: a model and its optimizer may fill the memory.
            for variable, value in zip(self._step.variables, began, strict=True):
                if id(variable) in weights and variable.dtype.is_floating:
                    value = scale * value
                    if attempt:
                        value = value * _factors(value, TO_THE_SIDE, attempt)
                    if rounded:
                        value = value * _factors(value, ROUNDINGS * 2.0**-23, 0)
                variable.assign(value)

        begin()
        before = self._values()
        whole = self._run_whole()
        begin(rounded=True)
        moved = self._run_whole()
        begin()
        again = self._run_whole()
        share = self._run_parts(begin)
        return Look(before, whole, moved, again, share, self._same(share))

    def _same(self, share: After) -> list[bool]:
        """Which variables are the same on all workers, as the run on shares has left them."""
        digests = [hashlib.sha256(_bytes(v.numpy())).digest() for v in self._step.variables]
        own = tf.constant(np.frombuffer(b"".join(digests), np.uint8).reshape(1, -1, 32))
        every = self._communicator.allgather(own).numpy()  # (workers, variables, 32)
        return list((every == every[0]).all((0, 2)))

    def _run_whole(self) -> After:
        ran = self._run(self._whole, self._rows, 0, self._count)
        return After(ran, self._values())

    def _run_parts(self, begin: Callable[[], None]) -> After:
        """Run the step on this worker's part; `begin` puts the variables to where it begins."""
        assert isinstance(self._step, OwnStep)
        begin()
        own = share_of_rows(self._rows, self._start, self._size)
        return After(self._run(self._step, own, self._start, self._size), self._values())

    def _run(self, step: OwnStep, rows: list[Tensor], first: int, count: int) -> Ran:
        returned, gradients, finite = step.traced(rows, first, count, self._count)
        return Ran([t.numpy() for t in returned], sketches(gradients), finite)

    def _values(self) -> list[np.ndarray]:
        return [of_variable(v) for v in self._step.variables]

    def _require_gradients(self, looks: list[Look]) -> None:
        for _, whole, moved, _, share, _ in looks:
            gradients = whole.ran.gradients
            largest = max((float(np.abs(g).max(initial=0)) for g in gradients), default=0)
            for weight, wanted, near, found in zip(
                self._whole.returned.weights,
                gradients,
                moved.ran.gradients,
                share.ran.gradients,
                strict=True,
            ):
                scale = 5 * max(float(np.abs(wanted).max(initial=0)), 1e-2 * largest)
                if not close(found, wanted, near, scale=scale):
                    raise ModelError(
                        f"The gradient by {getattr(weight, 'path', weight.name)!r} is "
                        f"{few(wanted)} on {self._count} rows and {few(found)} put together from "
                        f"shares of them. {_REMEDY}"
                    )

    def _metric_of(self, number: int) -> list[int]:
        """The variables of the metric that a variable belongs to, by their places."""
        variables = {id(v): n for n, v in enumerate(self._step.variables)}
        found = [[id(v.value) for v in m.variables] for m in self._step.returned.metrics]
        own = [of for of in found if id(self._step.variables[number]) in of]
        return [variables[v] for v in min(own, key=len, default=[]) if v in variables]

    def _chosen(self, kinds: list[set[str]]) -> list[str]:
        """One kind for each variable, where the rows that were tried leave several.

        A metric's variables are of one kind: if no row was right so far, what an accuracy keeps has
        not changed, but it has counted the rows.
        """
        chosen = []
        for number, own in enumerate(kinds):
            metric = self._metric_of(number)
            common = set.intersection(*(kinds[n] for n in metric)) if metric else own
            order = ["sum", "mean", "same"] if metric else ["same", "mean", "sum"]
            if self._depends_on_rows(number):  # what changed nowhere, in these rows, may in others
                order.sort(key=lambda kind: kind == "same")
            chosen.append(next(kind for kind in order if kind in (common or own)))
        return chosen

    def _kinds_of_variable(self, number: int, looks: list[Look]) -> set[str]:
        """What may become of it: the same on all workers, a mean over rows, or a sum."""
        kinds = {"same", "mean", "sum"}
        of_metric = bool(self._metric_of(number))
        for before, whole, moved, _, share, same in looks:
            was, wanted, near = (a[number] for a in (before, whole.values, moved.values))
            left = share.values[number]
            if not same[number] or not _alike(self._in_the_end(number, left), wanted, was):
                kinds.discard("same")
            elif not of_metric and not self._depends_on_rows(number):
                continue
            if wanted.dtype == bool:
                kinds &= {"same"}
                continue
            values = self._every(number, share.values[number])
            steps = np.asarray(values[self._filled] - was, np.float64)
            parts = self._parts[self._filled]
            change, changed_by = (np.asarray(a - was, np.float64) for a in (wanted, near))
            if not close(np.tensordot(parts, steps, 1), change, changed_by):
                kinds.discard("mean")
            if not close(steps.sum(0), change, changed_by):
                kinds.discard("sum")
            if wanted.dtype.kind not in "fV":
                kinds.discard("mean")
        if not kinds:
            name = self._names.get(id(self._step.variables[number]))
            before, whole, _, _, share, _ = looks[0]
            values = self._every(number, share.values[number])
            raise ModelError(
                f"The variable {name or self._step.variables[number].name!r} becomes "
                f"{few(whole.values[number])} after a step on {self._count} rows, from "
                f"{few(before[number])}. On shares of them it becomes "
                f"{' and '.join(map(few, values[:3]))}, whose mean over rows or sum that is not. "
                f"{_REMEDY}"
            )
        return kinds

    def _every(self, number: int, value: np.ndarray) -> np.ndarray:
        """What a variable is after each part."""
        return self._gathered(value)

    def _in_the_end(self, number: int, value: np.ndarray) -> np.ndarray:
        """What it is after the step."""
        return value

    def _depends_on_rows(self, number: int) -> bool:
        """Whether a variable is known to be computed from rows."""
        return False

    def _gathered(self, value: Any) -> np.ndarray:
        return self._communicator.allgather(tf.convert_to_tensor(value[None])).numpy()

    def _is_rows(self, number: int, look: Look) -> bool:
        """Whether what is returned may have a row for each row."""
        wanted, found = (after.ran.returned[number] for after in (look.whole, look.share))
        lengths = self._count, max(self._size, 1)
        return np.ndim(wanted) > 0 and (len(wanted), len(found)) == lengths

    def _all_rows(self, number: int, look: Look) -> np.ndarray:
        mine = tf.convert_to_tensor(look.share.ran.returned[number][: self._size])
        return self._communicator.allgather(mine).numpy()

    def _kind_of_returned(self, number: int, looks: list[Look]) -> bool:
        """Whether it has a row for each row; else it is a mean over rows, or a metric's result."""
        if number in self._step.returned.results:
            return False
        is_rows = all(self._is_rows(number, look) for look in looks)
        for look in looks:
            wanted, near = (a.ran.returned[number] for a in (look.whole, look.moved))
            if is_rows:
                found = self._all_rows(number, look)
            else:
                values = self._gathered(look.share.ran.returned[number])
                found = np.tensordot(
                    self._parts[self._filled], np.asarray(values[self._filled], np.float64), 1
                )
                if wanted.dtype.kind not in "fV" and (values == values[0]).all():
                    found = values[0]
            if found.shape != wanted.shape or not close(found, wanted, near):
                raise ModelError(
                    f"Value {number} that the step returns is {few(wanted)} on {self._count} rows "
                    f"and {few(found)} as the mean over shares of them. Return means over rows, "
                    "results of metrics, or one row for each row."
                )
        return is_rows


def _require_same_again(returned: list[Any], again: list[Any]) -> None:
    """Refuse a step that computes something else for the same rows each time."""
    for a, b in zip(returned, again, strict=True):
        if np.shape(a) != np.shape(b) or not close(b, a, a):
            raise ModelError(
                f"The step returns {few(a)} once and {few(b)} another time for the same rows and "
                "the same state of all variables: something in it draws from a generator of its "
                "own. Draw with keras.random and a keras.random.SeedGenerator, or train on one "
                "worker."
            )


def rows_of(arrays: Sequence[Tensor]) -> int:
    """How many rows a mini-batch has."""
    return next(len(array) for array in arrays if array.shape.rank)


def share_of_rows(arrays: Sequence[Tensor], first: int, size: int) -> list[Tensor]:
    """Some rows; one of zeros where there are none, whose step takes part in the others'."""
    shares = [array[first : first + size] if array.shape.rank else array for array in arrays]
    return [
        tf.zeros([1, *share.shape[1:]], share.dtype) if share.shape.rank and size == 0 else share
        for share in shares
    ]


def _variable(weight: Any) -> Any:
    return weight.value if isinstance(weight, keras.Variable) else weight


def sketches(gradients: Sequence[Tensor]) -> list[np.ndarray]:
    """What tells gradients apart."""
    return [sketch(gradient, tf.float64).numpy() for gradient in gradients]


def of_variable(variable: Any) -> np.ndarray:
    """Its value, or a sketch of it: float64, so that small changes of it are seen."""
    if not variable.dtype.is_floating or is_small(variable):
        return variable.numpy()
    return sketch(variable, tf.float64).numpy()


def _factors(value: np.ndarray, part: float, seed: int) -> np.ndarray:
    return factors(value.shape, part, seed).astype(value.dtype)


def _bytes(value: np.ndarray) -> memoryview:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def restore(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Let variables be what they were."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _alike(found: np.ndarray, wanted: np.ndarray, was: np.ndarray) -> bool:
    """Whether an update is the same, all in all."""
    if not np.issubdtype(wanted.dtype, np.floating) and wanted.dtype.kind != "V":
        return np.array_equal(found, wanted)
    found, wanted, was = (np.asarray(a, np.float64) for a in (found, wanted, was))
    if not np.isfinite(wanted).all():
        return True
    rounding = 2.0**-20 * np.linalg.norm(was)
    change = np.linalg.norm(wanted - was)
    apart = float(np.linalg.norm(found - wanted))
    return apart <= max(_OF_AN_UPDATE * float(change), float(rounding), 1e-12)
