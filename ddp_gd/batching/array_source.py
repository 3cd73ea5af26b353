"""Steps whose rows have numbers, in arrays or elsewhere, by a plan: many of them at a time."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from ddp_gd.batching.arrays import Arrays
from ddp_gd.batching.order import Order
from ddp_gd.batching.plan import Audit, Plan, share_of
from ddp_gd.batching.rows import NumberedRows
from ddp_gd.batching.source import Rows, SameGraph, sampled_rows, warn_of_an_early_end
from ddp_gd.comm.base import Communicator

# Handing less to the reading thread takes longer than reading it.
BYTES_WORTH_A_THREAD = 2**18
BYTES_PER_CALL = 8 * 2**20  # two calls' rows are held at a time
BYTES_TO_FIND_A_ROW = 128  # its place in the order, in the data, in the file: all for a short time
ROWS_NAMED = 20


class ArraySource:
    """The `Source` (see loop.py) of one worker's rows of arrays.

    Args:
        arrays: the rows.
        plan: which rows make up each step of one pass through them.
        communicator: the workers.
        steps_per_epoch: None, or how many steps an epoch has: a pass then lasts over several
            epochs, or ends one early, as in Keras.

    Attributes:
        audit: what is computed once more, or None; to be set before the first epoch.
    """

    def __init__(
        self,
        arrays: Arrays | NumberedRows,
        plan: Plan,
        communicator: Communicator,
        steps_per_epoch: int | None = None,
    ):
        self.plan = plan
        self.signature = arrays.signature
        self.micro_batch_size, self.seed = plan.micro_batch_size, plan.seed
        self.batch_rows, self.marks = plan.step_rows(0), False
        self.audit: Audit | None = None
        self._wanted = steps_per_epoch
        self.steps: int | None = min(plan.steps, steps_per_epoch or plan.steps)
        self._epochs_before = 0
        self._first_epoch: int | None = None
        self._first_step = 0  # of the epoch, in its pass
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

    def has_empty_shares(self, size: int) -> bool:
        """Tell whether, in some step, one of `size` workers has nothing to compute."""
        return self.plan.has_empty_shares(size)

    def describe(self) -> dict[str, str]:
        """What must be the same on every worker, in words."""
        steps = {} if self._wanted is None else {"steps_per_epoch": str(self._wanted)}
        return {"plan": str(self.plan), **steps, **self._arrays.describe()}

    def sample(self) -> list[Any]:
        """Some rows of the first step, the same on every worker."""
        batch_rows = self.plan.step_rows(0)
        count = sampled_rows(batch_rows, self.plan.micro_batch_size, self._size)
        rows = Order(self.plan, 0).rows(np.arange(batch_rows))
        return list(map(tf.convert_to_tensor, self._arrays.take(rows[:count])))

    def reset(self, epochs: int = 0) -> None:
        """Let the next epoch be the one after so many."""
        self._epochs_before, self._first_epoch = epochs, None

    def mark(self, step: int) -> dict[str, str]:
        """Nothing: `describe` tells, and the order is a function of seed and epoch."""
        return {}

    def go_to(self, epoch: int, step: int, mark: Mapping[str, str]) -> bool:
        """Let the next epoch be the one after so many."""
        self.reset(epoch)
        return True

    def begin_epoch(self, epoch: int, first: int) -> None:
        """Take the rows in the order of `epoch`, or of the pass that it belongs to."""
        if self._first_epoch is None:
            self._first_epoch = epoch - self._epochs_before
        wanted = self._wanted or self.plan.steps
        in_a_pass = -(-self.plan.steps // wanted)  # epochs
        number, part = divmod(epoch - self._first_epoch, in_a_pass)
        self._first_step = part * wanted
        self.steps = steps = min(wanted, self.plan.steps - self._first_step)
        self._order = Order(self.plan, self._first_epoch + number)
        if steps < wanted and self._rank == 0:
            warn_of_an_early_end(steps, wanted)

    def end_epoch(self) -> None:
        """Nothing to do: what was read too much is dropped."""

    def start_reading(
        self, first: int, stop: int, same_graph: SameGraph
    ) -> Callable[[], Rows | None]:
        """Begin to read the rows of as many steps as fit into memory twice.

        The smaller last one stands alone where it needs another graph.
        """
        first, stop = first + self._first_step, stop + self._first_step
        stop = min(stop, first + self._most_steps)
        if stop == self.plan.steps and first < (last := stop - 1):
            sizes = self.plan.step_rows(first), self.plan.step_rows(last)
            stop = stop if same_graph(*sizes) else last
        order = self._order
        if (stop - first) * self._step_bytes < BYTES_WORTH_A_THREAD:
            return lambda: self._read(order, first, stop)
        return self._reader.submit(self._read, order, first, stop).result

    def where(self, step: int, batch_rows: int, rank: int) -> str:
        """Name the rows that `rank` computes of a step."""
        part = share_of(batch_rows, self.plan.micro_batch_size, rank, self._size)
        first = (self._first_step + step) * self.plan.batch_size
        return _in_words(self._order.rows(np.arange(first + part.start, first + part.stop)))

    def audited(self, step: int) -> dict[int, tuple[int, int]]:
        """The micro-batches of a step that are audited, each with its `(owner, auditor)`."""
        assert self.audit is not None
        step += self._first_step
        return self.audit.pairs(self._order.epoch, step, self.plan.micro_batches(step))

    def micro_batch(self, step: int, number: int) -> list[Any]:
        """The rows of a micro-batch, whichever worker's it is."""
        positions = self.plan.micro_batch(self._first_step + step, number)
        return _tensors(self._arrays.take(self._order.rows(positions)))

    def close(self) -> None:
        """Let the reading thread end."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, order: Order, first: int, stop: int) -> Rows:
        """This worker's rows of the steps."""
        shares = self.plan.shares(first, stop, self._rank, self._size)
        leaves = _tensors(self._arrays.take(order.rows(shares.positions)))
        if self.audit is None:
            return Rows(shares, leaves)
        again = self.audit.again(self.plan, order.epoch, range(first, stop), self._rank)
        rows = self._arrays.take(order.rows(again.positions))
        return Rows(shares, leaves, again._replace(leaves=_tensors(rows)))


def _tensors(rows: list[np.ndarray]) -> list[Any]:
    """In one copy, by the reading thread: the loop would copy a step's slice when it needs it."""
    with tf.device("/gpu:0" if tf.config.list_logical_devices("GPU") else "/cpu:0"):
        return [tf.identity(tf.convert_to_tensor(leaf)) for leaf in rows]


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
