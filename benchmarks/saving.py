"""What a checkpoint every second costs: python -m benchmarks.saving, in the set-up environment.

The CNN of the benchmark with and without checkpoints in turns, in one process, or in those that
mpirun starts on this host; prints the median of the pairs' ratios and its interval.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import ddp_gd
from benchmarks.bench import interval
from benchmarks.keras_models import EpochSeconds, untrained
from benchmarks.workloads import WORKLOADS

# Many short pairs: the speed of a shared machine changes from one minute to the next.
PAIRS = 21
EPOCHS = 5  # about three seconds


def main() -> None:
    """Measure."""
    ddp_gd.init()
    workload = WORKLOADS["cnn"]
    x, y = workload.data()
    # The same on all workers, of which rank 0 writes.
    folder = Path(tempfile.gettempdir(), f"ddp_gd-saving-{os.getppid()}")
    ratios = []
    for number in range(PAIRS):
        seconds = {}
        for saves in (False, True) if number % 2 else (True, False):
            model = untrained("cnn", workload)
            model.compile("sgd", "sparse_categorical_crossentropy")
            clock = EpochSeconds()
            checkpoint = ddp_gd.Checkpoint(folder / str(number), every_seconds=1) if saves else None
            ddp_gd.fit(
                model,
                x,
                y,
                batch_size=workload.batch_size,
                epochs=EPOCHS,
                verbose=0,
                callbacks=[clock],
                checkpoint=checkpoint,
            )
            seconds[saves] = sum(clock.seconds)
        ratios.append(seconds[True] / seconds[False])
        if ddp_gd.rank() == 0:
            print(f"{seconds[False]:.2f} s without, {seconds[True]:.2f} s with", flush=True)
    if ddp_gd.rank() == 0:
        shutil.rmtree(folder)
        middle, low, high = interval(ratios)
        print(
            f"with a checkpoint every second {middle:.3f} times as long ({low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
