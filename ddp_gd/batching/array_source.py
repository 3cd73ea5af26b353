"""Steps whose rows come out of arrays, by a plan: many of them at a time."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from ddp_gd.batching.arrays import Arrays
from ddp_gd.batching.order import Order
from ddp_gd.batching.plan import Plan, Shares, share_of
from ddp_gd.batching.source import sampled_rows
from ddp_gd.comm.base import Communicator

Tensor = Any

# Handing less to the reading thread takes longer than reading it.
BYTES_WORTH_A_THREAD = 2**18
BYTES_PER_CALL = 8 * 2**20  # two calls' rows are held at a time
BYTES_TO_FIND_A_ROW = 128  # its place in the order, in the data, in the file: all for a short time
ROWS_NAMED = 20


class ArraySource:
    """The `Source` (see loop.py) of one worker's rows of arrays.

    Args:
        arrays: the rows.
        plan: which rows make up each step.
        communicator: the workers.
    """

    def __init__(self, arrays: Arrays, plan: Plan, communicator: Communicator):
        self.plan = plan
        self.signature = arrays.signature
        self._arrays = arrays
        self._rank, self._size = communicator.rank, communicator.size
        self._order = Order(plan, 0)
        # Reads the next call's rows while TensorFlow computes this one's.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ddp_gd_reader")
        first = plan.shares(0, 1, self._rank, self._size)
        rows = arrays.take(first.positions[:1])
        row_bytes = sum(leaf.nbytes for leaf in rows) + BYTES_TO_FIND_A_ROW
        self._step_bytes = row_bytes * max(len(first.positions), 1)
        self._most_steps = max(1, BYTES_PER_CALL // max(self._step_bytes, 1))

    def describe(self) -> dict[str, str]:
        """What must be the same on every worker, in words."""
        return self._arrays.describe()

    def sample(self) -> list[Tensor]:
        """Some rows of the first step, the same on every worker."""
        batch_rows = self.plan.step_rows(0)
        count = sampled_rows(batch_rows, self.plan.micro_batch_size, self._size)
        rows = Order(self.plan, 0).rows(np.arange(batch_rows))
        return list(map(tf.convert_to_tensor, self._arrays.take(rows[:count])))

    def reset(self, epochs: int = 0) -> None:
        """Nothing to do: the order of an epoch depends on nothing before it."""

    def begin_epoch(self, epoch: int, first: int) -> None:
        """Take the rows in the order of `epoch` from now on."""
        self._order = Order(self.plan, epoch)

    def end_epoch(self) -> None:
        """Nothing to do: what was read too much is dropped."""

    def stop_of_call(self, first: int, stop: int, same_graph: Callable[[int, int], bool]) -> int:
        """As many steps as fit into memory twice; the smaller last one in a call of its own where
        it needs another graph."""
        stop = min(stop, first + self._most_steps)
        if stop == self.plan.steps and first < (last := stop - 1):
            sizes = self.plan.step_rows(first), self.plan.step_rows(last)
            stop = stop if same_graph(*sizes) else last
        return stop

    def start_reading(self, first: int, stop: int) -> Callable[[], tuple[Shares, list[Tensor]]]:
        """Begin to read the rows of the steps; what is returned gives them, or waits for them."""
        if (stop - first) * self._step_bytes < BYTES_WORTH_A_THREAD:
            return functools.partial(self._read, self._order, first, stop)
        return self._reader.submit(self._read, self._order, first, stop).result

    def where(self, step: int, batch_rows: int, rank: int) -> str:
        """Name the rows that `rank` computes of a step."""
        part = share_of(batch_rows, self.plan.micro_batch_size, rank, self._size)
        first = step * self.plan.batch_size
        return _in_words(self._order.rows(np.arange(first + part.start, first + part.stop)))

    def _read(self, order: Order, first: int, stop: int) -> tuple[Shares, list[Tensor]]:
        """This worker's rows of the steps."""
        shares = self.plan.shares(first, stop, self._rank, self._size)
        rows = self._arrays.take(order.rows(shares.positions))
        # In one copy, by the reading thread: the loop would copy a step's slice when it needs it.
        with tf.device("/gpu:0" if tf.config.list_logical_devices("GPU") else "/cpu:0"):
            return shares, [tf.identity(tf.convert_to_tensor(leaf)) for leaf in rows]


def _in_words(rows: np.ndarray) -> str:
    """Row numbers, the first few in full."""
    if len(rows) == 0:
        return "none"
    rows = np.sort(rows)
    if len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1:
        return f"{rows[0]} to {rows[-1]}, counted from 0"
    few = ", ".join(map(str, rows[:ROWS_NAMED]))
    more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return f"{few}{more}, counted from 0"
