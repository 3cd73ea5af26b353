"""Is what a user's step does on shares what it does on the whole? Found out on real rows.

Before the first update the step is run on some rows as it is, and on the workers' shares of them,
and everything that it writes or returns is compared: gradients, weights, the optimizers' state,
metrics. All variables are put back afterwards.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.batching.plan import block
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError
from ddp_gd.steps import graph
from ddp_gd.steps.own.own_step import OwnRules, OwnStep, Ran
from ddp_gd.steps.proof.rounding import close, few

Tensor = Any

# Of all of an update together: an optimizer may make a whole step of what rounding left of nothing.
_OF_AN_UPDATE = 0.05
_REMEDY = (
    "The loss of a step must be a mean over its rows, computed of each row alone (or of all rows, "
    "through ddp_gd.gather_rows); train on one worker otherwise."
)


class _After(NamedTuple):
    """What a run left."""

    ran: Ran
    values: list[np.ndarray]  # of the variables


class _Look(NamedTuple):
    """The same rows, whole and on shares."""

    before: list[np.ndarray]
    whole: _After
    moved: _After  # the whole, with weights moved by some roundings
    share: _After
    same: list[bool]  # of each variable: whether it is the same on all workers afterwards


@dataclasses.dataclass
class OwnProof:
    """Finds out how shares make up the whole of a user's step. Collective.

    Attributes:
        make: traces the step by some rules, on shares, or as it is where they are None.
        communicator: the workers.
        rows: the same on every worker; of what has no rows, numbers.
        names: of variables, by `id` of their `tf.Variable`.
        begin: called with the variables before the step is first run.
    """

    make: Callable[[OwnRules | None], OwnStep]
    communicator: Communicator
    rows: Sequence[Tensor]
    names: dict[int, str]
    begin: Callable[[list[Any]], None] = lambda variables: None

    def prove(self) -> tuple[OwnRules, OwnStep]:
        """Return the rules, and the step by them.

        Raises:
            ModelError: on every worker, where none holds.
            MismatchError: the step is another one on some worker.
        """
        rows = list(self.rows)
        if rows_of(rows) == 1:  # nothing to cut
            rows = [tf.concat([row, row], 0) if row.shape.rank else row for row in rows]
        whole = self.make(None)
        self.begin(whole.variables)
        refused: ModelError | None = None
        for rules in (
            OwnRules(),
            OwnRules(blocks=True),
            OwnRules(met_metrics=True),
            OwnRules(blocks=True, met_metrics=True),
        ):
            step = self.make(rules)
            if refused is None:
                self._require_same_step(step)
            try:
                return _Trial(self, whole, step, rows).rules(rules), step
            except ModelError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def _require_same_step(self, step: OwnStep) -> None:
        words = [operation.type for operation in graph.operations(step.traced)]
        words += [f"{v.dtype}{v.shape}" for v in step.variables]
        digest = hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]
        agree.require_same_facts(self.communicator, {"the training step's graph": digest})


class _Trial:
    """One set of rules, tried."""

    def __init__(self, proof: OwnProof, whole: OwnStep, step: OwnStep, rows: list[Tensor]):
        self._communicator = proof.communicator
        self._names = proof.names
        self._whole, self._step = whole, step
        self._rows, self._count = rows, rows_of(rows)
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
            self._run(self._whole, whole=True)  # so that no state begins at zero
            began = [v.numpy() for v in variables]
            looks = [self._look(began, scale) for scale in (1, 3)]
        finally:
            _restore(variables, first)
        self._require_gradients(looks)
        mean: set[int] = set()
        summed: set[int] = set()
        for number in range(len(variables)):
            kind = self._kind_of_variable(number, looks)
            if kind != "same":
                (mean if kind == "mean" else summed).add(number)
        rows = frozenset(
            n for n in range(len(looks[0].whole.ran.returned)) if self._kind_of_returned(n, looks)
        )
        return dataclasses.replace(tried, mean=frozenset(mean), summed=frozenset(summed), rows=rows)

    def _look(self, began: list[np.ndarray], scale: int) -> _Look:
        variables = self._step.variables
        weights = {id(_variable(w)) for w in self._whole.returned.weights}
        is_weight = [id(v) in weights and v.dtype.is_floating for v in variables]
        before = [scale * b if w else b for b, w in zip(began, is_weight, strict=True)]
        signs = np.random.default_rng(0)
        moved = [
            b * (1 + 2.0**-21 * signs.choice([-1.0, 1.0], b.shape)).astype(b.dtype) if w else b
            for b, w in zip(before, is_weight, strict=True)
        ]
        found = []
        for step, values in (
            (self._whole, before),
            (self._whole, moved),
            (self._whole, before),
            (self._step, before),
        ):
            _restore(variables, values)
            found.append(self._run(step, whole=step is self._whole))
        one, other, again, share = found
        for a, b in zip(one.ran.returned, again.ran.returned, strict=True):
            if np.shape(a) != np.shape(b) or not close(b, a, a):
                raise ModelError(
                    f"The step returns {few(a)} once and {few(b)} another time for the same rows "
                    "and the same state of all variables: something in it draws from a generator "
                    "of its own. Draw with keras.random and a keras.random.SeedGenerator, or train "
                    "on one worker."
                )
        digests = [hashlib.sha256(value.tobytes()).digest() for value in share.values]
        own = tf.constant(np.frombuffer(b"".join(digests), np.uint8).reshape(1, -1, 32))
        every = self._communicator.allgather(own).numpy()  # (workers, variables, 32)
        return _Look(before, one, other, share, list((every == every[0]).all((0, 2))))

    def _run(self, step: OwnStep, whole: bool) -> _After:
        if whole:
            found = step.traced(self._rows, 0, self._count, self._count)
        else:
            own = share_of_rows(self._rows, self._start, self._size)
            found = step.traced(own, self._start, self._size, self._count)
        ran = Ran(*tf.nest.map_structure(lambda t: t.numpy(), tuple(found)))
        return _After(ran, [v.numpy() for v in self._step.variables])

    def _require_gradients(self, looks: list[_Look]) -> None:
        for _, whole, moved, share, _ in looks:
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

    def _kind_of_variable(self, number: int, looks: list[_Look]) -> str:
        """Whether what becomes of it is the same on all workers, a mean over rows, or a sum."""
        kinds = {"same", "mean", "sum"}
        for before, whole, moved, share, same in looks:
            was, wanted, near = (a[number] for a in (before, whole.values, moved.values))
            if same[number] and _alike(share.values[number], wanted, was):
                continue
            kinds.discard("same")
            if wanted.dtype == bool:
                kinds.clear()
                break
            values = self._gathered(share.values[number])
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
            before, whole, _, share, _ = looks[0]
            values = self._gathered(share.values[number])
            raise ModelError(
                f"The variable {name or self._step.variables[number].name!r} becomes "
                f"{few(whole.values[number])} after a step on {self._count} rows, from "
                f"{few(before[number])}. On shares of them it becomes "
                f"{' and '.join(map(few, values[:3]))}, whose mean over rows or sum that is not. "
                f"{_REMEDY}"
            )
        return next(kind for kind in ("same", "mean", "sum") if kind in kinds)

    def _gathered(self, value: np.ndarray) -> np.ndarray:
        return self._communicator.allgather(tf.convert_to_tensor(value[None])).numpy()

    def _kind_of_returned(self, number: int, looks: list[_Look]) -> bool:
        """Whether it has a row for each row; else it is a mean over rows, or a metric's result."""
        if number in self._step.returned.results:
            return False
        is_rows = all(
            np.ndim(whole.ran.returned[number]) > 0
            and len(whole.ran.returned[number]) == self._count
            and len(share.ran.returned[number]) == max(self._size, 1)
            for _, whole, _, share, _ in looks
        )
        for _, whole, moved, share, _ in looks:
            wanted, near = whole.ran.returned[number], moved.ran.returned[number]
            if is_rows:
                mine = tf.convert_to_tensor(share.ran.returned[number][: self._size])
                found = self._communicator.allgather(mine).numpy()
            else:
                values = self._gathered(share.ran.returned[number])
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


def _restore(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
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
