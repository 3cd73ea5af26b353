"""Epochs over the steps of a source: many steps in each call into TensorFlow."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from ddp_gd.batching.source import Rows, Source
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import NumericsError
from ddp_gd.job import runtime, threads
from ddp_gd.steps import keras_private
from ddp_gd.steps.rules import Options
from ddp_gd.steps.step import Steps
from ddp_gd.training import audit, kept

# A call into TensorFlow can't be interrupted and shows no progress: it should take about this long,
# so that a progress bar moves at least twice a second and Ctrl-C works.
SECONDS_PER_CALL = 0.3


class Loop:
    """One worker's way through the steps of an epoch.

    Args:
        steps: the model's compiled steps.
        source: the rows of each step.
        communicator: the workers.

    Attributes:
        source: the rows of each step.
        seconds_running: how long `run` has been in TensorFlow, collectives included.
        seconds_waiting: how long it has waited for rows.
        logs: what the last step returned, if that is not the model's metrics.
    """

    def __init__(self, steps: Steps, source: Source, communicator: Communicator):
        self.steps = steps
        self.source = source
        self._communicator = communicator
        self._rows: Rows | None = None
        self._what = ""
        self._before = 0
        self._every = 0
        self._pauses: list[int] = []
        self._steps_per_call = 1
        self._measured = False
        self.seconds_running = 0.0
        self.seconds_waiting = 0.0
        self.logs: dict[str, Any] = {}

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of the epoch that was begun last, or of the first; None where nobody knows."""
        return self.source.steps

    def reset(self, epochs: int = 0) -> None:
        """Call it before the first epoch, with the number of those that a checkpoint spares."""
        self.source.reset(epochs)

    def calls(
        self,
        epoch: int,
        every: int = 0,
        first: int = 0,
        before: int = 0,
        pauses: Iterable[int] = (),
        what: str = "",
    ) -> Iterator[tuple[int, int]]:
        """The epoch's steps in runs `first, stop`, each to be made with `run` before the next.

        Call `end_epoch` when it has ended or was left.

        Args:
            epoch: counted from 0.
            every: end a run after every so many steps of the epoch, for callbacks that want to see
                them; 0 where none does.
            first: the step to begin with.
            before: updates made before this epoch.
            pauses: end a run after every so many updates, those before included.
            what: the epoch in words, for messages; by default its number, counted from 1.

        Raises:
            DataError, MismatchError: what an item of a data set can cause, before it is used.
        """
        self._what = what or f"epoch {epoch + 1}"
        self._before, self._every, self._pauses = before, every, list(pauses)
        self.source.begin_epoch(epoch, first)
        reading = self._start_reading(first)
        while reading is not None:
            self._communicator.attendance.where = f"step {first + 1} of {self._what}"
            began = time.perf_counter()
            self._rows = reading()
            self.seconds_waiting += time.perf_counter() - began
            if self._rows is None:
                return
            stop = first + len(self._rows.shares.batch_rows)
            reading = self._start_reading(stop)
            yield first, stop
            first = stop

    def end_epoch(self) -> None:
        """Call it after the last call of `run` of an epoch."""
        self.source.end_epoch()

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
            AuditError: on every worker, before the first update of which a worker computed
                something wrong.
            NumericsError: on every worker, after the first step whose loss or gradient is not
                finite.
        """
        assert self._rows is not None
        (shares, rows, again), self._rows = self._rows, None
        attendance = self._communicator.attendance
        which = f"step {stop}" if stop == first + 1 else f"steps {first + 1} to {stop}"
        attendance.where = f"{which} of {self._what}"
        if ask_to_stop:
            self.steps.ask_to_stop.assign(1)
        began = time.perf_counter()
        with attendance.join(stop - first):
            result = self.steps.run(rows, shares, again)
            attendance.done += int(result.steps)
        self.logs = dict(zip(self.steps.log_names, result.logs, strict=True))
        last = int(result.steps) - 1
        rows_of_last = int(shares.batch_rows[last])
        if result.audit and result.audit.differs.numpy():
            self.source.end_epoch()
            raise audit.error(
                self._communicator,
                self.source,
                self.steps,
                result.audit,
                first + last,
                rows_of_last,
                self._what,
            )
        if not result.finite.numpy():
            self._report(first + last, rows_of_last, bool(result.share_finite))
        seconds = time.perf_counter() - began
        self.seconds_running += seconds
        self._pace(stop - first, seconds)
        return first + int(result.steps), bool(result.stop)

    def _start_reading(self, first: int) -> Callable[[], Rows | None] | None:
        """Begin to read the rows of the call that begins with step `first`, if there is one."""
        stop = first + self._steps_per_call
        if self.source.steps is not None:
            stop = min(stop, self.source.steps)
        if self._every:
            stop = min(stop, first + self._every - first % self._every)
        made = self._before + first
        for every in self._pauses:
            stop = min(stop, first + every - made % every)
        if first >= stop:
            return None
        return self.source.start_reading(first, stop, self.steps.same_graph)

    def _pace(self, steps: int, seconds: float) -> None:
        """Choose how many steps the next call makes.

        Workers may differ: where a call makes several, no call exchanges anything of its own.
        """
        if not self._measured:  # the first call also initialises kernels, buffers, connections
            self._measured = True
            return
        wanted = int(steps * SECONDS_PER_CALL / max(seconds, 1e-9))
        # Not from one step to thousands: it may have been an odd one. Nor back to few, because the
        # last of an epoch were few.
        most = 4 * max(steps, self._steps_per_call)
        self._steps_per_call = max(1, min(wanted, most))

    def _report(self, step: int, batch_rows: int, share_finite: bool) -> None:
        self.source.end_epoch()
        finite = self._communicator.allgather(tf.constant([share_finite], tf.int64)).numpy()
        blame = ", ".join(
            f"rank {rank} (its rows: {self.source.where(step, batch_rows, rank)})"
            for rank in range(self._communicator.size)
            if not finite[rank]
        )
        raise NumericsError(
            f"The loss or its gradient is NaN or infinite in {self._what}, step {step + 1}"
            f"{'' if self.source.steps is None else f' of {self.source.steps}'}, on "
            f"{blame or 'no single worker: only the sum is'}. "
            "Every worker stopped after this step. Look for NaN or very large values in those "
            "rows, lower the learning rate, or clip the gradient (global_clipnorm)."
        )


class Instrument(keras.callbacks.Callback):
    """A callback that measures a loop, or writes down what it does."""

    def attach(self, communicator: Communicator, loop: Loop) -> None:
        """Get to know the loop, before its first step."""
        raise NotImplementedError


def open_loop(
    communicator: Communicator,
    model: keras.Model,
    source: Source,
    stop_on_nan: bool = True,
    *,
    training: bool,
    fresh: bool = True,
) -> Loop:
    """Compile the model's steps for the rows of `source`, unless they are. Collective.

    The model's variables must be the same on every worker.

    Args:
        communicator: the workers.
        model: compiled and built.
        source: of the rows.
        stop_on_nan: stop after a step whose loss or gradient isn't finite.
        training: or evaluation.
        fresh: compile them in any case, and keep them for no other call.

    Raises:
        ModelError: the model can't be trained like this.
    """
    if model.run_eagerly and keras_private.overrides(model, training) and communicator.rank == 0:
        warnings.warn(
            f"{type(model).__name__} was compiled with run_eagerly=True, and its own step runs in "
            "a graph here: what it prints is printed once, and it can't call numpy(). To look "
            "into it, use model.fit on one worker.",
            stacklevel=6,
        )
    options = Options(
        training,
        source.micro_batch_size,
        source.has_empty_shares(communicator.size),
        threads.inter_op_threads() if runtime.is_bitwise() else 0,
        stop_on_nan,
    )

    def make() -> Steps:
        return Steps(model, communicator, source.signature, source.sample(), options)

    if fresh:
        return Loop(make(), source, communicator)
    steps = kept.steps_of(communicator, model, source.signature, options, make)
    return Loop(steps, source, communicator)
