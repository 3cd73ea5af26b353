"""How the sums of a step's micro-batches become one sum over all workers.

`AllReduce` adds a worker's micro-batches one after the other and lets the backend add the workers'
sums, in whatever order is fastest: equal to rounding at any number of workers.

`CanonicalTree` adds them all in the order of one binary tree (`tree.py`), which depends on the
number of micro-batches alone: equal to the last bit. Several micro-batches are computed at once.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from ddp_gd.batching.plan import block
from ddp_gd.comm.base import Communicator
from ddp_gd.steps import tree
from ddp_gd.steps.rules import Options

Tensor = Any
_BUCKET = 2**25  # bytes of a worker's gradient that the canonical tree exchanges at once


class Function(Protocol):
    """What is to be summed: of one micro-batch, `(sums, pieces)`.

    `sums` are added, `pieces` are joined along axis 0 in the order of micro-batches; both are
    structures of tensors.
    """

    structured_outputs: Any

    def __call__(self, *arguments: Any) -> tuple[Any, Any]:
        """Compute one micro-batch."""
        ...


# Called with the rows of a micro-batch, the first one's place in the global mini-batch, and how
# many are real: 0 where a row stands for none.
Arguments = Callable[[list[Tensor], Tensor, Tensor], tuple]
# Numbers that a worker gives whatever its share, float32, from its own (sums, pieces).
Flags = Callable[[list[tuple[Any, Any]]], Tensor]


def no_flags(_: list[tuple[Any, Any]]) -> Tensor:
    """None."""
    return tf.zeros([0])


class Summands(NamedTuple):
    """What is to be summed over the micro-batches of all workers."""

    function: Function
    arguments: Arguments  # the function's, for a micro-batch
    share: list[Tensor]  # this worker's rows
    start: Tensor  # the first one's place in the global mini-batch
    micro_batches: int  # how many the step has
    flags: Flags = no_flags

    def of(self, rows: list[Tensor], first: Tensor, count: Tensor) -> tuple[Any, Any]:
        """Compute a micro-batch."""
        return self.function(*self.arguments(rows, first, count))


class AllReduce:
    """Sums equal to rounding at any number of workers.

    Args:
        communicator: the workers.
        micro_batch_size: rows of a micro-batch; None makes the share one.
        empty_shares: whether some worker's share may be empty.
    """

    def __init__(
        self, communicator: Communicator, micro_batch_size: int | None, empty_shares: bool
    ):
        self._communicator = communicator
        self._size = micro_batch_size
        self._empty_shares = empty_shares

    def __call__(self, summands: Summands) -> tuple[Any, Any, Tensor, Tensor]:
        """Return sums and pieces of all workers; this worker's flags; the sum of all flags."""
        if self._size is None:
            sums, pieces = self._whole_share(summands)
        else:
            sums, pieces = self._loop(summands, self._size)
        mine = summands.flags([(sums, pieces)])
        if self._communicator.size == 1:
            return sums, pieces, mine, mine
        *added, all_flags = self._communicator.allreduce_sum([*tf.nest.flatten(sums), mine])
        joined = tf.nest.map_structure(self._communicator.allgather, pieces)
        return tf.nest.pack_sequence_as(sums, added), joined, mine, all_flags

    def _whole_share(self, summands: Summands) -> tuple[Any, Any]:
        """Compute a share at once. An empty one, too: other workers wait for its statistics."""
        count = tf.shape(summands.share[0])[0]
        if not self._empty_shares:
            return summands.of(summands.share, summands.start, count)
        empty = tf.equal(count, 0)
        rows = one_row_at_least(summands.share, empty)
        sums, pieces = summands.of(rows, summands.start, count)
        # Not times 0: what a row of zeros leads to may be NaN.
        sums = tf.nest.map_structure(lambda t: tf.where(empty, tf.zeros_like(t), t), sums)
        pieces = tf.nest.map_structure(lambda t: t[: tf.where(empty, 0, tf.shape(t)[0])], pieces)
        return sums, pieces

    def _loop(self, summands: Summands, size: int) -> tuple[Any, Any]:
        rows = tf.shape(summands.share[0])[0]

        def add(number: Tensor, sums: Any, pieces: Any) -> tuple[Tensor, Any, Any]:
            first = number * size
            count = tf.minimum(size, rows - first)
            piece = [array[first : first + count] for array in summands.share]
            more = summands.of(piece, summands.start + first, count)
            return number + 1, _add(sums, more[0]), _join([pieces, more[1]])

        sums, pieces = summands.function.structured_outputs
        _, sums, pieces = tf.while_loop(
            lambda number, *_: number < -(-rows // size),
            add,
            (
                tf.constant(0),
                tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), sums),
                tf.nest.map_structure(_no_rows, pieces),
            ),
            shape_invariants=(
                tf.TensorShape([]),
                tf.nest.map_structure(lambda spec: spec.shape, sums),
                tf.nest.map_structure(lambda spec: tf.TensorShape([None, *spec.shape[1:]]), pieces),
            ),
            parallel_iterations=1,
        )
        return sums, pieces


