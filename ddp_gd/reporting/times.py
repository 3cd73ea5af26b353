"""Where the time of each epoch goes, on one worker."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras

from ddp_gd.comm.base import Communicator
from ddp_gd.job import runtime
from ddp_gd.reporting.records import PARTS
from ddp_gd.training.loop import Instrument, Loop


class Times(Instrument):
    """Given to `fit` as a callback, it measures every epoch on this worker.

    - `compute`: in TensorFlow, without the collectives: gradients and updates.
    - `reduction`: in collectives, from when this worker's sums were there to when the sum of all
      workers was: so it includes waiting for slower workers.
    - `data`: waiting for rows that were not read yet when they were needed.
    - `validation`: all of it, reading and collectives included.
    - `other`: Python, callbacks, checks, checkpoints.

    The first epoch includes building TensorFlow's graphs, which counts as `compute`.

    Attributes:
        epochs: of each epoch that has ended: `epoch` (from 1), `learning_rate` at its end,
            `seconds` from its beginning to that of the next one, and the parts of these seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, Any]] = []
        self._row: dict[str, Any] | None = None

    def attach(self, communicator: Communicator, loop: Loop) -> None:
        """Measure this loop from now on; before its first step."""
        self._loop = loop
        self._in_collectives: Callable[[], float] = communicator.measure(runtime.is_bitwise())

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Start the clocks."""
        self._close()
        # All clocks are in here: a checkpoint would bring back numbers that are attributes.
        self._row = {
            "epoch": epoch + 1,
            "validation": 0.0,
            "reduction": -self._in_collectives(),
            "seconds": -time.perf_counter(),
            "compute": -self._loop.seconds_running,
            "data": -self._loop.seconds_waiting,
        }

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Stop the clocks of the training."""
        if self._row is not None:
            self._row["validation"] -= time.perf_counter()
            self._row["reduction"] += self._in_collectives()

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Let them go on."""
        if self._row is not None:
            self._row["validation"] += time.perf_counter()
            self._row["reduction"] -= self._in_collectives()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the learning rate, before a schedule changes it for the next epoch."""
        if self._row is not None:
            rate = keras.ops.convert_to_tensor(self.model.optimizer.learning_rate).numpy()
            self._row["learning_rate"] = float(str(rate))  # 0.01 in float32 is 0.01

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """End the last epoch."""
        self._close()

    def _close(self) -> None:
        """End the epoch: callbacks and checks after its last step are part of it."""
        row, self._row = self._row, None
        if row is None:
            return
        row["seconds"] += time.perf_counter()
        row["reduction"] += self._in_collectives()
        row["compute"] += self._loop.seconds_running - row["reduction"]
        row["data"] += self._loop.seconds_waiting
        row["other"] = row["seconds"] - sum(row[part] for part in PARTS if part != "other")
        self.epochs.append(row)
