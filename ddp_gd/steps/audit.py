"""Some micro-batches of a step computed once more, and compared before the update is made.

Both the worker whose micro-batch it is and the one that audits it take a checksum of 64 bits over
all bytes of each tensor that it gives. What the workers compare is one number: the sum of all
checksums of owners, less that of auditors, each mixed with the micro-batch's number so that no two
errors cancel out. It rides on the step's flags: zero is the sum of equal ones alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from ddp_gd.batching.plan import block
from ddp_gd.steps.reduction import CanonicalTree, Function, Summands

Tensor = Any
# A sum of so many bytes of each worker's is exact in float32, as flags are summed.
_BYTES = 8


class Given(NamedTuple):
    """What one worker does for the audit of one step."""

    places: Tensor  # bool: which micro-batches of its share another worker computes, too
    numbers: Tensor  # int32: of the micro-batches that it computes once more
    row_offsets: Tensor  # int32: where the rows of each begin, and the end
    rows: list[Tensor]  # one after the other, perhaps among those of other steps


class Checks(NamedTuple):
    """What one worker found: a line of int64 for each micro-batch.

    First its number, then the checksum of its rows, then one of each tensor that it gives.
    """

    own: Tensor
    again: Tensor


class Found(NamedTuple):
    """What the audit of a step leaves."""

    differs: Tensor  # bool: whether some micro-batch does
    checks: list[Checks]  # of each function that was reduced
    totals: Tensor  # what the last function was given beside weights and rows: see `micro_batch`
    met: Any


class Audit:
    """In the place of a `CanonicalTree`, for the reductions of one step.

    Args:
        tree: reduces.
        given: what this worker does.

    Attributes:
        checks: what it found, of each function that was reduced.
    """

    def __init__(self, tree: CanonicalTree, given: Given):
        self._tree = tree
        self._size = tree.size
        self._given = given
        self._differ: list[Tensor] = []
        self.checks: list[Checks] = []

    @property
    def differs(self) -> Tensor:
        """Whether some micro-batch of the step does, on any worker."""
        return tf.reduce_any(tf.stack(self._differ))

    def __call__(self, summands: Summands) -> tuple[Any, Any, Tensor, Tensor]:
        """Reduce, see `CanonicalTree`."""
        communicator = self._tree.communicator
        first, _ = block(summands.micro_batches, communicator.size, communicator.rank)
        watched = _Watched(summands.function, self._size, first, self._given.places)
        own, (pieces, mine) = self._tree.nodes(summands._replace(function=watched))
        own = [(sums, parts) for sums, (parts, _) in own]
        again = self._again(summands, mine if communicator.size == 1 else None)
        self.checks.append(Checks(mine, again))
        asked = summands.flags(own)
        numbers = tf.concat([asked, _as_flags(_mixed(mine) - _mixed(again))], 0)
        sums, pieces, numbers, all_numbers = self._tree.combine(summands, own, pieces, numbers)
        self._differ.append(tf.not_equal(_from_flags(all_numbers[-_BYTES:]), 0))
        return sums, pieces, asked, all_numbers[:-_BYTES]

    def _again(self, summands: Summands, after: Tensor | None) -> Tensor:
        """Compute micro-batches of others, one after the other; return their checks.

        Args:
            summands: what is to be computed.
            after: begin when this is there, so that one process computes at another time.
        """
        _, numbers, row_offsets, rows = self._given
        first = tf.constant(0) if after is None else tf.minimum(tf.shape(after)[0], 0)

        def one(place: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
            begin, end = row_offsets[place], row_offsets[place + 1]
            mine = [leaf[begin:end] for leaf in rows]
            number = numbers[place]
            result = summands.of(mine, number * self._size, end - begin)
            return place + 1, tf.concat([found, checksums(number, mine, result)], 0)

        columns = width(summands.function)
        _, found = tf.while_loop(
            lambda place, _: place < tf.size(numbers),
            one,
            (first, tf.zeros([0, columns], tf.int64)),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, columns])),
            parallel_iterations=1,
        )
        return found


class _Watched:
    """A function that also gives the checks of the micro-batches that are audited, as a piece."""

    def __init__(self, function: Function, size: int, first: int, places: Tensor):
        self._function = function
        self._size = size
        self._first = first  # number of this worker's first micro-batch
        self._places = places
        sums, pieces = function.structured_outputs
        self._columns = width(function)
        checks = tf.TensorSpec([None, self._columns], tf.int64)
        self.structured_outputs = sums, (pieces, checks)

    def __call__(self, *arguments: Any) -> tuple[Any, Any]:
        _, rows, place = arguments[:3]
        result = sums, pieces = self._function(*arguments)
        number = place.first // self._size
        checks = tf.cond(
            self._places[number - self._first],
            lambda: checksums(number, rows, result),
            lambda: tf.zeros([0, self._columns], tf.int64),
        )
        return sums, (pieces, tf.ensure_shape(checks, [None, self._columns]))


def width(function: Function) -> int:
    """Columns of its checks."""
    return 2 + len(tf.nest.flatten(function.structured_outputs))


def checksums(number: Tensor, rows: list[Tensor], result: Any) -> Tensor:
    """The line of `Checks` of one micro-batch, shape (1, columns)."""
    of_rows = _mixed(tf.stack([_checksum(leaf) for leaf in rows])[None])
    values = [_checksum(tensor) for tensor in tf.nest.flatten(result)]
    return tf.stack([tf.cast(number, tf.int64), of_rows, *values])[None]


def _checksum(tensor: Tensor) -> Tensor:
    """64 bits over all bytes of a tensor: FarmHash's Fingerprint64, int64 scalar."""
    return _mixed(tf.reshape(tensor, [1, -1]))


def _mixed(lines: Tensor) -> Tensor:
    """The sum, modulo 2**64, of a checksum of each line."""
    return tf.reduce_sum(tf.bitcast(tf.fingerprint(lines), tf.int64))


def _as_flags(number: Tensor) -> Tensor:
    return tf.cast(tf.bitcast(number, tf.uint8), tf.float32)


def _from_flags(numbers: Tensor) -> Tensor:
    """The sum, modulo 2**64, of what `_as_flags` made of it before they were summed."""
    places = tf.constant([1 << 8 * byte for byte in range(_BYTES)], tf.int64)
    return tf.reduce_sum(tf.cast(numbers, tf.int64) * places)
