"""Steps whose global mini-batches are the items of a data set, proved the same on every worker."""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ddp_gd.batching.items import Items, digest
from ddp_gd.batching.order import Order
from ddp_gd.batching.plan import Plan, Shares, share_of
from ddp_gd.batching.source import Rows, SameGraph
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import DataError, MismatchError

Tensor = Any


class _Read(NamedTuple):
    """What a worker found when it read an item."""

    shares: Shares | None
    rows: list[Tensor]
    digest: bytes
    error: DataError | None

    @property
    def in_words(self) -> str:
        if self.shares is None:
            return f"no mini-batch ({self.error})"
        return f"{self.shares.batch_rows[0]} rows with SHA-256 {self.digest.hex()[:16]}"


class ItemSource:
    """The `Source` (see loop.py) of one worker's rows of a data set's items.

    Every worker reads every item and keeps its share of it. Before the share is used, the workers
    compare what they have read.

    Args:
        items: the data set.
        plan: with items in the place of rows, one in each step: `Plan(items.count, 1, ...)`.
        communicator: the workers.
    """

    def __init__(self, items: Items, plan: Plan, communicator: Communicator):
        self.plan = plan
        self.signature = items.signature
        self.micro_batch_size, self.seed = plan.micro_batch_size, plan.seed
        self.batch_rows = items.rows
        self.steps: int | None = plan.steps
        self._items = items
        self._communicator = communicator
        # Read the next items while TensorFlow computes this one.
        self._readers = ThreadPoolExecutor(items.threads, thread_name_prefix="ddp_gd_reader")
        self._reading: dict[int, Future[_Read]] = {}
        self._numbers = np.arange(0)  # the item of each step
        self._made = 0

    def describe(self) -> dict[str, str]:
        """What must be the same on every worker, in words."""
        return {"plan": str(self.plan), **self._items.describe()}

    def has_empty_shares(self, size: int) -> bool:
        """Any item may have fewer rows than there are workers."""
        return size > 1

    def reset(self, epochs: int = 0) -> None:
        """Let the data set be as after so many epochs."""
        self._items.reset(epochs)

    def begin_epoch(self, epoch: int, first: int) -> None:
        """Begin an epoch: its order of items is a function of seed and epoch."""
        self._items.begin_epoch(first)
        self._numbers = Order(self.plan, epoch).rows(np.arange(self.plan.steps))
        self._made = first

    def end_epoch(self) -> None:
        """Read no more. The data set is told if it was used to the end, as Keras does."""
        for reading in self._reading.values():
            reading.cancel()
        self._reading = {}
        if self._made == self.plan.steps:
            self._items.end_epoch()
        self._made = 0

    def start_reading(
        self, first: int, stop: int, same_graph: SameGraph
    ) -> Callable[[], Rows | None]:
        """Begin to read the item of the step `first`, and some of those after it."""
        for step in range(first, min(first + self._items.ahead, self.plan.steps)):
            if step not in self._reading:
                number = int(self._numbers[step])
                self._reading[step] = self._readers.submit(self._read, number)
        return functools.partial(self._finish, first)

    def where(self, step: int, batch_rows: int, rank: int) -> str:
        """Name the rows that `rank` computes of a step with so many rows."""
        part = share_of(batch_rows, self.plan.micro_batch_size, rank, self._communicator.size)
        return f"{part.start} to {part.stop - 1} of {self._items.name(self._numbers[step])}"

    def close(self) -> None:
        """Let the reading threads end."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _read(self, number: int) -> _Read:
        """Read an item, in a thread of its own."""
        rank, size = self._communicator.rank, self._communicator.size
        try:
            item = self._items.item(number)
        except DataError as error:
            return _Read(None, [], digest([np.array(str(error))]), error)
        leaves = item.take(np.arange(item.rows))
        share = share_of(item.rows, self.plan.micro_batch_size, rank, size)
        shares = Shares(
            positions=np.arange(share.start, share.stop),
            offsets=np.array([0, share.stop - share.start], np.int32),
            batch_rows=np.array([item.rows], np.int32),
            starts=np.array([share.start], np.int32),
        )
        with tf.device("/cpu:0"):
            rows = [tf.convert_to_tensor(leaf[share.start : share.stop]) for leaf in leaves]
        return _Read(shares, rows, digest(leaves) if size > 1 else b"", None)

    def _finish(self, step: int) -> Rows:
        """Wait for the item of a step, and compare it with the other workers'. Collective.

        Raises:
            DataError: on every worker, where all have read the same that is no mini-batch.
            MismatchError: on every worker, where they have not read the same.
        """
        try:
            read = self._reading.pop(step).result()
            if self._communicator.size > 1:
                self._require_same(step, read)
            if read.shares is None:
                assert read.error is not None
                raise read.error
        except BaseException:
            self.end_epoch()  # what is still to be read would be read before the process can end
            raise
        self._made = step + 1
        return Rows(read.shares, read.rows)

    def _require_same(self, step: int, read: _Read) -> None:
        own = np.frombuffer(read.digest, np.uint8)
        digests = self._communicator.allgather(tf.constant(own[None])).numpy()  # (workers, 32)
        if (digests == digests[0]).all():
            return
        words = agree.gather_json(self._communicator, read.in_words)
        others: dict[str, list[str]] = {}
        for rank, text in enumerate(words):
            others.setdefault(text, []).append(str(rank))
        found = "; ".join(
            f"rank{'s' * (len(ranks) > 1)} {', '.join(ranks)} read {text}"
            for text, ranks in others.items()
        )
        raise MismatchError(
            f"The workers read different mini-batches for "
            f"{self._communicator.attendance.where}, {self._items.name(self._numbers[step])}: "
            f"{found}. Nothing was computed of it. Let every worker read the same: seed what is "
            "drawn at random (Dataset.shuffle(seed=...), or a generator made from a seed, the "
            "epoch and the item's number), and give all of them the same files."
        )