class CanonicalTree:
    """Sums equal bit for bit at any number of workers.

    A worker adds up the whole nodes that its micro-batches make up. An alltoall gives each worker
    one slice of every node's sum, it finishes the tree for that slice, and an allgather returns the
    whole: the bytes of a ring allreduce where each worker's micro-batches are one node.

    Args:
        communicator: the workers.
        micro_batch_size: rows of a micro-batch.
        lanes: at most so many micro-batches are computed at once; the bits don't depend on it.
    """

    def __init__(self, communicator: Communicator, micro_batch_size: int, lanes: int):
        self.communicator = communicator
        self.size = micro_batch_size
        self._lanes = 1 << (lanes.bit_length() - 1)

    def __call__(self, summands: Summands) -> tuple[Any, Any, Tensor, Tensor]:
        """Sum as `AllReduce` does."""
        own, pieces = self.nodes(summands)
        return self.combine(summands, own, pieces, summands.flags(own))

    def nodes(self, summands: Summands) -> tuple[list[tuple[Any, Any]], Any]:
        """Compute this worker's share: `(sums, pieces)` of each whole node; all of its pieces."""
        worker = _Worker(summands, self.communicator, self.size, self._lanes)
        owned = self._owned(summands.micro_batches)[self.communicator.rank]
        own = [worker.node(node) for node in owned]
        if own:
            return own, _join([pieces for _, pieces in own])
        return own, tf.nest.map_structure(_no_rows, summands.function.structured_outputs[1])

    def combine(
        self, summands: Summands, own: list[tuple[Any, Any]], pieces: Any, mine: Tensor
    ) -> tuple[Any, Any, Tensor, Tensor]:
        """Combine what `nodes` gave with that of all workers, and add up all flags.

        Args:
            summands: what was summed.
            own: of each node.
            pieces: all of this worker's.
            mine: this worker's flags.
        """
        if self.communicator.size == 1:
            return own[0][0], pieces, mine, mine
        micro_batches = summands.micro_batches
        owned = self._owned(micro_batches)
        nodes = [tf.nest.flatten(sums) for sums, _ in own]
        sums, _ = summands.function.structured_outputs
        wanted = tf.nest.flatten(sums)
        if all(owned):  # the flags are some more numbers to sum: on each worker's first node
            for number, tensors in enumerate(nodes):
                tensors.append(mine if number == 0 else tf.zeros_like(mine))
            wanted.append(tf.TensorSpec(mine.shape, tf.float32))
            *total, all_flags = self._finish(nodes, wanted, owned, micro_batches)
        else:
            total = self._finish(nodes, wanted, owned, micro_batches)
            (all_flags,) = self.communicator.allreduce_sum([mine])
        joined = tf.nest.map_structure(self.communicator.allgather, pieces)
        return tf.nest.pack_sequence_as(sums, total), joined, mine, all_flags

    def _owned(self, micro_batches: int) -> list[list[tree.Node]]:
        """The whole nodes that each worker computes."""
        size = self.communicator.size
        return [
            tree.nodes(*block(micro_batches, size, worker), micro_batches) for worker in range(size)
        ]

    def _finish(
        self,
        nodes: list[list[Tensor]],
        specs: list[Any],
        owned: list[list[tree.Node]],
        micro_batches: int,
    ) -> list[Tensor]:
        """Exchange this worker's nodes for all workers' total."""
        total: list[Tensor] = [None] * len(specs)
        before: list[Tensor] = []
        for places in _buckets(specs):
            dtype = specs[places[0]].dtype
            sizes = [specs[i].shape.num_elements() for i in places]
            padding = -sum(sizes) % self.communicator.size
            with tf.control_dependencies(before):  # copies of one bucket at a time
                vectors = [
                    tf.concat(
                        [
                            *(tf.reshape(tensors[i], [-1]) for i in places),
                            tf.zeros([padding], dtype),
                        ],
                        0,
                    )
                    for tensors in nodes
                ]
            width = (sum(sizes) + padding) // self.communicator.size
            vector = self._finish_vector(vectors, width, dtype, owned, micro_batches)
            before = [vector]
            parts = tf.split(vector, [*sizes, padding])
            for i, part in zip(places, parts, strict=False):  # the last one is the padding
                total[i] = tf.reshape(part, specs[i].shape)
        return total

    def _finish_vector(
        self,
        vectors: list[Tensor],
        width: int,
        dtype: tf.DType,
        owned: list[list[tree.Node]],
        micro_batches: int,
    ) -> Tensor:
        size, own = self.communicator.size, len(vectors)
        # (own nodes, length) -> (workers, own nodes, width): to each worker its slice of each node
        if own == 1:  # as it is
            table = vectors[0]
        else:
            table = tf.reshape(
                tf.stack(vectors) if own else tf.zeros([0], dtype), [own, size, width]
            )
            table = tf.transpose(table, [1, 0, 2])
        slices = self.communicator.alltoall(
            tf.reshape(table, [size * own, width]), tf.fill([size], own)
        )
        every_node = [node for nodes in owned for node in nodes]  # slices: (every node, width)
        held = dict(zip(every_node, tf.unstack(slices, num=len(every_node)), strict=True))
        own_slice = tree.fold(tree.root(micro_batches), micro_batches, held, tf.add)
        return tf.reshape(self.communicator.allgather(own_slice[None]), [-1])


