"""Epochs over the steps of a plan: many steps in each call into TensorFlow."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from .arrays import Arrays
from .comm.base import Communicator
from .errors import NumericsError
from .plan import Plan, Shares
from .shuffle import Order
from .step import Steps

Tensor = Any

# A call into TensorFlow can't be interrupted and shows no progress: it should take about this long,
# so that a progress bar moves at least twice a second and Ctrl-C works.
SECONDS_PER_CALL = 0.3
# Handing less to the reading thread takes longer than reading it.
BYTES_WORTH_A_THREAD = 2**18
BYTES_PER_CALL = 8 * 2**20  # two calls' rows are held at a time
BYTES_TO_FIND_A_ROW = 128  # its place in the order, in the data, in the file: all for a short time


class Loop:
    """One worker's way through the steps of an epoch.

    Args:
        steps: the model's compiled steps.
        arrays: the rows.
        plan: which rows make up each step.
        communicator: the workers.
    """

    def __init__(
        self,
        steps: Steps,
        arrays: Arrays,
        plan: Plan,
        communicator: Communicator,
    ):
        self.steps = steps
        self._arrays = arrays
        self._plan = plan
        self._communicator = communicator
        # Reads the next call's rows while TensorFlow computes this one's.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ddp_gd_reader")
        self._reading: Callable[[], tuple[Shares, list[Tensor]]] | None = None
        self._epoch = 0
        self._pauses: list[int] = []
        self._steps_per_call = 1
        self._measured = False
        first = plan.shares(0, 1, communicator.rank, communicator.size)
        rows = arrays.take(first.positions[:1])
        row_bytes = sum(leaf.nbytes for leaf in rows) + BYTES_TO_FIND_A_ROW
        self._step_bytes = row_bytes * max(len(first.positions), 1)
        self._most_steps = max(1, BYTES_PER_CALL // max(self._step_bytes, 1))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        return self._plan.steps

    def calls(
        self, epoch: int, every_step: bool = False, first: int = 0, pauses: Iterable[int] = ()
    ) -> Iterator[tuple[int, int]]:
        """The epoch's steps in runs `first, stop`, each to be made with `run` before the next.

        Args:
            epoch: counted from 0.
            every_step: one step each, for callbacks that want to see them.
            first: the step to begin with.
            pauses: end a run after every so many steps, counted from the first epoch on.
        """
        self._epoch = epoch
        order = Order(self._plan, epoch)
        self._pauses = [1] if every_step else list(pauses)
        first, stop = self._call_from(first)
        if first == stop:
            return
        reading = self._start_reading(order, first, stop)
        while first < stop:
            self._reading, following = reading, self._call_from(stop)
            if stop < self._plan.steps:
                reading = self._start_reading(order, *following)
            yield first, stop
            first, stop = following

    def run(self, first: int, stop: int, ask_to_stop: bool = False) -> tuple[int, bool]:
        """Make the steps `first` to `stop - 1`, those that `calls` gave last.

        Args:
            first: the first one.
            stop: the first one that is not made.
            ask_to_stop: let all workers stop after this step, or one that they are just making.

        Returns:
            The first step that was not made, the same on every worker if any asked to stop; and
            whether one did.

        Raises:
            NumericsError: on every worker, after the first step whose loss or gradient is not
                finite.
        """
        assert self._reading is not None
        shares, rows = self._reading()
        if ask_to_stop:
            self.steps.ask_to_stop.assign(1)
        began = time.perf_counter()
        attendance = self._communicator.attendance
        part = f"epoch {self._epoch + 1}" if self.steps.training else "an evaluation"
        attendance.where = f"steps {first + 1} to {stop} of {part}"
        with attendance.join(stop - first):
            result = self.steps.run(rows, shares)
            attendance.done += int(result.steps)
        if not result.finite.numpy():
            self._report(first + int(result.steps) - 1, bool(result.share_finite))
        self._pace(stop - first, time.perf_counter() - began)
        return first + int(result.steps), bool(result.stop)

    def _call_from(self, first: int) -> tuple[int, int]:
        """The steps of the call that begins with step `first`; none after the last one."""
        steps = self._plan.steps
        stop = min(first + self._steps_per_call, steps)
        made = self._epoch * steps + first
        for every in self._pauses:
            stop = min(stop, first + every - made % every)
        if stop == steps and first < (last := stop - 1):
            sizes = self._plan.step_rows(first), self._plan.step_rows(last)
            stop = stop if self.steps.same_graph(*sizes) else last
        return first, stop

    def _start_reading(
        self, order: Order, first: int, stop: int
    ) -> Callable[[], tuple[Shares, list[Tensor]]]:
        """Begin to read the rows of the steps; what is returned gives them, or waits for them."""
        if (stop - first) * self._step_bytes < BYTES_WORTH_A_THREAD:
            return functools.partial(self._read, order, first, stop)
        return self._reader.submit(self._read, order, first, stop).result

    def _read(self, order: Order, first: int, stop: int) -> tuple[Shares, list[Tensor]]:
        """This worker's rows of the steps."""
        shares = self._plan.shares(first, stop, self._communicator.rank, self._communicator.size)
        rows = self._arrays.take(order.rows(shares.positions))
        with tf.device("/cpu:0"):
            return shares, [tf.convert_to_tensor(leaf) for leaf in rows]

    def _pace(self, steps: int, seconds: float) -> None:
        """Choose how many steps the next call makes. Workers may differ: calls exchange nothing."""
        if not self._measured:  # the first call also initialises kernels, buffers, connections
            self._measured = True
            return
        wanted = int(steps * SECONDS_PER_CALL / max(seconds, 1e-9))
        self._steps_per_call = max(1, min(wanted, 4 * steps, self._most_steps))

    def _report(self, step: int, share_finite: bool) -> None:
        rank, size = self._communicator.rank, self._communicator.size
        where = self._plan.share(step, rank, size)
        first = step * self._plan.batch_size
        flags = self._communicator.allgather(
            tf.constant([[share_finite, first + where.start, first + where.stop]], tf.int64)
        ).numpy()
        blame = ", ".join(
            f"rank {rank} (its rows: positions {start} to {stop - 1} of the epoch's order)"
            for rank, (finite, start, stop) in enumerate(flags)
            if not finite
        )
        raise NumericsError(
            f"The loss or its gradient is NaN or infinite in epoch {self._epoch + 1}, step "
            f"{step + 1} of {self._plan.steps}, on {blame or 'no single worker: only the sum is'}. "
            "Every worker stopped after this step. Look for NaN or very large values in those "
            "rows, lower the learning rate, or clip the gradient (global_clipnorm)."
        )
