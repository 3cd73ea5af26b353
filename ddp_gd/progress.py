"""One line an epoch, where there is no terminal to draw Keras's bar on."""

from __future__ import annotations

import time
from collections.abc import Mapping

import keras
import numpy as np


class EpochLines(keras.callbacks.Callback):
    """Prints every epoch's logs, with digits enough to compare two runs by."""

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Print the line."""
        milliseconds = (time.perf_counter() - self._began) * 1000 / self.params["steps"]
        # F1Score, for one, has a number for each class.
        values = [
            f"{name}: {value}" if np.ndim(value) else f"{name}: {value:.7g}"
            for name, value in (logs or {}).items()
        ]
        parts = [
            f"Epoch {epoch + 1}/{self.params['epochs']}",
            f"{milliseconds:.3g} ms/step",
            *values,
        ]
        print(" - ".join(parts), flush=True)
