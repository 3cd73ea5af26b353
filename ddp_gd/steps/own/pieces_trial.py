"""One try of a user's step: some rows, whole and in micro-batches, compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from ddp_gd.steps.own.own_step import Ran
from ddp_gd.steps.own.points import InPasses
from ddp_gd.steps.own.trial import After, Look, Trial, of_variable, share_of_rows, sketches

Tensor = Any


class PiecesTrial(Trial):
    """One set of rules, tried on micro-batches, by each worker on all of them.

    What depends on rows has an entry for each micro-batch, and one for what the update leaves; the
    rest is what that leaves.
    """

    _step: InPasses

    def _cut(self) -> None:
        some = max(1, self._count // 3)
        self._cuts = [(0, some), (some, self._count - some)]
        self._parts = np.array([size for _, size in self._cuts]) / self._count
        self._filled = self._parts > 0

    def _same(self, share: After) -> list[bool]:
        # A counter may be written together with what depends on rows.
        return [
            not self._depends_on_rows(n)
            or (value.dtype.kind in "iu" and bool((value == value[0]).all()))
            for n, value in enumerate(share.values)
        ]

    def _run_parts(self, begin: Callable[[], None]) -> After:
        step = self._step
        known: dict[int, list[Tensor]] = {}
        values: dict[int, np.ndarray] = {}
        returned: dict[int, Any] = {}
        for number, traced in enumerate(step.passes):
            given = [known[n] for n in step.known[number]]
            written = [n for n, of in step.of_rows.items() if of == number]
            parts = []
            for first, size in self._cuts:
                begin()
                rows = share_of_rows(self._rows, first, size)
                found, points, _ = traced.traced(rows, first, size, self._count, given)
                parts.append((found, points, [of_variable(step.variables[n]) for n in written]))
            for n in step.gives[number]:
                put = tf.concat if step.points[n].joined else _sum
                columns = zip(*(points[n] for _, points, _ in parts), strict=True)
                known[n] = [put(list(column), 0) for column in columns]
            for n, *lefts in zip(written, *(left for _, _, left in parts), strict=True):
                values[n] = np.stack(lefts)
            for n, of in step.returned_of_rows.items():
                if of == number:
                    returned[n] = [found[n].numpy() for found, _, _ in parts]
        begin()
        given = [known[n] for n in range(len(step.points))]
        one = share_of_rows(self._rows, 0, 1)
        left, _, gradients = step.update.traced(one, 0, 1, self._count, given)
        after = self._values()
        for n, of_parts in values.items():
            after[n] = np.concatenate([of_parts, after[n][None]])
        ran = Ran(
            [returned.get(n, value.numpy()) for n, value in enumerate(left)],
            sketches(gradients),
            tf.constant(True),
        )
        return After(ran, after)

    def _every(self, number: int, value: np.ndarray) -> np.ndarray:
        if self._depends_on_rows(number):
            return value[:-1]
        return np.stack([value] * len(self._parts))

    def _in_the_end(self, number: int, value: np.ndarray) -> np.ndarray:
        return value[-1] if self._depends_on_rows(number) else value

    def _depends_on_rows(self, number: int) -> bool:
        return number in self._step.of_rows

    def _is_rows(self, number: int, look: Look) -> bool:
        wanted, found = (after.ran.returned[number] for after in (look.whole, look.share))
        if number not in self._step.returned_of_rows or np.ndim(wanted) == 0:
            return False
        return len(wanted) == self._count and [len(f) for f in found] == [
            size for _, size in self._cuts
        ]

    def _all_rows(self, number: int, look: Look) -> np.ndarray:
        return np.concatenate(look.share.ran.returned[number])

    def _gathered(self, value: Any) -> np.ndarray:
        return np.stack(value if isinstance(value, list) else [value] * len(self._parts))


def _sum(values: list[Tensor], axis: int) -> Tensor:
    return tf.add_n(values)