class _Worker:
    """Computes this worker's nodes of the tree, `lanes` micro-batches at once."""

    def __init__(self, summands: Summands, communicator: Communicator, size: int, lanes: int):
        self._summands = summands
        self._begin, _ = block(summands.micro_batches, communicator.size, communicator.rank)
        self._size = size
        self._lanes = lanes

    def node(self, node: tree.Node) -> tuple[Any, Any]:
        """Return `(sums, pieces)` of a node whose micro-batches are all this worker's."""
        leaves = self._summands.micro_batches
        start, stop = tree.span(node, leaves)
        groups = (stop - start) // self._lanes
        held, pieces = self._loop(start, groups) if groups > 1 else ({}, [])
        for number in range(start + (groups * self._lanes if groups > 1 else 0), stop):
            sums, piece = self._micro_batch(number)
            held[0, number] = sums
            pieces.append(piece)
        return tree.fold(node, leaves, held, _add), _join(pieces)

    def _loop(self, start: int, groups: int) -> tuple[dict[tree.Node, Any], list[Any]]:
        """Compute groups of `lanes` micro-batches; return the nodes that they make up, and pieces.

        The sums are kept as a binary counter keeps its digits: adding a group to them carries, and
        what stands at a digit is always a whole node, flat; or empty, so that no memory is held.
        """
        sums, pieces = self._summands.function.structured_outputs
        none = tf.nest.map_structure(lambda spec: tf.zeros([0], spec.dtype), sums)
        digits = groups.bit_length()

        def add(group: Tensor, counter: list[Any], joined: Any) -> tuple[Tensor, list[Any], Any]:
            first = start + group * self._lanes
            results = [self._micro_batch(first + lane) for lane in range(self._lanes)]
            held = {(0, lane): sums for lane, (sums, _) in enumerate(results)}
            more = tree.fold(tree.root(self._lanes), self._lanes, held, _add)
            joined = _join([joined, *(pieces for _, pieces in results)])
            return group + 1, _carry(group, more, counter), joined

        _, counter, joined = tf.while_loop(
            lambda group, *_: group < groups,
            add,
            (tf.constant(0), [none] * digits, tf.nest.map_structure(_no_rows, pieces)),
            shape_invariants=(
                tf.TensorShape([]),
                [tf.nest.map_structure(lambda _: tf.TensorShape([None]), sums)] * digits,
                tf.nest.map_structure(lambda spec: tf.TensorShape([None, *spec.shape[1:]]), pieces),
            ),
            parallel_iterations=1,
        )
        held = {}
        group_level = tree.root(self._lanes)[0]
        for digit in reversed(range(digits)):
            if groups >> digit & 1:
                level = group_level + digit
                held[level, start >> level] = _shaped(counter[digit], sums)
                start += 1 << level
        return held, [joined]

    def _micro_batch(self, number: Tensor) -> tuple[Any, Any]:
        number = tf.convert_to_tensor(number)
        start = (number - self._begin) * self._size
        rows = [array[start : start + self._size] for array in self._summands.share]
        return self._summands.of(rows, number * self._size, tf.shape(rows[0])[0])


