"""One of two processes that never talk, each with half the rows: the least a worker could take.

python -m benchmarks.run_alone CONTENDER NUMBER starts with the other one, workload by workload.
"""

import dataclasses
import os
import sys
import time
from pathlib import Path

import ddp_gd
from benchmarks.keras_models import EpochSeconds, build
from benchmarks.workloads import EPOCHS, chosen, record

contender, number = sys.argv[1], int(sys.argv[2])
ddp_gd.init(backend="single")


class StartTogether(EpochSeconds):
    """Waits for the other process before the first epoch that is timed."""

    def __init__(self, name: str):
        super().__init__()
        self._name = name

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Meet, and start the clock."""
        if epoch == 1:
            folder = Path(os.environ["BENCH_FOLDER"])
            (folder / f"{self._name}-{number}.ready").touch()
            while not (folder / f"{self._name}-{1 - number}.ready").exists():
                time.sleep(0.001)
        super().on_epoch_begin(epoch, logs)


for name, whole in chosen().items():
    workload = dataclasses.replace(whole, batch_size=whole.batch_size // 2)
    x, y = workload.data()
    model = build(name, workload)
    clock = StartTogether(name)
    ddp_gd.fit(
        model,
        x,
        y,
        batch_size=workload.batch_size,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    if number == 0:
        record(contender, name, clock.seconds, model.get_weights())