def reduction(communicator: Communicator, options: Options) -> AllReduce | CanonicalTree:
    """What adds up the micro-batches of such steps."""
    size, lanes = options.micro_batch_size, options.bitwise_lanes
    if not lanes:
        return AllReduce(communicator, size, options.empty_shares)
    assert size is not None
    return CanonicalTree(communicator, size, lanes)


def _buckets(specs: list[Any]) -> Iterator[list[int]]:
    """Places of tensors of one dtype, as many as are exchanged at once."""
    for dtype in sorted({spec.dtype for spec in specs}, key=lambda dtype: dtype.name):
        bucket: list[int] = []
        size = 0
        for place, spec in enumerate(specs):
            if spec.dtype != dtype:
                continue
            if bucket and size + spec.shape.num_elements() * dtype.size > _BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(place)
            size += spec.shape.num_elements() * dtype.size
        yield bucket


def one_row_at_least(share: list[Tensor], empty: Tensor) -> list[Tensor]:
    """A share's rows, or one of zeros where it is empty, so that it takes part in the others'."""

    def one_row(array: Tensor) -> Tensor:
        return tf.zeros(tf.concat([[1], tf.shape(array)[1:]], 0), array.dtype)

    return [
        tf.ensure_shape(tf.cond(empty, lambda a=a: one_row(a), lambda a=a: a), a.shape)
        for a in share
    ]


def _carry(number: Tensor, value: Any, counter: list[Any], digit: int = 0) -> list[Any]:
    """Add a value to a binary counter that has counted `number` of them."""
    flat = tf.nest.map_structure(lambda t: tf.reshape(t, [-1]), value)
    before, after = counter[:digit], counter[digit + 1 :]
    if not after:  # reached once: the counter has digits for all values
        return [*before, flat]

    def carried() -> list[Any]:
        none = tf.nest.map_structure(lambda t: tf.zeros([0], t.dtype), flat)
        total = _add(_shaped(counter[digit], value), value)
        return _carry(number, total, [*before, none, *after], digit + 1)

    return tf.cond(
        tf.equal(tf.bitwise.right_shift(number, digit) & 1, 1),
        carried,
        lambda: [*before, flat, *after],
    )


def _shaped(flat: Any, specs: Any) -> Any:
    return tf.nest.map_structure(lambda t, spec: tf.reshape(t, spec.shape), flat, specs)


def _add(left: Any, right: Any) -> Any:
    return tf.nest.map_structure(tf.add, left, right)


def _join(pieces: list[Any]) -> Any:
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *pieces)


def _no_rows(spec: tf.TensorSpec) -> Tensor:
    return tf.zeros([0, *spec.shape[1:]], spec.dtype)
